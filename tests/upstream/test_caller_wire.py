"""Callers as bytes: the same comes out as goes in, within limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tracecontext import current_span
from llamaproxy.upstream.caller_wire import MAX_CALLER, caller_bytes, caller_of
from llamaproxy.upstream.client_context import ClientContext
from tests.support import head_with

BYTES = st.binary(max_size=6)
TEXTS = st.text(max_size=6)
NAMED = st.lists(st.tuples(BYTES, st.lists(BYTES, max_size=3).map(tuple)), max_size=3).map(tuple)

CALLERS = st.builds(
    ClientContext,
    credentials=NAMED,
    tracing=NAMED,
    tokens=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    chat=TEXTS,
    query=BYTES,
    identity_names=st.lists(BYTES, max_size=3).map(tuple),
    chat_fields=st.lists(st.tuples(BYTES, BYTES), max_size=3).map(tuple),
)


@given(CALLERS)
def test_a_caller_arrives_as_he_was(caller: ClientContext) -> None:
    assert caller_of(caller_bytes(caller)) == caller


def test_what_is_sent_on_of_his_is_the_same() -> None:
    caller = ClientContext.of(
        head_with(
            {
                "Authorization": ["Bearer \u00fc"],
                "X-LlamaStack-Provider-Data": ['{"mcp_headers": {"http://a": {"X": "1"}}}'],
                "X-User": ["u"],
                "Traceparent": ["00-1"],
            }
        ),
        b"key",
        (b"x-user",),
    )
    arrived = caller_of(caller_bytes(caller))
    assert arrived.fields() == caller.fields()
    assert arrived.mcp_headers("http://a") == (("X", "1"),)
    assert arrived.tracing == (("traceparent", "00-1"),)


@given(st.binary(max_size=40))
def test_what_is_no_caller_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        caller_of(text)


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b"1", b"[1,2,3,4,5,6,7]", b'[[["a"]],[],[],"","",[],[]]', b"[" * 50]
)
def test_what_is_like_a_caller_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        caller_of(text)


def test_what_is_too_large_is_not_read() -> None:
    caller = ClientContext(credentials=((b"cookie", (b"x" * MAX_CALLER,)),))
    with pytest.raises(ValueError):
        caller_of(caller_bytes(caller))


def test_a_listing_elsewhere_is_for_the_same_caller_and_this_span() -> None:
    class Span:
        fields = [(b"traceparent", b"00-span")]  # noqa: RUF012

        def asks_mcp(self, method: str, number: int, revision: str) -> None: ...

    caller = ClientContext.of(
        head_with(
            {
                "Authorization": ["Bearer a"],
                "X-Request-Id": ["7"],
                "Traceparent": ["00-client"],
                "X-OpenWebUI-Chat-Id": ["c"],
            }
        ),
        query=b"?q",
    ).for_request((), [(b"User-Agent", b"curl")])
    assert caller.for_listing_elsewhere().tracing == caller.tracing
    token = current_span.set(Span())
    try:
        elsewhere = caller.for_listing_elsewhere()
    finally:
        current_span.reset(token)
    assert elsewhere.credentials == caller.credentials
    assert elsewhere.tracing == (("x-request-id", "7"), ("traceparent", "00-span"))
    assert elsewhere.for_listing() == caller.for_listing()
    assert (elsewhere.chat, elsewhere.query, elsewhere.chat_fields()) == ("", b"", [])
