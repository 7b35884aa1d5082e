"""What servers of other makes send, whole and streamed: both come to the same answer (S8)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.streams import (
    both,
    client_tool,
    failure_in,
    finish_of,
    joined,
    message_of,
    own_ids,
    stack_with,
)
from tests.support import (
    CHAT,
    INVOKE,
    Answer,
    Exchange,
    FakeStack,
    Proxy,
    answer,
    chunk,
    completion,
    event,
    events,
    read,
    saying,
    tool_result,
)

Json = dict[str, Any]

ARGUMENTS = '{"k": "a b", "n": [1, {}]}'
SHORTER = '{"k":"a b","n":[1,{}]}'


def parts(*deltas: Json, reason: str | None = "stop", **fields: Any) -> Answer:
    """A stream of *deltas*."""
    return events(*map(chunk, deltas), chunk({}, reason, **fields), b"[DONE]")


def either(whole: Json, *chunks: Json | bytes) -> Answer:
    """*whole*, or the *chunks* of it if the request wants a stream."""

    def write(request: Any) -> None:
        streamed = read(request).json().get("stream")
        (events(*chunks) if streamed else answer(whole))(request)

    return write


def exchange_with(*replies: Answer, stream: bool = True, **body: Any) -> tuple[Exchange, FakeStack]:
    """What a client gets with a tool ``own`` of its own and the server's ``act``."""
    stack = stack_with("act")
    stack.on(CHAT, *replies)
    stack.on(INVOKE, tool_result("done"))
    body = {"tools": [client_tool("own")], **body}
    return Proxy(stack).chat(stream=stream, **body), stack


def arguments_run(stack: FakeStack) -> list[Any]:
    return [each.json()["kwargs"] for each in stack.asked_for(INVOKE)]


# --- calls


def delta(name: str | None, arguments: Any, **fields: Any) -> Json:
    named = {} if name is None else {"name": name}
    entry = {"index": 0, "function": {**named, "arguments": arguments}, **fields}
    return {"tool_calls": [entry]}


def begun(name: str) -> Json:
    return delta(name, "", id="c1", type="function")


RESENT = [
    [delta(None, ARGUMENTS), delta(None, SHORTER)],
    [delta(None, SHORTER), delta(None, ARGUMENTS)],
    [delta(None, ARGUMENTS), delta(None, {"k": "a b", "n": [1, {}]})],
    [delta(None, ARGUMENTS[:9]), delta(None, ARGUMENTS[9:]), delta(None, SHORTER)],
    [delta(None, ARGUMENTS), delta(None, SHORTER[:9]), delta(None, SHORTER[9:])],
    [delta(None, ARGUMENTS[:9]), delta(None, ARGUMENTS[:15]), delta(None, ARGUMENTS)],
    [delta(None, "{}"), delta(None, ARGUMENTS)],
    [delta(None, "{}"), delta(None, ARGUMENTS[:9]), delta(None, ARGUMENTS[9:])],
    [delta(None, {}), delta(None, {"k": "a b", "n": [1, {}]})],
]


@pytest.mark.parametrize("named", [False, True], ids=["bare", "named"])
@pytest.mark.parametrize("pieces", RESENT)
def test_arguments_are_the_same_however_they_are_sent(pieces: list[Json], named: bool) -> None:
    for name in ("act", "own"):
        sent = [
            {"tool_calls": [each | {"id": "c1"} for each in piece["tool_calls"]]}
            for piece in pieces
        ]
        for each in sent if named else ():
            call = each["tool_calls"][0]
            call["function"] = {"name": name, **call["function"]}
        exchange, stack = exchange_with(
            parts(begun(name), *sent, reason="tool_calls"), saying("Done.")
        )
        if name == "act":
            assert arguments_run(stack) == [{"k": "a b", "n": [1, {}]}]
            assert message_of(exchange)["content"] == "Done."
        else:
            (call,) = message_of(exchange)["tool_calls"]
            shown = call["function"]["arguments"]
            assert shown in (ARGUMENTS, SHORTER)


def test_a_clients_empty_object_is_shown_before_another_call_begins() -> None:
    second = {"index": 1, "id": "c2", "function": {"name": "own", "arguments": "{}"}}
    exchange, _ = exchange_with(
        parts(begun("own"), delta(None, "{}"), {"tool_calls": [second]}, reason="tool_calls")
    )
    shown = [
        (call["index"], call["function"].get("arguments"))
        for event in exchange.events()[:-1]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert shown == [(0, ""), (0, "{}"), (1, ""), (1, "{}")] or shown == [
        *((0, ""), (0, "{}"), (1, "{}"))
    ]


@both
@pytest.mark.parametrize("name", ["act", "own"])
def test_one_call_may_stand_for_a_list_of_one(name: str, stream: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": ARGUMENTS}}
    message = {"content": None, "tool_calls": call}
    reply = either(completion(message, "tool_calls"), chunk(message), chunk({}, "tool_calls"))
    exchange, stack = exchange_with(reply, saying("Done."), stream=stream)
    check_call(exchange, stack, name)


@both
@pytest.mark.parametrize("name", ["act", "own"])
def test_a_function_call_is_a_call(name: str, stream: bool) -> None:
    call = {"name": name, "arguments": ARGUMENTS}
    reply = either(
        completion({"content": None, "function_call": call}, "function_call"),
        chunk({"role": "assistant", "content": None, "function_call": {"name": name}}),
        chunk({"function_call": {"arguments": ARGUMENTS[:9]}}),
        chunk({"function_call": {"arguments": ARGUMENTS[9:]}}),
        chunk({}, "function_call"),
    )
    exchange, stack = exchange_with(reply, saying("Done."), stream=stream)
    check_call(exchange, stack, name)


def check_call(exchange: Exchange, stack: FakeStack, name: str) -> None:
    """The call was run, or handed over."""
    message = message_of(exchange)
    assert "function_call" not in message
    if name == "act":
        assert arguments_run(stack) == [{"k": "a b", "n": [1, {}]}]
        assert message["content"] == "Done."
        assert finish_of(exchange) == "stop"
    else:
        (call,) = own_ids(message)["tool_calls"]
        assert call["function"] == {"name": "own", "arguments": ARGUMENTS}
        assert finish_of(exchange) == "tool_calls"


@both
def test_a_client_that_declares_functions_gets_a_function_call(stream: bool) -> None:
    call = {"name": "own", "arguments": ARGUMENTS}
    message = {"content": None, "function_call": call}
    reply = either(completion(message, "function_call"), chunk(message), chunk({}, "function_call"))
    exchange, _ = exchange_with(reply, stream=stream, tools=None, functions=[{"name": "own"}])
    assert message_of(exchange)["function_call"] == call
    assert finish_of(exchange) == "function_call"


# --- texts


@both
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_in_parts_is_text(key: str, stream: bool) -> None:
    first = [{"type": "text", "text": "Let "}]
    second = [{"type": "thinking", "thinking": "me"}]
    reply = either(
        completion({"content": "Hi", key: [*first, {"type": "text", "text": "me"}]}),
        *(chunk({key: first}), chunk({key: second}), chunk({"content": "Hi"}, "stop")),
    )
    exchange, _ = exchange_with(reply, stream=stream)
    assert message_of(exchange) == {"role": "assistant", "content": "Hi", key: "Let me"}


@pytest.mark.parametrize("role", [None, "", "Assistant", 1])
def test_any_role_is_the_assistants(role: Any) -> None:
    sent = [chunk({"role": role, "content": word}) for word in ("a", "b")]
    exchange, _ = exchange_with(events(*sent, chunk({"role": role}, "stop")))
    assert message_of(exchange) == {"role": "assistant", "content": "ab"}
    assert all(
        event["choices"][0]["delta"].get("role", "assistant") == "assistant"
        for event in exchange.events()[:-1]
    )


@pytest.mark.parametrize("name", ["act", "own"])
def test_messages_that_grow_are_one_message(name: str) -> None:
    def message(content: str, *calls: str, reason: str | None = None) -> Json:
        entries = [
            {"index": 0, "id": "c1", "function": {"name": name, "arguments": text}}
            for text in calls
        ]
        sent = {"role": "assistant", "reasoning": "Hm" + content, "content": content}
        choice = {"index": 0, "message": sent | ({"tool_calls": entries} if entries else {})}
        return {**chunk({}), "choices": [{**choice, "finish_reason": reason}]}

    exchange, stack = exchange_with(
        events(
            message("He"),
            message("Hello"),
            message("Hello", ARGUMENTS[:9]),
            message("Hello", ARGUMENTS, reason="tool_calls"),
        ),
        saying(""),
    )
    message_shown = message_of(exchange)
    assert message_shown["content"] == "Hello"
    assert message_shown["reasoning"] == "HmHello"
    if name == "act":
        assert arguments_run(stack) == [{"k": "a b", "n": [1, {}]}]
    else:
        assert own_ids(message_shown)["tool_calls"][0]["function"]["arguments"] == ARGUMENTS


@both
def test_blocks_of_reasoning_of_all_rounds_are_kept_apart(stream: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": "{}"}}

    def block(text: str) -> list[Json]:
        return [{"type": "reasoning.text", "index": 0, "text": text}]

    first = {"content": None, "reasoning_details": block("a")}
    called = {**first, "tool_calls": [call]}
    last = {"content": "Hi", "reasoning_details": block("b")}
    exchange, _ = exchange_with(
        either(completion(called, "tool_calls"), chunk(called, "tool_calls")),
        either(completion(last), chunk(last, "stop")),
        stream=stream,
    )
    if stream:
        deltas = [e["choices"][0]["delta"] for e in exchange.events()[:-1]]
        shown = [each for delta in deltas for each in delta.get("reasoning_details", ())]
    else:
        shown = message_of(exchange)["reasoning_details"]
    assert [(each["index"], each["text"]) for each in shown] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    "pieces",
    [
        [{"type": "t", "text": None}, {"type": "t", "text": "a"}],
        [{"type": ["t"], "text": "a"}],
        [{"type": "t", "summary": [{"text": "a"}]}, {"type": "t", "summary": "a"}],
        [{"type": "t", "index": {}, "text": 1}],
    ],
)
def test_odd_blocks_of_reasoning_do_no_harm(pieces: list[Json]) -> None:
    thought_before_a_call("reasoning_details", pieces)


def thought_before_a_call(key: str, pieces: list[Json]) -> FakeStack:
    """The server whose model has thought in *pieces*, called a tool, and then said something."""
    exchange, stack = exchange_with(
        parts(
            *({key: [piece]} for piece in pieces),
            delta("act", "{}", id="c1"),
            reason="tool_calls",
        ),
        saying("Hi"),
    )
    assert message_of(exchange)["content"] == "Hi"
    return stack


def thinking(text: str, signature: str | None = "") -> Json:
    return {"type": "thinking", "thinking": text, "signature": signature}


HIDDEN: Json = {"type": "redacted_thinking", "data": "x=="}


@pytest.mark.parametrize(
    ("pieces", "blocks"),
    [
        (
            [thinking("Let "), thinking("me"), thinking("", "S1")],
            [thinking("Let me", "S1")],
        ),
        (
            [thinking("a", "S1"), thinking("b"), thinking("c"), thinking("", "S2")],
            [thinking("a", "S1"), thinking("bc", "S2")],
        ),
        (
            [thinking("a", None), thinking("b", "S1"), HIDDEN, HIDDEN, thinking("c")],
            [thinking("ab", "S1"), HIDDEN, HIDDEN, thinking("c")],
        ),
    ],
)
def test_thinking_in_pieces_goes_back_to_the_model_as_whole_blocks(
    pieces: list[Json], blocks: list[Json]
) -> None:
    """LiteLLM's, of Anthropic's models. DESIGN: L10, S8."""
    stack = thought_before_a_call("thinking_blocks", pieces)
    assert stack.asked_for(CHAT)[-1].json()["messages"][-2]["thinking_blocks"] == blocks


def test_logprobs_beside_text_and_reason_are_told_once() -> None:
    sent = chunk({"content": "Hi"}, "stop")
    sent["choices"][0]["logprobs"] = {"content": [{"token": "Hi"}]}
    exchange, _ = exchange_with(events(sent, b"[DONE]"))
    logprobs = [e["choices"][0].get("logprobs") for e in exchange.events()[:-1]]
    assert [each for each in logprobs if each] == [{"content": [{"token": "Hi"}]}]


@both
@pytest.mark.parametrize("reason", [None, ""])
def test_a_whole_completion_is_an_end_without_a_reason(reason: str | None, stream: bool) -> None:
    """DESIGN: S8."""
    exchange, _ = exchange_with(answer(completion({"content": "Hi"}, reason)), stream=stream)
    assert message_of(exchange)["content"] == "Hi"
    assert finish_of(exchange) == "stop"


@both
def test_a_call_in_a_whole_completion_without_a_reason_may_be_cut_off(stream: bool) -> None:
    """DESIGN: L12b."""
    entry = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": '{"a": 1'}}
    exchange, stack = exchange_with(
        answer(completion({"content": None, "tool_calls": [entry]}, None)),
        answer(completion({"content": "Hi"})),
        stream=stream,
    )
    assert message_of(exchange)["content"] == "Hi"
    assert arguments_run(stack) == []


@both
@pytest.mark.parametrize("name", [b"ping", b"keepalive", b"Heartbeat"])
@pytest.mark.parametrize("said", [b"ping", b"17", b"null"])
def test_an_event_that_only_keeps_the_connection_is_passed_over(
    name: bytes, said: bytes, stream: bool
) -> None:
    """Where its data is no object, its name says so. DESIGN: S8."""
    beat = b"event: %b\ndata: %b\n\n" % (name, said)

    def write(request: Any) -> None:
        request.write(beat + event(chunk({"content": "Hi"})) + beat)
        request.write(event(chunk({}, "stop")))
        request.finish()

    exchange, _ = exchange_with(write, stream=stream)
    assert message_of(exchange)["content"] == "Hi"


# --- events though none were asked for


def test_what_is_about_the_tokens_of_unasked_events_is_added_up() -> None:
    chunks = [chunk({"content": text}) for text in ("a", "b", "")] + [chunk({}, "stop")]
    for number, each in enumerate(chunks):
        each["choices"][0] |= {"logprobs": {"content": [number]}, "token_ids": [number]}
    chunks[1]["choices"][0]["logprobs"] |= {"content": None, "refusal": [1]}
    chunks[0]["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    exchange, _ = exchange_with(events(*chunks), stream=False)
    assert exchange.json()["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ab"},
            "finish_reason": "stop",
            "logprobs": {"content": [0, 2, 3], "refusal": [1]},
            "token_ids": [0, 1, 2, 3],
            "content_filter_results": {"hate": {"filtered": False}},
        }
    ]


def test_a_function_call_in_unasked_events_is_put_together() -> None:
    pieces = [{"name": "own", "arguments": ""}, {"name": "", "arguments": '{"k":1}'}]
    exchange, _ = exchange_with(
        parts(*({"function_call": piece} for piece in pieces), reason="function_call"),
        stream=False,
        functions=[{"name": "own"}],
    )
    [choice] = exchange.json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "own", "arguments": '{"k":1}'}


def test_nothing_of_an_unasked_event_that_clients_act_on_is_in_the_answer() -> None:
    """DESIGN: S9."""
    steering = {"type": "response.output_item.added", "item": {"x": 1}, "output_index": 0}
    exchange, _ = exchange_with(
        events(steering, chunk({"content": "Hi"}, x=1), chunk({}, "stop")), stream=False
    )
    assert exchange.json().keys() == {*completion({}), "x"}


# --- parts that are no text

PICTURE: Json = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def of_parts(*sent: Json, reason: str = "stop", **more: Any) -> Answer:
    """An answer whose content is these parts."""
    message = {"role": "assistant", "content": [*sent], **more}
    return either(completion(message, reason), chunk(message, reason))


def shown_parts(exchange: Exchange, stream: bool) -> list[Json]:
    """The content of an answer as parts, the texts in one piece."""
    if not stream:
        contents = [exchange.json()["choices"][0]["message"]["content"]]
    else:
        contents = [e["choices"][0]["delta"].get("content") for e in exchange.events()[:-1]]
    shown: list[Json] = []
    for content in filter(None, contents):
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text" and shown and shown[-1]["type"] == "text":
                shown[-1] = {**shown[-1], "text": shown[-1]["text"] + part["text"]}
            else:
                shown.append(part)
    return shown


@both
@pytest.mark.parametrize("fields", [{}, {"X-Llamaproxy-Tools": "none"}])
@pytest.mark.parametrize(
    "sent",
    [
        [PICTURE],
        [{"type": "text", "text": "See:"}, PICTURE, {"type": "text", "text": "!", "x": 1}],
        [{"type": "thinking", "thinking": "Hm"}, PICTURE],
        [{"type": "refusal", "refusal": "I cannot."}],
    ],
)
def test_parts_that_are_no_text_are_handed_on_as_they_are(
    sent: list[Json], fields: dict[str, str], stream: bool
) -> None:
    """DESIGN: L8."""
    stack = stack_with("act")
    stack.on(CHAT, of_parts(*sent))
    exchange = Proxy(stack).chat(None, fields, stream=stream)
    assert message_of(exchange) == {"role": "assistant", "content": sent}


@both
def test_pictures_of_several_rounds_stand_where_they_were_shown(stream: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": "{}"}}
    second = {**PICTURE, "n": 2}
    exchange, stack = exchange_with(
        of_parts({"type": "text", "text": "One"}, reason="tool_calls", tool_calls=[call]),
        of_parts(PICTURE, {"type": "text", "text": "Two"}, reason="tool_calls", tool_calls=[call]),
        of_parts({"type": "text", "text": "Three"}, second),
        stream=stream,
    )
    assert shown_parts(exchange, stream) == [
        {"type": "text", "text": "One"},
        PICTURE,
        {"type": "text", "text": "\n\nTwo\n\nThree"},
        second,
    ]
    assert PICTURE in stack.asked_for(CHAT)[-1].json()["messages"][3]["content"]


@both
def test_parts_of_a_round_before_the_last_are_no_part_of_an_answer_in_json(stream: bool) -> None:
    """DESIGN: L15b."""
    call = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": "{}"}}
    exchange, _ = exchange_with(
        of_parts(PICTURE, reason="tool_calls", tool_calls=[call]),
        of_parts({"type": "text", "text": "{}"}),
        stream=stream,
        response_format={"type": "json_object"},
    )
    assert message_of(exchange)["content"] == "{}"


@both
def test_parts_of_text_are_text_in_every_choice(stream: bool) -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "P"}]}
    choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(2)]
    exchange, _ = exchange_with(answer({**completion({}), "choices": choices}), stream=stream, n=2)
    if stream:
        shown = [each.message["content"] for each in joined(exchange.events()).choices.values()]
    else:
        shown = [each["message"]["content"] for each in exchange.json()["choices"]]
    assert shown == ["P", "P"]


# --- identity and usage


@both
def test_a_field_of_the_identity_may_come_without_the_others(stream: bool) -> None:
    bare = {"object": "chat.completion.chunk", "model": "real", "created": 7}
    first = {**bare, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]}
    whole = {**completion({"content": "ab"}), "id": None, "model": "real", "created": 7}
    exchange, _ = exchange_with(
        either(whole, first, chunk({"content": "b"}, "stop")), stream=stream, model="asked"
    )
    shown = joined(exchange.events()).identity if stream else exchange.json()
    assert (shown["model"], shown["created"]) == ("real", 7)
    assert isinstance(shown["id"], str) and shown["id"]


@both
@pytest.mark.parametrize("first", [{"id": ""}, {"id": None, "model": ""}, {}, {"id": 5}])
def test_what_is_no_identity_is_nobodys(first: Json, stream: bool) -> None:
    head = {**first, "choices": [], "prompt_filter_results": [{}]}
    whole = {**completion({"content": "Hi"}), **first}
    exchange, _ = exchange_with(
        either(whole, head, chunk({"content": "Hi"}, "stop")), stream=stream
    )
    shown = joined(exchange.events()).identity if stream else exchange.json()
    assert isinstance(shown["id"], str) and shown["id"]
    assert message_of(exchange)["content"] == "Hi"


@both
@pytest.mark.parametrize("place", ["choice", "x_groq"])
@pytest.mark.parametrize("include", [False, True])
def test_usage_is_found_where_it_is(place: str, include: bool, stream: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    whole, last = completion({"content": "Hi"}), chunk({}, "stop")
    for each in (whole, last):
        del_usage = {"x_groq": {"id": "r", "usage": dict(usage)}}
        if place == "choice":
            each["choices"][0]["usage"] = dict(usage)
        else:
            each |= del_usage
    whole.pop("usage", None)
    options: Json = {"stream_options": {"include_usage": True}} if stream and include else {}
    exchange, _ = exchange_with(
        either(whole, chunk({"content": "Hi"}), last), stream=stream, **options
    )
    if not stream:
        assert exchange.json()["usage"] == usage
        assert "usage" not in exchange.json()["choices"][0]
    else:
        assert joined(exchange.events()).usage == (usage if include else None)
        assert ("total_tokens" in exchange.body.decode()) == include


# --- failures


@both
@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "error"},
        {"finish_reason": "ERROR", "error": {"code": 502, "message": "boom"}},
        {"finish_reason": "stop", "error": {"code": 429, "message": "boom"}},
        {"finish_reason": "abort"},
    ],
)
def test_a_choice_that_failed_is_no_answer(choice: Json, stream: bool) -> None:
    whole = completion({"content": "Half"})
    whole["choices"][0] |= choice
    last = chunk({})
    last["choices"][0] |= choice
    exchange, _ = exchange_with(
        either(whole, chunk({"content": "Half"}), last, b"[DONE]"), stream=stream
    )
    if stream:
        expected = "boom" if "error" in choice else "The model's answer ended with an error."
        assert failure_in(exchange.events())["message"] == expected
    else:
        assert exchange.status == (choice.get("error") or {"code": 502})["code"]
        assert exchange.json()["error"]["message"]


@both
@pytest.mark.parametrize(
    "error",
    [
        {"base_resp": {"status_code": 1008, "status_msg": "boom"}, "choices": None},
        {"base_resp": {"status_code": 1008, "status_msg": "boom"}, "choices": []},
        {"error_code": 336003, "error_msg": "boom", "id": "as-1"},
        {"error_message": "boom", "choices": None},
        {**chunk({}, "stop"), "x_groq": {"id": "r", "error": "boom"}},
        {**chunk({}, "stop"), "x_groq": {"id": "r", "error": {"message": "boom"}}},
    ],
)
def test_the_words_of_an_error_are_kept_wherever_they_stand(error: Json, stream: bool) -> None:
    """MiniMax, Baidu, Groq and gateways. DESIGN: L21, S7."""
    exchange, _ = exchange_with(either(error, chunk({"content": "Half"}), error), stream=stream)
    failure = failure_in(exchange.events()) if stream else exchange.json()["error"]
    assert failure["message"] == "boom"
    assert stream or exchange.status == 502


@both
def test_what_says_that_there_is_no_error_is_none(stream: bool) -> None:
    fine: Json = {
        "base_resp": {"status_code": 0, "status_msg": "success"},
        "error_msg": "",
        "x_groq": {"id": "r", "error": None},
    }
    exchange, _ = exchange_with(
        either(completion({"content": "Hi"}, **fine), chunk({"content": "Hi"}, "stop", **fine)),
        stream=stream,
    )
    assert message_of(exchange)["content"] == "Hi"


def test_nothing_that_clients_act_on_stands_beside_an_error() -> None:
    foreign: Json = {"event": {"type": "x"}, "selected_model_id": "x", "sources": [{}]}
    error = {"error": {"message": "boom"}, **foreign, "choices": [], "type": "response.failed"}
    exchange, _ = exchange_with(events(chunk({"content": "Half"}), error))
    assert exchange.events()[-2].keys() == {"error"}


@both
@pytest.mark.parametrize("digits", ["\u00b2\u00b2\u00b2", "\u0664\u0660\u0660", "\U0001d7d2" * 3])
def test_digits_of_other_scripts_are_no_status(digits: str, stream: bool) -> None:
    error = {"error": {"message": f"{digits}: boom", "code": digits}}
    exchange, _ = exchange_with(either(error, chunk({"content": "Half"}), error), stream=stream)
    failure = failure_in(exchange.events()) if stream else exchange.json()["error"]
    assert "boom" in failure["message"]
    assert stream or exchange.status == 502


# --- numbers, kinds, and what is said flat


@both
@pytest.mark.parametrize("index", [1, -1, "0", "1", None, True, {}])
def test_the_only_choice_is_the_first_whatever_its_number(index: Any, stream: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": "{}"}}
    called = {"content": "Well.", "tool_calls": [call]}
    whole, first = completion(called, "tool_calls"), chunk(called, "tool_calls")
    text, last = completion({"content": "Hi"}), chunk({"content": "Hi"}, "stop")
    for each in (whole, first, text, last):
        each["choices"][0]["index"] = index
    exchange, stack = exchange_with(either(whole, first), either(text, last), stream=stream)
    assert len(arguments_run(stack)) == 1
    assert message_of(exchange)["content"] == "Well.\n\nHi"
    shown = exchange.events()[:-1] if stream else [exchange.json()]
    assert all(choice["index"] == 0 for each in shown for choice in each["choices"])


@both
@pytest.mark.parametrize("name", ["act", "own"])
@pytest.mark.parametrize(
    "call",
    [
        {"name": "NAME", "arguments": ARGUMENTS},
        {"function": "NAME", "arguments": ARGUMENTS},
        {"type": "function", "name": "NAME", "arguments": ARGUMENTS},
        {"type": "Function", "function": {"name": "NAME", "arguments": ARGUMENTS}},
        {"type": "tool_call", "function": {"name": "NAME", "arguments": ARGUMENTS}},
        {"type": "", "function": {"name": "NAME", "arguments": ARGUMENTS}},
    ],
)
def test_a_call_of_another_shape_is_a_call(call: Json, name: str, stream: bool) -> None:
    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(each) for key, each in value.items()}
        return name if value == "NAME" else value

    message = {"content": None, "tool_calls": [{"id": "c1", **named(call)}]}
    reply = either(completion(message, "tool_calls"), chunk(message), chunk({}, "tool_calls"))
    exchange, stack = exchange_with(reply, saying("Done."), stream=stream)
    check_call(exchange, stack, name)


@both
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"type": "text", "text": "a"}, "a"),
        (["a", "b"], "ab"),
        (["a", {"type": "text", "text": "b"}], "ab"),
        (5, "5"),
    ],
)
def test_content_of_another_shape_is_text(content: Any, text: str, stream: bool) -> None:
    reply = either(completion({"content": content}), chunk({"content": content}), chunk({}, "stop"))
    exchange, _ = exchange_with(reply, stream=stream)
    assert message_of(exchange)["content"] == text


@both
def test_a_delta_may_stand_for_a_message(stream: bool) -> None:
    exchange, _ = exchange_with(answer(chunk({"content": "Hi"}, "stop")), stream=stream)
    assert message_of(exchange)["content"] == "Hi"


@both
@pytest.mark.parametrize("usage", ["x", 1, []])
def test_a_usage_that_is_no_object_is_none(usage: Any, stream: bool) -> None:
    reply = either(
        completion({"content": "Hi"}, usage=usage), chunk({"content": "Hi"}, "stop", usage=usage)
    )
    exchange, _ = exchange_with(reply, stream=stream)
    assert "usage" not in (exchange.events()[0] if stream else exchange.json())


@both
def test_a_list_of_one_choice_may_be_that_choice(stream: bool) -> None:
    whole, sent = completion({"content": "Hi"}), chunk({"content": "Hi"}, "stop")
    for each in (whole, sent):
        each["choices"] = each["choices"][0]
    exchange, _ = exchange_with(either(whole, sent), stream=stream)
    assert message_of(exchange)["content"] == "Hi"


def test_reasoning_as_text_and_as_parts_is_remembered_whole() -> None:
    signed = {"type": "thinking", "thinking": "!", "signature": "s"}
    sent: list[Json] = [{"reasoning_content": "a"}, {"reasoning_content": [{"text": "b"}]}]
    for more, whole in (([], "ab"), ([signed], [{"type": "text", "text": "ab"}, signed])):
        last = [{"reasoning_content": more}] if more else []
        called = delta("act", "{}", id="c1")
        _, stack = exchange_with(parts(*sent, *last, called, reason="tool_calls"), saying("Hi"))
        assert stack.asked_for(CHAT)[1].json()["messages"][1]["reasoning_content"] == whole


@pytest.mark.parametrize("name", ["act", "own"])
def test_what_only_the_last_message_says_counts(name: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": ARGUMENTS}}
    whole = {"role": "assistant", "reasoning": "Hm", "content": "So.", "tool_calls": [call]}
    for sent, text in (({"content": "So."}, "So."), ({"reasoning_content": "Hm"}, "So.")):
        last = chunk({}, "tool_calls")
        del last["choices"][0]["delta"]
        last["choices"][0]["message"] = whole
        exchange, stack = exchange_with(events(chunk(sent), last), saying("Done."))
        message = message_of(exchange)
        if name == "act":
            assert arguments_run(stack) == [{"k": "a b", "n": [1, {}]}]
            assert message["content"] == text + "\n\nDone."
        else:
            assert message["content"] == text
            assert own_ids(message)["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
