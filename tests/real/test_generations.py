"""Every generation of the server, behind the proxy: a client cannot tell them apart."""

from __future__ import annotations

import json

import openai
import pytest

from .conftest import StartProxy, StartServer
from .programs import OUR_TOOLS, Proxy, ScriptedModel, eventually, names, results, spoken, user
from .servers import GENERATIONS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=list(GENERATIONS))
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


# The one that lets its model go on when a client has left.
CARELESS = "0.2.12"


@pytest.fixture(scope="module")
def proxy(version: str, start_server: StartServer, llamaproxy: StartProxy) -> Proxy:
    return llamaproxy(start_server(version))


def test_a_tool_is_run(proxy: Proxy, version: str, scripted_model: ScriptedModel) -> None:
    marker = f"unary on {version}"
    completion = proxy.create(messages=user(f'{marker} [call get_text {{"city": "Oslo"}}]'))
    assert completion.choices[0].message.content == "The tool said: Sunny in Oslo for 3 days"
    assert completion.choices[0].finish_reason == "stop"
    first, _ = scripted_model.bodies(marker)
    assert names(first) == OUR_TOOLS
    functions = {tool["function"]["name"]: tool["function"] for tool in first["tools"]}
    assert functions["get_text"]["parameters"]["properties"]["days"]["type"] == "integer"
    assert "items" in functions["nested"]["parameters"]["properties"]["tags"]


def test_a_tool_is_run_in_a_stream(proxy: Proxy, version: str) -> None:
    reply = proxy.chat(f'stream on {version} [call ping {{}}] [call big {{"n": 9}}]')
    assert reply.payloads[-1] == "[DONE]"
    assert spoken(reply.chunks) == "The tool said: pong | xxxxxxxxx"
    assert len({chunk["id"] for chunk in reply.chunks}) == 1


def test_nested_arguments_arrive(proxy: Proxy, version: str) -> None:
    arguments = {"address": {"street": "Main"}, "tags": ["a", "b"], "unit": "f"}
    reply = proxy.chat(f"nesting on {version} [call nested {json.dumps(arguments)}]")
    assert spoken(reply.chunks) == "The tool said: Main|a,b|f|None|None"


def test_the_model_reads_of_a_failure(
    proxy: Proxy, version: str, scripted_model: ScriptedModel
) -> None:
    """Older servers fail at every image: the call fails then, and the chat does not."""
    marker = f"failures on {version}"
    reply = proxy.chat(f"{marker} [call fail {{}}] [call get_image {{}}] [call ping {{}}]")
    assert reply.status == 200
    _, second = scripted_model.bodies(marker)
    failed, image, pong = results(second)
    assert "deliberate failure: because" in failed
    assert 0 < len(image) < 1000
    assert pong == "pong"


def test_models(proxy: Proxy) -> None:
    assert proxy.model in [model.id for model in proxy.client.models.list()]


def test_an_unknown_model_is_an_openai_error(proxy: Proxy) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        proxy.create(model="no-such-model", messages=user("anyone?"))
    assert caught.value.status_code in (400, 404)
    assert "no-such-model" in caught.value.response.json()["error"]["message"]


@pytest.mark.parametrize("version", [v for v in GENERATIONS if v != CARELESS], scope="module")
def test_a_client_that_leaves_ends_the_generation(
    proxy: Proxy, version: str, scripted_model: ScriptedModel
) -> None:
    marker = f"leaving {version}"
    connection = proxy.connect()
    response = proxy.open_chat(connection, f"{marker} [stall] [plain]")
    assert response.readline()
    assert scripted_model.states(marker) == ["running"]
    response.close()
    connection.close()
    eventually(lambda: scripted_model.states(marker) == ["gone"])
