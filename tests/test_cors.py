"""What a page of another origin may read: what the upstream lets it, errors of ours as well."""

from __future__ import annotations

import pytest
from twisted.web.http import Request
from twisted.web.http_headers import Headers

from llamaproxy.cors import CorsMemory
from tests.chat.streams import both
from tests.support import (
    CHAT,
    INVOKE,
    Answer,
    FakeStack,
    Proxy,
    answer,
    calling,
    hang_up,
    saying,
    tool,
    tool_result,
)

PAGE = {"Origin": "http://page"}
ALLOWED = {"Access-Control-Allow-Origin": "http://page", "Access-Control-Allow-Credentials": "true"}
ALLOW = "Access-Control-Allow-Origin"
PREFLIGHT = "OPTIONS /v1/chat/completions"


def allowing(respond: Answer) -> Answer:
    def write(request: Request) -> None:
        for name, value in ALLOWED.items():
            request.setHeader(name.encode(), value.encode())
        respond(request)

    return write


@both
def test_the_answer_says_what_the_upstreams_says(stream: bool) -> None:
    stack = FakeStack()
    stack.on(CHAT, allowing(saying("Hi.")), saying("Hi."))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream, fields=PAGE)
    assert {name: exchange.field(name) for name in ALLOWED} == ALLOWED
    assert proxy.chat(stream=stream, fields=PAGE).field(ALLOW) is None


@both
@pytest.mark.parametrize(
    "failing", [answer({"detail": "no"}, 422), answer(b"<html>"), answer(b"", 500), answer({})]
)
def test_so_does_an_error_of_the_upstreams(stream: bool, failing: Answer) -> None:
    stack = FakeStack()
    stack.on(CHAT, allowing(failing))
    exchange = Proxy(stack).chat(stream=stream, fields=PAGE)
    assert exchange.status >= 400
    assert exchange.field(ALLOW) == "http://page"


@both
def test_an_answer_varies_with_what_the_upstream_says_also_when_its_origin_is_known(
    stream: bool,
) -> None:
    def varying(request: Request) -> None:
        request.setHeader(b"Vary", b"Accept-Language, Origin")
        allowing(saying("Hi."))(request)

    stack = FakeStack()
    stack.on(CHAT, varying, varying, allowing(saying("Hi.")))
    proxy = Proxy(stack)
    varied = [proxy.chat(stream=stream, fields=PAGE).field("Vary") for _ in range(3)]
    assert varied == ["Accept-Language, Origin", "Accept-Language, Origin", None]


def test_an_error_of_ours_says_what_the_upstream_said_before() -> None:
    stack = FakeStack()
    stack.on(CHAT, allowing(saying("Hi.")), hang_up)
    proxy = Proxy(stack)
    proxy.chat(fields=PAGE)
    exchange = proxy.chat(fields=PAGE)
    assert exchange.status == 502
    assert {name: exchange.field(name) for name in ALLOWED} == ALLOWED
    assert exchange.field("Vary") == "Origin"
    other = proxy.chat(fields={"Origin": "http://other"})
    assert other.status == 502 and other.field(ALLOW) is None


def test_what_it_said_to_a_preflight_counts() -> None:
    stack = FakeStack()
    stack.on(PREFLIGHT, allowing(answer(b"")))
    proxy = Proxy(stack)
    fields = PAGE | {"Access-Control-Request-Method": "POST"}
    proxy.request("OPTIONS", "/v1/chat/completions", fields=fields)
    exchange = proxy.request("POST", "/v1/chat/completions", b"{", PAGE)
    assert exchange.status == 400
    assert exchange.field(ALLOW) == "http://page"
    assert len(stack.asked_for(PREFLIGHT)) == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_if_nothing_is_known_the_upstream_is_asked_once(allowed: bool) -> None:
    stack = FakeStack()
    stack.on(PREFLIGHT, allowing(answer(b"")) if allowed else answer({"detail": "no"}, 405))
    proxy = Proxy(stack)
    for _ in range(3):
        exchange = proxy.request("POST", "/v1/chat/completions", b"{", PAGE)
        assert exchange.status == 400
        assert exchange.field(ALLOW) == ("http://page" if allowed else None)
    [asked] = stack.asked_for(PREFLIGHT)
    assert asked.headers.getRawHeaders("Origin") == ["http://page"]
    assert asked.headers.getRawHeaders("Access-Control-Request-Method") == ["POST"]


def test_what_is_no_page_costs_no_question() -> None:
    stack = FakeStack()
    assert Proxy(stack).request("POST", "/v1/chat/completions", b"{").status == 400
    assert stack.asked == []


def test_an_upstream_that_does_not_answer_delays_an_error_by_two_seconds() -> None:
    stack = FakeStack()
    stack.on(PREFLIGHT, lambda request: None)
    proxy = Proxy(stack)
    exchange = proxy.request("POST", "/v1/chat/completions", b"{", PAGE)
    assert not exchange.answered
    proxy.advance(2)
    assert exchange.status == 400 and stack.open == []


def test_another_answer_without_permission_takes_it_back() -> None:
    stack = FakeStack()
    stack.on("GET /v1/models", allowing(answer({"data": []})), answer({"data": []}))
    proxy = Proxy(stack)
    assert proxy.request("GET", "/v1/models", fields=PAGE).field(ALLOW) == "http://page"
    assert proxy.request("GET", "/v1/models", fields=PAGE).field(ALLOW) is None
    stack.on("GET /v1/models", hang_up)
    exchange = proxy.request("GET", "/v1/models", fields=PAGE)
    assert exchange.status == 502 and exchange.field(ALLOW) is None


def test_an_error_that_says_nothing_of_pages_takes_nothing_back() -> None:
    """Starlette's 500s have no CORS fields, and a gateway's errors none of the server's."""
    stack = FakeStack()
    models = "GET /v1/models"
    for status in (500, 502, 429, 401, 302):
        stack.on(models, allowing(answer({"data": []})), answer(b"", status), hang_up)
        proxy = Proxy(stack)
        assert proxy.request("GET", "/v1/models", fields=PAGE).field(ALLOW) == "http://page"
        exchange = proxy.request("GET", "/v1/models", fields=PAGE)
        assert exchange.status == status and exchange.field(ALLOW) is None
        exchange = proxy.request("GET", "/v1/models", fields=PAGE)
        assert exchange.status == 502 and exchange.field(ALLOW) == "http://page"


def test_an_error_that_says_something_of_them_is_heeded() -> None:
    stack = FakeStack()
    models = "GET /v1/models"
    refusing = answer(b"", 400, {"Access-Control-Allow-Credentials": "true"})  # as Starlette does
    stack.on(models, allowing(answer({"data": []})), refusing, hang_up)
    proxy = Proxy(stack)
    allowed = [proxy.request("GET", "/v1/models", fields=PAGE).field(ALLOW) for _ in range(3)]
    assert allowed == ["http://page", None, None]


@both
def test_the_page_can_read_what_the_proxy_makes_of_such_an_error(stream: bool) -> None:
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    stack.on(INVOKE, tool_result("12:00"))
    stack.on(CHAT, answer(b"", 500))
    stack.on(PREFLIGHT, answer(b"", 503), allowing(answer(b"")))
    proxy = Proxy(stack)
    first = proxy.chat(stream=False, fields=PAGE)  # while the server cannot even say
    assert first.status == 500 and first.field(ALLOW) is None
    stack.on(CHAT, answer(b"", 500), hang_up)
    for status in (500, 502):
        exchange = proxy.chat(stream=stream, fields=PAGE)
        assert exchange.status == status
        assert exchange.field(ALLOW) == "http://page" and exchange.field("Vary") == "Origin"
    stack.on(CHAT, allowing(calling("clock")), answer(b"", 500))
    exchange = proxy.chat(stream=False, fields=PAGE)  # in the second round
    assert exchange.status == 500 and exchange.field(ALLOW) == "http://page"
    assert len(stack.asked_for(PREFLIGHT)) == 2


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    memory = CorsMemory()
    for n in range(1000):
        memory.learn(b"http://%d" % n, Headers({name: ["x"] for name in ALLOWED}))
    memory.learn(b"x" * 1000, Headers({name: ["x"] for name in ALLOWED}))
    assert len(memory._by_origin) == 256
    assert b"http://999" in memory and b"http://0" not in memory
    assert b"x" * 1000 not in memory


def test_a_page_that_asks_in_text_is_refused_before_anything_is_asked() -> None:
    """Neither the server nor a tool hears of it (DESIGN: 9)."""
    for fields in (
        {"Origin": "http://page", "Content-Type": "text/plain"},
        {"Origin": "null", "Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/x-www-form-urlencoded"},
        {"Sec-Fetch-Site": "same-site", "Content-Type": ""},
        {"Origin": "http://page", "Content-Type": "text/plain; application/json"},
    ):
        stack = FakeStack()
        for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
            exchange = Proxy(stack).request("POST", path, b'{"messages": []}', fields)
            assert exchange.status == 415
            assert "application/json" in exchange.json()["error"]["message"]
        assert not [each for each in stack.asked if each.method != "OPTIONS"]


def test_what_is_no_page_or_asks_in_json_is_served() -> None:
    for fields in (
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Sec-Fetch-Site": "none", "Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"},
        {"Origin": "http://page", "Content-Type": "Application/JSON; charset=utf-8"},
    ):
        stack = FakeStack()
        stack.on(CHAT, saying("Hi."))
        body = b'{"model": "m", "messages": []}'
        assert Proxy(stack).request("POST", "/v1/chat/completions", body, fields).status == 200
        [asked] = stack.asked_for(CHAT)
        assert asked.headers.getRawHeaders("Content-Type") == ["application/json"]
