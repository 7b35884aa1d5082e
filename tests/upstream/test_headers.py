"""Which header fields travel on."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from llamaproxy.errors import BadRequest
from llamaproxy.heads import headers_of
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.headers import (
    HOP_BY_HOP,
    TRUST_NOBODY,
    TrustedProxies,
    lines_of,
)
from llamaproxy.upstream.headers import (
    forwarded_for as forwarded_fields,
)
from tests.support import head_with

_names = st.text(st.sampled_from("abcXYZ-"), min_size=1, max_size=6).map(str.encode)
_values = st.lists(st.binary(max_size=5).map(lambda raw: raw.hex().encode()), min_size=1)


def raw(headers: Headers) -> dict[bytes, list[bytes]]:
    return {name.lower(): list(values) for name, values in headers.getAllRawHeaders()}


def forwarded_for(
    headers: Headers, client: str | None, secure: bool, trusted: bool = False
) -> Headers:
    return headers_of(list(forwarded_fields(head_with(headers), client, secure, trusted)))


def forwarded(headers: Headers) -> Headers:
    """What is forwarded, without what is said of the client."""
    fields = forwarded_for(headers, None, secure=False)
    for name in (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host"):
        fields.removeHeader(name)
    return fields


@given(st.dictionaries(_names, _values))
def test_end_to_end_fields_travel_on_as_they_are(fields: dict[bytes, list[bytes]]) -> None:
    headers = Headers()
    for name, values in fields.items():
        headers.setRawHeaders(name, values)
    assert raw(forwarded(headers)) == raw(headers)


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
@pytest.mark.parametrize("spell", [bytes.lower, bytes.upper, bytes.title])
def test_hop_by_hop_fields_stay_behind(name: bytes, spell: type[bytes]) -> None:
    headers = Headers({spell(name): [b"x"], b"Kept": [b"y"]})
    assert raw(forwarded(headers)) == {b"kept": [b"y"]}


def test_fields_that_connection_nominates_stay_behind() -> None:
    connection = [b"close, X-One ,x-two", b"X-Three"]
    headers = Headers({b"Connection": connection, b"X-Four": [b"4"]})
    for name in (b"X-One", b"X-TWO", b"x-three"):
        headers.setRawHeaders(name, [b"no"])
    assert raw(forwarded(headers)) == {b"x-four": [b"4"]}


def test_repeated_fields_stay_repeated() -> None:
    headers = Headers({b"Set-Cookie": [b"a=1", b"b=2"]})
    assert raw(forwarded(headers)) == {b"set-cookie": [b"a=1", b"b=2"]}


@pytest.mark.parametrize(
    "name",
    [
        b"Host",
        b"Content-Length",
        b"Expect",
        b"X-LlamaStack-Client-Version",
        b"X-OGX-Client-Version",
    ],
)
def test_fields_that_speak_of_the_clients_own_connection_or_sdk_are_not_forwarded(
    name: bytes,
) -> None:
    assert raw(forwarded(Headers({name: [b"1"], b"Authorization": [b"a"]}))) == {
        b"authorization": [b"a"]
    }


def test_what_was_given_is_not_changed() -> None:
    headers = Headers({b"Connection": [b"x"], b"X": [b"1"], b"Host": [b"h"]})
    forwarded(headers)
    assert raw(headers) == {b"connection": [b"x"], b"x": [b"1"], b"host": [b"h"]}


CLIENT_FIELDS = {
    b"X-Forwarded-For": [b"203.0.113.7", b"10.0.0.1"],
    b"X-Forwarded-Proto": [b"https"],
    b"X-Forwarded-Host": [b"public"],
    b"Host": [b"here"],
}


@pytest.mark.parametrize(
    ("client", "trusted", "addresses", "scheme", "host"),
    [
        ("10.0.0.2", False, [b"10.0.0.2"], b"http", b"here"),
        ("10.0.0.2", True, [b"203.0.113.7, 10.0.0.1, 10.0.0.2"], b"https", b"public"),
        (None, False, None, b"http", b"here"),
        (None, True, [b"203.0.113.7, 10.0.0.1"], b"https", b"public"),
    ],
)
def test_what_is_said_of_the_client_is_believed_of_trusted_proxies_alone(
    client: str | None, trusted: bool, addresses: list[bytes] | None, scheme: bytes, host: bytes
) -> None:
    client_fields = forwarded_for(Headers(CLIENT_FIELDS), client, secure=False, trusted=trusted)
    assert client_fields.getRawHeaders(b"X-Forwarded-For") == addresses
    assert client_fields.getRawHeaders(b"X-Forwarded-Proto") == [scheme]
    assert client_fields.getRawHeaders(b"X-Forwarded-Host") == [host]


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "name", [b"Forwarded", b"X-Real-IP", b"X-Forwarded-Port", b"X-Forwarded-User"]
)
def test_what_is_not_said_here_travels_as_it_is_whoever_says_it(name: bytes, trusted: bool) -> None:
    client_fields = forwarded_for(Headers({name: [b"x"]}), "10.0.0.2", False, trusted)
    assert client_fields.getRawHeaders(name) == [b"x"]


def test_a_trusted_proxy_that_says_nothing_is_a_client() -> None:
    client_fields = forwarded_for(Headers({b"Host": [b"here"]}), "::1", secure=True, trusted=True)
    assert raw(client_fields) == {
        b"x-forwarded-for": [b"::1"],
        b"x-forwarded-proto": [b"https"],
        b"x-forwarded-host": [b"here"],
    }


def test_a_client_cannot_nominate_what_is_said_of_it() -> None:
    headers = Headers({b"Connection": [b"X-Forwarded-For"], **CLIENT_FIELDS})
    client_fields = forwarded_for(headers, "10.0.0.2", secure=False)
    assert client_fields.getRawHeaders(b"X-Forwarded-For") == [b"10.0.0.2"]


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::1", True),
        ("::2", False),
        ("::ffff:10.1.2.3", True),
        ("nonsense", False),
        (None, False),
    ],
)
def test_proxies_are_trusted_by_network(client: str | None, trusted: bool) -> None:
    proxies = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("::1")])
    assert (client in proxies) == trusted
    assert client not in TRUST_NOBODY
    assert None in TrustedProxies([], local=True)


CREDENTIALS = ("Authorization", "X-LlamaStack-Provider-Data", "X-OGX-Provider-Data")
TRACING = ("traceparent", "tracestate", "X-Request-Id")


def test_a_caller_has_credentials_and_tracing_and_nothing_else() -> None:
    expected = {name.lower().encode(): [name.encode(), b"2"] for name in (*CREDENTIALS, *TRACING)}
    headers = Headers({**expected, b"Cookie": [b"c"], b"User-Agent": [b"u"], b"Accept": [b"*"]})
    assert raw(headers_of(ClientContext.of(head_with(headers)).fields())) == expected


@pytest.mark.parametrize("name", CREDENTIALS)
def test_callers_differ_by_their_credentials(name: str) -> None:
    one, other = (ClientContext.of(head_with({name: [value]})) for value in ("a", "b"))
    assert one.credentials != other.credentials
    assert one.credentials != ClientContext().credentials
    assert hash(one) == hash(ClientContext.of(head_with({name.lower(): ["a"]})))


@pytest.mark.parametrize("name", [*CREDENTIALS, *TRACING])
def test_a_field_that_an_operator_names_besides_is_sent_once(name: str) -> None:
    lower = name.lower().encode()
    caller = ClientContext.of(head_with({name: ['{"a": 1}']}), b"", (lower,))
    for sent in (caller, caller.for_listing(), caller.translated(lower, "kept")):
        assert raw(headers_of(sent.fields())) == {lower: [b'{"a": 1}']}
    assert len(caller.chat_fields()) <= 1


@pytest.mark.parametrize("mcp_headers", ["kept", "dropped", "apart"])
def test_callers_differ_by_an_identity_that_is_not_sent(mcp_headers: str) -> None:
    data = b"x-llamastack-provider-data"
    for headers in (Headers(), Headers({data: [b'{"a": 1}']}), Headers({data: [b"broken"]})):
        contexts = {
            identity: ClientContext.of(head_with(headers), identity)
            for identity in (b"", b"one", b"two")
        }
        for translate in (False, True):
            if translate:
                contexts = {i: c.translated(data, mcp_headers) for i, c in contexts.items()}
            assert len({caller.credentials for caller in contexts.values()}) == 3
            (sent,) = {repr(raw(headers_of(caller.fields()))) for caller in contexts.values()}
            assert "one" not in sent
            assert "two" not in sent


@pytest.mark.parametrize("name", TRACING)
def test_tracing_identifies_nobody(name: str) -> None:
    assert ClientContext.of(head_with({name: ["a"]})).credentials == ClientContext().credentials


@given(
    st.lists(
        st.tuples(st.binary(max_size=3), st.text("ab:\r\n\0", max_size=4).map(str.encode)),
        max_size=3,
    )
)
@example([(b"A", b"b\r")])
@example([(b"A", b"\nb")])
@example([(b"A\r\nB", b"")])
def test_a_field_is_one_line_or_refused(fields: list[tuple[bytes, bytes]]) -> None:
    if any(set(b"\r\n\0").intersection(name + value) for name, value in fields):
        with pytest.raises(BadRequest):
            lines_of(fields)
    else:
        assert lines_of(fields) == b"".join(b"%b: %b\r\n" % field for field in fields)
