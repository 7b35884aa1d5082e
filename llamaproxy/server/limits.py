"""Limits: what clients may take, and what the system lets them."""

from __future__ import annotations

import resource
from collections.abc import Mapping

import attrs
from twisted.logger import Logger

_log = Logger()

#: Descriptors that a connection may need: its own, one to the upstream, a file for its body.
_DESCRIPTORS_PER_CONNECTION = 3

#: Descriptors for everything else: ports, logs, tool servers, connections that are being refused.
_OTHER_DESCRIPTORS = 512


@attrs.frozen(eq=False, repr=False)
class Limits:
    """What clients may take. The first five are options; every time is in seconds."""

    #: Bytes of a request's body; and of those to some paths.
    body: int = 1024 * 1024 * 1024
    bodies: Mapping[bytes, int] = attrs.field(factory=dict)
    #: How many may be connected.
    connections: int = 4096
    #: For a whole head.
    header_timeout: float = 30
    #: Of silence in a body, or between two requests.
    client_timeout: float = 75
    #: For reading what waits for the client, until it is sent more or its connection ends.
    read_timeout: float = 600
    #: How long a refused client may go on sending, and be silent, before it is cut off: nginx's.
    linger_timeout: float = 30
    linger_silence: float = 5
    #: Connections over their limit that are still answered, and for how long each may ask.
    over_limit_connections: int = 256
    over_limit_timeout: float = 5
    #: A client that has closed its side is sent something within this time, or else has left.
    half_closed_timeout: float = 0.5
    #: For which a connection without a request stays open when the daemon stops. A request that is
    #: sent just as its connection is closed is lost, and nobody can tell whether it was acted on
    #: (RFC 9112 section 9.5); so one more is answered, and its answer says "close".
    idle_grace: float = 2

    def body_to(self, target: bytes) -> int:
        """Bytes that the body of a request for *target* may have."""
        return self.bodies.get(target.partition(b"?")[0], self.body)


def connections_possible(requested: int) -> int:
    """As many of the connections *requested* as the process may have descriptors for.

    The soft limit on those is raised if the hard one allows it.
    """
    needed = requested * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return requested
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return requested
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = max(1, (hard - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION)
    _log.warn(
        "--max-connections is {possible} instead of {requested}: only {hard} files may be open",
        possible=possible,
        requested=requested,
        hard=hard,
    )
    return possible
