"""Limits: what clients may take, and what the system lets them."""

from __future__ import annotations

import resource
from collections.abc import Mapping

import attrs
from twisted.logger import Logger

_log = Logger()

#: Descriptors that a connection may need: its own, one to the upstream, a file for its body.
_PER_CONNECTION = 3

#: Descriptors for everything else: ports, logs, tool servers, connections that are being refused.
_BESIDES = 512


@attrs.frozen
class Limits:
    """What clients may take.

    *body*: bytes of a request's body; *bodies*: of those to some paths; *connections*: how many;
    *header_timeout*: seconds for a whole head; *client_timeout*: seconds of silence in a body, or
    between two requests.
    """

    body: int = 1024 * 1024 * 1024
    bodies: Mapping[bytes, int] = attrs.field(factory=dict)
    connections: int = 4096
    header_timeout: float = 30
    client_timeout: float = 75

    def body_to(self, target: bytes) -> int:
        """Bytes that a body to *target* may have."""
        return self.bodies.get(target.partition(b"?")[0], self.body)


def connections_possible(wanted: int) -> int:
    """As many of the connections *wanted* as the process may have descriptors for.

    The soft limit on those is raised if the hard one allows it.
    """
    needed = wanted * _PER_CONNECTION + _BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = max(1, (hard - _BESIDES) // _PER_CONNECTION)
    _log.warn(
        "--max-connections is {possible} instead of {wanted}: only {hard} files may be open",
        possible=possible,
        wanted=wanted,
        hard=hard,
    )
    return possible
