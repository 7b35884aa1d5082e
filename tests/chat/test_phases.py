"""Every phase of an answer against everything that can happen in it.

The demands of keep-alive, failure, cancellation and back-pressure (S6, S7, L17, S11) hold in each
phase alike. The table says what becomes of the answer; the rest of what must be follows from it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.http import Request
from zope.interface import implementer

from llamaproxy.errors import ProxyError
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.sse import KEEP_ALIVE
from tests.chat.connections import Connections
from tests.chat.streams import (
    both,
    client_tool,
    failure_in,
    finish_of,
    joined,
    nothing_left,
    stack_with,
)
from tests.support import (
    CHAT,
    INVOKE,
    Answer,
    Exchange,
    Proxy,
    begin_events,
    call,
    chunk,
    completion,
    event,
    hang_up,
    nothing,
    read,
    tool_result,
    turn,
)

Json = dict[str, Any]

#: Seconds: of an upstream's silence, of a tool's, of a stream's.
UPSTREAM_TIMEOUT = 50
TOOL_TIMEOUT = 40
KEEP_ALIVE_SECONDS = 15

SHORT = "It is noon."
#: More than may wait on the way to a client that does not read.
LONG = " ".join(["It", *["x" * 4096] * 40])

CARDS = {"X-OpenWebUI-Message-Id": "message-1"}


# --- the phases


class Half:
    """One turn of the model of which only a first part is sent, until :meth:`go_on`."""

    def __init__(self, deltas: list[Json], message: Json, *, begun: bool = True) -> None:
        """:param deltas: the streamed answer, of which the first is sent at once if *begun*."""
        reason = "tool_calls" if "tool_calls" in message else "stop"
        chunks = [*map(chunk, deltas), chunk({}, reason)]
        whole = json.dumps(completion(message, reason)).encode()
        self._begun = begun
        self._streamed = [event(each) for each in chunks]
        self._unary = [whole[:20], whole[20:]]
        self._request: Any = None

    def __call__(self, request: Request) -> None:
        self._request = request
        if self._begun:
            self._begin()

    def go_on(self) -> Iterator[None]:
        """The model says the rest, piece by piece."""
        if not self._begun:
            self._begin()
        for part in self._parts[1:]:
            self._request.write(part)
            yield

    def finish(self) -> None:
        """The answer ends."""
        self._request.finish()

    @property
    def _parts(self) -> list[bytes]:
        return self._streamed if read(self._request).json().get("stream") else self._unary

    def _begin(self) -> None:
        if self._parts is self._streamed:
            begin_events(self._request)
        else:
            self._request.setHeader(b"Content-Type", b"application/json")
        self._request.write(self._parts[0])


def half_said(text: str, *, begun: bool = True) -> Half:
    """The model says *text*, word by word."""
    first, *words = text.split(" ")
    deltas = [{"role": "assistant", "content": first}, *({"content": f" {w}"} for w in words)]
    return Half(deltas, {"content": text}, begun=begun)


def half_called(name: str, text: str) -> Half:
    """The model calls *name*, with *text* in arguments that come word by word."""
    entry = call(name, {"text": text}, "h")
    first, *words = entry["function"]["arguments"].split(" ")
    head = {"index": 0, **entry, "function": {"name": name, "arguments": first}}
    rest = [{"index": 0, "function": {"arguments": f" {word}"}} for word in words]
    deltas: list[Json] = [{"role": "assistant", "tool_calls": [head]}]
    deltas += [{"tool_calls": [each]} for each in rest]
    return Half(deltas, {"content": None, "tool_calls": [entry]})


LOOKING = turn("Let me see.", [call("clock", {}, "a")])
LOOKING_TWICE = turn("Let me see.", [call("clock", {}, "a"), call("dice", {}, "b")])
SHARED = turn("Let me see.", [call("own", {}, "h"), call("clock", {}, "a")])


@attrs.frozen
class Phase:
    """How an answer comes to a phase, and what has come of it by then.

    *turns*: what the model says, its last words given. A :class:`Half` of it is what is under
    way, unless a tool runs. *text*: what the client of a stream has seen.
    """

    turns: Callable[[str], list[Answer]]
    requests: int
    text: str = ""
    begun: bool = True
    #: Tools that have run or are running, shown as cards.
    tools: int = 0
    tool_runs: bool = False
    hands_over: bool = False
    max_rounds: int = 10


_CALLING = "in a call of the server's"
_SHARED = "in the tool of a shared round"

PHASES = {
    "before the first byte": Phase(
        lambda last: [half_said(last, begun=False)], requests=1, begun=False
    ),
    "in the content": Phase(lambda last: [half_said(last)], requests=1, text="It"),
    _CALLING: Phase(lambda last: [half_called("clock", "now, please"), turn(last, [])], requests=1),
    "in a slow tool": Phase(
        lambda last: [LOOKING_TWICE, turn(last, [])],
        requests=1,
        text="Let me see.",
        tools=2,
        tool_runs=True,
    ),
    _SHARED: Phase(
        lambda last: [SHARED],
        requests=1,
        text="Let me see.",
        tools=1,
        tool_runs=True,
        hands_over=True,
    ),
    "between rounds": Phase(
        lambda last: [LOOKING, half_said(last, begun=False)],
        requests=2,
        text="Let me see.",
        tools=1,
    ),
    "in the content of a later round": Phase(
        lambda last: [LOOKING, half_said(last)], requests=2, text="Let me see.\n\nIt", tools=1
    ),
    "in a call of the client's": Phase(
        lambda last: [LOOKING, half_called("own", last)],
        requests=2,
        text="Let me see.",
        tools=1,
        hands_over=True,
    ),
    "before the last round": Phase(
        lambda last: [LOOKING, half_said(last, begun=False)],
        requests=2,
        text="Let me see.",
        tools=1,
        max_rounds=1,
    ),
    "in the last round": Phase(
        lambda last: [LOOKING, half_said(last)],
        requests=2,
        text="Let me see.\n\nIt",
        tools=1,
        max_rounds=1,
    ),
}


# --- the events

LEAVES = "the client leaves"
DIES = "the upstream dies"
ENDS = "the upstream ends early"
STALLS = "the upstream stalls"
TOOL_DIES = "the tool dies"
TOOL_STALLS = "the tool stalls"

#: What becomes of the answer.
GONE = "nobody is there to get it"
BROKE = 502
LATE = 504
WHOLE = "it is whole"

#: How a client is told.
_CODES = {BROKE: "upstream_broke", LATE: "upstream_timeout"}

#: In a phase where no tool runs, it is the tool of the round before that died or stalled.
_UPSTREAM = {LEAVES: GONE, DIES: BROKE, ENDS: BROKE, STALLS: LATE}
_ANY = {**_UPSTREAM, TOOL_DIES: WHOLE, TOOL_STALLS: WHOLE}

TABLE: dict[str, dict[str, Any]] = {
    "before the first byte": _UPSTREAM,
    "in the content": _UPSTREAM,
    _CALLING: _ANY,
    # The tool's failure is told to the model; that the model cannot be asked ends the answer.
    "in a slow tool": _ANY,
    # The client's calls need no upstream any more.
    _SHARED: _ANY | {DIES: WHOLE, ENDS: WHOLE, STALLS: WHOLE},
    "between rounds": _ANY,
    "in the content of a later round": _ANY,
    "in a call of the client's": _ANY,
    "before the last round": _ANY,
    "in the last round": _ANY,
}

#: What the model, and a card, are told of a tool that came to nothing.
_TOLD = {
    TOOL_DIES: "could not be run",
    DIES: "could not be run",
    ENDS: "could not be run",
    TOOL_STALLS: f"did not answer within {TOOL_TIMEOUT} s",
    STALLS: f"did not answer within {TOOL_TIMEOUT} s",
}

cells = pytest.mark.parametrize(
    ("name", "happening"), [(name, event) for name, row in TABLE.items() for event in row]
)
phases = pytest.mark.parametrize("name", PHASES)
shown = pytest.mark.parametrize("cards", [False, True], ids=["plain", "cards"])


class Scene:
    """An answer that has come to a phase."""

    def __init__(
        self, name: str, stream: bool, cards: bool, last: str = SHORT, tool: Answer | None = None
    ) -> None:
        """:param tool: how a tool answers that has run before the phase, or in its rest."""
        self.phase = PHASES[name]
        self.stream = stream
        self.cards = cards
        self.last = last
        self.longest_silence = 0.0
        self._turns = self.phase.turns(last)
        self.stack = stack_with("clock", "dice")
        self.stack.on(CHAT, *self._turns)
        self.stack.on(INVOKE, *self._tools(tool or tool_result("12:00")))
        self.proxy = Proxy(
            self.stack,
            timeout=UPSTREAM_TIMEOUT,
            tool_timeout=TOOL_TIMEOUT,
            keep_alive=KEEP_ALIVE_SECONDS,
            max_rounds=self.phase.max_rounds,
        )
        self.exchange: Exchange = self.proxy.chat(
            fields=CARDS if cards else {}, stream=stream, tools=[client_tool("own")]
        )

    def _tools(self, tool: Answer) -> list[Answer]:
        if not self.phase.tool_runs:
            return [tool]
        return [*[tool_result("12:00")] * (self.phase.tools - 1), nothing]

    @property
    def requests(self) -> list[Json]:
        """What the model was asked."""
        return [each.json() for each in self.stack.asked_for(CHAT)]

    @property
    def half(self) -> Half:
        """What the model is about to say."""
        (half,) = (each for each in self._turns if isinstance(each, Half))
        return half

    def check(self) -> None:
        """This is the phase that it should be."""
        assert len(self.requests) == self.phase.requests
        assert len(self.stack.asked_for(INVOKE)) == self.phase.tools
        assert len(self.stack.open) == 1
        assert not self.exchange.ended
        assert self.exchange.answered == (self.stream and self.phase.begun)
        if self.exchange.answered:
            assert self.text == self.phase.text

    def wait(self, seconds: int) -> None:
        """Time passes; how long the client got nothing is noted."""
        size, since = len(self.exchange.body), self.proxy.clock.seconds()
        for _ in range(0, seconds, 5):
            self.proxy.advance(5)
            if self.exchange.ended:
                return
            if len(self.exchange.body) > size:
                size, since = len(self.exchange.body), self.proxy.clock.seconds()
            self.longest_silence = max(self.longest_silence, self.proxy.clock.seconds() - since)

    def go_on(self) -> None:
        """What is under way comes to a good end."""
        if self.phase.tool_runs:
            tool_result("12:00")(self.stack.open[-1])
        else:
            self.model_goes_on()
            self.half.finish()
        self.proxy.settle()

    def model_goes_on(self) -> None:
        """The model says all it had to say, but its answer has not ended."""
        for _ in self.half.go_on():
            self.proxy.settle()

    def happens(self, event: str) -> None:
        """One of the events."""
        if event == LEAVES:
            self.exchange.leave()
        elif event in (DIES, ENDS):
            for route in (CHAT, INVOKE, "GET /v1/tools", "GET /v1/version"):
                self.stack.on(route, hang_up)
            for request in list(self.stack.open):
                hang_up(request) if event == DIES else request.finish()
        elif event == STALLS:
            self.stack.on(CHAT, nothing)
            self.wait(TOOL_TIMEOUT + UPSTREAM_TIMEOUT)
        elif not self.phase.tool_runs:
            self.go_on()
            if event == TOOL_STALLS:
                self.wait(TOOL_TIMEOUT)
        elif event == TOOL_DIES:
            hang_up(self.stack.open[-1])
        else:
            self.wait(TOOL_TIMEOUT)
        self.proxy.settle()

    # --- what the client got

    @property
    def text(self) -> str:
        """The text, streamed so far or whole."""
        if self.stream:
            chunks = [each for each in self._events if each != "[DONE]"]
            deltas = [choice["delta"] for each in chunks for choice in each.get("choices", ())]
            return "".join(delta.get("content") or "" for delta in deltas)
        return str(self.exchange.json()["choices"][0]["message"]["content"])

    @property
    def client_calls(self) -> list[Json]:
        """The calls that were handed over."""
        if self.stream:
            message = joined(self._events).message
        else:
            message = self.exchange.json()["choices"][0]["message"]
        calls: list[Json] = message.get("tool_calls") or []
        return calls

    @property
    def _events(self) -> list[Any]:
        """The chunks; the cards are apart."""
        return [each for each in self.exchange.events() if "item" not in each]

    @property
    def items(self) -> list[Json]:
        """The items of the cards."""
        if self.stream and self.exchange.field("Content-Type") == "text/event-stream":
            return [each["item"] for each in self.exchange.events() if "item" in each]
        output: list[Json] = self.exchange.json().get("output") or []
        return [item for item in output if item["type"] != "message"]

    def check_cards(self, failed: str | None) -> None:
        """Every card has its output, behind it; *failed* is in that of the last, if it failed."""
        calls: list[str] = []
        results: dict[str, Json] = {}
        for item in self.items:
            if item["type"] == "function_call":
                calls.append(item["call_id"])
            else:
                assert item["type"] == "function_call_output"
                assert item["call_id"] in calls and item["call_id"] not in results
                results[item["call_id"]] = item
        assert results.keys() == set(calls)
        if not self.cards:
            assert calls == []
        elif calls:
            texts = [results[call]["output"][0]["text"] for call in calls]
            statuses = [results[call]["status"] for call in calls]
            assert texts[:-1] == ["12:00"] * (len(calls) - 1)
            assert failed or "12:00" in texts[-1]
            assert not failed or failed in texts[-1]
            assert statuses[:-1] == ["completed"] * (len(calls) - 1)
            assert statuses[-1] == ("failed" if failed else "completed")

    def check_whole(self) -> None:
        """The answer is all that it should be."""
        before = "Let me see." if "Let me see." in self.phase.text else ""
        assert self.exchange.complete and self.exchange.status == 200
        if self.phase.hands_over:
            assert self.text == before
            assert [entry["function"]["name"] for entry in self.client_calls] == ["own"]
            assert all(
                json.loads(entry["function"]["arguments"]) is not None
                for entry in self.client_calls
            )
        else:
            assert self.text == (f"{before}\n\n{self.last}" if before else self.last)
            assert self.client_calls == []
        if self.stream:
            assert joined(self._events).finish_reason == self._reason
        else:
            assert finish_of(self.exchange) == self._reason

    @property
    def _reason(self) -> str:
        return "tool_calls" if self.phase.hands_over else "stop"

    def check_failure(self, status: int) -> None:
        """The answer ended with an error that says what happened, and hides nothing."""
        begun = self.stream and (self.phase.begun or self.exchange.status == 200)
        assert self.exchange.complete
        if not begun:
            assert self.exchange.status == status
            assert self.exchange.field("Content-Type") == "application/json"
            error = self.exchange.json()["error"]
            assert self.exchange.json().keys() == {"error"}
        else:
            assert self.exchange.status == 200
            error = failure_in(self._events)
            assert self.text == self.phase.text
        assert "Llama Stack" in error["message"]
        assert error["code"] == _CODES[status]

    def check_nothing_left(self) -> None:
        """Nothing goes on, now or later."""
        assert nothing_left(self.proxy, self.stack)
        requests = len(self.stack.asked)
        self.proxy.advance(7 * 86400)
        assert len(self.stack.asked) == requests
        assert nothing_left(self.proxy, self.stack)


@pytest.fixture(scope="module")
def failures() -> Iterator[list[LogEvent]]:
    """What is logged as a failure, be it of a Deferred that nobody listened to."""
    failures: list[LogEvent] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        if "log_failure" in event:
            failures.append(event)

    globalLogPublisher.addObserver(note)
    yield failures
    gc.collect()
    globalLogPublisher.removeObserver(note)
    assert failures == []


@pytest.fixture(autouse=True)
def no_failure_is_logged(failures: list[LogEvent]) -> Iterator[None]:
    """Nothing that happens outside is a fault of ours."""
    yield
    # Young objects only: the rest is looked at in the end.
    gc.collect(1)
    assert failures == []


# --- the table


@shown
@both
@cells
def test_what_happens_in_a_phase_ends_as_it_should(
    name: str, happening: str, stream: bool, cards: bool
) -> None:
    phase, outcome = PHASES[name], TABLE[name][happening]
    earlier = {TOOL_DIES: hang_up, TOOL_STALLS: nothing}.get(happening)
    before = earlier is not None and not phase.tool_runs
    scene = Scene(name, stream, cards, tool=earlier if before else None)
    if before and happening == TOOL_STALLS and phase.tools:
        scene.wait(TOOL_TIMEOUT)
    scene.check()
    scene.happens(happening)

    # What the client got.
    failed = _TOLD.get(happening) if before or phase.tool_runs else None
    if outcome == GONE:
        assert not scene.exchange.complete
    else:
        assert scene.exchange.ended
        scene.check_whole() if outcome == WHOLE else scene.check_failure(outcome)
        scene.check_cards(failed)
    if stream and (outcome == LATE or (happening == TOOL_STALLS and phase.tool_runs)):
        assert KEEP_ALIVE in scene.exchange.body
        assert scene.longest_silence <= KEEP_ALIVE_SECONDS

    # What the upstream saw.
    rounds = phase.requests
    if outcome != GONE and (name == "in a slow tool" or (before and not phase.tools)):
        rounds += 1
    assert len(scene.requests) == rounds
    assert len(scene.stack.asked_for(INVOKE)) == (phase.tools or int(before))
    if failed and rounds > 1 and outcome != GONE:
        results = [each for each in scene.requests[-1]["messages"] if each["role"] == "tool"]
        assert [each["tool_call_id"] for each in results] == ["a", "b"][: len(results)] or before
        assert failed in results[-1]["content"]

    # What is left: the turn that a client shares is what it must come back to.
    remembered = outcome == WHOLE and phase.hands_over
    assert len(scene.proxy.memory) == int(remembered)
    scene.check_nothing_left()


@shown
@both
@phases
def test_a_phase_may_last_and_the_answer_is_whole(name: str, stream: bool, cards: bool) -> None:
    scene = Scene(name, stream, cards)
    scene.check()
    scene.wait(2 * KEEP_ALIVE_SECONDS + 5)
    assert scene.exchange.body.count(KEEP_ALIVE) == (2 if stream else 0)
    scene.go_on()
    scene.check_whole()
    scene.check_cards(None)
    assert len(scene.proxy.memory) == int(scene.phase.hands_over)
    scene.check_nothing_left()


@shown
@phases
def test_the_client_may_leave_after_a_comment(name: str, cards: bool) -> None:
    scene = Scene(name, True, cards)
    scene.wait(KEEP_ALIVE_SECONDS)
    assert scene.exchange.body.endswith(KEEP_ALIVE)
    scene.happens(LEAVES)
    assert len(scene.requests) == scene.phase.requests
    assert len(scene.proxy.memory) == 0
    scene.check_nothing_left()


@pytest.mark.parametrize("leaves", [False, True], ids=["reads again", "leaves"])
@shown
@phases
def test_a_client_that_does_not_read_is_waited_for(
    name: str, cards: bool, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(monkeypatch)
    scene = Scene(name, True, cards, last=LONG)
    if not scene.phase.begun:
        scene.wait(KEEP_ALIVE_SECONDS)
    seen = len(scene.exchange.events())
    connections.to_the_client.pauseProducing()
    size = len(scene.exchange.body)
    rest = scene.half.go_on() if not scene.phase.tool_runs and name != _CALLING else None
    if rest is None:
        scene.go_on()
    else:
        next(rest)
        scene.proxy.settle()
        assert connections.paused, "the upstream is not read any further"
        # One event may have been on its way when the client stopped, besides the answer's first.
        assert len(scene.exchange.events()) <= seen + 2
    sent = len(scene.exchange.body)
    scene.wait(6 * KEEP_ALIVE_SECONDS)
    assert not scene.exchange.ended
    assert len(scene.exchange.body) == sent
    assert KEEP_ALIVE not in scene.exchange.body[size:]
    if leaves:
        scene.exchange.leave()
        # The calls of a shared round have been handed over by then, all but the end mark; with
        # cards, what is still to be shown has waited for the client as well.
        assert len(scene.proxy.memory) == int(name == _SHARED and not cards)
    else:
        connections.to_the_client.resumeProducing()
        scene.proxy.settle()
        if rest is not None:
            assert not connections.paused
            for _ in rest:
                scene.proxy.settle()
            scene.half.finish()
            scene.proxy.settle()
        scene.check_whole()
        scene.check_cards(None)
    scene.check_nothing_left()


def test_a_fault_of_ours_leaves_no_card_without_its_output(
    monkeypatch: pytest.MonkeyPatch, failures: list[LogEvent]
) -> None:
    def broken(result: ToolResult, limit: int) -> ToolResult:
        raise RuntimeError("a fault")

    scene = Scene("in a slow tool", True, True)
    with monkeypatch.context() as patched:
        patched.setattr(ToolResult, "tidied", broken)
        scene.go_on()
    (logged,) = failures
    assert logged["log_failure"].check(RuntimeError)
    failures.clear()
    error = failure_in([each for each in scene.exchange.events() if "item" not in each])
    assert error["message"] == str(ProxyError())
    scene.check_cards("the answer ended before the tool")
    scene.check_nothing_left()
