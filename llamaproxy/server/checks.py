"""What the front door checks of a request, and in which order: the first failing check answers.

A request line is checked as soon as it is there, by :func:`llamaproxy.server.framing.request_line`;
every field as soon as it is there, by :class:`llamaproxy.server.head.LineReader`; what a
whole head says, by :data:`HEAD_CHECKS`, of which :data:`SITE_CHECKS` alone are left for a head of
a kind that came before; a body as it comes, for its framing and its length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llamaproxy.errors import BodyTooLarge
from llamaproxy.heads import RequestHead
from llamaproxy.server.framing import RequestRefused, body_length, check_host, expects_continue
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys
from llamaproxy.server.limits import Limits


class Rules(Protocol):
    """What a site serves, and to whom."""

    limits: Limits
    hosts: AllowedHosts
    #: None if clients need no key.
    keys: ApiKeys | None


def host_is_valid(head: RequestHead, rules: object) -> None:
    """400 for a host that is missing, repeated or doubtful."""
    check_host(head)


def host_is_served(head: RequestHead, rules: Rules) -> None:
    """421 for a host that is none of the site's; a client without a host is no browser."""
    hosts = head.by_name.get(b"host")
    if hosts and hosts[0] not in rules.hosts:
        raise RequestRefused(
            421, "This host is not served here (--allowed-hosts names those that are)."
        )


def length_is_valid(head: RequestHead, rules: object) -> None:
    """400 for a body of which it is not certain where it ends; else the head knows its length."""
    head.body_length = body_length(head)


def authorization_is_single(head: RequestHead, rules: object) -> None:
    """400 for two Authorization fields (RFC 9110 section 11.6.2: there is one)."""
    if len(head.by_name.get(b"authorization", ())) > 1:
        raise RequestRefused(400, "The Authorization field is repeated.")


def expectation_is_known(head: RequestHead, rules: object) -> None:
    """417 for an expectation other than 100-continue; else the head knows of it."""
    head.expects_continue = expects_continue(head)


def connection_is_within_limit(head: RequestHead, rules: Rules) -> None:
    """503 for a connection too many."""
    if head.over_limit:
        raise RequestRefused(503, "There are too many connections.", {"Retry-After": "1"})


def key_is_known(head: RequestHead, rules: Rules) -> None:
    """401 or 400 for a body that is sent without a key: nobody else may fill the disk.

    A request without a body is asked for its key when it is served, as that with one is again.
    """
    if rules.keys is not None and head.body_length != 0:
        rules.keys.admit(head)


def body_is_within_limit(head: RequestHead, rules: Rules) -> None:
    """413 for a body that is announced to be larger than the limit of its path."""
    if head.body_length and head.body_length > (limit := rules.limits.body_to(head.path)):
        raise BodyTooLarge(f"The request body is larger than {limit} bytes.")


#: Each raises a :class:`llamaproxy.errors.ProxyError` for a request that is refused.
HEAD_CHECKS: tuple[Callable[[RequestHead, Rules], None], ...] = (
    host_is_valid,
    host_is_served,
    length_is_valid,
    authorization_is_single,
    expectation_is_known,
    connection_is_within_limit,
    key_is_known,
    body_is_within_limit,
)

#: Those of them that go by the head and nothing else: what has passed them is not checked again.
OWN_CHECKS: tuple[Callable[[RequestHead, object], None], ...] = (
    host_is_valid,
    length_is_valid,
    authorization_is_single,
    expectation_is_known,
)

#: The others.
SITE_CHECKS = tuple(check for check in HEAD_CHECKS if check not in OWN_CHECKS)
