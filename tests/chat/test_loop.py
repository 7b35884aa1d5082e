"""The tool loop, through the front door: rounds, results, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.script import OWN, Ask, Chat, calls
from tests.chat.streams import client_tool, names_of, replying
from tests.support import (
    answer,
    call,
    calling,
    chunk,
    completion,
    events,
    hang_up,
    nothing,
    read,
    saying,
    tool_result,
    turn,
)

Json = dict[str, Any]


# --- rounds


def test_tools_are_run_until_the_model_answers(ask: Ask) -> None:
    chat = ask(
        calling("clock", {"zone": "UTC"}), calling("dice"), saying("Noon, and a six."),
        server=["clock", "dice"], results=["12:00", "6"],
    )  # fmt: skip
    assert chat.message == {"role": "assistant", "content": "Noon, and a six."}
    assert chat.finish_reason == "stop"
    assert chat.invoked == [("clock", {"zone": "UTC"}), ("dice", {})]
    first, second, third = chat.requests
    roles = [message["role"] for message in third["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    assert [content for _, content in chat.results] == ["12:00", "6"]
    assert first["tools"] == second["tools"] == third["tools"]
    assert chat.nothing_left


def test_the_calls_of_a_round_run_at_the_same_time_and_come_back_in_order(ask: Ask) -> None:
    """DESIGN: L9."""
    entries = [call(name, {}, f"call_{name}") for name in "cab"]
    chat = ask(calls(*entries), saying("Done."), server="abc", results=[nothing])
    assert [name for name, _ in chat.invoked] == ["c", "a", "b"]
    for request in chat.stack.open[::-1]:
        tool_result(read(request).json()["tool_name"])(request)
    chat.proxy.settle()
    assert chat.results == [("call_c", "c"), ("call_a", "a"), ("call_b", "b")]
    assert chat.text == "Done."


def test_the_models_message_is_sent_back_with_every_field(ask: Ask) -> None:
    """DESIGN: L10."""
    message = {
        "content": "Let me see.",
        "reasoning_content": "The user wants the time.",
        "x_signature": {"s": 1},
        "tool_calls": [call("clock", {}, "c1"), call("clock", {"a": 1}, "c2")],
    }
    chat = ask(replying(message, "tool_calls"), saying("Noon."))
    sent = {k: v for k, v in chat.requests[1]["messages"][1].items() if v is not None}
    assert sent == {"role": "assistant", **message}


def test_null_fields_in_a_message_do_no_harm(ask: Ask) -> None:
    keys = ("role", "content", "tool_calls", "refusal", "annotations", "audio", "function_call")
    nulls: Json = dict.fromkeys(keys)
    chat = ask(
        replying({**nulls, "tool_calls": [call("clock")]}, "tool_calls"),
        replying({**nulls, "content": "Noon."}),
    )
    assert chat.message == {"role": "assistant", "content": "Noon."}
    assert chat.requests[1]["messages"][1]["role"] == "assistant"


def named(name: str) -> Json:
    """A ``tool_choice`` of one tool."""
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "later"),
    [
        ("required", "required"),
        ("auto", "auto"),
        (None, None),
        (named("clock"), "auto"),
        (named("own"), named("own")),
    ],
)
def test_a_forced_call_is_forced_once(ask: Ask, choice: Any, later: Any) -> None:
    """DESIGN: L11."""
    rounds = [calling("clock"), calling("clock", {"a": 1}), saying("Noon.")]
    chat = ask(*rounds, tool_choice=choice, tools=[OWN])
    assert [body["tool_choice"] for body in chat.requests] == [choice, later, later]


@pytest.mark.parametrize("is_flat", [False, True], ids=["nested", "flat"])
def test_a_choice_among_allowed_tools_is_forced_once(ask: Ask, is_flat: bool) -> None:
    """DESIGN: L11."""
    tools = [{"type": "function", "name": "web.search"}]
    allowed = {"mode": "required", "tools": tools}
    choice = {"type": "allowed_tools"} | (allowed if is_flat else {"allowed_tools": allowed})
    chat = ask(server=["web.search"])
    [offered] = names_of(chat.requests[0])
    chat.again(calling(offered), saying("Found."), tool_choice=choice)
    assert chat.text == "Found."
    first, later = [each if is_flat else each["allowed_tools"] for each in chat.choices[1:]]
    assert [first["mode"], later["mode"]] == ["required", "auto"]
    assert first["tools"] == later["tools"] == [{"type": "function", "name": offered}]


def test_a_choice_may_name_a_tool_by_its_real_name_or_by_the_rewritten_one(ask: Ask) -> None:
    """DESIGN: L11."""
    chat = ask(server=["web.search"], tool_choice=named("web.search"))
    (offered,) = names_of(chat.requests[0])
    chat.again(tool_choice=named(offered))
    assert chat.choices == [named(offered)] * 2


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
        {"type": "allowed_tools", "allowed_tools": ["clock"]},
        {"type": "function", "function": "clock"},
        ["required"],
        7,
    ],
)
def test_an_odd_choice_is_the_upstreams_to_judge(ask: Ask, choice: Any) -> None:
    chat = ask(calling("clock"), saying("Noon."), tool_choice=choice)
    assert chat.choices[0] == choice
    assert chat.text == "Noon."


@pytest.mark.parametrize(
    ("arguments", "understood"),
    [
        ("", {}),
        (None, {}),
        ("null", {}),
        ("  ", {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ("{'a': 1,}", {"a": 1}),
        ('{"a": 1', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)
def test_arguments_are_understood_with_some_patience(
    ask: Ask, arguments: Any, understood: Json
) -> None:
    entry = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    chat = ask(replying({"content": None, "tool_calls": [entry]}, "tool_calls"), saying("Noon."))
    assert chat.text == "Noon."
    assert chat.invoked == [("clock", understood)]


def check_failed_alone(chat: Chat, words: str) -> None:
    """Of two calls of one round, ``bad`` and ``good``, one has failed, and the model knows why."""
    results = dict(chat.results)
    assert results["good"] == "fine"
    assert results["bad"].startswith("Error") and words in results["bad"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("clock", "not json", "valid JSON"),
        ("clock", "[1]", "object"),
        ("clock", "7", "object"),
        ("clock", '{"days": NaN}', "valid JSON"),
        ("clock", '{"days": 1e400}', "valid JSON"),
        ("no_such_tool", "{}", "no_such_tool"),
        ("", "{}", "tool"),
    ],
)
def test_a_hopeless_call_is_explained_to_the_model(
    ask: Ask, name: str, arguments: str, words: str
) -> None:
    """DESIGN: L12."""
    entries = [call(name, arguments, "bad"), call("clock", {}, "good")]
    chat = ask(calls(*entries), saying("Sorry."), results=["fine"])
    assert chat.exchange.status == 200
    assert chat.message == {"role": "assistant", "content": "Sorry."}
    check_failed_alone(chat, words)


BAD_AND_GOOD = calls(call("bad", {}, "bad"), call("good", {}, "good"))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (answer({"detail": "scripted"}, 500), "scripted"),
        (answer({"detail": "who are you"}, 401), "who are you"),
        (tool_result("it broke", error_code=1), "it broke"),
        (answer(b"<html>", 200, {"Content-Type": "text/html"}), ""),
        (hang_up, ""),
    ],
)
def test_a_failing_tool_fails_alone(ask: Ask, failure: Any, words: str) -> None:
    """DESIGN: L13."""
    chat = ask(BAD_AND_GOOD, saying("Well."), server=["bad", "good"], results=[failure, "fine"])
    assert chat.text == "Well."
    check_failed_alone(chat, words)


def test_a_slow_tool_is_stopped_and_the_others_are_not(ask: Ask) -> None:
    """DESIGN: L13."""
    chat = ask(BAD_AND_GOOD, saying("Well."), server=["bad", "good"], results=[nothing, "fine"])
    chat.wait(59.9)
    assert len(chat.requests) == 1 and len(chat.stack.open) == 1
    chat.wait(0.2)
    assert chat.text == "Well."
    check_failed_alone(chat, "60")
    assert chat.nothing_left


def test_a_long_result_keeps_its_head_and_tail(ask: Ask) -> None:
    """DESIGN: L14."""
    long = "A" * 500 + "B" * 5000 + "C" * 500
    chat = ask(calling("clock"), saying("Read."), results=[long], proxy={"max_result": 1000})
    assert chat.text == "Read."
    ((_, text),) = chat.results
    assert text.startswith("A" * 500) and text.endswith("C" * 500)
    assert "5000" in text and "B" not in text.replace("bytes", "")


# --- the end of a loop


def test_after_ten_rounds_the_model_must_answer_without_tools(ask: Ask) -> None:
    """DESIGN: L15."""
    chat = ask(*(calling("clock", {"n": n}) for n in range(10)), saying("Enough."))
    assert len(chat.requests) == 11 and len(chat.invoked) == 10
    assert chat.choices == [None] * 10 + ["none"]
    assert chat.requests[10]["tools"] == chat.requests[0]["tools"]
    assert chat.message == {"role": "assistant", "content": "Enough."}
    assert chat.finish_reason == "stop"


@pytest.mark.parametrize("reason", ["tool_calls", "stop", None])
def test_calls_made_even_then_are_dropped_and_one_sentence_stands_in(
    ask: Ask, reason: str | None
) -> None:
    """DESIGN: L15."""
    last = replying({"content": None, "tool_calls": [call("clock", {"n": 3})]}, reason)
    rounds = [calling("clock", {"n": 1}), calling("clock", {"n": 2}), last]
    chat = ask(*rounds, tools=[OWN], proxy={"max_rounds": 2})
    assert "tool_calls" not in chat.message
    assert chat.message["content"].count(".") == 1, "one sentence"
    assert chat.finish_reason == "stop"
    assert len(chat.invoked) == 2


def test_the_sentence_stands_behind_the_text_before(ask: Ask) -> None:
    chat = ask(turn("Let me see.", [call("clock")]), proxy={"max_rounds": 1})
    # The last round said the same once more, and its call is dropped.
    assert chat.text == "Let me see.\n\nLet me see."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_sentence_has_a_role_even_if_there_is_nothing_else(stream: bool) -> None:
    entry = {"index": 0, **call("clock")}
    roleless = events(chunk({"tool_calls": [entry]}), chunk({}, "tool_calls"))
    chat = Chat(roleless if stream else calling("clock"), stream=stream, proxy={"max_rounds": 1})
    assert chat.message["role"] == "assistant"
    assert chat.message["content"]


def test_the_same_call_with_the_same_result_ends_the_loop_after_three(ask: Ask) -> None:
    """DESIGN: L15."""
    same = ['{"a": 1, "b": 2}', '{"b":2,"a":1}', "{'a': 1, 'b': 2}"]
    chat = ask(*(calling("clock", text) for text in same), saying("It is noon."))
    assert chat.text == "It is noon."
    assert len(chat.requests) == 4
    assert chat.choices[3] == "none"


@pytest.mark.parametrize("differing", ["result", "arguments"])
def test_the_same_call_is_no_repetition_if_something_differs(ask: Ask, differing: str) -> None:
    varied = differing == "arguments"
    rounds = [calling("clock", {"n": n if varied else 0}) for n in range(5)]
    results = ["same" if varied else f"{n}" for n in range(5)]
    chat = ask(*rounds, saying("Noon."), results=results)
    assert chat.text == "Noon."
    assert chat.choices == [None] * 6


def test_only_repetitions_in_a_row_count(ask: Ask) -> None:
    names = ["clock", "clock", "dice", "clock", "clock"]
    chat = ask(*map(calling, names), saying("Noon."), server=["clock", "dice"], results=["same"])
    assert chat.text == "Noon."
    assert len(chat.invoked) == 5


def test_a_model_that_calls_unknown_tools_for_ever_is_stopped_too(ask: Ask) -> None:
    chat = ask(calling("nosuch"), server=[])
    assert len(chat.requests) == 4
    assert chat.message["content"]
    assert not {"tools", "tool_choice"} & chat.requests[-1].keys()


@pytest.mark.parametrize("reason", ["stop", "length", "", None, "TOOL_CALLS", "function_call"])
def test_a_call_counts_whatever_the_finish_reason_says(ask: Ask, reason: str | None) -> None:
    """DESIGN: L15."""
    chat = ask(replying({"content": "", "tool_calls": [call("clock")]}, reason), saying("Noon."))
    assert chat.text == "Noon."
    assert len(chat.invoked) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_usage_is_the_sum_and_the_identity_the_first_rounds(stream: bool) -> None:
    """DESIGN: L16."""
    usages: list[Json] = [
        {"prompt_tokens": 1, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
        {"prompt_tokens": 10, "total_tokens": 30, "prompt_tokens_details": None},
        {"prompt_tokens": 100, "total_tokens": 300, "prompt_tokens_details": {"cached_tokens": 5}},
    ]
    total = {"prompt_tokens": 111, "total_tokens": 333, "prompt_tokens_details": {"cached_tokens": 6}}  # noqa: E501  # fmt: skip
    heads: list[Json] = [{"id": f"id{n}", "created": n, "model": f"m{n}"} for n in (1, 2, 3)]
    deltas: list[Json] = [{"tool_calls": [{"index": 0, **call("clock", {"n": n})}]} for n in "ab"]
    deltas.append({"content": "Noon."})
    chat = Chat(
        *(
            events(
                chunk({"role": "assistant", **delta}, "stop", **head),
                {**chunk({}, **head), "choices": [], "usage": usage},
            )
            if stream
            else answer(completion(delta, "stop", **head, usage=usage))
            for delta, head, usage in zip(deltas, heads, usages, strict=True)
        ),
        stream=stream,
        stream_options={"include_usage": True},
    )
    if stream:
        assert chat.joined.usage == total
        assert chat.joined.identity == {**heads[0], "object": "chat.completion.chunk"}
    else:
        body = chat.exchange.json()
        assert body["usage"] == total
        assert {key: body[key] for key in heads[0]} == heads[0]


def test_a_round_without_usage_does_no_harm(ask: Ask) -> None:
    usage = {"total_tokens": 3}
    include = {"include_usage": True}
    chat = ask(calling("clock"), saying("Noon.", usage=usage), stream_options=include)
    assert chat.usage == usage


def test_the_last_round_is_free_of_a_forced_call(ask: Ask) -> None:
    rounds = [calling("clock"), saying("Noon.")]
    chat = ask(*rounds, proxy={"max_rounds": 1}, tool_choice="required")
    assert chat.text == "Noon."
    assert chat.choices == ["required", "none"]


def test_calls_with_the_same_id_are_told_apart(ask: Ask) -> None:
    twice = calls(call("clock", {}, "same"), call("dice", {}, "same"))
    chat = ask(twice, twice, saying("Done."), server=["clock", "dice"], results=["12:00", "6"])
    assert chat.text == "Done."
    second, third = chat.requests[1:]
    for sent in (second["messages"][1:4], third["messages"][4:7]):
        ids = [entry["id"] for entry in sent[0]["tool_calls"]]
        assert len(set(ids)) == 2
        assert [message["tool_call_id"] for message in sent[1:]] == ids


def test_a_model_that_makes_too_many_calls_is_told_so(ask: Ask) -> None:
    entries = [call("clock", {"n": n}, f"c{n}") for n in range(130)]
    chat = ask(calls(*entries), saying("Done."))
    assert chat.text == "Done."
    results = [content for _, content in chat.results]
    assert len(results) == 130
    assert len(chat.invoked) == results.count("12:00") < 130
    assert results[-1].startswith("Error")


# --- client tools


def test_calls_of_the_clients_own_tools_are_handed_over(ask: Ask) -> None:
    """DESIGN: L18."""
    entries = [call("own", {"a": 1}, "c1"), call("other", {}, "c2")]
    chat = ask(turn("Please.", entries), tools=[OWN, client_tool("other")])
    message = {"role": "assistant", "content": "Please.", "tool_calls": entries}
    assert chat.own_message == message
    assert chat.finish_reason == "tool_calls"
    assert len(chat.requests) == 1 and chat.invoked == []


def test_a_mixed_round_runs_server_calls_and_hands_over_only_client_calls(ask: Ask) -> None:
    entries = [call("clock", {}, "c0"), call("own", {"a": 1}, "c1"), call("clock", {"z": 1}, "c2")]
    chat = ask(turn("Wait.", entries), tools=[OWN])
    message = {"role": "assistant", "content": "Wait.", "tool_calls": [entries[1]]}
    assert chat.own_message == message
    assert chat.finish_reason == "tool_calls"
    assert sorted(chat.invoked, key=str) == [("clock", {"z": 1}), ("clock", {})]
    assert len(chat.requests) == 1


def test_client_calls_can_come_after_rounds_of_server_tools(ask: Ask) -> None:
    rounds = [turn("First.", [call("clock")]), turn("Then.", [call("own", {}, "c1")])]
    chat = ask(*rounds, tools=[OWN])
    assert chat.text == "First.\n\nThen."
    assert [entry["id"] for entry in chat.own_message["tool_calls"]] == ["c1"]
    assert chat.finish_reason == "tool_calls"


# --- tools that cannot be listed


@pytest.mark.parametrize(
    "failure",
    [
        answer({"detail": "scripted"}, 500),
        answer({"detail": "who are you"}, 401),
        answer({"data": None}),
        answer([]),
        answer(b"<html>"),
        hang_up,
    ],
)
def test_a_chat_goes_on_though_no_tools_can_be_listed(ask: Ask, failure: Any) -> None:
    """DESIGN: L22."""
    chat = ask(server=failure, tool_choice="auto")
    assert chat.text == "Hi."
    assert not {"tools", "tool_choice"} & chat.requests[0].keys()
    registry = chat.proxy.metrics.registry
    assert (registry.get_sample_value("llamaproxy_tool_listing_failures_total") or 0) >= 1


def test_a_chat_waits_no_longer_than_ten_seconds_a_list(ask: Ask) -> None:
    chat = ask(server=nothing)
    chat.wait(10, times=2)
    assert chat.text == "Hi."
    # Once more, for chats to come, and with more patience.
    chat.wait(15, times=2)
    assert chat.nothing_left


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"n": 1.0,  "a": "é"}', '{"n": 1.0,  "a": "é"}'),
        ("", "{}"),
        ("null", "{}"),
        ("{'a': 1,}", '{"a":1}'),
        ('"{\\"a\\": 1}"', '{"a":1}'),
        ("not json", "{}"),
        ("[1]", "{}"),
        ("7", "{}"),
        ('{"days": NaN}', "{}"),
    ],
)
def test_arguments_go_back_as_an_object_that_every_server_reads(
    ask: Ask, arguments: str, sent: str
) -> None:
    """DESIGN: L10. llama.cpp, Ollama and SGLang refuse a history with anything else in it."""
    chat = ask(calls(call("clock", arguments, "c"), call("clock", {}, "d")), saying("Noon."))
    assert chat.text == "Noon."
    (message,) = [m for m in chat.requests[1]["messages"] if m["role"] == "assistant"]
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == [sent, "{}"]


def test_a_call_that_was_cut_off_goes_back_as_an_object(ask: Ask) -> None:
    """DESIGN: L12b. What a real llama-server sent when its tokens were used up: one bracket."""
    cut = replying({"content": "", "tool_calls": [call("clock", "{", "c")]}, "length")
    chat = ask(cut, saying("Noon."))
    assert chat.text == "Noon." and not chat.invoked
    (message,) = [m for m in chat.requests[1]["messages"] if m["role"] == "assistant"]
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"
    assert "cut off" in dict(chat.results)["c"]
