"""ClientContext: on whose behalf something is asked, and in which words servers want to hear it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.errors import BadRequest
from llamaproxy.jsontext import Json
from llamaproxy.upstream.headers import TRUST_NOBODY, TrustedProxies, chat_fields, forwarded_for

_log = Logger()

#: Header fields: names in lower case, each with its values.
Fields = tuple[tuple[bytes, tuple[bytes, ...]], ...]

#: What one caller's lists and memories are kept apart by (DESIGN: T4).
_CREDENTIALS = (
    *(b"authorization", b"api-key", b"x-api-key", b"cookie"),
    *(b"x-llamastack-provider-data", b"x-ogx-provider-data"),
)

#: Those that are sent with a chat, like every other field, and with nothing else.
_CHAT_ONLY = (b"api-key", b"x-api-key", b"cookie")

#: In a field's place, which no field can take: what tells callers apart and is sent to nobody.
_IDENTITY = b""

#: The two spellings of the field for a server's providers; clients may use either.
LLAMA_STACK_PROVIDER_DATA = b"x-llamastack-provider-data"
OGX_PROVIDER_DATA = b"x-ogx-provider-data"

#: Which of its chats Open WebUI asks for (a header that its operator configures).
_CHAT = b"x-openwebui-chat-id"

#: Tracing fields, which travel with everything done for a request but identify nobody.
_TRACING = (b"traceparent", b"tracestate", b"x-request-id")

_PROVIDER_DATA = (LLAMA_STACK_PROVIDER_DATA, OGX_PROVIDER_DATA)


@attrs.frozen
class ClientContext:
    """On whose behalf something is asked: the fields (DESIGN: T4) of one client request.

    *credentials* are those of them, and an identity, that keep callers apart; *chat* is the
    conversation that the request is part of, empty if it does not say; *query* goes along with
    chat completions.
    """

    credentials: Fields = ()
    _tracing: Fields = ()
    _tokens: tuple[tuple[str, str], ...] = ()
    chat: str = ""

    query: bytes = b""
    _unsent: frozenset[bytes] = frozenset({_IDENTITY})
    _chat_fields: Fields = attrs.field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        headers: Headers,
        identity: bytes = b"",
        identity_names: Iterable[bytes] = (),
        chat_fields: Headers | None = None,
        query: bytes = b"",
    ) -> ClientContext:
        """The caller who sent *headers*, with a key of that *identity*.

        :param identity_names: fields that tell callers apart, besides the usual ones.

        :param chat_fields: the fields to send with chat completions, beside *query*.

        :raises BadRequest: if provider data can be read in two ways.
        """

        def pick(names: Iterable[bytes]) -> Fields:
            return tuple(
                (name, tuple(values)) for name in names if (values := headers.getRawHeaders(name))
            )

        for _, values in pick(_PROVIDER_DATA):
            for value in values:
                check_provider_data(value)
        known = ((_IDENTITY, (identity,)),) if identity else ()
        return cls(
            known + pick((*_CREDENTIALS, *identity_names)),
            pick(_TRACING),
            chat=headers.getRawHeaders(_CHAT, [b""])[0].decode("latin-1").strip(),
            query=query,
            unsent=frozenset({_IDENTITY, *_CHAT_ONLY}) - {*identity_names},
            chat_fields=()
            if chat_fields is None
            else tuple((name, tuple(each)) for name, each in chat_fields.getAllRawHeaders()),
        )

    def for_listing(self) -> ClientContext:
        """The same without what only one of the caller's chats is about."""
        return attrs.evolve(self, chat="", query=b"", chat_fields=(), tracing=())

    def chat_headers(self) -> Headers:
        """The fields to send with a chat completion: all that the client sent for it."""
        fields = Headers({name: list(values) for name, values in self._chat_fields})
        for name in _PROVIDER_DATA:
            fields.removeHeader(name)
        for name, values in self.credentials:
            if name in _PROVIDER_DATA:
                fields.setRawHeaders(name, list(values))
        return fields

    def headers(self) -> Headers:
        """The fields to send along, and nothing else of the client's."""
        fields = self.credentials + self._tracing
        return Headers({name: list(values) for name, values in fields if name not in self._unsent})

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

    def translated(self, field: bytes, mcp_headers: str) -> ClientContext:
        """The caller in a server's own words: provider data in *field*.

        *mcp_headers* tells what becomes of those: ``kept``, ``dropped``, or ``apart``, which takes
        ``Authorization`` out, to be had from :meth:`token`.
        """
        provider_data = self._provider_data()
        rest = tuple(pair for pair in self.credentials if pair[0] not in _PROVIDER_DATA)
        if len(rest) == len(self.credentials):
            return self
        if not provider_data:  # broken JSON, which all servers ignore (recorded)
            return attrs.evolve(self, credentials=rest)
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
        if not provider_data:
            return attrs.evolve(self, credentials=rest, tokens=tuple(tokens))
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


def check_provider_data(value: bytes) -> None:
    """:raises BadRequest: if an object in the JSON *value* has a name twice.

    Whoever may write a part of it, such as the user name in a template, could say who he is.
    """
    try:
        jsontext.check_unique_names(value.decode("utf-8", "replace"))
    except jsontext.RepeatedName:
        raise BadRequest("The provider data has a name twice in one object.") from None
    except ValueError:
        _log.warn("provider data that is not JSON is not used")


def without_mcp_headers(fields: Headers) -> None:
    """Take out of *fields* what their provider data has for MCP servers alone.

    :raises BadRequest: as :func:`check_provider_data`.
    """
    for name in _PROVIDER_DATA:
        values = fields.getRawHeaders(name)
        if not values:
            continue
        kept = []
        for value in values:
            check_provider_data(value)
            try:
                said = jsontext.loads_anyhow(value)
            except ValueError:
                continue
            if isinstance(said, dict) and "mcp_headers" in said:
                del said["mcp_headers"]
                value = json.dumps(said).encode("ascii") if said else b""
            if value:
                kept.append(value)
        if kept:
            fields.setRawHeaders(name, kept)
        else:
            fields.removeHeader(name)


@attrs.frozen
class ClientContextReader:
    """Reads from requests who asks: *trusted* proxies are believed, *identity_names* noted."""

    _trusted: TrustedProxies = TRUST_NOBODY
    _identity_names: tuple[bytes, ...] = ()

    def of(self, request: Request, identity: bytes) -> ClientContext:
        """The caller who sent *request*, with a key of that *identity*.

        :raises BadRequest: as :meth:`ClientContext.of`.
        """
        client = address_of(request)
        fields = forwarded_for(
            request.requestHeaders, client, request.isSecure(), client in self._trusted
        )
        uri: bytes = request.uri
        return ClientContext.of(
            request.requestHeaders,
            identity,
            self._identity_names,
            chat_fields(fields),
            b"".join(uri.partition(b"?")[1:]),
        )


def address_of(request: Request) -> str | None:
    """The address that *request* came from; a client of a Unix socket has none."""
    host: str | None = getattr(request.getClientAddress(), "host", None)
    return host
