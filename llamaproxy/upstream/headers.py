"""Header fields that are forwarded, and those that are not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from llamaproxy.errors import BadRequest
from llamaproxy.heads import KINDS, Fields, RequestHead, SomeFields, members, without

#: RFC 9110 section 7.6.1, plus the obsolete ones that peers still send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: Versions of the client's SDK: the server refuses those that differ from its own (426).
_NEVER_FORWARDED = frozenset({b"x-llamastack-client-version", b"x-ogx-client-version"})

#: The next request's framing and target are written by the HTTP client itself.
_REWRITTEN = frozenset({b"host", b"content-length", b"expect"})

_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})

#: What goes with a chat is written anew: fields about the bytes of its body do not fit the new one
#: (RFC 9110 sections 8.4 and 14.5, RFC 9530), and its answer must be readable here.
BODY_FIELDS = frozenset(
    {
        *(b"content-encoding", b"content-md5", b"content-digest", b"repr-digest", b"digest"),
        *(b"content-range", b"content-type", b"accept-encoding"),
    }
)

#: The same of an answer; and those that would lead a client past the proxy, or that it sets itself.
_RESPONSE_ONLY = BODY_FIELDS | {
    *(b"content-length", b"etag", b"last-modified", b"accept-ranges", b"alt-svc", b"date"),
    *(b"x-request-id", b"location", b"content-location"),
}

_NOT_ANSWERED = HOP_BY_HOP | _RESPONSE_ONLY

#: Set for each request; what is known of its kind is known without it.
_REQUEST_ID = b"x-request-id"

#: What no request is forwarded with.
NOT_FORWARDED = HOP_BY_HOP | _NEVER_FORWARDED | _REWRITTEN | _FORWARDED


#: Asks for an answer that can be read as it comes.
UNCOMPRESSED = (b"Accept-Encoding", b"identity")


class TrustedProxies:
    """The networks of proxies whose ``X-Forwarded-*`` are believed."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network], local: bool = False) -> None:
        """:param local: whether clients of a Unix socket, who have no address, are trusted."""
        self._networks = tuple(networks)
        self._local = local
        # Clients come again; parsing their addresses costs more than all the rest.
        self._is_trusted = lru_cache(maxsize=1024)(self._contains)

    def __contains__(self, client: str | None) -> bool:
        if client is None:
            return self._local
        return bool(self._networks) and self._is_trusted(client)

    def _contains(self, client: str) -> bool:
        try:
            address = ip_address(client)
        except ValueError:
            return False
        # An IPv4 client of a socket that listens on both.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


TRUST_NOBODY = TrustedProxies(())


class WrittenFields(tuple[tuple[bytes, bytes], ...]):
    """Fields of a kind of head, with the *lines* that they are sent as."""

    lines: bytes


def lines_of(fields: SomeFields) -> bytes:
    """The lines that *fields* are sent as.

    :raises BadRequest: if one of them would become two.
    """
    lines = b"\r\n".join(map(b": ".join, fields)) + b"\r\n" if fields else b""
    if len(lines.splitlines()) != len(fields) or b"\0" in lines:
        raise BadRequest("The request's header fields are not valid.")
    return lines


def forwarded_for(
    head: RequestHead,
    client: str | None,
    secure: bool,
    trusted: bool = False,
    dropped: frozenset[bytes] = NOT_FORWARDED,
) -> SomeFields:
    """The fields of a client's request that go to the upstream, and ``X-Forwarded-*``.

    Those have the client's address, the scheme and the host; what the client itself says there is
    replaced unless it is *trusted*. There is no ``Via`` (RFC 9110 section 7.6.3 asks for one):
    nobody reads it, and servers stop compressing for it.

    :param dropped: the names of those that do not go there, at least :data:`NOT_FORWARDED`.
    """
    if head.kind is None:
        kept, added, _ = _forwarded_for(head, client, secure, trusted, dropped)
        return [*kept, *added]
    return _forwarded_of_kind(head.kind, client, secure, trusted, dropped)(head.id)


def _forwarded_for(
    head: RequestHead, client: str | None, secure: bool, trusted: bool, dropped: frozenset[bytes]
) -> tuple[Fields, Fields, bool]:
    """Those of *head*, and those that are added; whether it has no id, and could be given one."""
    by_name = head.by_name
    if options := by_name.get(b"connection"):
        dropped = dropped.union(members(options))
    added: Fields = []
    addresses: list[bytes] = []
    schemes: Sequence[bytes] = ()
    hosts: Sequence[bytes] = ()
    if trusted:
        addresses += by_name.get(b"x-forwarded-for", ())
        schemes = by_name.get(b"x-forwarded-proto", ())
        hosts = by_name.get(b"x-forwarded-host", ())
    if client is not None:
        addresses.append(client.encode("ascii", "replace"))
    if addresses:
        added.append((b"X-Forwarded-For", b", ".join(addresses)))
    for scheme in schemes or (b"https" if secure else b"http",):
        added.append((b"X-Forwarded-Proto", scheme))
    for host in hosts or by_name.get(b"host", ()):
        added.append((b"X-Forwarded-Host", host))
    without_id = _REQUEST_ID not in by_name and _REQUEST_ID not in dropped
    return without(head.fields, dropped), added, without_id


@lru_cache(maxsize=KINDS)
def _forwarded_of_kind(*about: Any) -> Callable[[bytes], SomeFields]:
    """What makes the fields of a request of that kind, given its id."""
    kept, added, without_id = _forwarded_for(*about)

    def of_request(id: bytes) -> Fields:
        return [*kept, (b"X-Request-Id", id), *added] if without_id else [*kept, *added]

    try:
        before, after = lines_of(kept), lines_of(added)
    except BadRequest:  # the client's address is none; it is refused where that would be sent
        return of_request

    def written(id: bytes) -> WrittenFields:
        fields = WrittenFields(of_request(id))
        fields.lines = b"%bX-Request-Id: %b\r\n%b" % (before, id, after) if without_id else both
        return fields

    both = before + after
    return written


def answer_fields(fields: Fields) -> Fields:
    """The fields of the upstream's answer to a chat that its client gets (DESIGN: L8)."""
    return without(fields, _NOT_ANSWERED)
