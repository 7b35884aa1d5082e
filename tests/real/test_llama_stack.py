"""Chat completions through the proxy and a real Llama Stack, with the tools of a real MCP server.

Every test says words of its own to the model, by which it finds its requests in the model's log.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from .conftest import StartProxy, StartServer
from .processes import free_port
from .programs import (
    OUR_TOOLS,
    Json,
    McpServer,
    Proxy,
    ScriptedModel,
    Server,
    deltas,
    eventually,
    names,
    results,
    roles,
    spoken,
    user,
)

pytestmark = pytest.mark.real

LOOK_UP: Json = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "A tool of the client's own.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


@pytest.fixture(scope="session")
def hasty_proxy(llamaproxy: StartProxy, llama_stack: Server) -> Proxy:
    """A proxy with little patience."""
    return llamaproxy(
        llama_stack, "--max-iterations", "2", "--tool-timeout", "3", "--keep-alive", "1"
    )


def test_a_tool_is_offered_and_run(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    completion = proxy.create(messages=user('unary run [call get_text {"city": "Oslo"}]'))
    (choice,) = completion.choices
    assert choice.message.content == "The tool said: Sunny in Oslo for 3 days"
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    first, second = scripted_model.bodies("unary run")
    assert names(first) == names(second) == OUR_TOOLS
    assert roles(second) == ["user", "assistant", "tool"]
    assert results(second) == ["Sunny in Oslo for 3 days"]
    assert completion.usage is not None
    assert completion.usage.total_tokens == 2 * 15


def test_a_stream_is_one_completion(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    reply = proxy.chat('streamed run [call get_text {"city": "Bergen", "days": 5}]')
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.payloads[-1] == "[DONE]"
    assert reply.payloads.count("[DONE]") == 1
    assert spoken(reply.chunks) == "The tool said: Sunny in Bergen for 5 days"
    assert len({(c["id"], c["created"], c["model"]) for c in reply.chunks}) == 1
    assert [d["role"] for d in deltas(reply.chunks) if d.get("role")] == ["assistant"]
    assert not any(delta.get("tool_calls") for delta in deltas(reply.chunks))
    finishes = [c["finish_reason"] for chunk in reply.chunks for c in chunk["choices"]]
    assert [reason for reason in finishes if reason] == ["stop"]
    assert finishes[-1] == "stop"
    assert not any(chunk.get("usage") for chunk in reply.chunks)
    _, second = scripted_model.bodies("streamed run")
    assert results(second) == ["Sunny in Bergen for 5 days"]


def test_the_official_client_reads_the_stream(proxy: Proxy) -> None:
    stream = proxy.create(
        messages=user("official client [call ping {}]"),
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == "The tool said: pong"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 2 * 15


def test_words_before_a_call_belong_to_the_answer(proxy: Proxy) -> None:
    asked = "[text Let me look.] [call ping {}]"
    whole = "Let me look.\n\nThe tool said: pong"
    completion = proxy.create(messages=user(asked))
    assert completion.choices[0].message.content == whole
    assert spoken(proxy.chat(asked).chunks) == whole


def test_words_arrive_while_the_model_speaks(proxy: Proxy) -> None:
    connection = proxy.connect()
    try:
        response = proxy.open_chat(connection, "live words [pause] [plain]")
        arrivals = [time.monotonic() for line in response if line.startswith(b"data: ")]
    finally:
        connection.close()
    assert arrivals[-1] - arrivals[0] > 1.5


def test_parallel_calls_run_together(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    started = time.monotonic()
    reply = proxy.chat('two naps [call slow {"seconds": 3}] [call slow {"seconds": 2.5}]')
    assert spoken(reply.chunks) == "The tool said: slept 3.0s | slept 2.5s"
    assert time.monotonic() - started < 5.5
    _, second = scripted_model.bodies("two naps")
    _, assistant, *answers = second["messages"]
    assert [call["id"] for call in assistant["tool_calls"]] == [a["tool_call_id"] for a in answers]


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_reads_of_a_failure(
    proxy: Proxy, scripted_model: ScriptedModel, stream: bool
) -> None:
    marker = f"failing tool, stream {stream}"
    asked = f'{marker} [call fail {{"reason": "no tea"}}] [call ping {{}}]'
    if stream:
        answer = spoken(proxy.chat(asked).chunks)
    else:
        completion = proxy.create(messages=user(asked))
        answer = completion.choices[0].message.content or ""
    assert "deliberate failure: no tea" in answer
    assert "pong" in answer
    _, second = scripted_model.bodies(marker)
    assert "deliberate failure: no tea" in results(second)[0]


def test_hopeless_calls_become_results(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    assert "no_such_tool" in spoken(proxy.chat("unknown name [call no_such_tool {}]").chunks)
    assert spoken(proxy.chat("wrong type [call get_text {}]").chunks).startswith("The tool said: ")
    _, second = scripted_model.bodies("wrong type")
    assert "city" in results(second)[0]


def test_an_image_becomes_a_note(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    reply = proxy.chat("picture [call get_image {}] [call get_mixed {}]")
    assert reply.status == 200
    _, second = scripted_model.bodies("picture")
    image, mixed = results(second)
    assert "image" in image.lower()
    assert mixed.startswith("before")
    assert mixed.endswith("after")
    assert "iVBOR" not in image + mixed


def test_a_structured_result_is_json(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    proxy.chat('structure [call get_structured {"city": "Oslo"}]')
    _, second = scripted_model.bodies("structure")
    expected = {"city": "Oslo", "temperature_c": 21.5, "conditions": ["sunny", "dry"]}
    assert json.loads(results(second)[0]) == expected


def test_nested_arguments_arrive(proxy: Proxy) -> None:
    arguments = {"address": {"street": "Main"}, "tags": ["a", "b"], "unit": "f", "matrix": [[1]]}
    reply = proxy.chat(f"nesting [call nested {json.dumps(arguments)}]")
    assert spoken(reply.chunks) == "The tool said: Main|a,b|f|[[1]]|None"


def test_the_client_narrows_the_tools(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    proxy.chat("two of them", {"X-Llamaproxy-Tools": "ping, get_t*"})
    assert names(scripted_model.bodies("two of them")[0]) == ["get_text", "ping"]
    proxy.chat("none of them", {"X-Llamaproxy-Tools": "none"})
    assert "tools" not in scripted_model.bodies("none of them")[0]
    proxy.chat("no choice", tool_choice="none")
    (asked,) = scripted_model.bodies("no choice")
    assert "tools" not in asked
    assert "tool_choice" not in asked


def test_client_and_server_tools_in_one_round(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    asked = user('mixed round [call look_up {"word": "tea"}] [call ping {}]')
    first = proxy.create(messages=asked, tools=[LOOK_UP])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "look_up"
    history = [
        *asked,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "a drink"},
    ]
    second = proxy.create(messages=history, tools=[LOOK_UP])
    assert second.choices[0].message.content == "The tool said: a drink | pong"
    before, after = scripted_model.bodies("mixed round")
    assert names(before) == ["look_up", *OUR_TOOLS]
    assert roles(after) == ["user", "assistant", "tool", "tool"]
    called = after["messages"][1]["tool_calls"]
    assert [c["function"]["name"] for c in called] == ["look_up", "ping"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_an_openai_error(proxy: Proxy, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        proxy.create(model="no-such-model", messages=user("anyone?"), stream=stream)
    error = caught.value.response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert "no-such-model" in error["message"]


def test_a_refusal_of_the_model_keeps_its_status(proxy: Proxy) -> None:
    with pytest.raises(openai.BadRequestError, match="scripted failure"):
        proxy.create(messages=user("refused [fail 400]"), stream=True)


@pytest.mark.parametrize("accident", ["err", "die"])
def test_a_stream_that_breaks_says_so(proxy: Proxy, accident: str) -> None:
    reply = proxy.chat(f"accident [{accident}] [plain]")
    assert reply.status == 200
    assert "error" in reply.chunks[-1]
    assert reply.chunks[-1]["error"]["message"]
    assert "Hello" in spoken(reply.chunks[:-1])


def test_other_paths_pass_through(proxy: Proxy, llama_stack: Server) -> None:
    for path in ("/v1/health", "/v1/version", "/v1/tools", "/v1/toolgroups", "/v1/no-such-path"):
        assert proxy.process.get(path) == llama_stack.process.get(path)


def test_models_and_embeddings(proxy: Proxy) -> None:
    client = proxy.client
    assert proxy.model in [model.id for model in client.models.list()]
    embedded = client.embeddings.create(model="vllm/embed-1", input=["tea", "water"])
    assert [len(entry.embedding) for entry in embedded.data] == [8, 8]


def test_a_client_that_leaves_ends_the_generation(
    proxy: Proxy, scripted_model: ScriptedModel
) -> None:
    connection = proxy.connect()
    response = proxy.open_chat(connection, "leaving early [stall] [plain]")
    assert b"Hello" in response.readline() + response.readline() + response.readline()
    assert scripted_model.states("leaving early") == ["running"]
    response.close()
    connection.close()
    eventually(lambda: scripted_model.states("leaving early") == ["gone"])


def test_the_server_restarts_between_list_and_call(
    proxy: Proxy, llama_stack: Server, scripted_model: ScriptedModel
) -> None:
    """A restarted server runs no tool before somebody has listed its tools again."""
    assert spoken(proxy.chat("before [call ping {}]").chunks) == "The tool said: pong"
    llama_stack.process.restart()
    assert spoken(proxy.chat("after [call ping {}]").chunks) == "The tool said: pong"


def test_a_repeated_call_ends_the_loop(proxy: Proxy, scripted_model: ScriptedModel) -> None:
    reply = proxy.chat("for ever [loop] [call ping {}]")
    assert spoken(reply.chunks).startswith("The tool said: pong")
    *rounds, last = scripted_model.bodies("for ever")
    assert len(rounds) == 3
    assert "tools" not in last  # how Llama Stack reads a tool_choice of none


def test_rounds_are_limited(hasty_proxy: Proxy, scripted_model: ScriptedModel) -> None:
    reply = hasty_proxy.chat("too often [loop] [call ping {}]")
    assert spoken(reply.chunks).startswith("The tool said: pong")
    *rounds, last = scripted_model.bodies("too often")
    assert len(rounds) == 2
    assert "tools" not in last


def test_a_slow_tool_is_given_up(hasty_proxy: Proxy, scripted_model: ScriptedModel) -> None:
    started = time.monotonic()
    reply = hasty_proxy.chat('too slow [call slow {"seconds": 20}] [call ping {}]')
    assert time.monotonic() - started < 10
    assert ": keep-alive" in reply.lines
    _, second = scripted_model.bodies("too slow")
    gave_up, pong = results(second)
    assert "slept" not in gave_up
    assert pong == "pong"


def test_many_clients_at_once(proxy: Proxy) -> None:
    def ask(city: str) -> str:
        return spoken(proxy.chat(f'crowd [call get_text {{"city": "{city}"}}]').chunks)

    cities = [f"Town-{number}" for number in range(24)]
    with ThreadPoolExecutor(len(cities)) as pool:
        answers = list(pool.map(ask, cities))
    assert answers == [f"The tool said: Sunny in {city} for 3 days" for city in cities]


@pytest.fixture(scope="module")
def guarded_proxy(
    llamaproxy: StartProxy,
    start_server: StartServer,
    mcp_server: McpServer,
    locked_mcp_server: McpServer,
) -> Proxy:
    """A proxy for a server with three MCP servers: an open one, a locked one, and a dead one."""
    urls = {
        "main": mcp_server.url,
        "locked": locked_mcp_server.url,
        "dead": f"http://127.0.0.1:{free_port()}/mcp",
    }
    return llamaproxy(start_server("0.6.1", mcp_servers=urls))


def test_a_locked_or_dead_tool_server_costs_nothing_else(
    guarded_proxy: Proxy, scripted_model: ScriptedModel
) -> None:
    """Without the token, this server refuses its whole tool list: the proxy has to ask by group."""
    assert spoken(guarded_proxy.chat("no token [call ping {}]").chunks) == "The tool said: pong"
    assert names(scripted_model.bodies("no token")[0]) == OUR_TOOLS


def test_a_token_opens_a_locked_tool_server(
    guarded_proxy: Proxy, locked_mcp_server: McpServer, scripted_model: ScriptedModel
) -> None:
    tokens = {"mcp_headers": {locked_mcp_server.url: {"Authorization": "Bearer sesame"}}}
    reply = guarded_proxy.chat(
        "with token [call locked_headers {}]", {"X-LlamaStack-Provider-Data": json.dumps(tokens)}
    )
    assert "Bearer sesame" in spoken(reply.chunks)
    offered = names(scripted_model.bodies("with token")[0])
    assert sorted(offered) == sorted([*OUR_TOOLS, *(f"locked_{name}" for name in OUR_TOOLS)])
