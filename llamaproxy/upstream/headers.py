"""Which header fields travel on, and which belong to one connection. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

import attrs
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.jsontext import Json

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

#: A mismatch of these is refused by the server (426): they speak of the client's own SDK.
_NEVER_FORWARDED = frozenset({b"x-llamastack-client-version", b"x-ogx-client-version"})

#: The next request's framing and target are written by the HTTP client itself.
_REWRITTEN = frozenset({b"host", b"content-length", b"expect"})

_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})

_NOT_FORWARDED = HOP_BY_HOP | _NEVER_FORWARDED | _REWRITTEN | _FORWARDED

#: Credentials: what one caller's lists and memories are kept apart by (DESIGN: T4).
_CREDENTIALS = (b"authorization", b"x-llamastack-provider-data", b"x-ogx-provider-data")

#: In a field's place, which no field can take: what tells callers apart and is sent to nobody.
_IDENTITY = b""

#: The two spellings of the field for a server's providers; clients may use either.
LLAMA_STACK_PROVIDER_DATA = b"x-llamastack-provider-data"
OGX_PROVIDER_DATA = b"x-ogx-provider-data"

#: Which of its chats Open WebUI asks for (a header that its operator configures).
_CHAT = b"x-openwebui-chat-id"

#: Tracing fields, which travel with everything done for a request but identify nobody.
_TRACING = (b"traceparent", b"tracestate", b"x-request-id")


class TrustedProxies:
    """The networks of proxies that tell the truth in ``X-Forwarded-*``."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network], local: bool = False) -> None:
        """:param local: whether clients of a Unix socket, who have no address, are trusted."""
        self._networks = tuple(networks)
        self._local = local
        # Clients come again; parsing their addresses costs more than all the rest.
        self._known = lru_cache(maxsize=1024)(self._contains)

    def __contains__(self, client: str | None) -> bool:
        if client is None:
            return self._local
        return bool(self._networks) and self._known(client)

    def _contains(self, client: str) -> bool:
        try:
            address = ip_address(client)
        except ValueError:
            return False
        # An IPv4 client of a socket that listens on both.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


TRUST_NOBODY = TrustedProxies(())


def forwarded(headers: Headers) -> Headers:
    """The fields of a client's request that go to the upstream."""
    return _without(headers, _NOT_FORWARDED)


def forwarded_for(
    headers: Headers, client: str | None, secure: bool, trusted: bool = False
) -> Headers:
    """The same, and ``X-Forwarded-*``: who asked, by which scheme, for which host.

    What the client says there itself is not believed unless it is *trusted*. There is no ``Via``
    (RFC 9110 section 7.6.3 asks for one): nobody reads it, and servers stop compressing for it.
    """
    fields = forwarded(headers)
    said = headers.getRawHeaders if trusted else _nothing
    way = list(said(b"x-forwarded-for") or ())
    if client is not None:
        way.append(client.encode("ascii", "replace"))
    if way:
        fields.setRawHeaders(b"X-Forwarded-For", [b", ".join(way)])
    scheme = said(b"x-forwarded-proto") or [b"https" if secure else b"http"]
    fields.setRawHeaders(b"X-Forwarded-Proto", scheme)
    host = said(b"x-forwarded-host") or headers.getRawHeaders(b"host")
    if host:
        fields.setRawHeaders(b"X-Forwarded-Host", host)
    return fields


def _nothing(name: bytes) -> None:
    return None


def _without(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    kept = Headers()
    nominations = headers.getRawHeaders(b"connection")
    if nominations:
        tokens = b",".join(nominations).split(b",")
        dropped = dropped.union(token.strip().lower() for token in tokens)
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in dropped:
            kept.setRawHeaders(name, values)
    return kept


@attrs.frozen
class Caller:
    """On whose behalf something is asked: the fields (DESIGN: T4) of one client request.

    *credentials* are those of them, and an identity, that keep callers apart; *chat* is the
    conversation that the request is part of, empty if it does not say.
    """

    credentials: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    _tracing: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    _tokens: tuple[tuple[str, str], ...] = ()
    chat: str = ""

    @classmethod
    def of(cls, headers: Headers, identity: bytes = b"") -> Caller:
        """The caller who sent *headers*, with a key of that *identity*."""

        def pick(names: Iterable[bytes]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
            return tuple(
                (name, tuple(values)) for name in names if (values := headers.getRawHeaders(name))
            )

        known = ((_IDENTITY, (identity,)),) if identity else ()
        chat = headers.getRawHeaders(_CHAT, [b""])[0].decode("latin-1").strip()
        return cls(known + pick(_CREDENTIALS), pick(_TRACING), chat=chat)

    def headers(self) -> Headers:
        """The fields to send along, and nothing else of the client's."""
        fields = self.credentials + self._tracing
        return Headers({name: list(values) for name, values in fields if name != _IDENTITY})

    @property
    def tracing(self) -> tuple[tuple[str, str], ...]:
        """The fields that identify the request but nobody."""
        return tuple(
            (name.decode(), value.decode("latin-1"))
            for name, values in self._tracing
            for value in values
        )

    def mcp_headers(self, url: str) -> tuple[tuple[str, str], ...]:
        """What is to be sent to the MCP server at *url*, and to nobody else."""
        return tuple(
            (name, value)
            for said, fields in _mcp_headers(self._provider_data()).items()
            if _same_place(said, url)
            for name, value in sorted(fields.items())
        )

    def token(self, url: str) -> str | None:
        """The bare token for the MCP server at *url*, if it has been taken apart."""
        return next((token for said, token in self._tokens if _same_place(said, url)), None)

    @property
    def has_tokens(self) -> bool:
        """Whether there is a token for any MCP server."""
        return bool(self._tokens)

    def translated(self, field: bytes, mcp_headers: str) -> Caller:
        """The caller in a server's own words: provider data in *field*.

        *mcp_headers* tells what becomes of those: ``kept``, ``dropped``, or ``apart``, which takes
        ``Authorization`` out, to be had from :meth:`token`.
        """
        provider_data = self._provider_data()
        rest = tuple(pair for pair in self.credentials if pair[0] not in _PROVIDER_DATA)
        if len(rest) == len(self.credentials):
            return self
        if not provider_data:  # broken JSON is the server's to judge: all ignore it (recorded)
            broken = next(values for name, values in self.credentials if name in _PROVIDER_DATA)
            return attrs.evolve(self, credentials=(*rest, (field, broken)))
        tokens: list[tuple[str, str]] = []
        kept = _mcp_headers(provider_data)
        if mcp_headers == "dropped":
            provider_data.pop("mcp_headers", None)
        elif mcp_headers == "apart" and kept:
            for url, fields in kept.items():
                for name in [name for name in fields if name.lower() == "authorization"]:
                    scheme, _, token = fields.pop(name).strip().partition(" ")
                    bearer = scheme.lower() == "bearer"
                    tokens.append((url, token.strip() if bearer else f"{scheme} {token}".strip()))
            provider_data["mcp_headers"] = {url: each for url, each in kept.items() if each}
        text = json.dumps(provider_data).encode("ascii")
        credentials = (*rest, (field, (text,)))
        return attrs.evolve(self, credentials=credentials, tokens=tuple(tokens))

    def _provider_data(self) -> Json:
        """The provider data in either spelling, together."""
        found: Json = {}
        servers: Json = {}
        for name, values in self.credentials:
            for value in values if name in _PROVIDER_DATA else ():
                try:
                    said = jsontext.loads_anyhow(value)
                except ValueError:
                    continue
                if isinstance(said, dict):
                    found.update(said)
                    servers.update(_mcp_headers(said))
        return {**found, **({"mcp_headers": servers} if servers else {})}


_PROVIDER_DATA = (LLAMA_STACK_PROVIDER_DATA, OGX_PROVIDER_DATA)


def _mcp_headers(provider_data: Json) -> dict[str, dict[str, str]]:
    """Header fields by MCP URL."""
    said = provider_data.get("mcp_headers")
    return {
        url: {name: value for name, value in fields.items() if isinstance(value, str)}
        for url, fields in (said.items() if isinstance(said, dict) else ())
        if isinstance(fields, dict)
    }


def _same_place(one: str, other: str) -> bool:
    """Whether two URLs differ in no more than a slash at the end."""
    return one.strip().rstrip("/") == other.strip().rstrip("/")
