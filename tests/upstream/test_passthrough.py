"""LlamaStackResource in memory: what goes where, and what failures look like.

What only real connections show is in ``test_sockets.py``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hyperlink import DecodedURL

from llamaproxy.upstream.headers import forwarded_for
from llamaproxy.upstream.passthrough import LlamaStackResource
from tests.support import Answer, FakeStack, Proxy, answer, hang_up, head_with, nothing, recorded


def test_openai_clients_get_openais_model_list_from_every_generation() -> None:
    for version, route, name in (
        ("0.3.5", "GET /v1/openai/v1/models", "models_v1_openai_v1"),
        ("0.6.1", "GET /v1/models", "models"),
    ):
        stack = FakeStack()
        stack.on("GET /v1/version", recorded(version, "version"))
        stack.on(route, recorded(version, name))
        proxy = Proxy(stack)
        for target in ("/v1/models", "/openai/v1/models"):
            listed = proxy.request("GET", target).json()["data"]
            assert {"vllm/scripted-1"} <= {model["id"] for model in listed}


def test_a_path_outside_v1_needs_no_detection() -> None:
    stack = FakeStack()
    assert Proxy(stack).request("GET", "/docs").status == 404
    assert [each.target for each in stack.asked] == ["/docs"]


def test_a_server_that_was_replaced_is_asked_again_what_it_is() -> None:
    """Else a client that lists models before it chats would never see any."""
    stack = FakeStack()
    stack.on("GET /v1/version", answer({"version": "0.3.5"}), answer({"version": "0.6.1"}))
    stack.on("GET /v1/models", answer({"data": []}))
    proxy = Proxy(stack)
    assert proxy.request("GET", "/v1/models").status == 404
    assert proxy.request("GET", "/v1/models").status == 200


def test_query_and_body_and_credentials_travel() -> None:
    stack = FakeStack()
    stack.on("POST /v1/embeddings", answer({"data": []}))
    fields = {"Authorization": "Bearer a", "X-Custom": "1", "X-OGX-Client-Version": "9"}
    body = b'{"input":  "x"}'
    exchange = Proxy(stack).request("POST", "/v1/embeddings?a=%2F&b", body, fields)
    assert exchange.json() == {"data": []}
    [asked] = stack.asked_for("POST /v1/embeddings")
    assert asked.target == "/v1/embeddings?a=%2F&b"
    assert asked.body == body
    assert asked.headers.getRawHeaders("Authorization") == ["Bearer a"]
    assert asked.headers.getRawHeaders("X-Custom") == ["1"]
    assert not asked.headers.hasHeader("X-OGX-Client-Version")
    assert asked.headers.getRawHeaders("Content-Length") == [str(len(body))]


def test_statuses_and_bodies_are_the_upstreams_own() -> None:
    stack = FakeStack()
    stack.on("GET /x", answer(b"<html>teapot", 418, {"Content-Type": "text/html", "X-A": "1"}))
    exchange = Proxy(stack).request("GET", "/x")
    assert (exchange.status, exchange.body) == (418, b"<html>teapot")
    assert (exchange.field("Content-Type"), exchange.field("X-A")) == ("text/html", "1")


@pytest.mark.parametrize(
    ("trouble", "after", "status", "code"),
    [(hang_up, 0, 502, "upstream_broke"), (nothing, 7, 504, "upstream_timeout")],
)
def test_no_answer_is_an_error_of_openais_shape(
    trouble: Any, after: float, status: int, code: str
) -> None:
    stack = FakeStack()
    stack.on("GET /x", trouble)
    proxy = Proxy(stack, timeout=6)
    exchange = proxy.request("GET", "/x")
    proxy.advance(after)
    assert exchange.status == status
    assert exchange.field("Content-Type") == "application/json"
    assert exchange.json()["error"]["code"] == code
    assert exchange.json()["error"]["message"]


def test_a_client_that_leaves_ends_the_request() -> None:
    stack = FakeStack()
    stack.on("GET /x", nothing)
    answered = Proxy(stack).request("GET", "/x")
    assert len(stack.open) == 1
    answered.leave()
    assert stack.open == []


def test_the_upstream_is_told_who_asked_and_not_what_the_client_says_of_itself() -> None:
    stack = FakeStack()
    stack.on("GET /x", answer({}))
    Proxy(stack).request("GET", "/x", fields={"X-Forwarded-For": "9.9.9.9"})
    (asked,) = stack.asked_for("GET /x")
    assert asked.headers.getRawHeaders("X-Forwarded-For") != ["9.9.9.9"]
    assert asked.headers.getRawHeaders("X-Forwarded-Proto") == ["http"]
    assert asked.headers.getRawHeaders("X-Forwarded-Host") == ["proxy:8322"]


def redirecting(place: str) -> Answer:
    return answer(b"", 307, {"Location": place, "Content-Location": place})


@pytest.mark.parametrize(
    ("version", "asked", "place", "expected"),
    [
        ("0.6.1", "/v1/models/", "http://stack:8321/v1/models", "http://proxy:8322/v1/models"),
        ("0.6.1", "/v1/models/", "HTTP://Stack:8321/v1/models?a=1#b", "http://proxy:8322/v1/models?a=1#b"),
        ("0.6.1", "/v1/models/", "https://stack:8321/v1/models", "http://proxy:8322/v1/models"),
        ("0.6.1", "/openai/v1/models/", "http://stack:8321/v1/models", "http://proxy:8322/openai/v1/models"),
        ("0.3.5", "/v1/files/", "http://stack:8321/v1/openai/v1/files", "http://proxy:8322/v1/files"),
        ("0.3.5", "/openai/v1/files/", "http://stack:8321/v1/openai/v1/files", "http://proxy:8322/openai/v1/files"),
        ("0.6.1", "/x/", "http://stack:8321", "http://proxy:8322"),
        ("0.6.1", "/x/", "/x", "/x"),
        ("0.6.1", "/x/", "http://stack:8321.evil/x", "http://stack:8321.evil/x"),
        ("0.6.1", "/x/", "http://stack/x", "http://stack/x"),
        ("0.6.1", "/x/", "http://elsewhere:8321/x", "http://elsewhere:8321/x"),
    ],
)  # fmt: skip
def test_a_redirect_of_the_servers_to_itself_leads_back_here(
    version: str, asked: str, place: str, expected: str
) -> None:
    stack = FakeStack()
    stack.on("GET /v1/version", answer({"version": version}))
    for path in ("/v1/models/", "/v1/openai/v1/files/", "/x/"):
        stack.on(f"GET {path}", redirecting(place))
    exchange = Proxy(stack).request("GET", asked)
    assert exchange.status == 307
    assert exchange.field("Location") == exchange.field("Content-Location") == expected


@pytest.mark.parametrize(
    ("url", "place", "rewritten"),
    [
        ("http://stack", "http://stack/x", True),
        # Written by a server that believes the X-Forwarded-Proto of a client that came over TLS.
        ("http://stack", "https://stack/x", True),
        ("https://stack", "http://stack/x", True),
        ("https://stack:443", "https://Stack/x", True),
        ("http://stack", "http://stack:80/x", True),
        ("https://stack", "https://stack:443/x", True),
        ("http://stack", "https://stack:443/x", False),
        ("http://stack", "http://stack:8080/x", False),
        ("http://stack:8321", "https://stack/x", False),
        ("http://[::1]", "https://[::1]/x", True),
        ("http://[::1]:8321", "https://[::1]/x", False),
    ],
)
def test_an_address_without_a_port_is_the_servers_whatever_its_scheme(
    url: str, place: str, rewritten: bool
) -> None:
    stack = FakeStack()
    stack.on("GET /x/", redirecting(place))
    exchange = Proxy(stack, url=url).request("GET", "/x/")
    assert exchange.field("Location") == ("http://proxy:8322/x" if rewritten else place)


@pytest.mark.parametrize(
    ("schemes", "hosts", "expected"),
    [
        ([b"https"], [b"chat.example"], b"https://chat.example/x"),
        ([b"https, http"], [b"chat.example, inner:80"], b"https://chat.example/x"),
        ([b"https ,http"], [b" chat.example\t,inner:80"], b"https://chat.example/x"),
        ([b"https", b"http"], [b"chat.example", b"inner:80"], b"https://chat.example/x"),
        ([b"https"], [b""], b"/x"),
        ([b", https"], [b"chat.example"], b"/x"),
    ],
)
def test_of_several_proxies_in_front_the_first_has_the_clients_address(
    schemes: list[bytes], hosts: list[bytes], expected: bytes
) -> None:
    """Apache appends its own; its upstream gets the list as it is."""
    head = head_with({"X-Forwarded-Proto": schemes, "X-Forwarded-Host": hosts})
    fields = forwarded_for(head, "10.0.0.9", secure=False, trusted=True)
    unused: Any = None
    url = DecodedURL.from_text("http://stack")
    resource = LlamaStackResource(unused, url, unused, unused, 1)
    assert resource.client_location(b"http://stack/x", b"/x/", b"/x/", fields) == expected


def test_paths_that_are_not_there_do_not_ask_for_the_version_each_time() -> None:
    stack = FakeStack()
    proxy = Proxy(stack)
    for _ in range(50):
        assert proxy.request("GET", "/openai/v1/nothing").status == 404
    assert len(stack.asked_for("GET /v1/version")) == 2
    proxy.advance(10)
    proxy.request("GET", "/openai/v1/nothing")
    proxy.request("GET", "/openai/v1/nothing")
    assert len(stack.asked_for("GET /v1/version")) == 3


def test_the_servers_own_request_id_is_kept() -> None:
    stack = FakeStack()
    stack.on("GET /x", answer({}, fields={"X-Request-Id": "theirs"}))
    assert Proxy(stack).request("GET", "/x").field("X-Request-Id") == "theirs"


@pytest.mark.parametrize(
    ("path", "fields_kept"),
    [
        ("/v1/models", False),
        ("/v1/chat/completions/x", False),
        ("/v1/tools", True),
        ("/v1/tool-runtime/list-tools", True),
        ("/v1/responses", True),
        ("/x", False),
    ],
)
@pytest.mark.parametrize("version", ["0.3.5", "1.5.0", None])
def test_tokens_for_mcp_servers_reach_only_who_wants_them(
    path: str, fields_kept: bool, version: str | None
) -> None:
    stack = FakeStack()
    if version is None:
        stack.on("GET /v1/version", answer({"detail": "Not Found"}, 404))
    else:
        stack.on("GET /v1/version", answer({"version": version}))
    data = json.dumps({"a": 1, "mcp_headers": {"http://mcp": {"Authorization": "Bearer t"}}})
    Proxy(stack).request("GET", path, fields={"X-OGX-Provider-Data": data})
    [text] = stack.asked[-1].headers.getRawHeaders("X-OGX-Provider-Data") or []
    assert json.loads(text)["a"] == 1
    assert ("mcp_headers" in json.loads(text)) is (fields_kept and version is not None)


@pytest.mark.parametrize(
    "data", ['{"a": 1, "a": 2}', '{"mcp_headers": {"u": {"A": "1", "A": "2"}}}']
)
def test_provider_data_that_can_be_read_in_two_ways_is_refused(data: str) -> None:
    """A user's name in a template may have quotes in it."""
    stack = FakeStack()
    for name in ("X-LlamaStack-Provider-Data", "X-OGX-Provider-Data"):
        for exchange in (
            Proxy(stack).request("GET", "/v1/models", fields={name: data}),
            Proxy(stack).chat(fields={name: data}),
        ):
            assert exchange.status == 400
            assert "twice" in exchange.json()["error"]["message"]
    assert {each.path for each in stack.asked} <= {"/v1/version"}
