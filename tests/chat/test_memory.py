"""Turns that client and server share: both run their calls, and the model sees one history."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llamaproxy.chat.memory import (
    MAX_TURNS,
    Largest,
    TurnMemory,
    TurnStore,
    recall_turns,
    remember_turn,
)
from llamaproxy.chat.mixed_turns import new_mark, without_marks
from llamaproxy.upstream.client_context import ClientContext
from tests.chat.script import Ask, Chat, calls
from tests.chat.streams import (
    both,
    client_tool,
    message_of,
    own_ids,
    replying,
    stack_with,
)
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    Proxy,
    answer,
    call,
    calling,
    head_with,
    saying,
    tool_result,
)

Json = dict[str, Any]

T = TypeVar("T")

#: A round with calls of both kinds, the server's in the middle.
MIXED = {
    "content": "Let me see.",
    "reasoning_content": "Hm.",
    "tool_calls": [
        call("ask_user", {"q": 1}, "call_0"),
        call("clock", {}, "call_1"),
        call("ask_user", {"q": 2}, "call_2"),
    ],
}

TOOLS = [client_tool("ask_user")]

QUESTION = {"role": "user", "content": "What time is it?"}


def histories(stack: FakeStack) -> list[list[Json]]:
    """The messages of each completion that the model was asked for."""
    return [each.json()["messages"] for each in stack.asked_for(CHAT)]


def result(call_id: str, text: str) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def returned(message: Json, *results: str) -> list[Json]:
    """What a client sends after *message*: the message, and the results of its calls."""
    entries = message["tool_calls"]
    return [message, *(result(c["id"], text) for c, text in zip(entries, results, strict=True))]


def ids(message: Json) -> list[str]:
    return [entry["id"] for entry in message["tool_calls"]]


def test_server_calls_run_and_only_client_calls_are_handed_over(ask: Ask) -> None:
    """DESIGN: L19."""
    chat = ask(replying(MIXED, "tool_calls"), tools=TOOLS)
    assert chat.finish_reason == "tool_calls"
    assert chat.called == ["ask_user"] * 2
    assert ids(chat.own_message) == ["call_0", "call_2"]
    assert chat.text == "Let me see."
    assert len(chat.invoked) == 1


def test_the_model_sees_the_whole_turn_when_the_client_returns(ask: Ask) -> None:
    """DESIGN: L19."""
    chat = ask(replying(MIXED, "tool_calls"), tools=TOOLS, messages=[QUESTION])
    history = [QUESTION, *returned(chat.message, "one", "two")]
    chat.again(saying("Noon."), tools=TOOLS, messages=history)
    assert chat.text == "Noon."
    question, assistant, *results = chat.requests[1]["messages"]
    assert question == QUESTION
    assert ids(assistant) == ["call_0", "call_1", "call_2"]
    assert assistant["reasoning_content"] == "Hm."
    assert results == [result("call_0", "one"), result("call_1", "12:00"), result("call_2", "two")]


def test_so_it_does_in_every_later_turn(ask: Ask) -> None:
    chat = ask(replying(MIXED, "tool_calls"), tools=TOOLS, messages=[QUESTION])
    history = [QUESTION, *returned(chat.message, "one", "two")]
    chat.again(saying("Noon."), tools=TOOLS, messages=history)
    history += [chat.message, {"role": "user", "content": "And now?"}]
    chat.again(saying("Still noon."), tools=TOOLS, messages=history)
    roles = [message["role"] for message in chat.requests[2]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "tool", "assistant", "user"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_earlier_rounds_of_the_same_answer_come_back_too(stream: bool) -> None:
    """DESIGN: L19."""
    rounds = [calling("clock"), calls(call("ask_user", {}, "call_1"))]
    chat = Chat(*rounds, stream=stream, tools=TOOLS, messages=[QUESTION])
    history = [QUESTION, *returned(chat.message, "yes")]
    chat.again(saying("Noon."), tools=TOOLS, messages=history)
    assert [(m["role"], m.get("content")) for m in chat.requests[2]["messages"]] == [
        ("user", "What time is it?"),
        ("assistant", "" if stream else None),
        ("tool", "12:00"),
        ("assistant", "" if stream else None),
        ("tool", "yes"),
    ]


def test_two_mixed_turns_in_a_row(ask: Ask) -> None:
    first = replying(MIXED, "tool_calls")
    chat = ask(first, tools=TOOLS, messages=[QUESTION], results=["12:00", "12:01"])
    history = [QUESTION, *returned(chat.message, "one", "two")]
    second = calls(call("clock", {}, "x"), call("ask_user", {}, "y"))
    chat.again(second, tools=TOOLS, messages=history)
    history += returned(chat.message, "three")
    chat.again(saying("Noon."), tools=TOOLS, messages=history)
    contents = [content for _, content in chat.results]
    assert contents == ["one", "12:00", "two", "12:01", "three"]


def shared_turn(proxy: Proxy, stack: FakeStack, question: str, time: str, **more: Any) -> Json:
    """What the client is handed in a shared turn about *question*."""
    stack.on(CHAT, replying(MIXED, "tool_calls"))
    stack.on(INVOKE, tool_result(time))
    messages = [{"role": "user", "content": question}]
    exchange = proxy.chat(tools=TOOLS, messages=messages, **more)
    return message_of(exchange)


def recalled(
    proxy: Proxy,
    stack: FakeStack,
    question: str,
    message: Json,
    answer_one: str = "one",
    **more: Any,
) -> list[str]:
    """The tool results that the model sees when the client returns."""
    stack.on(CHAT, saying("Done."))
    messages = [{"role": "user", "content": question}, *returned(message, answer_one, "two")]
    proxy.chat(tools=TOOLS, messages=messages, **more)
    return [m["content"] for m in histories(stack)[-1] if m["role"] == "tool"]


def test_two_conversations_with_the_same_ids_are_not_confused() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    first = shared_turn(proxy, stack, "Oslo?", "12:00")
    second = shared_turn(proxy, stack, "Tokyo?", "20:00")
    assert ids(own_ids(first)) == ids(own_ids(second))
    assert recalled(proxy, stack, "Oslo?", first) == ["one", "12:00", "two"]
    assert recalled(proxy, stack, "Tokyo?", second) == ["one", "20:00", "two"]


def test_what_one_caller_shared_no_other_recalls() -> None:
    """DESIGN: L19."""
    stack = stack_with("clock")
    proxy = Proxy(stack)
    alice, bob = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
    message = shared_turn(proxy, stack, "Oslo?", "12:00", fields=alice)
    assert recalled(proxy, stack, "Oslo?", message, fields=bob) == ["one", "two"]
    assert recalled(proxy, stack, "Oslo?", message) == ["one", "two"]
    assert recalled(proxy, stack, "Oslo?", message, fields=alice) == ["one", "12:00", "two"]


def test_what_a_client_writes_anew_is_recognised_all_the_same() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    stack.on(CHAT, saying("Done."))
    parts = [{"type": "text", "text": "Oslo?"}]
    for entry in message["tool_calls"]:
        entry["function"]["arguments"] = entry["function"]["arguments"].replace(" ", "\n")
    message |= {"content": None, "tool_calls": message["tool_calls"][::-1]}
    messages = [
        {"role": "user", "content": parts, "name": "x"},
        *returned(message, "two", "one"),
    ]
    proxy.chat(tools=TOOLS, messages=messages)
    assert [m["content"] for m in histories(stack)[-1]][2:] == ["one", "12:00", "two"]


def shown(proxy: Proxy, stack: FakeStack, *history: Json, **more: Any) -> list[Json]:
    """The messages that the model sees of *history*."""
    stack.on(CHAT, saying("Done."))
    proxy.chat(tools=TOOLS, messages=[*history], **more)
    return histories(stack)[-1]


def test_whatever_a_client_writes_anew_around_it_the_turn_is_the_same() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    clock = {"role": "system", "content": "It is 12:01."}
    picture = {"role": "user", "content": [{"type": "image_url"}]}
    whole = shown(proxy, stack, clock, picture, *returned(message, "one", "two"))
    assert whole[:2] == [clock, picture]
    assert [m["content"] for m in whole if m["role"] == "tool"] == ["one", "12:00", "two"]


def test_of_two_turns_that_look_the_same_each_has_its_own_results() -> None:
    """A regenerated answer: the model repeats its ids, and the tool says something else."""
    stack = stack_with("clock")
    proxy = Proxy(stack)
    first = shared_turn(proxy, stack, "Oslo?", "12:00")
    second = shared_turn(proxy, stack, "Oslo?", "13:00")
    for _ in range(2):
        assert recalled(proxy, stack, "Oslo?", first) == ["one", "12:00", "two"]
        assert recalled(proxy, stack, "Oslo?", second) == ["one", "13:00", "two"]


def test_a_client_may_come_back_again_with_another_result() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    for text in ("one", "other", "one"):
        assert recalled(proxy, stack, "Oslo?", message, text) == [text, "12:00", "two"]


def test_results_may_come_in_any_order_and_in_several_messages() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    first, second = message["tool_calls"]
    split = [
        QUESTION,
        {**message, "tool_calls": [second]},
        result(second["id"], "two"),
        {"role": "assistant", "content": None, "tool_calls": [first]},
        result(first["id"], "one"),
        {"role": "user", "content": "And?"},
    ]
    question, assistant, *results, last = shown(proxy, stack, *split)
    assert question == QUESTION
    assert ids(assistant) == ["call_0", "call_1", "call_2"]
    assert results == [result("call_0", "one"), result("call_1", "12:00"), result("call_2", "two")]
    assert last == split[-1]


def test_a_call_that_a_client_has_dropped_is_not_put_back() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    first, _ = message["tool_calls"]
    history = [QUESTION, {**message, "tool_calls": [first]}, result(first["id"], "one")]
    _, assistant, *results = shown(proxy, stack, *history)
    assert ids(assistant) == ["call_0", "call_1"]
    assert results == [result("call_0", "one"), result("call_1", "12:00")]


def test_a_mark_is_taken_off_wherever_it_is_and_nothing_else() -> None:
    """DESIGN: L19."""
    stack = stack_with("clock")
    mark = new_mark()
    history = [
        {"role": "assistant", "tool_calls": [call("own", {}, f"c1{mark}"), call("own", {}, "c2")]},
        result(f"c1{mark}", "one"),
        result("c2", "two"),
        {"role": "assistant", "tool_calls": [call("own", {}, "c_lpnomark"), call("own", {}, mark)]},
        result("c_lp" + "-" * 14, "three"),
    ]
    bare = shown(Proxy(stack), stack, *history)
    assert [ids(m) for m in bare if "tool_calls" in m] == [["c1", "c2"], ["c_lpnomark", ""]]
    assert [m["tool_call_id"] for m in bare if "tool_call_id" in m] == [
        "c1",
        "c2",
        "c_lp" + "-" * 14,
    ]


@both
def test_without_server_tools_ids_stay_as_they_are(stream: bool) -> None:
    stack = stack_with()
    stack.on(CHAT, calling("ask_user"))
    message = message_of(Proxy(stack).chat(stream=stream, tools=TOOLS))
    assert ids(message) == ["call_1"]


def test_a_turn_is_made_whole_though_no_tools_are_wanted_any_more() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    history = [QUESTION, *returned(message, "one", "two")]
    whole = shown(proxy, stack, *history, tool_choice="none")
    assert [m["content"] for m in whole if m["role"] == "tool"] == ["one", "12:00", "two"]


def test_old_cards_in_the_history_do_no_harm() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    card = '<details type="tool_calls" done="true">\n<summary>x</summary>\n</details>\nNoon.'
    history = [{"role": "assistant", "content": card}, QUESTION]
    stack.on(CHAT, replying(MIXED, "tool_calls"), saying("Done."))
    stack.on(INVOKE, tool_result("12:00"))
    tools = [client_tool("ask_user")]
    message = message_of(proxy.chat(tools=tools, messages=history))
    proxy.chat(tools=tools, messages=[*history, *returned(message, "one", "two")])
    contents = [m["content"] for m in histories(stack)[-1] if m["role"] == "tool"]
    assert contents == ["one", "12:00", "two"]


def test_a_forgotten_turn_goes_on_with_the_clients_calls_alone() -> None:
    """DESIGN: L20."""
    stack = stack_with("clock")
    proxy = Proxy(stack, memory_age=60)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    proxy.advance(61)
    assert recalled(proxy, stack, "Oslo?", message) == ["one", "two"]
    assert len(proxy.memory) == 0


def test_a_turn_that_is_still_asked_for_is_not_forgotten() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack, memory_age=60)
    message = shared_turn(proxy, stack, "Oslo?", "12:00")
    for _ in range(3):
        proxy.advance(50)
        assert recalled(proxy, stack, "Oslo?", message) == ["one", "12:00", "two"]


def test_the_oldest_turns_make_room() -> None:
    """DESIGN: L20."""
    stack = stack_with("clock")
    proxy = Proxy(stack, memory_entries=2)
    messages = [shared_turn(proxy, stack, q, q.upper()) for q in ("a", "b", "c")]
    assert len(proxy.memory) == 2
    assert recalled(proxy, stack, "a", messages[0]) == ["one", "two"]
    assert recalled(proxy, stack, "c", messages[2]) == ["one", "C", "two"]


def test_nothing_is_remembered_of_a_turn_that_was_not_shared() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    proxy.chat()
    stack.on(CHAT, calling("ask_user"))
    proxy.chat(tools=TOOLS)
    assert len(proxy.memory) == 0


def test_calls_that_open_webui_brings_back_itself_are_not_added_again() -> None:
    """It shows them as cards, and replays those (W3)."""
    stack = stack_with("clock")
    proxy = Proxy(stack)
    fields = {"X-OpenWebUI-Message-Id": "m1"}
    message = shared_turn(proxy, stack, "Oslo?", "12:00", fields=fields)
    stack.on(CHAT, saying("Done."))
    card = {"role": "assistant", "content": "", "tool_calls": [call("clock", {}, "call_ab")]}
    replayed = [card, result("call_ab", "12:00"), *returned(message, "one", "two")]
    messages = [{"role": "user", "content": "Oslo?"}, *replayed]
    proxy.chat(tools=TOOLS, messages=messages, fields=fields)
    assert histories(stack)[-1] == [without_marks(each) for each in messages]


def test_nor_are_those_that_it_brings_back_in_the_same_message() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    fields = {"X-OpenWebUI-Message-Id": "m1"}
    message = shared_turn(proxy, stack, "Oslo?", "12:00", fields=fields)
    card = call("clock", {}, "call_ab")
    merged = {**message, "tool_calls": [card, *message["tool_calls"]]}
    history = [QUESTION, *returned(merged, "12:00", "one", "two")]
    assert shown(proxy, stack, *history, fields=fields) == [without_marks(m) for m in history]


def test_an_older_open_webui_that_does_not_is_helped() -> None:
    stack = stack_with("clock")
    proxy = Proxy(stack)
    fields = {"X-OpenWebUI-Message-Id": "m1"}
    message = shared_turn(proxy, stack, "Oslo?", "12:00", fields=fields)
    contents = recalled(proxy, stack, "Oslo?", message, fields=fields)
    assert contents == ["one", "12:00", "two"]


def who(name: str) -> ClientContext:
    return ClientContext.of(head_with({b"authorization": [name.encode()]}))


def now(work: Coroutine[Any, Any, T]) -> T:
    """What *work*, which waits for nothing, returns."""
    with pytest.raises(StopIteration) as stopped:
        work.send(None)
    value: T = stopped.value.value
    return value


def remember(memory: TurnMemory, text: str, name: str = "a") -> str:
    """The mark of a turn in which *text* was said to the caller *name*."""
    mark = new_mark()
    turn = {"role": "assistant", "content": text, "tool_calls": [call("ask_user", {}, "call_0")]}
    now(remember_turn(memory, who(name), mark, [turn]))
    return mark


def handed_over(mark: str) -> Json:
    """What a client brings back of a turn with that *mark*."""
    return {"role": "assistant", "tool_calls": [call("ask_user", "{}", f"call_0{mark}")]}


def recall(store: TurnStore, messages: list[Any], name: str = "a") -> list[Any]:
    return now(recall_turns(store, who(name), messages))


def knows(memory: TurnMemory, mark: str, name: str = "a") -> bool:
    [assistant] = recall(memory, [handed_over(mark)], name)
    assert ids(assistant) == ["call_0"]
    return "content" in assistant


def test_memory_is_bounded_in_bytes() -> None:
    """DESIGN: L20."""
    memory = TurnMemory(Clock(), max_entries=1000, max_bytes=5000, max_age=60)
    marks = [remember(memory, "x" * 1000) for _ in range(100)]
    assert 1 <= len(memory) <= 5
    assert knows(memory, marks[-1])


def test_a_turn_that_is_too_large_costs_only_itself() -> None:
    """DESIGN: L20."""
    memory = TurnMemory(Clock(), max_entries=1000, max_bytes=5000, max_age=60)
    marks = [remember(memory, "x" * 1000, name) for name in "abc"]
    assert not knows(memory, remember(memory, "large" * 2000, "d"), "d")
    assert all(map(knows, [memory] * 3, marks, "abc"))


def test_nor_does_it_cost_others_of_the_same_caller() -> None:
    """DESIGN: L20."""
    memory = TurnMemory(Clock(), max_entries=1000, max_bytes=5000, max_age=60)
    mark = remember(memory, "x" * 1000)
    assert not knows(memory, remember(memory, "large" * 2000))
    assert knows(memory, mark)


def test_no_caller_can_push_out_all_others() -> None:
    """DESIGN: L20."""
    for entries, size in ((10, 10**9), (10**9, 3000)):
        memory = TurnMemory(Clock(), entries, size, max_age=60)
        marks = [remember(memory, "x", name) for name in "bcd"]
        for _ in range(100):
            remember(memory, "y" * 100, "a")
        assert all(map(knows, [memory] * 3, marks, "bcd"))
        assert len(memory) <= 15


def test_what_is_counted_is_what_is_there() -> None:
    memory = TurnMemory(Clock(), max_entries=7, max_bytes=1500, max_age=60)
    for n in range(200):
        mark = remember(memory, "x" * (n % 50), "abc"[n % 3])
        knows(memory, mark, "abc"[n % 2])
    sizes = [len(turn.text) for turn in memory._turns.values()]
    assert memory._size == sum(sizes) == sum(share.size for share in memory._shares.values())
    assert sum(len(share.marks) for share in memory._shares.values()) == len(memory)


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 20))))
def test_the_largest_share_is_found(changes: list[tuple[str, int]]) -> None:
    sizes: dict[str, int] = {}
    largest: Largest[str] = Largest(lambda name: sizes.get(name, 0))
    for name, size in changes:
        has_grown = size > sizes.get(name, 0)
        sizes[name] = size
        if has_grown:
            largest.grown(name)
        if any(sizes.values()):
            assert sizes[largest.find()] == max(sizes.values())


def test_to_find_it_costs_the_same_however_many_there_are() -> None:
    looks: list[int] = []

    def size_of(number: int) -> int:
        looks.append(number)
        return sizes[number]

    costs = []
    for owners in (100, 10_000):
        sizes = dict.fromkeys(range(owners), 1)
        largest = Largest(size_of)
        for number in range(owners):
            largest.grown(number)
        looks.clear()
        for number in range(50):
            sizes[largest.find()] = 0
            sizes[owners + number] = 1
            largest.grown(owners + number)
        costs.append(len(looks))
    assert costs[1] <= costs[0] + 100


def test_a_look_at_a_history_costs_the_ids_in_it() -> None:
    memory = TurnMemory(Clock(), max_entries=10, max_bytes=5000, max_age=60)
    looked_at: list[str] = []

    class Counted(str):
        def __getitem__(self, place: Any) -> str:
            looked_at.append(str.__getitem__(self, place))
            return looked_at[-1]

    entries = [{"id": Counted("c" * 10_000 + "_lpx")} for _ in range(1000)]
    history = [{"role": "assistant", "content": "x" * 10_000, "tool_calls": entries}]
    assert recall(memory, history) == history
    assert sum(map(len, looked_at)) < 100 * len(entries)


class Asked:
    """A store that has forgotten everything."""

    def __init__(self) -> None:
        self.marks: list[list[str]] = []

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        self.marks.append([*marks])
        return {}

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        raise AssertionError


def test_a_store_is_asked_once_for_all_turns_of_a_history() -> None:
    store = Asked()
    first, second = new_mark(), new_mark()
    history = [
        *(handed_over(first), result(f"call_0{first}", "one"), handed_over(first)),
        *(result(f"call_0{new_mark()}", "of no turn"), QUESTION, handed_over(second)),
    ]
    recall(store, history)
    assert store.marks == [[first, second]]


def test_a_store_is_not_asked_where_there_are_no_marks() -> None:
    store = Asked()
    for message in (QUESTION, result(f"call_0{new_mark()}", "of no turn"), handed_over("")):
        recall(store, [message])
    assert store.marks == []


def test_it_is_asked_for_so_many_turns_of_one_history_and_the_latest() -> None:
    store = Asked()
    marks = [new_mark() for _ in range(MAX_TURNS + 7)]
    recall(store, list(map(handed_over, marks)))
    assert store.marks == [marks[7:]]


@given(st.lists(st.tuples(st.binary(max_size=3), st.lists(st.binary(max_size=3))), max_size=3))
def test_whoever_has_other_credentials_is_another_owner(fields: Any) -> None:
    credentials = tuple((name, tuple(values)) for name, values in fields)
    owner = ClientContext(credentials).owner
    assert owner == ClientContext(credentials).owner
    for other in ((*credentials, (b"", ())), (*credentials, (b"x", (b"",)))):
        assert owner != ClientContext(other).owner
    for place, (name, values) in enumerate(credentials):
        parts = (name, *values)
        joined = ((b"".join(parts), ()),)
        for other in (joined, ((name, (*values, b"")),), ((name + b"x", values),)):
            changed = (*credentials[:place], *other, *credentials[place + 1 :])
            assert (changed == credentials) == (ClientContext(changed).owner == owner)


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "text",
        {},
        {"role": "assistant", "tool_calls": 7},
        {"role": "assistant", "tool_calls": [None, {}, {"id": 7, "function": None}]},
        {"role": "tool"},
        {"role": "tool", "tool_call_id": ["x"], "content": {"a": 1}},
    ],
)
def test_odd_messages_are_left_as_they_are(odd: Any) -> None:
    memory = TurnMemory(Clock(), max_entries=10, max_bytes=5000, max_age=60)
    remember(memory, "a")
    history = [odd, {"role": "user", "content": "q"}, odd]
    assert recall(memory, history) == history


def test_the_upstreams_refusal_of_a_history_is_passed_on() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, answer({"error": {"message": "bad messages"}}, 400))
    assert Proxy(stack).chat(messages=[{"role": "tool"}]).status == 400
