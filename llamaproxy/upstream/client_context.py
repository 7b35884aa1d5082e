"""ClientContext: the fields of a client's request that are sent on, in each server's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.errors import BadRequest
from llamaproxy.heads import KINDS, Fields, RequestHead, SomeFields
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest
from llamaproxy.tracecontext import traced
from llamaproxy.upstream.headers import (
    BODY_FIELDS,
    NOT_FORWARDED,
    TRUST_NOBODY,
    TrustedProxies,
    forwarded_for,
)

_log = Logger()

#: Names in lower case, each with its values.
NamedValues = tuple[tuple[bytes, tuple[bytes, ...]], ...]

#: The fields that identify a caller: lists and memories are kept apart by them (DESIGN: T4).
_CREDENTIALS = (
    *(b"authorization", b"api-key", b"x-api-key", b"cookie"),
    *(b"x-llamastack-provider-data", b"x-ogx-provider-data"),
)

#: Those of them that are sent with chat completions only, unless an operator names them.
_CHAT_ONLY = frozenset({b"api-key", b"x-api-key", b"cookie"})

#: A name that no field can have: under it stands the id of the caller's API key, which is not sent.
_KEY_ID = b""

#: What is never sent as the client did, though a caller may be identified by it.
_UNSENT = frozenset({_KEY_ID, b"accept", b"accept-encoding", b"content-type"})

#: What requests other than chat completions are not sent with.
_UNSENT_ELSEWHERE = _UNSENT | _CHAT_ONLY

#: The two spellings of the field for a server's providers; clients may use either.
LLAMA_STACK_PROVIDER_DATA = b"x-llamastack-provider-data"
OGX_PROVIDER_DATA = b"x-ogx-provider-data"

#: The id of a chat of Open WebUI (a header that its operator configures).
_CHAT = b"x-openwebui-chat-id"

#: Tracing fields, which travel with everything done for a request but identify nobody.
_REQUEST_ID = b"x-request-id"
_TRACING = (b"traceparent", b"tracestate", _REQUEST_ID)

#: What requests of one kind do not have in common.
_OF_THE_REQUEST = frozenset({_REQUEST_ID, b"content-length"})

PROVIDER_DATA = (LLAMA_STACK_PROVIDER_DATA, OGX_PROVIDER_DATA)

#: The fields of a client's chat that are not sent with it as they are; nor are the proxy's own.
_NOT_SENT = NOT_FORWARDED | BODY_FIELDS | {*PROVIDER_DATA, b"accept"}
_OWN = b"x-llamaproxy-"


@attrs.frozen
class ClientContext:
    """What is sent on of one client's request (DESIGN: T4).

    *credentials* are the fields that identify the caller, and the id of his API key; *chat* is the
    id of the conversation, empty if it is not known; *query* is sent with chat completions, with
    its question mark.
    """

    credentials: NamedValues = ()
    _tracing: NamedValues = ()
    _tokens: tuple[tuple[str, str], ...] = ()
    chat: str = ""

    query: bytes = b""
    _identity_names: tuple[bytes, ...] = ()
    _chat_fields: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), repr=False)
    #: The digest of the credentials, if it is known.
    _key: bytes = attrs.field(default=b"", eq=False, repr=False)

    @classmethod
    def of(
        cls,
        head: RequestHead,
        key_id: bytes = b"",
        identity_names: tuple[bytes, ...] = (),
        query: bytes = b"",
    ) -> ClientContext:
        """The context of requests with that *head*; :meth:`for_request` adds what each has.

        :param key_id: of the API key that the request came with, empty for none.

        :param identity_names: fields that identify callers, besides the usual ones.

        :param query: is sent with chat completions.

        :raises BadRequest: if provider data can be read in two ways.
        """
        present = head.by_name

        def pick(names: Iterable[bytes]) -> NamedValues:
            return tuple([(name, tuple(present[name])) for name in names if name in present])

        for name in PROVIDER_DATA:
            for value in present.get(name, ()):
                check_provider_data(value)
        key_field = ((_KEY_ID, (key_id,)),) if key_id else ()
        return cls(
            # An operator may name one of the usual ones: it is sent once all the same.
            key_field + pick(dict.fromkeys((*_CREDENTIALS, *identity_names))),
            pick(_TRACING),
            chat=next(iter(present.get(_CHAT, ())), b"").decode("latin-1").strip(),
            query=query,
            identity_names=identity_names,
        )

    def for_request(self, tracing: NamedValues, chat_fields: SomeFields) -> ClientContext:
        """The same for one request.

        :param tracing: what it has besides.

        :param chat_fields: those to send with chat completions, but for provider data (DESIGN: L8).
        """
        return ClientContext(
            self.credentials,
            self._tracing + tracing,
            self._tokens,
            self.chat,
            self.query,
            self._identity_names,
            tuple(chat_fields),
            self._key,
        )

    @property
    def key(self) -> bytes:
        """A short digest of the credentials, for what this process keeps of each caller."""
        if self._key:
            return self._key
        return hashlib.blake2b(repr(self.credentials).encode(), digest_size=16).digest()

    @property
    def owner(self) -> bytes:
        """A digest of the credentials, the same in every process."""
        digest = hashlib.sha256()
        for name, values in self.credentials:
            # With lengths, so that no two credentials make the same text.
            for part in (b"%d" % len(values), name, *values):
                digest.update(b"%d:%b" % (len(part), part))
        return digest.digest()

    def for_listing(self) -> ClientContext:
        """The same without what belongs to a single chat."""
        return attrs.evolve(self, chat="", query=b"", chat_fields=(), tracing=())

    def for_listing_elsewhere(self) -> ClientContext:
        """The same for another process, which works for this one's span."""
        tracing: dict[bytes, tuple[bytes, ...]] = {}
        for name, value in traced(_one_by_one(self._tracing)):
            tracing[name] = (*tracing.get(name, ()), value)
        return attrs.evolve(self.for_listing(), tracing=tuple(tracing.items()))

    def chat_fields(self) -> Fields:
        """The fields to send with a chat completion: all that the client sent for it."""
        provider_data = [pair for pair in self.credentials if pair[0] in PROVIDER_DATA]
        return traced([*self._chat_fields, *_one_by_one(provider_data)])

    def fields(self) -> Fields:
        """The fields to send with requests other than chat completions."""
        unsent = _UNSENT_ELSEWHERE
        if self._identity_names:
            unsent = _UNSENT | _CHAT_ONLY.difference(self._identity_names)
        fields = dict(self.credentials + self._tracing)  # an operator may name one of these too
        return traced(_one_by_one([pair for pair in fields.items() if pair[0] not in unsent]))

    @property
    def tracing(self) -> tuple[tuple[str, str], ...]:
        """The tracing fields, which identify the request and not the caller."""
        fields = traced(_one_by_one(self._tracing))
        return tuple((name.decode(), value.decode("latin-1")) for name, value in fields)

    def mcp_headers(self, url: str) -> tuple[tuple[str, str], ...]:
        """The ``mcp_headers`` for the MCP server at *url*."""
        return tuple(
            (name, value)
            for server, fields in _mcp_headers(self._provider_data()).items()
            if _same_url(server, url)
            for name, value in sorted(fields.items())
        )

    def token(self, url: str) -> str | None:
        """The token for the MCP server at *url*, if :meth:`translated` has taken it out."""
        return next((token for server, token in self._tokens if _same_url(server, url)), None)

    @property
    def has_tokens(self) -> bool:
        """Whether there is a token for any MCP server."""
        return bool(self._tokens)

    def translated(self, field: bytes, mcp_headers: str) -> ClientContext:
        """The context in a server's format, with the provider data in *field*.

        :param mcp_headers: ``kept`` or ``dropped``; or ``apart``, where each ``Authorization`` is
            taken out of them, to be had from :meth:`token`.
        """
        other_credentials = tuple(
            [pair for pair in self.credentials if pair[0] not in PROVIDER_DATA]
        )
        if len(other_credentials) == len(self.credentials):
            return self
        provider_data = self._provider_data()
        if not provider_data:  # broken JSON, which all servers ignore (recorded)
            return attrs.evolve(self, credentials=other_credentials, key=b"")
        tokens: list[tuple[str, str]] = []
        servers = _mcp_headers(provider_data)
        if mcp_headers == "dropped":
            provider_data.pop("mcp_headers", None)
        elif mcp_headers == "apart" and servers:
            for url, fields in servers.items():
                for name in [name for name in fields if name.lower() == "authorization"]:
                    scheme, _, token = fields.pop(name).strip().partition(" ")
                    bearer = scheme.lower() == "bearer"
                    tokens.append((url, token.strip() if bearer else f"{scheme} {token}".strip()))
            provider_data["mcp_headers"] = {url: each for url, each in servers.items() if each}
        credentials = other_credentials
        if provider_data:
            text = json.dumps(provider_data).encode("ascii")
            credentials = (*other_credentials, (field, (text,)))
        return attrs.evolve(self, credentials=credentials, tokens=tuple(tokens), key=b"")

    def _provider_data(self) -> Json:
        """The provider data of both spellings of the field, merged."""
        merged: Json = {}
        servers: Json = {}
        for name, values in self.credentials:
            for value in values if name in PROVIDER_DATA else ():
                try:
                    value_object = jsontext.loads_anyhow(value)
                except ValueError:
                    continue
                if isinstance(value_object, dict):
                    merged.update(value_object)
                    servers.update(_mcp_headers(value_object))
        return {**merged, **({"mcp_headers": servers} if servers else {})}


def _one_by_one(fields: Iterable[tuple[bytes, tuple[bytes, ...]]]) -> Fields:
    return [(name, value) for name, values in fields for value in values]


def _mcp_headers(provider_data: Json) -> dict[str, dict[str, str]]:
    """Header fields by MCP URL."""
    servers = provider_data.get("mcp_headers")
    return {
        url: {name: value for name, value in fields.items() if isinstance(value, str)}
        for url, fields in (servers.items() if isinstance(servers, dict) else ())
        if isinstance(fields, dict)
    }


def _same_url(one: str, other: str) -> bool:
    """Whether two URLs differ in no more than a slash at the end."""
    return one.strip().rstrip("/") == other.strip().rstrip("/")


def check_provider_data(value: bytes) -> None:
    """:raises BadRequest: if an object in the JSON *value* has a name twice.

    A caller who can write a part of it, such as his user name, could pretend to be another.
    """
    try:
        jsontext.check_unique_names(value.decode("utf-8", "replace"))
    except jsontext.RepeatedName:
        raise BadRequest("The provider data has a name twice in one object.") from None
    except ValueError:
        _log.warn("provider data that is not JSON is not used")


def without_mcp_headers(fields: SomeFields) -> Fields:
    """*fields* without ``mcp_headers`` in their provider data.

    :raises BadRequest: as :func:`check_provider_data`.
    """
    remaining = []
    for name, value in fields:
        if name.lower() in PROVIDER_DATA:
            check_provider_data(value)
            try:
                value_object = jsontext.loads_anyhow(value)
            except ValueError:
                continue
            if isinstance(value_object, dict) and "mcp_headers" in value_object:
                del value_object["mcp_headers"]
                value = json.dumps(value_object).encode("ascii") if value_object else b""
            if not value:
                continue
        remaining.append((name, value))
    return remaining


@attrs.frozen(eq=False, repr=False)
class ClientContextReader:
    """Makes the contexts of requests.

    *trusted* are the proxies whose ``X-Forwarded-*`` are believed; *identity_names* the fields that
    identify callers, besides the usual ones.
    """

    _trusted: TrustedProxies = TRUST_NOBODY
    _identity_names: tuple[bytes, ...] = ()

    def of(self, request: ProxyRequest, key_id: bytes) -> ClientContext:
        """The context of *request*, which came with the API key of that *key_id*.

        :raises BadRequest: as :meth:`ClientContext.of`.
        """
        client = address_of(request)
        head, names = request.head, self._identity_names
        kind = head.kind
        id: NamedValues = ()
        # Provider data is checked each time, for the log tells what is wrong with it.
        if (
            kind is None
            or not _OF_THE_REQUEST.isdisjoint(names)
            or not kind.by_name.keys().isdisjoint(PROVIDER_DATA)
        ):
            context, dropped = _common(head, names, key_id)
        else:
            context, dropped = _common_of_kind(kind, names, key_id)
            if _REQUEST_ID not in kind.by_name:
                id = ((_REQUEST_ID, (head.id,)),)
        trusted = client in self._trusted
        fields = forwarded_for(head, client, request.isSecure(), trusted, dropped)
        return context.for_request(id, fields)


def _common(
    head: RequestHead, identity_names: tuple[bytes, ...], key_id: bytes
) -> tuple[ClientContext, frozenset[bytes]]:
    """What requests with *head* have in common; and the names of those of its fields that are not
    sent with a chat.
    """
    dropped = _NOT_SENT
    if _OWN in b"\n".join(head.by_name):  # seldom
        dropped = dropped.union([name for name in head.by_name if name.startswith(_OWN)])
    query = b"".join(head.line.target.partition(b"?")[1:])
    return ClientContext.of(head, key_id, identity_names, query), dropped


@lru_cache(maxsize=KINDS)
def _common_of_kind(*about: Any) -> tuple[ClientContext, frozenset[bytes]]:
    context, dropped = _common(*about)
    return attrs.evolve(context, key=context.key), dropped


def address_of(request: ProxyRequest) -> str | None:
    """The address that *request* came from; a client of a Unix socket has none."""
    return request.client_host
