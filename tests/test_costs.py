"""What a request costs the whole application, counted: nothing here is a time.

A count is an upper bound of what has been reached: lower it where a change makes it less.
"""

from __future__ import annotations

import gc
import gzip
import json
import re
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hyperlink import DecodedURL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from llamaproxy.application import assemble
from llamaproxy.config.options import Options
from llamaproxy.heads import SomeFields
from llamaproxy.server.site import ProxySite
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.responses import SendingAgent
from tests.server.door import Client
from tests.support import call, chunk, completion, event, tool
from tests.test_sockets import Wires, on_sockets, reactor, wires
from tests.test_tunnel import SWITCH, SWITCHED
from tests.upstream.wires import Wire, World

__all__ = ["wires"]

Json = dict[str, Any]

TOOLS = [tool(f"tool_{number}") for number in range(10)]
RESULT = {"content": [{"type": "text", "text": "12:00"}], "error_message": None, "error_code": 0}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def answer(body: Json) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)


def compressed(body: Json) -> bytes:
    """The same, as a server answers that compresses though nobody asks for it."""
    text = gzip.compress(json.dumps(body).encode())
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    return head % len(text) + text


def piece(*chunks: Json | bytes) -> bytes:
    """Events in one chunk of HTTP."""
    text = b"".join(map(event, chunks))
    return b"%x\r\n%b\r\n" % (len(text), text)


class Sending(SendingAgent):
    """An agent whose connections are reused, to a server in memory."""

    def __init__(self, world: World) -> None:
        self._world = world

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        target = target.removeprefix(self._world.kept_by)
        return self._world.pool.send(self._world, method, target, fields, body, taker)


class Whole:
    """The whole application, one client before it, and a Llama Stack with ten tools behind it.

    A message of the client tells the model how many calls to make: ``[calls 2]``.
    """

    def __init__(self) -> None:
        self.world = World()
        self.clock = self.world.clock
        agent = Sending(self.world)
        options = Options()
        options.parseOptions([])
        url = DecodedURL.from_text("http://stack:8321")
        app = assemble(options, url, self.clock, agent, agent)
        self.site = ProxySite(app.resource, self.clock, cors=app.cors, tell=app.tell)
        door: Any = self
        self.client = Client(door)
        #: Whether a stream is left open after its first event.
        self.held = False
        #: Whether completions are compressed that are not streamed.
        self.compressed = False
        #: Writes to the server.
        self.sent = 0

    def ask(self, request: bytes) -> bytes:
        """What the client is answered."""
        self.client.line.clear()
        self.client.send(request)
        while any(self._answered(wire) for wire in self.world.wires):
            """The answer may have led to another request."""
        got: bytes = self.client.line.value()
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        return got

    def say(self, *reads: bytes) -> None:
        """More of the stream that is open."""
        for read in reads:
            self.busy.send(read)

    @property
    def busy(self) -> Wire:
        """The only connection to the server that has a request."""
        [wire] = [wire for wire in self.world.wires if wire.connection._exchange is not None]
        return wire

    def _answered(self, wire: Wire) -> bool:
        asked, writes = wire.transport.sent, wire.transport.writes
        if not asked:
            return False
        self.sent += len(writes)
        writes.clear()
        line = asked.partition(b"\r\n")[0]
        if b"/tool-runtime/invoke" in line:
            wire.send(answer(RESULT))
        elif b"/chat/completions" in line:
            wire.send(self._completed(asked))
        else:
            wire.send(answer({"version": "0.6.1"} if b"version" in line else {"data": TOOLS}))
        return True

    def _completed(self, asked: bytes) -> bytes:
        wanted = re.search(rb"\[calls ([0-9]+)\]", asked)
        count = 0 if wanted is None or re.search(rb'"role": ?"tool"', asked) else int(wanted[1])
        calls = [call(f"tool_{number}", call_id=f"call_{number}") for number in range(count)]
        reason = "tool_calls" if calls else "stop"
        if not re.search(rb'"stream": ?true', asked):
            made = compressed if self.compressed else answer
            return made(completion({"content": "Noon.", "tool_calls": calls}, reason))
        first = STREAM + piece(chunk({"role": "assistant", "content": ""}))
        if self.held:
            return first
        deltas = [{"tool_calls": [{"index": number, **each}]} for number, each in enumerate(calls)]
        return first + piece(*map(chunk, deltas), chunk({}, reason), b"[DONE]") + LAST


def chat(text: str = "Hello", history: int = 0, **more: Any) -> bytes:
    """A client's request; *history*: earlier messages."""
    earlier = [{"role": "user", "content": "Say."}, {"role": "assistant", "content": "So."}]
    messages = [*earlier * (history // 2), {"role": "user", "content": text}]
    body = json.dumps({"model": "m", "messages": messages, **more}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


PASSED = b"GET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n"


class Counts(Counter[str]):
    """What is made and called in a block."""

    def __init__(self, whole: Whole) -> None:
        Counter.__init__(self)
        self._whole = whole
        self._patches = pytest.MonkeyPatch()
        self._sent = 0

    def __enter__(self) -> Counts:
        self._sent = self._whole.sent
        line = type(self._whole.client.line)
        for name, owner, method in (
            ("Deferreds", Deferred, "__init__"),
            ("Headers", Headers, "__init__"),
            ("delayed calls", self._whole.clock, "callLater"),
            ("writes", line, "write"),
            ("writes", line, "writeSequence"),
            ("parses", orjson, "loads"),
            ("parses", json, "loads"),
            ("dumps", orjson, "dumps"),
            ("dumps", json, "dumps"),
        ):
            self._patches.setattr(owner, method, self._counted(name, getattr(owner, method)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()
        self["upstream writes"] = self._whole.sent - self._sent

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name not in ("parses", "dumps") or "llamaproxy" in _caller():
                self[name] += 1
            return call(*args, **kwargs)

        return counted


def _caller() -> str:
    return sys._getframe(2).f_code.co_filename


def counts_of(whole: Whole, request: bytes) -> Counts:
    """Those of *request* once all that is made only once has been made."""
    for _ in range(2):
        whole.ask(request)
    with Counts(whole) as counts:
        whole.ask(request)
    with Counts(whole) as again:
        whole.ask(request)
    assert again == counts
    return counts


#: Upper bounds. None of these requests may make a delayed call.
COSTS: dict[str, tuple[bytes, dict[str, int]]] = {
    "passed through": (PASSED, {"writes": 1, "upstream writes": 1}),
    "chat": (
        chat(),
        {
            **{"Deferreds": 2, "parses": 2, "dumps": 4},
            **{"writes": 1, "upstream writes": 1},
        },
    ),
    "streamed chat": (
        chat(stream=True),
        {
            **{"Deferreds": 3, "Headers": 1, "parses": 3, "dumps": 6},
            **{"writes": 3, "upstream writes": 1},
        },
    ),
    "one-tool loop": (
        chat("[calls 1]"),
        {
            **{"Deferreds": 5, "Headers": 3, "parses": 5, "dumps": 7},
            **{"writes": 1, "upstream writes": 3},
        },
    ),
    "streamed one-tool loop": (
        chat("[calls 1]", stream=True),
        {
            **{"Deferreds": 7, "Headers": 4, "parses": 8, "dumps": 10},
            **{"writes": 3, "upstream writes": 3},
        },
    ),
    "three calls at once": (
        chat("[calls 3]"),
        {
            **{"Deferreds": 13, "Headers": 9, "parses": 9, "dumps": 9},
            **{"writes": 1, "upstream writes": 5},
        },
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_request_costs_no_more_than(name: str) -> None:
    request, bounds = COSTS[name]
    counts = counts_of(Whole(), request)
    above = {what: count for what, count in counts.items() if count > bounds.get(what, 0)}
    assert above == {}, "more than it was"


#: Deltas of a stream: each like the one before; and of which none is, as some servers pad them.
DELTAS: dict[str, Callable[[int], Json]] = {
    "alike": lambda number: chunk({"content": f"word{number:08} "}),
    "padded": lambda number: chunk({"content": "word "}, obfuscation=f"{number:08}"),
}


@pytest.mark.parametrize("kind", DELTAS)
def test_an_event_is_one_write_and_makes_nothing_that_waits(kind: str) -> None:
    whole = _streaming()
    for number in range(3):
        whole.say(piece(DELTAS[kind](number)))
    reads = [piece(DELTAS[kind](number)) for number in range(3, 13)]
    with Counts(whole) as counts:
        whole.say(*reads)
    if kind == "padded":
        # One more to have a look whether the next will be like it.
        assert counts.pop("parses") == 10 and counts.pop("dumps") <= 20
    assert counts == Counter(writes=10)
    whole.say(piece(chunk({}, "stop"), b"[DONE]") + LAST)
    assert whole.client.line.value().endswith(LAST)


def _streaming() -> Whole:
    """A stream has begun, and is left open."""
    whole = Whole()
    whole.ask(PASSED)
    whole.held = True
    whole.ask(chat(stream=True))
    return whole


@pytest.fixture
def alone() -> Iterator[None]:
    """What other tests have left may become garbage meanwhile: it is not looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def garbage() -> Iterator[list[object]]:
    """What the garbage collector finds, in the end, of what is done in the block."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _ask_once(name: str) -> Callable[[Whole], object]:
    return lambda whole: whole.ask(COSTS[name][0])


def _stream(whole: Whole) -> None:
    """A stream from its beginning to its end."""
    whole.held = True
    whole.ask(chat(stream=True))
    whole.say(piece(DELTAS["alike"](1)), piece(DELTAS["alike"](2)), piece(DELTAS["alike"](3)))
    whole.say(piece(chunk({}, "stop"), b"[DONE]") + LAST)
    whole.held = False


def _ask_compressed(whole: Whole) -> None:
    whole.compressed = True
    whole.ask(chat())


REFUSAL = b'{"error": {"message": "No."}}'


def _refused(whole: Whole, **more: Any) -> None:
    """The server does not take what it is asked."""
    _answer_half(
        whole,
        chat(**more),
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL),
    )
    assert whole.client.line.value().startswith(b"HTTP/1.1 400 ")


def _server_dies(whole: Whole, **more: Any) -> None:
    """The connection to the server is lost before it has answered."""
    whole.client.send(chat(**more))
    _lose(whole)
    assert b'"upstream_broke"' in whole.client.line.value()


def _server_dies_in_a_stream(whole: Whole) -> None:
    whole.held = True
    whole.ask(chat(stream=True))
    _lose(whole)
    assert b'"upstream_broke"' in whole.client.line.value()
    whole.held = False


def _lose(whole: Whole) -> None:
    wire = whole.busy
    wire.transport.writes.clear()
    wire.connection.connectionLost(Failure(ConnectionLost()))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "ask",
    [
        *map(_ask_once, ("chat", "one-tool loop", "three calls at once")),
        *(_stream, _ask_compressed, _refused, partial(_refused, stream=True)),
        *(_server_dies, partial(_server_dies, stream=True), _server_dies_in_a_stream),
    ],
    ids=[
        *("chat", "one-tool loop", "three calls at once", "stream", "chat, compressed"),
        *(
            "chat, refused",
            "stream, refused",
            "chat, broken",
            "stream, unanswered",
            "stream, broken",
        ),
    ],
)
def test_nothing_is_left_for_the_garbage_collector_of(ask: Callable[[Whole], object]) -> None:
    """What a failing chat leaves has its body: some megabytes each, where objects are counted."""
    whole = Whole()
    whole.ask(chat())
    for _ in range(2):
        whole.client.line.clear()
        ask(whole)
    whole.client.line.clear()
    with garbage() as found:
        ask(whole)
    assert found == []


def _answer_half(whole: Whole, request: bytes, half: bytes) -> None:
    """The server's answer to what a client asks has begun."""
    whole.client.send(request)
    wire = whole.busy
    wire.transport.writes.clear()
    wire.send(half)


def _passing_half(whole: Whole) -> None:
    _answer_half(whole, PASSED, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    assert whole.client.line.value().endswith(b"half")


def _stalled(whole: Whole) -> None:
    """The client of a stream reads no more."""
    whole.ask(chat(stream=True))
    whole.client.channel.pauseProducing()
    whole.say(piece(DELTAS["alike"](1)))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "begin",
    [
        lambda whole: whole.client.send(PASSED),
        _passing_half,
        lambda whole: whole.client.send(chat()),
        lambda whole: whole.client.send(chat(stream=True)),
        lambda whole: _answer_half(whole, chat(), compressed(completion({"content": "No"}))[:-9]),
        lambda whole: whole.ask(chat(stream=True)),
        _stalled,
        lambda whole: _answer_half(whole, SWITCH, SWITCHED),
    ],
    ids=[
        *("passing, unanswered", "passing", "chat", "stream, unanswered"),
        *("chat, compressed", "stream", "stream, not read", "tunnel"),
    ],
)
def test_a_client_that_leaves_leaves_nothing_of_ours_for_the_garbage_collector(
    begin: Callable[[Whole], object],
) -> None:
    """With a request goes what its connections have buffered, which may be much."""
    whole = Whole()
    for _ in range(2):
        whole.ask(PASSED)
        whole.ask(chat())
    whole.held = True
    with garbage() as found:
        begin(whole)
        whole.client.leave()
        assert whole.site.connections.running == 0
        for transport in (whole.client.line, *(wire.transport for wire in whole.world.wires)):
            vars(transport).clear()  # a real one lets go of its protocol by itself
        del whole.client, whole.world.wires[:], transport
    kinds = (type(each) for each in found)
    assert [kind for kind in kinds if kind.__module__.startswith("llamaproxy")] == []


@pytest.mark.usefixtures("alone")
def test_the_body_of_a_client_that_leaves_while_a_tool_runs_is_not_left_for_it() -> None:
    """Cancelling leaves cycles of Twisted's, with what the frames have in which it was raised."""
    whole = Whole()
    whole.ask(chat("[calls 1]"))
    with garbage() as found:
        whole.client.send(chat("[calls 1] MARK"))
        assert whole.busy.transport.sent.count(b"MARK") == 1
        whole._answered(whole.busy)
        assert b"/tool-runtime/invoke" in whole.busy.transport.sent
        whole.client.leave()
    kept = [each for held in found for each in gc.get_referents(held)]
    texts = [each for each in kept if isinstance(each, str | bytes)]
    assert [text for text in texts if "MARK" in str(text)] == []


# --- work must not grow with what came before


@pytest.mark.parametrize("kind", DELTAS)
def test_the_ten_thousandth_event_costs_what_the_tenth_did(kind: str) -> None:
    whole = _streaming()
    numbers = iter(range(10_000))
    costs = []
    for position in (10, 10_000):
        for number in numbers:
            read = piece(DELTAS[kind](number))
            if number == position - 1:
                costs.append(calls_of(lambda read=read: whole.say(read)))  # type: ignore[misc]
                break
            whole.say(read)
    assert costs[0] == costs[1]


#: Calls of functions for one earlier message, most of them of isinstance().
CALLS_A_MESSAGE = 16


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["Hello", "[calls 1]"])
def test_an_earlier_message_costs_a_few_calls_however_many_rounds_there_are(
    text: str, stream: bool
) -> None:
    whole = Whole()

    def calls(history: int) -> int:
        request = chat(text, history, stream=stream)
        whole.ask(request)
        return calls_of(lambda: whole.ask(request))

    none, thousand, two_thousand = map(calls, (0, 1000, 2000))
    assert thousand - none <= 1000 * CALLS_A_MESSAGE + 100
    assert two_thousand - thousand <= 1000 * CALLS_A_MESSAGE


def calls_of(work: Callable[[], object]) -> int:
    """The function calls of *work*, those of functions in C too."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # which calls what it likes, and when it likes
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


# --- memory


def test_an_open_stream_keeps_little() -> None:
    """With its two connections, but not what the test has of them."""
    whole = _streaming()
    door: Any = whole

    def open_streams(count: int) -> None:
        for _ in range(count):
            whole.client = Client(door)
            whole.ask(chat(stream=True))

    open_streams(10)
    before = _left_behind_by(lambda: None)
    after = _left_behind_by(lambda: open_streams(100))
    assert (after - before) / 100 < STREAM_BYTES


#: Bytes of an open stream, without what the transports take.
STREAM_BYTES = 25_000


def _left_behind_by(work: Callable[[], None]) -> int:
    """Bytes that *work* leaves behind, but for those that tests have asked for."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        taken = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    own = tracemalloc.Filter(False, f"{Path(__file__).parent}/*")
    return sum(trace.size for trace in taken.filter_traces([own]).traces)


# --- on sockets


class Asked(Counter[tuple[str, str]]):
    """What the daemon asks of the system for its connections: by the connection, and the call."""

    def __init__(self, port: int, upstream: int) -> None:
        Counter.__init__(self)
        self._port = port
        self._upstream = upstream

    def _whose(self, socket: socket.socket) -> str:
        try:
            if socket.getsockname()[1] == self._port:
                return "client"
            return "upstream" if socket.getpeername()[1] == self._upstream else ""
        except OSError:
            return ""  # no socket any more, or one that listens

    def note(self, connection: Any, call: str) -> None:
        if whose := self._whose(connection):
            self[whose, call] += 1


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Asked], None]:
    def begin(asked: Asked) -> None:
        def on_socket(name: str) -> None:
            call = getattr(socket.socket, name)

            def noting(self: socket.socket, *args: Any) -> Any:
                peeks = name == "recv" and args[1:] and args[1] & socket.MSG_PEEK
                asked.note(self, "peek" if peeks else name)
                return call(self, *args)

            monkeypatch.setattr(socket.socket, name, noting)

        def on_reactor(name: str) -> None:
            call = getattr(reactor, name)

            def noting(descriptor: Any) -> Any:
                asked.note(getattr(descriptor, "socket", None) or Gone(), name)
                return call(descriptor)

            monkeypatch.setattr(reactor, name, noting)

        for name in ("recv", "send"):
            on_socket(name)
        for name in ("addReader", "removeReader", "addWriter", "removeWriter"):
            on_reactor(name)

    return begin


class Gone:
    """In place of a socket, where there is none."""

    def getsockname(self) -> Any:
        raise OSError


@on_sockets
async def test_a_request_passed_through_is_read_and_written_once_on_each_side(
    wires: Wires, noted: Callable[[Asked], None]
) -> None:
    upstream = wires.listen(wires.stack)
    port = wires.proxy(upstream=f"http://127.0.0.1:{upstream}")
    client = await wires.client(port)
    asked = Asked(port, upstream)
    for count in range(4):
        if count == 2:
            noted(asked)
        client.received = b""
        client.send(PASSED)
        (await wires.stack.asked()).answer(b"healthy")
        await client.reads(b"healthy")
    calls = {"recv": 1, "send": 1}
    each = {("client", call): count for call, count in calls.items()}
    each |= {("upstream", call): count for call, count in {**calls, "peek": 1}.items()}
    assert asked == {key: 2 * count for key, count in each.items()}
