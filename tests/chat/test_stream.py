"""One streamed completion taken apart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.messages import Completion
from llamaproxy.chat.stream import RoundStream
from llamaproxy.errors import UpstreamBroke
from tests.chat.streams import Streamed, joined

Json = dict[str, Any]

#: Names that begin alike: which of them a call is for is clear only once the name is whole.
CLIENT = ("get", "get_text_now", "ask_user")
SERVER = ("get_text", "clock", "clock_utc")
UNKNOWN = ("nosuch", "getaway")

_HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
    """A chunk with every optional field null, as Llama Stack sends them."""
    nulls = {"content": None, "role": None, "tool_calls": None, "function_call": None}
    choice = {"index": 0, "delta": {**nulls, **delta}, "finish_reason": finish_reason}
    return {**_HEAD, "choices": [{**choice, "logprobs": None}], "usage": None, **fields}


def call(name: str | None = None, arguments: Any = None, **fields: Any) -> Json:
    """One call's part of a delta."""
    return {"function": {"name": name, "arguments": arguments}, **fields}


def calls(*parts: Json) -> Json:
    """A chunk of call deltas."""
    return chunk({"tool_calls": list(parts)})


def read(
    chunks: Iterable[Json | None], client: Iterable[str] = CLIENT, everything: bool = False
) -> tuple[Completion, Streamed, list[Json]]:
    """What the loop is told of a stream, and what the client is."""
    stream = RoundStream(CallVisibility(tuple(client), SERVER, everything), set())
    seen = [seen for each in chunks if (seen := stream.feed(each)) is not None]
    seen += stream.held_chunks()
    completion = stream.completion()
    ended = [{**_HEAD, **each} for each in [*seen, *stream.finish_chunks()]]
    return completion, joined([*ended, "[DONE]"]), seen


# --- any cut of any completion


@attrs.frozen
class Cut:
    """A completion, and one way to stream it."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]
    chunks: list[Json]


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    """*text* cut into pieces, none of them empty."""
    if not text:
        return []
    at = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)))
    return [piece for a, b in itertools.pairwise([0, *at, len(text)]) if (piece := text[a:b])]


_arguments = st.dictionaries(
    st.sampled_from(["city", "naïve", "a"]), st.text(max_size=5) | st.integers(0, 9), max_size=2
).map(lambda value: json.dumps(value, ensure_ascii=False))


@st.composite
def _call_deltas(draw: st.DrawFn, number: int, indexed: bool, identified: bool) -> Any:
    name = draw(st.sampled_from(CLIENT + SERVER + UNKNOWN))
    arguments = draw(_arguments | (st.just("") if identified or indexed else st.nothing()))
    names = draw(_pieces(name))
    texts = draw(_pieces(arguments))
    if len(names) == 1 and texts and draw(st.booleans()):
        parts = [call(name, texts[0])]
        texts = texts[1:]
    else:
        empty = draw(st.sampled_from([None, ""]))
        parts = [call(piece, empty) for piece in names]
    parts += [call(draw(st.sampled_from([None, ""])), piece) for piece in texts]
    call_id = f"call_{number}" if identified else draw(st.sampled_from([None, ""]))
    repeated = draw(st.booleans())
    for place, part in enumerate(parts):
        if indexed:
            part["index"] = number
        elif draw(st.booleans()):
            part["index"] = None
        if place == 0 or repeated:
            part["id"] = call_id
            part["type"] = draw(st.sampled_from(["function", None]))
    return name, arguments, parts


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """A completion cut anywhere, its calls interleaved if they are numbered."""
    words = st.text(alphabet="ab \n\N{SNOWMAN}\N{GRINNING FACE}", max_size=8)
    reasoning, content = draw(words), draw(words)
    indexed, identified = draw(st.booleans()), draw(st.booleans())
    count = draw(st.integers(0, 3))
    drawn = [draw(_call_deltas(number, indexed, identified)) for number in range(count)]
    deltas: list[Json] = [{"reasoning_content": piece} for piece in draw(_pieces(reasoning))]
    deltas += [{"content": piece} for piece in draw(_pieces(content))]
    waiting = [list(parts) for _, _, parts in drawn]
    begun = 0
    while any(waiting):
        first = next(place for place, parts in enumerate(waiting) if parts)
        choices = [p for p, parts in enumerate(waiting) if parts and p <= begun]
        place = draw(st.sampled_from(choices)) if indexed else first
        begun = max(begun, place + 1)
        deltas.append({"tool_calls": [waiting[place].pop(0)]})
        if indexed and deltas and len(deltas) > 1 and draw(st.booleans()):
            _packed(deltas)
    if draw(st.booleans()):
        deltas.insert(0, {"role": "assistant", "content": draw(st.sampled_from(["", None]))})
    elif deltas:
        deltas[0]["role"] = "assistant"
    chunks = [chunk(delta) for delta in deltas]
    reason = draw(st.sampled_from(["stop", "tool_calls", "TOOL_CALLS", "function_call", ""]))
    if reason or not drawn or not drawn[-1][1]:
        chunks.append(chunk({}, reason or "stop"))
    return Cut(reasoning, content, [(name, text) for name, text, _ in drawn], chunks)


def _packed(deltas: list[Json]) -> None:
    """Put the last delta into the one before it."""
    last = deltas.pop()
    if "tool_calls" in deltas[-1]:
        deltas[-1]["tool_calls"] = deltas[-1]["tool_calls"] + last["tool_calls"]
    else:
        deltas[-1] |= last


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(cuts())
def test_however_a_completion_is_cut_it_is_the_same_completion(cut: Cut) -> None:
    completion, _, _ = read(cut.chunks)
    assert (completion.message.get("content") or "") == cut.content
    assert (completion.message.get("reasoning_content") or "") == cut.reasoning
    assert [(each.name, each.arguments) for each in completion.calls] == cut.calls
    entries = completion.message.get("tool_calls") or []
    assert [(e["function"]["name"], e["function"]["arguments"]) for e in entries] == cut.calls
    assert len({each.id for each in completion.calls}) == len(cut.calls)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(cuts())
def test_however_a_completion_is_cut_the_client_sees_its_texts_and_its_own_calls(cut: Cut) -> None:
    completion, streamed, _ = read(cut.chunks)
    message = streamed.choices[0].message if streamed.choices else {}
    shown = [each for each in completion.calls if each.name in CLIENT]
    assert (message.get("content") or "") == cut.content
    assert (message.get("reasoning_content") or "") == cut.reasoning
    # A client's call whose name is in doubt may be shown after one that began later.
    shown_calls = message.get("tool_calls") or []
    assert sorted(
        (c["id"], c["function"]["name"], c["function"]["arguments"]) for c in shown_calls
    ) == sorted((c.id, c.name, c.arguments) for c in shown)
    assert (streamed.finish_reason == "tool_calls") == bool(shown)


@settings(max_examples=100)
@given(cuts())
def test_to_a_client_alone_every_call_is_shown(cut: Cut) -> None:
    _, streamed, _ = read(cut.chunks, everything=True)
    message = streamed.choices[0].message if streamed.choices else {}
    shown_calls = [c["function"] for c in message.get("tool_calls") or ()]
    assert sorted((f["name"], f["arguments"]) for f in shown_calls) == sorted(cut.calls)


_odd = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "a", "clock", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "choices delta message content role tool_calls index id type function name "
                "arguments finish_reason usage event sources".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_odd_call = st.fixed_dictionaries(
    {}, optional={"index": _odd, "id": _odd, "type": _odd, "function": _odd, "extra": _odd}
)
odd_choices = st.fixed_dictionaries(
    {},
    optional={
        "index": _odd,
        "finish_reason": _odd,
        "delta": _odd
        | st.fixed_dictionaries(
            {}, optional={"role": _odd, "content": _odd, "tool_calls": st.lists(_odd_call | _odd)}
        ),
    },
)
odd_chunks = st.fixed_dictionaries(
    {},
    optional={
        "id": _odd,
        "type": _odd,
        "usage": _odd,
        "choices": _odd | st.lists(odd_choices | _odd, max_size=3),
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(odd_chunks, max_size=4))
def test_nothing_that_an_upstream_can_send_breaks_the_reader(chunks: list[Json]) -> None:
    stream = RoundStream(CallVisibility(CLIENT, SERVER), set())
    seen = [stream.feed(each) for each in [*chunks, chunk({}, "stop")]]
    seen += stream.held_chunks()
    for choice in (choice for each in seen if each for choice in each["choices"]):
        assert choice["finish_reason"] is None and isinstance(choice["delta"], dict)
    ends = stream.finish_chunks()
    assert all(isinstance(each["choices"][0]["finish_reason"], str) for each in ends)
    assert json.dumps([seen, ends])
    with suppress(UpstreamBroke):
        message = stream.completion().message
        assert message["role"] == "assistant" and json.dumps(message)


# --- what is shown, and when


def test_a_servers_call_is_never_shown() -> None:
    _, streamed, seen = read(
        [
            chunk({"role": "assistant", "content": "Let me see."}),
            calls(call("clock", "", index=0, id="a", type="function")),
            calls(call(None, "{}", index=0)),
            chunk({}, "tool_calls"),
        ]
    )
    assert streamed.message == {"role": "assistant", "content": "Let me see."}
    assert streamed.finish_reason == "stop"
    assert len(seen) == 1


def test_a_clients_call_is_shown_as_soon_as_its_name_is_certain() -> None:
    stream = RoundStream(CallVisibility(CLIENT, SERVER), set())
    assert stream.feed(calls(call("ask_", "", index=0, id="a"))) is None
    begun = stream.feed(calls(call("user", "", index=0)))
    assert begun is not None
    assert begun["choices"][0]["delta"]["tool_calls"] == [
        {
            "index": 0,
            "id": "a",
            "type": "function",
            "function": {"name": "ask_user", "arguments": ""},
        }
    ]
    more = stream.feed(calls(call(None, '{"a', index=0)))
    assert more is not None
    assert more["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "function": {"arguments": '{"a'}}
    ]


def test_a_name_that_may_grow_into_another_is_held_until_the_arguments_begin() -> None:
    stream = RoundStream(CallVisibility(CLIENT, SERVER), set())
    assert stream.feed(calls(call("get", "", index=0, id="a"))) is None
    shown = stream.feed(calls(call(None, "{", index=0)))
    assert shown is not None
    function = shown["choices"][0]["delta"]["tool_calls"][0]["function"]
    assert function == {"name": "get", "arguments": "{"}


def test_a_call_in_doubt_until_the_end_is_shown_at_the_end() -> None:
    completion, streamed, seen = read(
        [chunk({"role": "assistant"}), calls(call("get", "", index=0, id="a")), chunk({}, "stop")]
    )
    assert [each.name for each in completion.calls] == ["get"]
    assert [c["id"] for c in streamed.message["tool_calls"]] == ["a"]
    assert streamed.finish_reason == "tool_calls"
    assert len(seen) == 2


def test_the_indices_of_the_clients_calls_have_no_gaps() -> None:
    names = ["clock", "ask_user", "clock", "get_text_now"]
    parts = [call(name, "{}", index=n, id=f"c{n}") for n, name in enumerate(names)]
    _, streamed, _ = read([chunk({"role": "assistant"}), *map(calls, parts), chunk({}, "stop")])
    assert [c["id"] for c in streamed.message["tool_calls"]] == ["c1", "c3"]


def test_calls_that_are_all_numbered_nought_are_told_apart_by_their_ids() -> None:
    completion, streamed, _ = read(
        [
            chunk({"role": "assistant"}),
            calls(call("ask_user", '{"a":1}', index=0, id="a")),
            calls(call("ask_user", '{"a":2}', index=0, id="b")),
            chunk({}, "stop"),
        ]
    )
    assert [(c.id, c.arguments) for c in completion.calls] == [("a", '{"a":1}'), ("b", '{"a":2}')]
    assert [c["id"] for c in streamed.message["tool_calls"]] == ["a", "b"]


def test_calls_that_are_all_numbered_nought_are_told_apart_by_their_names() -> None:
    completion, _, _ = read(
        [
            calls(call("ask_user", "{}", index=0)),
            calls(call("get_text_now", "{}", index=0)),
            chunk({"role": "assistant"}, "stop"),
        ]
    )
    assert [c.name for c in completion.calls] == ["ask_user", "get_text_now"]


def test_calls_whose_numbers_have_a_fraction_of_nought_are_told_apart_by_them() -> None:
    completion, _, _ = read(
        [
            calls(call("ask_user", "", index=0.0, id="a"), call("clock", "", index=1.0, id="b")),
            calls(call(None, '{"a":1}', index=0.0)),
            calls(call(None, '{"b":2}', index=1.0)),
            chunk({"role": "assistant"}, "stop"),
        ]
    )
    assert [(c.name, c.arguments) for c in completion.calls] == [
        ("ask_user", '{"a":1}'),
        ("clock", '{"b":2}'),
    ]


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    completion, _, _ = read(
        [
            calls(call("ask_user", '{"a":', id="a")),
            calls(call("clock", '{"b":', id="b")),
            calls(call(None, "1}", id="a")),
            calls(call(None, "2}", id="b")),
            chunk({"role": "assistant"}, "stop"),
        ]
    )
    assert [(c.name, c.arguments) for c in completion.calls] == [
        ("ask_user", '{"a":1}'),
        ("clock", '{"b":2}'),
    ]


def test_two_calls_with_one_id_get_two() -> None:
    completion, streamed, _ = read(
        [
            chunk({"role": "assistant"}),
            calls(call("ask_user", "{}", index=0, id="a"), call("clock", "{}", index=1, id="a")),
            calls(call("ask_user", "{}", index=2, id="a")),
            chunk({}, "stop"),
        ]
    )
    assert len({c.id for c in completion.calls}) == 3
    shown = [c["id"] for c in streamed.message["tool_calls"]]
    assert shown == [completion.calls[0].id, completion.calls[2].id]


def test_a_name_that_is_repeated_in_every_delta_is_one_name() -> None:
    completion, _, _ = read(
        [
            calls(call("clock", "", index=0, id="a")),
            calls(call("clock", '{"a"', index=0, id="a")),
            calls(call("clock", ":1}", index=0, id="a")),
            chunk({"role": "assistant"}, "stop"),
        ]
    )
    assert [(c.name, c.arguments) for c in completion.calls] == [("clock", '{"a":1}')]


def test_arguments_that_are_an_object_become_text() -> None:
    completion, streamed, _ = read(
        [calls(call("ask_user", {"a": [1]}, id="a")), chunk({"role": "assistant"}, "stop")]
    )
    assert completion.calls[0].arguments == '{"a":[1]}'
    assert streamed.message["tool_calls"][0]["function"]["arguments"] == '{"a":[1]}'


@pytest.mark.parametrize("named", [False, True])
def test_a_call_with_arguments_encoded_twice_is_one_though_it_is_sent_again(named: bool) -> None:
    text = '"{\\"a\\":1}"'
    again = call("clock", text, index=0, id="a") if named else call(None, text, index=0)
    first = call("clock", text, index=0, id="a")
    completion, _, _ = read([calls(first), calls(again), chunk({"role": "assistant"}, "stop")])
    assert [(c.name, c.arguments) for c in completion.calls] == [("clock", text)]


def test_what_else_a_call_carries_stays_on_it() -> None:
    signed = {"extra_content": {"google": {"thought_signature": "s"}}}
    completion, _, seen = read(
        [calls(call("ask_user", "{}", index=0, id="a", **signed)), chunk({}, "tool_calls")]
    )
    assert completion.message["tool_calls"][0]["extra_content"] == signed["extra_content"]
    assert seen[0]["choices"][0]["delta"]["tool_calls"][0]["extra_content"]


def test_everything_that_the_model_said_is_remembered() -> None:
    completion, _, _ = read(
        [
            chunk({"role": "assistant", "reasoning_content": "Hm, "}),
            chunk({"reasoning_content": "a clock."}),
            chunk({"content": "Let me "}),
            chunk({"content": "see.", "annotations": [{"n": 1}]}),
            chunk({"annotations": [{"n": 2}], "audio": {"id": "x"}}),
            calls(call("clock", "{}", index=0, id="a", type="function")),
            chunk({}, "tool_calls"),
        ]
    )
    assert completion.message == {
        "role": "assistant",
        "reasoning_content": "Hm, a clock.",
        "content": "Let me see.",
        "annotations": [{"n": 1}, {"n": 2}],
        "audio": {"id": "x"},
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        ],
    }


# --- roles, reasons, usage, what is dropped


def test_a_role_is_told_once_and_made_up_if_it_is_never_said() -> None:
    _, streamed, seen = read([chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop")])
    assert [c["choices"][0]["delta"].get("role") for c in seen] == ["assistant", None]
    assert streamed.message == {"role": "assistant", "content": "ab"}


def test_a_role_that_is_repeated_is_told_once() -> None:
    sent = [chunk({"role": "assistant", "content": word}) for word in "abc"]
    _, streamed, _ = read([*sent, chunk({}, "stop")])
    assert streamed.message == {"role": "assistant", "content": "abc"}


def test_a_later_round_tells_no_role() -> None:
    roles: set[int] = set()
    for expected in ("assistant", None):
        stream = RoundStream(CallVisibility(), roles)
        told_first = stream.feed(chunk({"role": "assistant", "content": "a"}))
        assert told_first is not None
        assert told_first["choices"][0]["delta"].get("role") == expected


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["stop"], "stop"),
        (["STOP"], "stop"),
        (["", "stop"], "stop"),
        (["length", "length"], "length"),
        (["stop", None], "stop"),
        (["content_filter"], "content_filter"),
        (["tool_calls"], "stop"),
        ([1, "stop"], "stop"),
    ],
)
def test_one_finish_chunk_says_why_the_text_ended(reasons: list[Any], expected: str) -> None:
    _, streamed, seen = read(
        [chunk({"role": "assistant", "content": "a"}), *(chunk({}, reason) for reason in reasons)]
    )
    assert streamed.finish_reason == expected
    assert all(each["choices"][0]["finish_reason"] is None for each in seen)


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "", None, "STOP", "function_call"])
def test_a_shown_call_is_a_call_whatever_the_finish_reason_says(reason: str | None) -> None:
    _, streamed, _ = read(
        [chunk({"role": "assistant"}), calls(call("ask_user", "{}", id="a")), chunk({}, reason)]
    )
    assert streamed.finish_reason == "tool_calls"


@pytest.mark.parametrize("end", [chunk({}, "length"), None], ids=["length", "done"])
def test_a_call_that_the_limit_cut_off_ends_with_length(end: Json | None) -> None:
    _, streamed, _ = read(
        [chunk({"role": "assistant"}), calls(call("ask_user", '{"a', id="a")), end]
    )
    assert streamed.finish_reason == "length"


def test_an_input_that_is_no_json_is_not_taken_for_one_that_was_cut_off() -> None:
    stream = RoundStream(CallVisibility(("edit",)), set())
    edit = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "edit", "input": "s/a/b/"}}
    for each in (calls(edit), None):
        stream.feed(each)
    (last,) = stream.finish_chunks()
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_text_beside_the_finish_reason_is_told_before_it() -> None:
    _, streamed, _ = read([chunk({"role": "assistant", "content": "all"}, "stop")])
    assert streamed.message["content"] == "all"
    assert streamed.finish_reason == "stop"


@pytest.mark.parametrize(
    "usage",
    [
        [chunk({}, "stop"), {**_HEAD, "choices": [], "usage": {"total_tokens": 3}}],
        [chunk({}, "stop"), {**_HEAD, "choices": None, "usage": {"total_tokens": 3}}],
        [chunk({}, "stop"), {**_HEAD, "usage": {"total_tokens": 3}}],
        [chunk({}, "stop", usage={"total_tokens": 3})],
        [chunk({}, usage={"total_tokens": 2}), chunk({}, "stop", usage={"total_tokens": 3})],
        [{**_HEAD, "choices": [], "usage": {"total_tokens": 3}}, chunk({}, "stop")],
    ],
)  # fmt: skip
def test_usage_is_kept_for_the_end_wherever_it_comes(usage: list[Json]) -> None:
    stream = RoundStream(CallVisibility(), set())
    seen = [stream.feed(each) for each in [chunk({"content": "a"}), *usage]]
    assert stream.usage == {"total_tokens": 3}
    assert not any(each and each.get("usage") for each in seen)
    assert not any(each.get("usage") for each in stream.finish_chunks())


def test_what_some_clients_act_on_is_dropped() -> None:
    foreign: Json = {"event": {"type": "execute"}, "selected_model_id": "x", "sources": [{"n": 1}]}
    stream = RoundStream(CallVisibility(), set())
    seen = stream.feed(chunk({"content": "a"}, **foreign, metrics=[1]))
    assert seen is not None
    assert not foreign.keys() & seen.keys()
    assert seen["metrics"] == [1], "what nobody acts on travels on"
    assert stream.feed({"type": "response.output_item.added", "item": {}}) is None
    assert stream.feed({**chunk({"content": "a"}), "type": "response.x"}) is None
    assert not foreign.keys() & stream.finish_chunks()[0].keys()


def test_two_choices_are_read_apart() -> None:
    def of(index: int, delta: Json, reason: str | None = None) -> Json:
        return {**_HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

    _, streamed, _ = read(
        [
            of(0, {"role": "assistant", "content": "a"}),
            of(1, {"role": "assistant", "content": "x"}),
            of(1, {"content": "y"}),
            of(0, {"content": "b"}, "stop"),
            of(1, {"tool_calls": [call("ask_user", "{}", index=0, id="a")]}, "tool_calls"),
        ],
        everything=True,
    )
    assert streamed.choices[0].message["content"] == "ab"
    assert streamed.choices[1].message["content"] == "xy"
    assert streamed.choices[0].finish_reason == "stop"
    assert streamed.choices[1].finish_reason == "tool_calls"


def test_a_whole_completion_may_stand_for_the_chunks() -> None:
    message = {"role": "assistant", "content": "noon", "tool_calls": [call("get", {}, id="a")]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
    completion, streamed, _ = read([{**_HEAD, "choices": [choice], "usage": {"n": 1}}])
    assert completion.message["content"] == streamed.message["content"] == "noon"
    assert [c.name for c in completion.calls] == ["get"]
    assert streamed.finish_reason == "tool_calls"


# --- an end that is no end


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk({"role": "assistant", "content": ""})],
        [chunk({"content": "half a sent"})],
        [calls(call("clock", '{"a":', id="a"))],
        [calls(call("clock", None, id="a"))],
        [chunk({"content": "a"}), {**_HEAD, "choices": [], "usage": {"n": 1}}],
        [chunk({"content": "a"}, "")],
        [chunk({"content": "a"}, "null")],
        [chunk({"content": "a"}, "None")],
    ],
)
def test_a_stream_that_just_stops_is_a_failure(chunks: list[Json]) -> None:
    with pytest.raises(UpstreamBroke):
        read(chunks)


@pytest.mark.parametrize(
    ("chunks", "content", "names"),
    [
        ([chunk({"role": "assistant", "content": "a"}, "stop")], "a", []),
        ([chunk({"role": "assistant"}), calls(call("clock", "{}", id="a"))], None, ["clock"]),
    ],
)
def test_a_reason_or_a_complete_call_is_an_end(
    chunks: list[Json], content: str | None, names: list[str]
) -> None:
    completion, streamed, _ = read(chunks)
    assert completion.message["content"] == content
    assert [call.name for call in completion.calls] == names
    assert streamed.finish_reason == "stop"


def test_what_is_remembered_is_what_was_said_to_the_last_character() -> None:
    sent = ["π", "\r\n", "", "\ud83d", "\ude00", "x" * 100]
    reading = RoundStream(CallVisibility(), set())
    for text in sent:
        reading.feed(chunk({"content": text}))
    reading.feed(chunk({}, "stop"))
    assert reading.completion().message["content"] == "".join(sent)
