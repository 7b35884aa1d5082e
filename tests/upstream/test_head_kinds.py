"""What is known of a kind of request heads holds for each request of it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs

from llamaproxy.errors import BadRequest
from llamaproxy.heads import RequestHead
from llamaproxy.server.framing import request_id
from llamaproxy.server.head import read_head, read_head_again
from llamaproxy.server.site import ProxySite
from llamaproxy.upstream.client_context import ClientContext, ClientContextReader
from llamaproxy.upstream.headers import (
    NOT_FORWARDED,
    TrustedProxies,
    WrittenFields,
    forwarded_for,
    lines_of,
)

FIELDS = (
    *("Authorization: Bearer a", "authorization: Bearer b", "X-API-Key: k", "Cookie: c=1"),
    *("X-LlamaStack-Provider-Data: {}", 'X-OGX-Provider-Data: {"a": 1}', "X-Odd: broken"),
    *("traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tracestate: a=b", "Accept: a/b"),
    *("X-Request-Id: mine", "X-Request-Id: no id", "X-Forwarded-For: 10.0.0.9", "TE: trailers"),
    *("Connection: X-Request-Id", "Connection: traceparent, authorization", "connection: cookie"),
    *("X-Forwarded-Proto: https", "X-Forwarded-Host: there", "Connection: X-Odd, close"),
    *("x-openwebui-chat-id: 7", "X-Llamaproxy-Tools: a*", "User-Agent: me", "Content-Type: a/b"),
)


@attrs.frozen
class Asked:
    """What a context is made of."""

    head: RequestHead
    client_host: str | None
    secure: bool

    def isSecure(self) -> bool:
        return self.secure


def heads_of(fields: list[str], length: int) -> tuple[RequestHead, RequestHead]:
    """The head of a kind, and the same as it comes; both with the same id."""
    lines = ["POST /v1/chat/completions?a=b HTTP/1.1", "Host: here", *fields]
    sent = "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()
    again, read = read_head_again(sent), read_head(sent)
    while again is None:  # it comes for the first time
        again = read_head_again(sent)
    assert again is not None and read is not None
    assert again[0].kind is not None and read[0].kind is None
    id = request_id(read[0].by_name.get(b"x-request-id", ()))
    for head in (again[0], read[0]):
        head.body_length = length
        head.identify(id)
    return again[0], read[0]


#: Twisted believes a load balancer's PROXY protocol whatever it says.
BROKEN = "10.0.0.1\nA: b"


@settings(max_examples=500)
@given(
    fields=st.lists(st.sampled_from(FIELDS), max_size=6, unique_by=lambda line: line.lower()[:13]),
    lengths=st.lists(st.integers(0, 99), min_size=1, max_size=3),
    client=st.sampled_from([None, "10.0.0.1", "192.0.2.1", BROKEN]),
    secure=st.booleans(),
    names=st.sampled_from([(), (b"user-agent",), (b"x-request-id",), (b"content-length",)]),
    key_id=st.sampled_from([b"", b"digest"]),
    removed=st.booleans(),
)
@example(["X-Request-Id: mine"], [1, 2], None, False, (b"x-request-id",), b"", False)
def test_a_request_is_treated_as_if_there_had_been_none_like_it(
    fields: list[str],
    lengths: list[int],
    client: str | None,
    secure: bool,
    names: tuple[bytes, ...],
    key_id: bytes,
    removed: bool,
) -> None:
    trusted = TrustedProxies([ip_network("10.0.0.0/8")], local=True)
    reader = ClientContextReader(trusted, names)
    site: Any = ProxySite.__new__(ProxySite)
    site.now = lambda: 1.0
    for length in lengths:
        both = heads_of(fields, length)
        if removed:
            for head in both:
                head.remove(b"authorization", b"x-api-key")
        one, other = (
            [
                forwarded_for(head, client, secure, client in trusted, dropped)
                for dropped in (NOT_FORWARDED, NOT_FORWARDED | {b"accept"})
            ]
            for head in both
        )
        assert [list(fields) for fields in one] == [list(fields) for fields in other]
        written = [each for each in (*one, *other) if isinstance(each, WrittenFields)]
        again = any(head.kind is not None for head in both)
        assert bool(written) == (again and client != BROKEN)
        assert [each.lines for each in written] == [lines_of(list(each)) for each in written]
        first, second = (told(reader, Asked(head, client, secure), key_id) for head in both)
        assert first == second
        records = [site._record(head, client, "id") for head in both]
        assert attrs.asdict(records[0]) == attrs.asdict(records[1])


def told(reader: ClientContextReader, asked: Any, key_id: bytes) -> object:
    """All that is known of a client's request."""
    try:
        context = reader.of(asked, key_id)
    except BadRequest as error:
        return str(error)
    fields = context.fields(), context.chat_fields()
    own = context.credentials, context.chat, context.query, context.owner, context.key
    return own, fields, context.tracing, context.for_listing().fields()


@pytest.mark.parametrize(
    "data", [b'{"a": 1, "mcp_headers": {"u": {}}}', b'{"mcp_headers": {}}', b"x"]
)
@pytest.mark.parametrize("mcp_headers", ["kept", "dropped", "apart"])
def test_other_credentials_have_another_key(data: bytes, mcp_headers: str) -> None:
    context = ClientContext(((b"cookie", (b"a",)), (b"x-ogx-provider-data", (data,))))
    known = attrs.evolve(context, key=context.key)
    assert known == context and known.key == context.key
    translated = known.translated(b"x-llamastack-provider-data", mcp_headers)
    assert translated.key == ClientContext(translated.credentials).key != context.key


def test_provider_data_that_is_broken_is_told_of_with_each_request() -> None:
    reader = ClientContextReader()
    with capturedLogs() as logged:
        for length in range(3):
            kind, _ = heads_of(["X-OGX-Provider-Data: broken"], length)
            reader.of(Asked(kind, None, False), b"")  # type: ignore[arg-type]
    assert len(logged) == 3
