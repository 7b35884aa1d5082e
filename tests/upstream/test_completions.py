"""Completions: asked where this upstream serves them, even after it has changed."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.errors import ProxyError, UpstreamRefused, UpstreamUnavailable
from llamaproxy.heads import Fields
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.completions import ClientCompletions, Completions
from tests.support import (
    CHAT,
    Chunks,
    FakeStack,
    MemoryAgent,
    Upstream,
    answer,
    chunk,
    completion,
    events,
    hang_up,
    recorded,
)

OLD_CHAT = "POST /v1/openai/v1/chat/completions"
NOT_FOUND = recorded("0.6.1", "not_found")
HELLO = completion({"content": "hello"})
VERSION = "GET /v1/version"


def old() -> Any:
    return recorded("0.3.5", "version")


def new() -> Any:
    return recorded("0.6.1", "version")


async def streamed(completions: ClientCompletions, body: Json) -> list[Json | None]:
    chunks: list[Json | None] = []
    await completions.stream(body, Chunks(chunks))
    return chunks


class Client:
    """Asks a fake stack for completions, whole (``stream`` false) or streamed."""

    def __init__(self, stream: bool) -> None:
        self.stack = FakeStack()
        self.upstream = Upstream(self.stack)
        #: The fields of the answers.
        self.fields: list[Fields] = []
        completions = Completions(self.upstream.client, self.upstream.detector)
        self.completions = completions.for_client(
            ClientContext(), lambda _, fields: self.fields.append(fields)
        )
        self.stream = stream
        self.hello = events(chunk({"content": "hello"}, "stop")) if stream else answer(HELLO)

    def ask(self) -> Any:
        if self.stream:
            return self.upstream.result(streamed(self.completions, {"messages": []}))
        return self.upstream.result(self.completions.complete({"messages": []}))

    @property
    def targets(self) -> list[str]:
        return [f"{each.method} {each.target}" for each in self.stack.asked]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


def test_the_path_is_the_generations(client: Client) -> None:
    for version, route in ((old(), OLD_CHAT), (new(), CHAT)):
        client.stack.on(VERSION, version)
        client.stack.on(route, client.hello)
        client.upstream.detector.forget()
        assert client.ask()
        assert client.targets[-1] == route


@pytest.mark.parametrize(
    ("before", "after", "route"), [(old(), new(), CHAT), (new(), old(), OLD_CHAT)]
)
def test_a_route_that_has_moved_is_found_again(
    client: Client, before: Any, after: Any, route: str
) -> None:
    client.stack.on(VERSION, before, after)
    client.stack.on(route, client.hello)
    assert client.ask()
    assert client.targets.count(VERSION) == 2
    assert client.targets[-1] == route
    client.ask()
    assert client.targets.count(VERSION) == 2


def test_a_route_that_is_nowhere_is_asked_for_once(client: Client) -> None:
    with pytest.raises(UpstreamRefused, match="Not Found"):
        client.ask()
    assert client.targets == [VERSION, CHAT, VERSION]


@pytest.mark.parametrize(
    "refusal",
    [
        recorded("0.6.1", "chat_model_unknown"),
        recorded("0.6.1", "chat_backend_429"),
        answer({"detail": "Not Found"}, 400),
        answer({"detail": "Not Found"}, 500),
        answer({"detail": "Tool 'x' Not Found"}, 404),
    ],
)
def test_a_request_that_the_upstream_may_have_acted_on_is_not_repeated(
    client: Client, refusal: Any
) -> None:
    client.stack.on(VERSION, new(), old())
    client.stack.on(CHAT, refusal)
    with pytest.raises(UpstreamRefused):
        client.ask()
    assert client.targets == [VERSION, CHAT]


def test_a_broken_connection_is_not_repeated(client: Client) -> None:
    client.stack.on(CHAT, hang_up)
    with pytest.raises(ProxyError):
        client.ask()
    assert client.targets == [VERSION, CHAT]


def test_a_server_that_went_away_is_asked_again_what_it_is(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.stack.on(VERSION, new())
    client.stack.on(CHAT, client.hello)
    client.ask()

    def refuse(*_: Any, **__: Any) -> Any:
        raise UpstreamUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(MemoryAgent, "send", refuse)
        with pytest.raises(UpstreamUnavailable):
            client.ask()
    client.ask()
    assert client.targets == [VERSION, CHAT, VERSION, CHAT]


def test_a_stream_that_fails_after_its_first_chunk_is_not_begun_again() -> None:
    client = Client(stream=True)
    client.stack.on(VERSION, new(), old())
    failing = {"error": {"message": "Not Found", "code": "404"}}
    client.stack.on(CHAT, events(chunk({"content": "a"}), failing))
    with pytest.raises(UpstreamRefused):
        client.ask()
    assert client.targets == [VERSION, CHAT]
