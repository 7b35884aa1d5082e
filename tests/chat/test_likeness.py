"""Events told by their likeness: the same to the client and to the loop as any other; and cheap."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.chat import calls
from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.likeness import Likeness, Place
from llamaproxy.chat.messages import Completion
from llamaproxy.chat.round_merging import CompletionHeader
from llamaproxy.chat.streamed import StreamedAnswer
from llamaproxy.errors import ProxyError
from llamaproxy.records import ChatRecord, RoundRecord
from llamaproxy.upstream.chunks import relay_chunks

Json = dict[str, Any]

KEYS = ("content", "reasoning_content", "reasoning")


class Written:
    """A client's request, which notes each write."""

    def __init__(self) -> None:
        self.responseHeaders = Headers()
        self.channel = object()
        self.writes: list[bytes] = []
        #: Bytes of one write after which it wants no more for now.
        self.pauses_after = 1 << 30

    def registerProducer(self, producer: Any, _: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        del self.producer

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        if len(data) > self.pauses_after:
            self.producer.pauseProducing()


@attrs.define
class Upstream:
    """The upstream's end of a stream, and the completions that ask for it."""

    clock: Clock
    relay: Any = None
    paused: bool = False

    async def stream(self, _: Json, handler: Any) -> None:
        await relay_chunks(self, self.clock, 60, handler)

    def deliverBody(self, relay: Any) -> None:
        self.relay = relay
        relay.makeConnection(self)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def loseConnection(self) -> None:
        """The relay has had enough."""


class Unlike(StreamedAnswer):
    """An answer that parses every event."""

    def handle_alike(self, events: Sequence[bytes], first: int) -> int:
        return 0


class Header(CompletionHeader):
    """One that is always the same, where the upstream sends none."""

    def fields(self) -> Json:
        self.adopt({"id": "chatcmpl-1", "created": 1})
        return CompletionHeader.fields(self)


class Scene:
    """One answer, to which an upstream sends reads."""

    def __init__(
        self, kind: type[StreamedAnswer] = StreamedAnswer, json_only: bool = False
    ) -> None:
        self.clock = Clock()
        self.request = Written()
        self.upstream = Upstream(self.clock)
        request: Any = self.request
        completions: Any = self.upstream
        header = Header("m")
        self.events = EventStream(request, self.clock, 15)
        self.answer = kind(completions, header, self.events, True, False, json_only)
        self.outcomes: list[Any] = []

    def round(self, reads: Iterable[bytes], **visibility: Any) -> None:
        """One round of the model, whose answer ends after *reads*."""
        self.begin(**visibility)
        for each in reads:
            self.upstream.relay.dataReceived(each)
        self.upstream.relay.release()

    def begin(self, **visibility: Any) -> None:
        """One round of the model, whose answer has begun."""
        self.chat = ChatRecord()
        round = RoundRecord(self.chat, 1, 0.0)
        work = self.answer.complete({}, CallVisibility(**visibility), round)
        ended = Deferred.fromCoroutine(work)
        ended.addCallbacks(self.outcomes.append, self._fail)

    def _fail(self, failure: Any) -> None:
        error = failure.value
        assert isinstance(error, ProxyError), failure.getTraceback()
        self.outcomes.append((type(error), str(error)))

    @property
    def body(self) -> bytes:
        return b"".join(self.request.writes)


# --- the same as any other


#: Characters that are spelled in a way of their own, or look like JSON, or like a stream.
ODD = 'a"\\/\b\f\n\r\t\x00\x1f\x7f\u0085\u00e9\u2028\u20ac\ufeff\U0001f600{}[]:,<&0'

texts = st.one_of(
    st.text("ab \n", max_size=4),
    st.text(ODD, max_size=6),
    st.text(max_size=4),
    st.sampled_from(
        ["content", "choices", "assistant", '","role":"x', "0" * 30, "\ud83d", "\ude00"]
    ),
)


def _spelled(text: str, style: str) -> str:
    """*text* as a JSON string, as one server or another writes it."""
    if style == "ascii":
        return json.dumps(text)
    if style == "html":
        for each in "<&/":
            text = text.replace(each, f"\ue000{each}")
    spelled = json.dumps(text, ensure_ascii=False)
    for each, escape in (("<", "\\u003c"), ("&", "\\u0026"), ("/", "\\/")):
        spelled = spelled.replace(f"\ue000{each}", escape)
    return spelled


#: Fields of a chunk, of its choice and of its delta, that count or might.
_ODD_VALUES: dict[tuple[str, str], list[Any]] = {
    ("delta", "role"): ["assistant", "", 1],
    ("delta", "refusal"): ["", "no"],
    ("delta", "tool_calls"): [[], {}, ""],
    ("delta", "reasoning"): ["", "thought", [], 5],
    ("delta", "number"): [0, False, 1.5, [], [1], {}],
    ("choice", "index"): [1, 5, "0", "1", None, 1.5],
    ("choice", "finish_reason"): ["", " ", "stop", "length", 3],
    ("choice", "logprobs"): [{}, {"content": [{"token": "a"}]}],
    ("choice", "message"): [{}, "x", {"content": "whole"}],
    ("choice", "token_ids"): [[], [1]],
    ("choice", "error"): [{}, "", "broken"],
    ("choice", "usage"): [{}, {"total_tokens": 1}],
    ("chunk", "created"): [7, 7.5, 1e300, 10**30],
    ("chunk", "system_fingerprint"): ["f", "\ud800", ["f"]],
    ("chunk", "usage"): [{}, 3, {"total_tokens": 3}],
    ("chunk", "type"): ["x", "response.x"],
    ("chunk", "error"): ["", {}, {"code": 400}],
    ("chunk", "sources"): [[1]],
    ("chunk", "timings"): [{"ms": 1}],
    ("chunk", "x_groq"): [{"usage": {"total_tokens": 3}}],
}
ODD_FIELDS = [(*where, value) for where, values in _ODD_VALUES.items() for value in values]


@st.composite
def shapes(draw: st.DrawFn) -> Callable[[str], bytes]:
    """What writes events that differ in one text, or nearly so."""
    style = draw(st.sampled_from(["plain", "plain", "plain", "ascii", "html"]))
    mark = "\ue001text\ue001"
    delta: Json = {"tool_calls": None, "role": draw(st.sampled_from(["assistant", None]))}
    delta[draw(st.sampled_from([*KEYS, "content", "content", "other"]))] = mark
    choice: Json = {"index": 0, "delta": delta, "finish_reason": None}
    chunk: Json = {"id": "c1", "choices": [choice], "usage": None}
    holders = {"delta": delta, "choice": choice, "chunk": chunk}
    several = st.lists(st.sampled_from(ODD_FIELDS), min_size=1, max_size=2)
    for holder, key, value in draw(st.one_of(st.just([]), st.just([]), several)):
        if holders[holder].get(key) != mark:
            holders[holder][key] = value
    if draw(st.booleans()):
        chunk = dict(reversed(chunk.items()))
    separators = draw(st.sampled_from([None, (",", ":")]))
    template = json.dumps(chunk, ensure_ascii=True, separators=separators)
    before, behind = template.split(json.dumps(mark))
    if draw(st.integers(0, 9)) == 0:
        before = before.replace("{", '{"content":"twice",')
    name = draw(st.sampled_from(["", "", "", "", "", "event: x\n", "id: 1\n", ": comment\n"]))

    def write(text: str) -> bytes:
        raw = f"{name}data: {before}{_spelled(text, style)}{behind}\n\n"
        return raw.encode("utf-8", "surrogatepass")

    return write


@st.composite
def runs(draw: st.DrawFn) -> bytes:
    """Some events of one or two shapes in turn."""
    writers = draw(st.lists(shapes(), min_size=1, max_size=2))
    several = draw(st.lists(st.one_of(st.text("ab \n", min_size=1), texts), max_size=12))
    if draw(st.booleans()):
        writers = writers[:1]
    return b"".join(write(text) for text, write in zip(several, itertools.cycle(writers)))


def _odd(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


_CALL = {"index": 0, "id": "a", "function": {"name": "own", "arguments": '{"a"'}}

odd_events = st.sampled_from(
    [
        b": a comment\n\n",
        b"data:\n\n",
        b"event: error\ndata: {}\n\n",
        b"data: \xff\xfe\n\n",
        b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a\xff"}}]}\n\n',
        b'data: {"id":"c1",\ndata: "choices":[{"index":0,"delta":{"content":"two lines"}}]}\n\n',
        _odd({"error": {"message": "no", "code": 400}}),
        _odd({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
        _odd({"choices": [{"index": 0, "delta": {"tool_calls": [_CALL]}}]}),
        _odd({"choices": [{"index": 0, "delta": {"content": [{"text": "part"}]}}]}),
        _odd({"choices": [{"index": 0, "message": {"content": "whole"}}]}),
        _odd({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "more": 1}]}),
        _odd({"choices": [], "usage": {"total_tokens": 3}, "timings": {"ms": 1}}),
        _odd([{"choices": [{"index": 0, "delta": {"content": "listed"}}]}]),
        b"data: [DONE]\n\n",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The reads of one odd stream."""
    parts = draw(st.lists(st.one_of(runs(), runs(), odd_events), max_size=6))
    raw = b"".join(each * draw(st.sampled_from([1, 1, 1, 2])) for each in parts)
    line_end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]))
    raw = raw.replace(b"\n", line_end)
    kind = draw(st.sampled_from(["events", "events", "anywhere", "bytes"]))
    if kind == "bytes":
        return [raw[at : at + 1] for at in range(len(raw))]
    if kind == "events":
        return [each for each in raw.split(b"\n\n") if each] and [
            each + b"\n\n" for each in raw.split(b"\n\n")[:-1]
        ]
    cuts = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=8)))
    return [raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)]) if a < b]


def _outcome(kind: type[StreamedAnswer], rounds: list[list[bytes]], **options: Any) -> Any:
    """What comes of *rounds*: bytes for the client, outcomes for the loop, and the usage."""
    scene = Scene(kind, options.pop("json_only"))
    ids = map("call_{}".format, itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "new_call_id", lambda: next(ids))
        for reads in rounds:
            scene.round(reads, **options)
            if not isinstance(scene.outcomes[-1], Completion):
                break
        else:
            Deferred.fromCoroutine(scene.answer.end())
    return scene.body, scene.outcomes, scene.answer._usage


@settings(max_examples=150, deadline=None)
@given(
    st.lists(streams(), min_size=1, max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_it_is_the_same_as_parsing_each(
    rounds: list[list[bytes]], json_only: bool, shows_all: bool
) -> None:
    options = {"client_tools": ("own",), "server_tools": ("clock",), "shows_all": shows_all}
    options["json_only"] = json_only
    assert _outcome(StreamedAnswer, rounds, **options) == _outcome(Unlike, rounds, **options)


# --- how the template is proven


def write(text: str = "a", **fields: Any) -> bytes:
    """An event with one text, and fields of its delta."""
    choice = {"index": 0, "delta": {"content": text, **fields}, "finish_reason": None}
    return orjson.dumps({"id": "c1", "choices": [choice], "usage": None})


#: Nothing was told by its likeness.
NONE = (0, b"")


def learnt(*events: bytes) -> Likeness:
    likeness = Likeness(lambda _: True)
    for each in events:
        likeness.learn(each, orjson.loads(each))
    return likeness


def test_two_alike_are_enough() -> None:
    assert learnt(write("one")).shown([write("two")], 0) == NONE
    count, shown = learnt(write("one"), write("two")).shown([*map(write, ("three", "four"))], 0)
    assert count == 2
    assert shown == b"data: " + write("three") + b"\n\ndata: " + write("four") + b"\n\n"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'a"',
        b'a","b":"',
        b"a\\",
        b"a\\u00e9",
        b"a\\/",
        b"a\\x",
        b"a\nb",
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
    ],
)
def test_what_is_doubtful_is_parsed(text: bytes) -> None:
    likeness = learnt(write("one"), write("two"))
    doubtful = write("MIDDLE").replace(b"MIDDLE", text)
    assert likeness.shown([doubtful], 0) == NONE
    count, shown = likeness.shown([write("three"), doubtful, write("four")], 0)
    assert (count, shown) == (1, b"data: " + write("three") + b"\n\n")


def test_half_a_character_is_not_made_whole_by_the_next_event() -> None:
    likeness = learnt(write("one"), write("two"))
    halves = [write("MIDDLE").replace(b"MIDDLE", half) for half in (b"a\xc3", b"\xa9b")]
    assert likeness.shown(halves, 0) == NONE


@given(
    st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cc", "Cs"]), min_size=1),
    st.text('"\\\b\f\n\r\t/\x7f\u00e9', min_size=1),
)
@example("a", "\\\\n")
def test_texts_are_kept_as_they_were(text: str, odd: str) -> None:
    sizes: list[int] = []

    def reserve(size: int) -> bool:
        sizes.append(size)
        return True

    likeness = Likeness(reserve)
    for each in (write("one"), write("two")):
        likeness.learn(each, orjson.loads(each))
    for part in (text, odd):
        assert likeness.shown([write(part)], 0) == (1, b"data: " + write(part) + b"\n\n")
    assert likeness.taken() == (Place(0, "content"), text + odd)
    assert likeness.taken() is None
    assert sizes == [len(text), len(odd)]


def test_another_spelling_does_not_end_it() -> None:
    likeness = learnt(write("one"), write("two"))
    escaped = write("MIDDLE").replace(b"MIDDLE", b"\\u003cb>")
    assert likeness.shown([escaped], 0) == NONE
    likeness.learn(escaped, orjson.loads(escaped))
    assert likeness.shown([write("three")], 0)[0] == 1


@pytest.mark.parametrize(
    "fields",
    [{"other": "text"}, {"number": 1}, {"tool_calls": [1]}, {"content": ["a"]}, {"parts": []}],
)
def test_what_adds_more_than_a_text_is_not_alike(fields: Json) -> None:
    events = [write(text, **fields) for text in ("one", "two", "three")]
    assert learnt(*events[:2]).shown(events, 2) == NONE


# --- what it costs


def alike(count: int, text: str = "word \u00e9\\n ") -> list[bytes]:
    return [b"data: " + write(f"{text}{number}") + b"\n\n" for number in range(count)]


@attrs.define
class Counted:
    """How often something was called."""

    calls: int = 0

    def of(self, function: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts parsing, serialising, Deferreds and delayed calls."""
    counter = Counted()
    for name in ("loads", "dumps"):
        monkeypatch.setattr(orjson, name, counter.of(getattr(orjson, name)))
        monkeypatch.setattr(json, name, counter.of(getattr(json, name)))
    monkeypatch.setattr(Deferred, "__init__", counter.of(Deferred.__init__))
    monkeypatch.setattr(Clock, "callLater", counter.of(Clock.callLater))
    return counter


def test_an_event_like_the_last_is_not_parsed(counted: Counted) -> None:
    events = alike(103)
    scene = Scene()
    scene.begin()
    for each in events[:3]:  # the first has the role
        scene.upstream.relay.dataReceived(each)
    counted.calls = 0
    for each in events[3:]:
        scene.upstream.relay.dataReceived(each)
    assert counted.calls == 0
    assert len(scene.request.writes) == len(events)


def test_events_that_cannot_be_told_by_it_are_tried_once(counted: Counted) -> None:
    """Azure says with each text what its filters have found in it."""
    scene = Scene()
    scene.begin()
    filtered = {"content_filter_results": {"hate": {"filtered": False}}}
    costs = []
    for number in range(10):
        delta = {"content": f" word {number}"} if number else {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "finish_reason": None, **filtered}
        data = b"data: %b\n\n" % json.dumps({"id": "c", "choices": [choice]}).encode()
        counted.calls = 0
        scene.upstream.relay.dataReceived(data)
        costs.append(counted.calls)
    assert costs[4:] == [costs[1]] * 6


def test_events_of_one_read_are_one_write() -> None:
    scene = Scene()
    scene.begin()
    scene.upstream.relay.dataReceived(b"".join(alike(103)))
    assert len(scene.request.writes) == 1
    assert scene.body.count(b"data: ") == 103


def test_the_end_is_one_write() -> None:
    scene = Scene()
    scene.begin()
    scene.upstream.relay.dataReceived(b"".join(alike(3)) + b"data: [DONE]\n\n")
    before = len(scene.request.writes)
    Deferred.fromCoroutine(scene.answer.end())
    assert len(scene.request.writes) == before + 1
    assert scene.request.writes[-1].endswith(b"data: [DONE]\n\n")


def test_an_end_that_is_large_waits_for_a_reader_who_is_slow() -> None:
    """Each of many choices may end with all that stood beside its server's last chunk."""
    scene = Scene()
    scene.begin()
    choices = [{"index": n, "delta": {"content": "x"}} for n in range(100)]
    last = json.dumps({"choices": choices, "beside": "x" * 100_000}).encode()
    scene.upstream.relay.dataReceived(b"data: %b\n\ndata: [DONE]\n\n" % last)
    scene.request.pauses_after = 65536
    ended = Deferred.fromCoroutine(scene.answer.end())
    while not ended.called:
        scene.request.producer.resumeProducing()
    assert max(map(len, scene.request.writes[1:])) < 300_000
    assert scene.body.endswith(b"data: [DONE]\n\n")


def test_a_reader_who_is_slow_stops_the_upstream_once_a_read() -> None:
    scene = Scene()
    scene.begin()
    scene.upstream.relay.dataReceived(b"".join(alike(3)))
    scene.request.producer.pauseProducing()
    scene.upstream.relay.dataReceived(b"".join(alike(103)))
    assert scene.upstream.paused
    assert len(scene.events._waiters) == 1
    scene.request.producer.resumeProducing()
    assert not scene.upstream.paused


def test_what_came_before_costs_nothing() -> None:
    """Only the bytes of the event itself are looked at: as many calls for the last as the first."""
    scene = Scene()
    scene.begin()
    for each in alike(3):
        scene.upstream.relay.dataReceived(each)
    costs = []
    for _ in range(3):
        costs.append(_calls_of(lambda: scene.upstream.relay.dataReceived(alike(1)[0])))
        for each in alike(1000):
            scene.upstream.relay.dataReceived(each)
    assert costs == [costs[0]] * 3


def _calls_of(work: Callable[[], None]) -> int:
    """The function calls of *work*."""
    counter = Counted()

    def count(_frame: Any, event: str, _arg: Any) -> None:
        counter.calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counter.calls


def odd(text: bytes) -> bytes:
    """An event whose text stands there as it is."""
    return write("MIDDLE").replace(b"MIDDLE", text)


_ODD = [
    *(
        odd(text)
        for text in (b"", b'"', b"\\", b"a\\", b"\\u0041", b"\n", b"a\nb", b"\xff", b"\xc3")
    ),
    *(odd(b"")[:cut] for cut in (0, 1, 30, -1, -2, -30)),
    odd(b"")[1:],
    b"[DONE]",
    write("x", refusal="no"),
    write("before") + b"\n" + write("behind"),
]


@settings(max_examples=300)
@example([[write("a")] * 30, [odd(b"a\nb")], [write("b")] * 30])
@example([[write("a")] * 30, [write("x").replace(b"c1", b"c2")], [write("b")] * 30])
@example([[write("a")] * 30, [write("x").replace(b"null", b"true")], [write("b")] * 30])
@given(
    st.lists(
        st.one_of(
            st.lists(st.text(min_size=1).map(write), min_size=1, max_size=60),
            st.lists(st.sampled_from(_ODD), max_size=2),
        ),
        max_size=4,
    )
)
def test_many_at_once_are_told_as_one_by_one(runs: list[list[bytes]]) -> None:
    events = [event for run in runs for event in run]
    likeness = learnt(write("one"), write("two"))
    count, shown = likeness.shown(events, 0) if events else NONE
    alone = learnt(write("one"), write("two"))
    told = (alone.shown([event], 0) for event in events)
    each = list(itertools.takewhile(lambda one: one[0], told))

    assert (count, shown) == (len(each), b"".join(text for _, text in each))
    assert likeness.taken() == alone.taken()


class Looked(list[bytes]):
    """Counts how often an event, or a block of them, is looked at."""

    looks = 0

    def __getitem__(self, number: Any) -> Any:
        self.looks += 1
        return list.__getitem__(self, number)


def test_events_of_another_spelling_cost_no_more_the_more_of_them_are_read_at_once() -> None:
    likeness = learnt(write("one"), write("two"))
    escaped = write("MIDDLE").replace(b"MIDDLE", b"\\u003cb>")
    events = Looked([escaped] * 1000)
    for number in range(len(events)):
        assert likeness.shown(events, number) == NONE
        likeness.learn(escaped, orjson.loads(escaped))
    assert events.looks == len(events)


@pytest.mark.parametrize("spelled", [b"\\u003cb>", b"\xff", b"\xe2\x82"])
@pytest.mark.parametrize("others", [[], [write("plain")]])
def test_nor_do_those_that_are_no_utf_8_or_stand_among_plain_ones(
    others: list[bytes], spelled: bytes
) -> None:
    likeness, event = learnt(write("one"), write("two")), odd(spelled)
    events = Looked([*others, event] * 1000)
    at = told = 0
    while at < len(events):
        count, _ = likeness.shown(events, at)
        told += count
        if count == 0:
            likeness.learn(event, jsontext.loads_anyhow(event))
        at += count or 1
    assert told == 1000 * len(others)
    assert events.looks <= 2 * len(events)
