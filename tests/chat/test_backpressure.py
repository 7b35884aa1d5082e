"""A client that does not read stops the upstream, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.events import CallEnded
from tests.chat.connections import Connections
from tests.chat.script import HALF, KEEP_ALIVE, live
from tests.support import call, chunk

Json = dict[str, Any]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    return Connections(monkeypatch)


def test_a_client_that_does_not_read_stops_the_upstream(connections: Connections) -> None:
    """DESIGN: S11."""
    chat = live(server=[])
    chat.sends(chunk({"role": "assistant", "content": "first "}))
    assert not connections.paused
    connections.to_the_client.pauseProducing()
    chat.sends(chunk({"content": "second "}))
    assert connections.paused, "one event may have been on its way when the client stopped"
    connections.to_the_client.resumeProducing()
    assert not connections.paused
    chat.sends(chunk({"content": "third"}))
    assert not connections.paused
    assert chat.exchange.text() == "first second third"


def test_a_client_that_does_not_read_is_sent_no_comments(connections: Connections) -> None:
    chat = live(server=[])
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    chat.wait(15, times=4)
    assert KEEP_ALIVE not in chat.exchange.body
    connections.to_the_client.resumeProducing()
    chat.wait(15)
    assert chat.exchange.body.count(KEEP_ALIVE) == 1


def test_a_client_that_does_not_read_is_no_silence_of_the_upstream(
    connections: Connections,
) -> None:
    chat = live(server=[], proxy={"timeout": 60})
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    chat.sends(chunk({"content": "."}))
    chat.wait(15, times=10)
    connections.to_the_client.resumeProducing()
    chat.sends(chunk({}, "stop"))
    chat.ends()
    assert chat.text == "Half."
    assert chat.nothing_left


def test_a_call_that_is_not_run_because_the_client_leaves_unread_has_an_outcome(
    connections: Connections,
) -> None:
    chat = live(fields={"X-OpenWebUI-Message-Id": "m"})  # who is shown each call first
    chat.sends(HALF)
    chat.sends(chunk({"tool_calls": [{"index": 0, **call("clock")}]}, "tool_calls"))
    connections.to_the_client.pauseProducing()
    chat.ends()
    assert chat.invoked == []
    chat.exchange.leave()
    ended = [event.call for event in chat.proxy.events if isinstance(event, CallEnded)]
    assert [record.outcome for record in ended] == ["cancelled"]
    assert chat.nothing_left
