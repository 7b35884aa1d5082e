"""The Responses API over WebSocket, by the official client, from a real OGX through the proxy."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import StartProxy, StartServer
from .environments import Environment
from .programs import Proxy

pytestmark = pytest.mark.real

CLIENT = Environment("openai-realtime", ("openai[realtime]",))


@pytest.fixture(scope="module")
def responding(start_server: StartServer, llamaproxy: StartProxy) -> Proxy:
    """A proxy in front of a server with the Responses API."""
    return llamaproxy(start_server("ogx-1.5.0-responses"))


def converse(base: str, model: str, *texts: str) -> Any:
    script = str(Path(__file__).with_name("responses_client.py"))
    command = [str(CLIENT.python()), script, base, "key", model, *texts]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_a_conversation_over_websocket_is_the_servers_own(responding: Proxy, prefix: str) -> None:
    texts = ("over the wire one", "over the wire two")
    model = responding.model
    directly = converse(responding.server.url + "/v1", model, *texts)
    through = converse(responding.process.url + prefix, model, *texts)
    assert all(through["answers"])
    assert "response.completed" in through["events"]
    assert through == directly


def test_the_log_tells_of_it_when_it_has_ended(responding: Proxy) -> None:
    converse(responding.process.url + "/v1", responding.model, "over the wire three")
    assert " GET /v1/responses 101 " in responding.process.tail()


def test_a_refusal_is_the_servers_own(responding: Proxy) -> None:
    refused = converse(responding.process.url + "/v1/nothing", responding.model, "nobody hears")
    assert refused == converse(responding.server.url + "/v1/nothing", responding.model, "nobody")


def test_a_redirect_stays_with_the_proxy(responding: Proxy) -> None:
    """The server sends a path with a slash at its end elsewhere, by its own address."""
    address = responding.process.url
    connection = http.client.HTTPConnection("127.0.0.1", responding.process.port, timeout=60)
    try:
        connection.request("GET", "/v1/health/")
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    assert answer.status == 307
    assert answer.getheader("Location") == f"{address}/v1/health"
