"""An upstream below a path, such as ``https://host/api/openai/v1``, through the whole proxy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from llamaproxy.application import assemble
from llamaproxy.check import Check
from llamaproxy.config.options import Options
from llamaproxy.config.values import server_url
from tests.chat.streams import both, message_of
from tests.support import (
    FIXTURES,
    FakeStack,
    Proxy,
    Upstream,
    answer,
    calling,
    outcome,
    recorded,
    saying,
)

#: What the operator gives, and the path below which the server is then asked.
GIVEN = [
    ("https://host/api/openai/v1", "/api/openai"),
    ("https://host/api/openai/v1/", "/api/openai"),
    ("https://host/api/openai", "/api/openai"),
    ("https://api.groq.com/openai/v1", "/openai"),
    ("http://host:8080/llama", "/llama"),
    ("http://host:8080/a%20b/v1", "/a%20b"),
    ("http://host:8080/v1", ""),
]

given_urls = pytest.mark.parametrize(("given", "base"), GIVEN)

TOOLS = json.loads((FIXTURES / "llama-server" / "tools.json").read_text("utf-8"))


def llama_server(base: str) -> FakeStack:
    """One below *base*, with a tool."""
    stack = FakeStack()
    stack.on(f"GET {base}/v1/version", recorded("llama-server", "version"))
    stack.on(f"GET {base}/tools", answer(TOOLS))
    stack.on(f"POST {base}/tools", answer({"plain_text_response": "12:00"}))
    stack.on(f"GET {base}/v1/models", recorded("llama-server", "models"))
    stack.on(f"POST {base}/v1/chat/completions", calling("echo_echo"), saying("It is noon."))
    return stack


def proxy_of(given: str, stack: FakeStack) -> Proxy:
    return Proxy(stack, url=server_url(given).to_text())


@given_urls
@both
def test_a_chat_with_the_servers_own_tools(given: str, base: str, stream: bool) -> None:
    stack = llama_server(base)
    exchange = proxy_of(given, stack).chat(stream=stream)
    assert message_of(exchange)["content"] == "It is noon."
    assert len(stack.asked_for(f"POST {base}/tools")) == 1
    assert all(asked.path.startswith(f"{base}/") for asked in stack.asked)


@given_urls
@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_what_is_passed_through(given: str, base: str, prefix: str) -> None:
    stack = llama_server(base)
    stack.on(f"POST {base}/v1/embeddings", answer({"data": [1]}))
    stack.on(f"GET {base}/metrics", answer({"up": 1}))
    proxy = proxy_of(given, stack)
    assert proxy.request("GET", f"{prefix}/models").json()["data"][0]["id"] == "smollm2"
    assert proxy.request("POST", f"{prefix}/embeddings?a=b%20c", {}).json() == {"data": [1]}
    assert stack.asked[-1].target == f"{base}/v1/embeddings?a=b%20c"
    assert proxy.request("GET", "/metrics").json() == {"up": 1}
    assert proxy.request("GET", "/health").json() == {"status": "healthy"}


@given_urls
@pytest.mark.parametrize("absolute", [True, False])
def test_a_redirect_leads_back_to_the_proxy(given: str, base: str, absolute: bool) -> None:
    stack = llama_server(base)
    origin = server_url(given).replace(path=()).to_text().rstrip("/") if absolute else ""
    for path in ("/v1/files", "/docs"):
        to = {"Location": f"{origin}{base}{path}/?x=1"}
        stack.on(f"GET {base}{path}", answer({}, 307, to))
        exchange = proxy_of(given, stack).request("GET", path)
        assert exchange.status == 307
        location = exchange.field("Location") or ""
        assert location in (f"http://proxy:8322{path}/?x=1", f"{path}/?x=1")


def test_a_redirect_to_another_path_of_that_host_stays() -> None:
    stack = llama_server("/llama")
    stack.on("GET /llama/x", answer({}, 302, {"Location": "http://host:8080/login"}))
    exchange = proxy_of("http://host:8080/llama", stack).request("GET", "/x")
    assert exchange.field("Location") == "http://host:8080/login"


@given_urls
def test_the_check(given: str, base: str) -> None:
    stack = llama_server(base)
    stack.on(f"GET {base}/v1/chat/completions", answer({"error": "no"}, 405))
    url = server_url(given)
    upstream = Upstream(stack, url=url.to_text())
    options = Options({})
    options.parseOptions([])
    app = assemble(options, url, upstream.clock, upstream.agent, upstream.agent)
    lines: list[str] = []
    check: Any = Check(url.to_text(), app.client, app.catalogue, app.tell, lines.append)
    running = Deferred.fromCoroutine(check.run(upstream.clock))
    for _ in range(40):
        upstream.settle()
        upstream.clock.advance(0)
    assert outcome(running) == 0, lines
    assert any("echo_echo" in line for line in lines)
    assert all(asked.path.startswith(f"{base}/") for asked in stack.asked)
