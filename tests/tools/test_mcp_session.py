"""One conversation with an MCP server: every transport and revision, and servers that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http import Request

from llamaproxy.errors import McpBroke, ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import HttpRefused
from llamaproxy.tools.mcp.pool import IDLE_TIMEOUT, SessionPool
from llamaproxy.upstream.client_context import ClientContext
from tests.support import answer, hang_up, head_with, pending_calls
from tests.tools.mcp_servers import (
    URL,
    Conversation,
    FakeMcp,
    Handler,
    begin,
    described,
    error,
    frame,
    never,
    raw,
    result,
    streamed,
    text,
)


@pytest.fixture(params=["streamable", "sse"])
def server(request: pytest.FixtureRequest) -> FakeMcp:
    return FakeMcp(old=request.param == "sse")


@pytest.fixture
def talk(server: FakeMcp) -> Conversation:
    return Conversation(server)


# --- in both transports


def test_a_handshake_then_requests(server: FakeMcp, talk: Conversation) -> None:
    assert talk.result(talk.session().tools()) == [described("ping")]
    assert talk.result(talk.call(n=1)) == text("pong")
    accepted = [m["method"] for m in server.messages]
    assert accepted[1 if server.old else 0 :] == [
        *("initialize", "notifications/initialized", "tools/list", "tools/call"),
    ]
    [*_, called] = server.messages
    assert called["params"] == {"name": "ping", "arguments": {"n": 1}}
    assert server.received("initialize")[0]["params"]["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize("revision", messages.REVISIONS)
def test_the_server_says_which_revision_it_is(
    server: FakeMcp, talk: Conversation, revision: str
) -> None:
    server.revision = revision
    talk.result(talk.call())
    assert server.fields("MCP-Protocol-Version")[-2:] == [revision, revision]
    assert server.fields("MCP-Protocol-Version")[0] is None


@pytest.mark.parametrize("revision", ["1.0", None, 7, "", "2025-06-18\n", "٢٠٢٥-٠٦-١٨", ["2025"]])
def test_what_is_no_revision_is_not_spoken(
    server: FakeMcp, talk: Conversation, revision: object
) -> None:
    server.revision = revision
    with pytest.raises(McpBroke, match="no revision"):
        talk.result(talk.call())


@pytest.mark.parametrize("revision", ["2099-01-01", "2024-10-07"])
def test_a_revision_that_is_not_known_is_spoken_all_the_same(
    server: FakeMcp, talk: Conversation, revision: str
) -> None:
    server.revision = revision
    assert talk.result(talk.call()) == text("pong")
    assert server.fields("MCP-Protocol-Version")[-1] == revision


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 409, 415, 422, 429, 500, 501])
def test_a_server_that_will_not_be_told_of_the_handshakes_end_is_used(
    server: FakeMcp, talk: Conversation, status: int
) -> None:
    server.notification_status = status
    assert talk.result(talk.call()) == text("pong")
    assert talk.result(talk.session().tools()) == [described("ping")]
    assert len(server.received("initialize")) == (2 if server.old else 1)


def test_a_list_has_pages(server: FakeMcp, talk: Conversation) -> None:
    def pages(request: Request, message: Json) -> None:
        number = int(message["params"].get("cursor", "0"))
        page: Json = {"tools": [described(f"t{number}")]}
        if number < 2:
            page["nextCursor"] = str(number + 1)
        result(page)(request, message)

    server.handlers["tools/list"] = pages
    assert [tool["name"] for tool in talk.result(talk.session().tools())] == ["t0", "t1", "t2"]


def test_a_list_that_goes_round_in_circles_is_left(server: FakeMcp, talk: Conversation) -> None:
    server.handlers["tools/list"] = result({"tools": [], "nextCursor": "again"})
    assert talk.result(talk.session().tools()) == []
    assert len(server.received("tools/list")) == 2


def test_a_list_without_end_is_left(server: FakeMcp, talk: Conversation) -> None:
    many = [{"name": str(n)} for n in range(6000)]

    def pages(request: Request, message: Json) -> None:
        page = {"tools": many, "nextCursor": str(len(server.messages))}
        result(page)(request, message)

    server.handlers["tools/list"] = pages
    assert len(talk.result(talk.session().tools())) == 10_000
    assert len(server.received("tools/list")) == 2


@pytest.mark.parametrize("what", ["description", "nextCursor"])
def test_a_list_has_no_more_bytes_than_a_message(
    server: FakeMcp, talk: Conversation, what: str
) -> None:
    """DESIGN: T3. A thousand pages, each as large as a message may be, would fill the memory."""
    filling = "x" * (messages.MAX_MESSAGE // 4)

    def pages(request: Request, message: Json) -> None:
        number = len(server.received("tools/list"))
        page: Json = {"tools": [described(f"t{number}")], "nextCursor": str(number)}
        (page["tools"][0] if what == "description" else page)[what] = f"{number}{filling}"
        if number == 8:
            page = {"tools": []}
        result(page)(request, message)

    server.handlers["tools/list"] = pages
    listed = talk.result(talk.session().tools())
    assert [tool["name"] for tool in listed] == ["t1", "t2", "t3"]
    assert len(server.received("tools/list")) == 4


@pytest.mark.parametrize("cursor", ["", None, 7])
def test_a_cursor_that_is_none_ends_the_list(
    server: FakeMcp, talk: Conversation, cursor: object
) -> None:
    server.handlers["tools/list"] = result({"tools": [{"name": "a"}], "nextCursor": cursor})
    assert talk.result(talk.session().tools()) == [{"name": "a"}]


def test_of_a_list_whose_next_page_is_refused_the_first_is_kept(
    server: FakeMcp, talk: Conversation
) -> None:
    pages = [result({"tools": [{"name": "a"}], "nextCursor": "b"}), error(-32602, "no such cursor")]
    server.handlers["tools/list"] = lambda request, message: pages.pop(0)(request, message)
    assert talk.result(talk.session().tools()) == [{"name": "a"}]


def test_a_list_that_was_whole_before_is_not_replaced_by_a_part_of_it(
    server: FakeMcp, talk: Conversation
) -> None:
    """DESIGN: T2. A failed refresh keeps the last good list."""
    refused = error(-32603, "busy")

    def pages(request: Request, message: Json) -> None:
        page = {"tools": [{"name": "a"}], "nextCursor": "b"}
        (next_page if message["params"] else result(page))(request, message)

    server.handlers["tools/list"] = pages
    next_page = refused
    assert talk.result(talk.session().tools()) == [{"name": "a"}]
    next_page = result({"tools": [{"name": "c"}]})
    assert talk.result(talk.session().tools()) == [{"name": "a"}, {"name": "c"}]
    next_page = refused
    with pytest.raises(McpBroke, match="busy"):
        talk.result(talk.session().tools())
    next_page = result({})
    with pytest.raises(McpBroke, match="without tools"):
        talk.result(talk.session().tools())
    next_page = result({"tools": []})
    assert talk.result(talk.session().tools()) == [{"name": "a"}]


def test_a_server_without_tools_is_not_asked_for_any() -> None:
    server = FakeMcp(capabilities={"prompts": {}})
    talk = Conversation(server)
    assert talk.result(talk.session().tools()) == []
    assert server.received("tools/list") == []


@pytest.mark.parametrize("status", [401, 403, 410, 422, 503, 200])
def test_a_list_is_asked_for_once_more_in_a_new_session(status: int) -> None:
    """A server that was restarted refuses a session that it does not know in many ways."""
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    refused = error(-32000, "who are you?", status) if status == 200 else raw(b"", status)
    once = [refused, result({"tools": [{"name": "a"}]})]
    server.handlers["tools/list"] = lambda request, message: once.pop(0)(request, message)
    assert talk.result(talk.session().tools()) == [{"name": "a"}]
    assert len(server.received("initialize")) == 2
    server.handlers["tools/list"] = refused
    with pytest.raises(McpBroke):
        talk.result(talk.session().tools())
    assert len(server.received("initialize")) == 3, "once more, and not for ever"


def elsewhere(server: FakeMcp, early: bool = False) -> list[Request]:
    """Makes *server* answer 202, and the rest on the stream of a GET; gives those streams."""
    streams: list[Request] = []
    queue: list[bytes] = []

    def put(body: bytes) -> None:
        queue.append(frame(body.decode()))
        flush()

    def flush() -> None:
        if streams and (streams[-1].getHeader("mcp-session-id") or "") == server.session:
            while queue:
                streams[-1].write(queue.pop(0))

    def listen(request: Request) -> None:
        begin(request)
        streams.append(request)
        flush()

    class Queue:
        def write(self, body: bytes) -> None:
            put(body)

        def setResponseCode(self, code: int) -> None: ...
        def setHeader(self, name: bytes, value: bytes) -> None: ...
        def finish(self) -> None: ...

    def accepting(handler: Handler) -> Handler:
        def write(request: Request, message: Json) -> None:
            if early:
                handler(Queue(), message)  # type: ignore[arg-type]
            answer(b"", 202)(request)
            if not early:
                handler(Queue(), message)  # type: ignore[arg-type]

        return write

    server.get = listen
    for method in ("initialize", "tools/list", "tools/call"):
        server.handlers[method] = accepting(server.handlers[method])
    return streams


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("capabilities", [{"tools": {}}, {"tools": {"listChanged": True}}])
def test_an_answer_may_come_on_the_servers_own_stream(capabilities: Json, early: bool) -> None:
    server = FakeMcp(capabilities=capabilities)
    pages: list[Json] = [
        {"tools": [described("a")], "nextCursor": "2"},
        {"tools": [described("b")]},
    ]
    server.session = ""
    server.handlers["tools/list"] = lambda request, message: result(pages.pop(0))(request, message)
    streams = elsewhere(server, early)
    talk = Conversation(server)
    assert talk.result(talk.session().tools()) == [described("a"), described("b")]
    both = [talk.begin(talk.call()) for _ in range(2)]
    assert [talk.result(each) for each in both] == [text("pong")] * 2
    assert len(streams) == 1, "what is written to a stream that is being closed is lost"
    talk.result(talk.pool.close())
    assert not server.open


def test_an_answer_that_is_to_come_and_cannot_is_no_answer_at_once() -> None:
    server = FakeMcp()
    server.handlers["tools/call"] = raw(b"", 202)
    talk = Conversation(server)
    with pytest.raises(McpBroke, match="no stream"):
        talk.result(talk.call())
    assert len([each for each in server.asked if each.method == "GET"]) == 1


def test_a_stateless_server_that_promises_an_answer_is_not_asked_without_end() -> None:
    server = stateless(**{"tools/call": raw(b"", 202), "subscriptions/listen": raw(b"", 202)})
    server.handlers["server/discover"] = result(
        {"supportedVersions": [messages.STATELESS], "capabilities": CHANGING}
    )
    talk = Conversation(server)
    with pytest.raises(McpBroke, match="no stream"):
        talk.result(talk.call())
    assert len(server.messages) == 4


@pytest.mark.parametrize("method", ["initialize", "tools/call"])
def test_an_answer_that_never_comes_leaves_no_stream_behind(method: str) -> None:
    server = FakeMcp()
    server.session = ""
    server.get = begin
    server.handlers[method] = raw(b"", 202)
    talk = Conversation(server)
    calling = talk.begin(talk.call())
    assert len(server.open) == 1
    calling.cancel()
    with pytest.raises(CancelledError):
        talk.result(calling)
    talk.result(talk.pool.close())
    talk.settle()
    assert not server.open


def test_a_session_that_is_lost_leaves_no_stream_behind() -> None:
    server = FakeMcp()
    streams = elsewhere(server)
    server.handlers["initialize"] = server._initialize
    talk = Conversation(server)
    assert talk.result(talk.call()) == text("pong")
    server.session = "s-2"
    assert talk.result(talk.call()) == text("pong")
    assert [each in server.open for each in streams] == [False, True]


#: What servers answer to a session that they do not know, and nothing else.
UNKNOWN = {
    **{str(status): raw(b"", status) for status in (401, 403, 405, 409, 410, 422, 500, 503)},
    "200": error(-32000, "who are you?"),
    "python": error(-32602, "Invalid request parameters"),
    "html": raw(b"<html>", 200, "text/html"),
    "cut": lambda request, message: hang_up(request),
}


def forget_everybody(server: FakeMcp, refused: Handler) -> None:
    """As a server does that is started again: it knows what is begun from now on alone."""
    server.unknown, server.session = (server.session, refused), "s-2"


@pytest.mark.parametrize("refused", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("then", ["tools/call", "tools/list"])
def test_after_a_call_that_failed_a_session_is_made_sure_of(refused: Handler, then: str) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    forget_everybody(server, refused)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    assert len(server.received("tools/call")) == 2, "it may have been acted on"
    if then == "tools/call":
        assert talk.result(talk.call()) == text("pong")
    else:
        assert talk.result(talk.session().tools()) == [described("ping")]
    assert len(server.received("initialize")) == 2
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("ping")) == 1


@pytest.mark.parametrize(
    "alive", [result({}), error(-32601, "Method not found"), error(-32000, "slow down", 429)]
)
def test_a_session_that_is_still_known_is_kept(
    server: FakeMcp, talk: Conversation, alive: Handler
) -> None:
    """What a server keeps in a session is not lost because one call failed."""
    talk.result(talk.call())
    server.handlers["ping"] = alive if not server.old else result({})
    calling = server.handlers["tools/call"]
    server.handlers["tools/call"] = error(-32603, "out of paper")
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    server.handlers["tools/call"] = calling
    assert talk.result(talk.call()) == text("pong")
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("ping")) == 1
    assert len(server.received("initialize")) == (2 if server.old else 1)


def test_being_asked_too_often_says_nothing_about_the_session() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    server.handlers["tools/call"] = raw(b"", 429)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    assert not server.received("ping")
    assert len(server.received("initialize")) == 1


def test_calls_at_the_same_time_make_sure_of_a_session_once() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    held: list[Request] = []
    forget_everybody(server, raw(b"", 401))
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    forget = server.unknown
    server.unknown = ("s-1", lambda request, message: held.append(request))
    again = [talk.begin(talk.call()) for _ in range(3)]
    server.unknown = forget
    for request in held:
        answer(b"", 401)(request)
    assert [talk.result(each) for each in again] == [text("pong")] * 3
    assert len(server.received("ping")) == 1
    assert len(server.received("initialize")) == 2


@pytest.mark.parametrize("waiting", [1, 2, 5])
def test_a_server_that_does_not_say_whether_it_knows_a_session_is_greeted_again(
    waiting: int,
) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    server.handlers["ping"] = never
    once = [raw(b"", 500), result(text("pong"))]
    server.handlers["tools/call"] = lambda request, message: (
        once.pop(0) if len(once) > 1 else once[0]
    )(request, message)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    again = [talk.begin(talk.call()) for _ in range(waiting)]
    assert talk.result(again.pop(), after=10) == text("pong")
    assert [talk.result(each) for each in again] == [text("pong")] * (waiting - 1)
    assert len(server.received("initialize")) == 2


def holding(server: FakeMcp) -> list[Callable[[], object]]:
    """Makes *server* hold its answer to the next call; gives what sends it."""
    answers = server.handlers["tools/call"]
    held: list[Callable[[], object]] = []

    def hold(request: Request, message: Json) -> None:
        held.append(lambda: result(text("at last"))(request, message))
        server.handlers["tools/call"] = answers

    server.handlers["tools/call"] = hold
    return held


def ended(server: FakeMcp) -> int:
    """How many of its sessions have been ended, by whatever ends one in its transport."""
    opened, deleted = ([each.method for each in server.asked].count(m) for m in ("GET", "DELETE"))
    return opened - len(server.open) if server.old else deleted


def test_a_list_that_fails_does_not_end_the_session_in_which_a_call_runs(
    server: FakeMcp, talk: Conversation
) -> None:
    """DESIGN: L13, T3: the other calls go on."""
    held = holding(server)
    calling = talk.begin(talk.call())
    server.handlers["tools/list"] = error(-32603, "the database is away")
    server.handlers["ping"] = result({})
    with pytest.raises(McpBroke, match="away"):
        talk.result(talk.session().tools())
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("ping")) == 1, "the session is made sure of"
    held.pop()()
    assert talk.result(calling) == text("at last")
    with pytest.raises(McpBroke, match="away"):
        talk.result(talk.session().tools())
    assert ended(server) == 1, "nothing runs in it any more"


@pytest.mark.parametrize("refused", [raw(b"", 502), error(-32000, "who are you?")])
def test_a_ping_that_fails_does_not_end_the_session_in_which_a_call_runs(refused: Handler) -> None:
    """The next call gets a session of its own, and the old one is ended when nothing runs there."""
    server = FakeMcp(capabilities=CHANGING)
    server.get = begin
    talk = Conversation(server)
    held = holding(server)
    calling = talk.begin(talk.call())
    calls, server.handlers["tools/call"] = server.handlers["tools/call"], raw(b"", 500)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    server.handlers["tools/call"] = calls
    server.handlers["ping"] = refused
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("initialize")) == 2 and ended(server) == 0
    assert len(server.open) == 3, "the call, and the stream of each session"
    held.pop()()
    assert talk.result(calling) == text("at last")
    assert ended(server) == 1 and len(server.open) == 1


@pytest.mark.parametrize("refused", UNKNOWN.values(), ids=UNKNOWN)
def test_a_call_that_hangs_in_a_lost_session_holds_up_no_other(refused: Handler) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    holding(server)
    hanging = talk.begin(talk.call())
    forget_everybody(server, refused)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    for _ in range(2):
        assert talk.result(talk.call()) == text("pong")
    assert len(server.received("initialize")) == 2 and ended(server) == 0
    hanging.cancel()
    hanging.addErrback(lambda _: None)
    talk.settle()
    assert ended(server) == 1 and not server.open


def test_a_session_that_is_kept_because_a_call_runs_is_made_sure_of_afterwards(
    server: FakeMcp, talk: Conversation
) -> None:
    """A server may serve one request of a session at a time, or hang."""
    held = holding(server)
    calling = talk.begin(talk.call())
    calls, server.handlers["tools/call"] = server.handlers["tools/call"], error(-32603, "no")
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    server.handlers["tools/call"] = calls
    server.handlers["ping"] = never
    assert talk.result(talk.call(), after=5) == text("pong")
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("ping")) == 1 and ended(server) == 0
    held.pop()()
    assert talk.result(calling) == text("at last")
    assert talk.result(talk.call(), after=5) == text("pong")
    assert len(server.received("ping")) == 2 and ended(server) == 1


def test_a_session_is_ended_however_many_calls_are_cancelled_in_it() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    server.handlers["tools/call"] = server.handlers["notifications/cancelled"] = never
    hanging = [talk.begin(talk.call()) for _ in range(20)]
    session = talk.session()
    assert session._transport is not None
    session._forget(session._transport)
    for each in hanging:
        each.addErrback(lambda _: None)
        each.cancel()
    talk.settle()
    assert ended(server) == 1


def test_stopping_ends_a_session_too_that_has_been_replaced(
    server: FakeMcp, talk: Conversation
) -> None:
    holding(server)
    hanging = talk.begin(talk.call())
    hanging.addErrback(lambda _: None)
    session = talk.session()
    assert session._transport is not None
    session._forget(session._transport)
    assert talk.result(talk.call()) == text("pong")
    talk.result(talk.pool.close())
    assert ended(server) == 2
    hanging.cancel()
    talk.settle()
    assert not server.open


def test_messages_that_come_before_the_endpoint_are_skipped() -> None:
    server = FakeMcp(old=True)
    listen = server._listen

    def early(request: Request) -> None:
        begin(request)
        for message in (server_request("ping"), frame({"jsonrpc": "2.0", "id": 1, "result": {}})):
            request.write(message)
        listen(request)

    server._listen = early  # type: ignore[method-assign]
    talk = Conversation(server)
    assert talk.result(talk.call()) == text("pong")


@pytest.mark.parametrize(
    "words",
    ["Your session has expired, please log in", "session", "No such session in the archive"],
)
def test_a_call_is_not_repeated_for_words_that_may_mean_something_else(words: str) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    server.handlers["tools/call"] = raw(words.encode(), 400)
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    assert len(server.received("tools/call")) == 2


@pytest.mark.parametrize(
    "words",
    [
        b'{"jsonrpc": "2.0", "id": null, "error": {"message": "Bad Request: Session not found"}}',
        b"Session not found",
        b'{"error": {"message": "Invalid session ID"}}',
        b"Bad Request: Server not initialized",
    ],
)  # fmt: skip
def test_a_call_is_repeated_for_words_that_can_mean_nothing_else(words: bytes) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    once = [raw(words, 400), result(text("pong"))]
    server.handlers["tools/call"] = lambda request, message: once.pop(0)(request, message)
    assert talk.result(talk.call()) == text("pong")


@pytest.mark.parametrize("made", [str, float])
def test_numbers_may_come_back_as_something_else(
    server: FakeMcp, talk: Conversation, made: Callable[[Any], object]
) -> None:
    """Gson, of which Java servers are made, writes every number as a double."""
    server.number = made
    assert talk.result(talk.call()) == text("pong")


def test_an_error_without_a_number_is_told(server: FakeMcp, talk: Conversation) -> None:
    talk.result(talk.call())
    server.number = lambda number: None
    server.handlers["tools/call"] = error(-32600, "out of paper")
    with pytest.raises(messages.RpcError, match="out of paper"):
        talk.result(talk.call())


def test_what_is_no_message_among_the_events_is_ignored() -> None:
    server = FakeMcp()
    junk = [b"data: %b\n\n" % each for each in (b"ping", b"null", b"[DONE]", b"{", b"7")]
    server.handlers["tools/call"] = streamed(*junk, last=text("pong"))
    talk = Conversation(server)
    assert talk.result(talk.call()) == text("pong")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/plain", "text/json", ""])
def test_an_answer_is_read_whatever_it_says_that_it_is(kind: str) -> None:
    server = FakeMcp()
    talk = Conversation(server)

    def write(request: Request, message: Json) -> None:
        response = {"jsonrpc": "2.0", "id": message["id"], "result": text("pong")}
        raw(json.dumps(response).encode(), kind=kind)(request, message)

    server.handlers["tools/call"] = write
    assert talk.result(talk.call()) == text("pong")


def test_an_answer_may_begin_with_a_byte_order_mark() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    body = b'\xef\xbb\xbf{"jsonrpc": "2.0", "id": 2, "result": {"content": []}}'
    server.handlers["tools/call"] = raw(body)
    assert talk.result(talk.call()) == {"content": []}


def test_the_tracing_fields_are_in_the_message_too(server: FakeMcp, talk: Conversation) -> None:
    fields = (("traceparent", "00-1-2-01"), ("x-request-id", "7"), ("tracestate", "a=b"))
    talk.result(talk.session().call("ping", {}, {}, fields))
    [called] = server.received("tools/call")
    assert called["params"]["_meta"] == {"traceparent": "00-1-2-01", "tracestate": "a=b"}


@pytest.mark.parametrize("page", [{}, {"tools": None}, {"tools": "ping"}])
def test_a_list_without_tools_is_broken(server: FakeMcp, talk: Conversation, page: Json) -> None:
    server.handlers["tools/list"] = result(page)
    with pytest.raises(McpBroke, match="without tools"):
        talk.result(talk.session().tools())


def test_an_error_is_told_in_the_servers_words(server: FakeMcp, talk: Conversation) -> None:
    server.handlers["tools/call"] = error(-32000, "out of paper")
    with pytest.raises(messages.RpcError, match="out of paper") as failed:
        talk.result(talk.call())
    assert failed.value.rpc_code == -32000


def test_a_call_given_up_is_cancelled_at_the_server(server: FakeMcp, talk: Conversation) -> None:
    server.handlers["tools/call"] = never
    calling = talk.begin(talk.call())
    [called] = server.received("tools/call")
    calling.cancel()
    with pytest.raises(CancelledError):
        talk.result(calling)
    [notification] = server.received("notifications/cancelled")
    assert notification["params"]["requestId"] == called["id"]
    server.handlers["tools/call"] = result(text("still there"))
    assert talk.result(talk.call()) == text("still there")


def test_a_handshake_given_up_is_not_cancelled(server: FakeMcp, talk: Conversation) -> None:
    """The specification forbids it."""
    server.handlers["initialize"] = never
    calling = talk.begin(talk.call())
    calling.cancel()
    talk.settle()
    assert not server.received("notifications/cancelled")


def test_a_server_that_says_nothing_is_given_ten_seconds(
    server: FakeMcp, talk: Conversation
) -> None:
    server.handlers["initialize"] = never
    calling = talk.begin(talk.call())
    with pytest.raises(McpBroke, match="10 s"):
        talk.result(calling, after=10)
    talk.advance(600)
    assert not server.open


def test_requests_at_the_same_time_share_one_handshake(server: FakeMcp, talk: Conversation) -> None:
    begun = [talk.begin(talk.call()) for _ in range(5)]
    assert [talk.result(each) for each in begun] == [text("pong")] * 5
    assert len(server.received("initialize")) == (
        2 if server.old else 1
    )  # the first try is refused


def test_a_session_that_nobody_uses_is_closed(server: FakeMcp, talk: Conversation) -> None:
    talk.result(talk.call())
    talk.advance(IDLE_TIMEOUT)
    assert not server.open
    if not server.old:
        assert server.asked[-1].method == "DELETE"
        assert server.asked[-1].headers.getRawHeaders("Mcp-Session-Id") == ["s-1"]
    assert not pending_calls(talk.clock)


def test_stopping_ends_everything(server: FakeMcp, talk: Conversation) -> None:
    talk.result(talk.call())
    server.handlers["tools/call"] = never
    calling = talk.begin(talk.call())
    calling.addErrback(lambda _: None)
    talk.result(talk.pool.close())
    calling.cancel()
    talk.settle()
    assert not server.open
    talk.advance(60)
    assert not pending_calls(talk.clock)


# --- what the server says of its own accord


def server_request(method: str, number: object = "s1") -> bytes:
    return frame({"jsonrpc": "2.0", "id": number, "method": method})


def test_pings_are_answered_and_other_requests_refused_while_a_call_runs() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    progress = frame({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
    server.handlers["tools/call"] = streamed(
        server_request("ping"),
        progress,
        server_request("sampling/createMessage", 7),
        b": a comment\n\n",
        server_request("ping", 8.0),
        last=text("done"),
    )
    assert talk.result(talk.call()) == text("done")
    replies = [message for message in server.messages if "method" not in message]
    assert replies[2] == {"jsonrpc": "2.0", "id": 8.0, "result": {}}
    assert replies[0] == {"jsonrpc": "2.0", "id": "s1", "result": {}}
    assert replies[1]["id"] == 7
    assert replies[1]["error"]["code"] == -32601


def test_a_flood_of_pings_is_not_answered_without_end() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    server.ignores_notifications = True
    server.handlers["tools/call"] = streamed(
        *[server_request("ping", n) for n in range(500)], last={}
    )
    assert talk.result(talk.call()) == {}
    assert len([message for message in server.messages if "method" not in message]) == 16


CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
CHANGING = {"tools": {"listChanged": True}}


def test_a_change_is_told() -> None:
    server = FakeMcp(capabilities=CHANGING)
    talk = Conversation(server)

    def listen(request: Request) -> None:
        begin(request)
        server.stream = request

    server.get = listen
    talk.result(talk.call())
    server.say(CHANGED)
    talk.settle()
    assert len(talk.changes) == 1
    assert server.stream is not None
    server.stream.finish()
    talk.settle()
    talk.advance(1)
    server.say(CHANGED)
    talk.settle()
    assert len(talk.changes) == 2
    talk.result(talk.pool.close())
    assert not server.open


def test_a_change_is_told_over_the_old_transport() -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    talk.result(talk.call())
    server.say(CHANGED)
    talk.settle()
    assert len(talk.changes) == 1


def test_a_server_without_a_stream_is_not_asked_again() -> None:
    server = FakeMcp(capabilities=CHANGING)
    talk = Conversation(server)
    talk.result(talk.call())
    talk.advance(100)
    assert [each.method for each in server.asked].count("GET") == 1


# --- streamable HTTP


def test_the_session_is_named_in_every_request() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    assert server.fields("Mcp-Session-Id") == [None, "s-1", "s-1"]
    accepts = server.fields("Accept")
    assert accepts == ["application/json, text/event-stream"] * 3


@pytest.mark.parametrize("refusal", [404, 400])
def test_a_session_that_the_server_forgot_is_begun_again(refusal: int) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    if refusal == 404:
        server.session = "s-2"
    else:
        once = [raw(b'{"error": "No valid session ID provided"}', 400), result(text("pong"))]
        server.handlers["tools/call"] = lambda request, message: once.pop(0)(request, message)
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("initialize")) == 2


def test_a_server_replaced_by_one_of_another_revision_is_greeted_again() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.result(talk.call())
    once = [error(-32020, "header mismatch", 400), result(text("pong"))]
    server.handlers["tools/call"] = lambda request, message: once.pop(0)(request, message)
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("initialize")) == 2


def test_lies_in_a_stream_with_numbers_are_not_asked_for_again() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    resumed = resuming(server, talk, frame("not json", "e2", 0), last(2))
    calling = talk.begin(talk.call())
    talk.advance(1)
    talk.advance(1)
    talk.result(calling)
    assert resumed == ["e1", "e2"]


def test_a_ping_during_the_handshake_is_answered() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}}
    server.session = ""
    server.handlers["initialize"] = streamed(server_request("ping"), last=hello)
    talk.result(talk.call())
    assert {"jsonrpc": "2.0", "id": "s1", "result": {}} in server.messages


def test_a_stream_that_is_closed_now_and_then_is_opened_again_for_ever() -> None:
    server = FakeMcp(capabilities=CHANGING)
    talk = Conversation(server)
    opened: list[Request] = []

    def listen(request: Request) -> None:
        begin(request)
        opened.append(request)

    server.get = listen
    calling = server.handlers["tools/call"]
    for _ in range(6):
        server.handlers["tools/call"] = calling
        talk.result(talk.call())
        talk.advance(60)
        opened[-1].finish()
        talk.settle()
        talk.advance(1)
    assert len(opened) == 7
    for _ in range(6):
        if opened[-1] in server.open:
            opened[-1].finish()
        talk.settle()
        talk.advance(1)
    assert len(opened) == 9


def test_a_server_that_forgets_every_session_at_once_is_broken() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    server.handlers["tools/call"] = raw(b"", 404)
    with pytest.raises(McpBroke, match="session"):
        talk.result(talk.call())
    assert len(server.received("tools/call")) == 2


def resuming(server: FakeMcp, talk: Conversation, *later: bytes) -> list[str | None]:
    """A call whose answer breaks off after its first event; GETs get *later*, one at a time."""
    resumed: list[str | None] = []
    frames = list(later)

    def go_on(request: Request) -> None:
        resumed.append(request.getHeader("last-event-id"))
        begin(request)
        request.write(frames.pop(0))
        request.finish()

    server.get = go_on
    server.handlers["tools/call"] = streamed(b"id: e1\nretry: 500\ndata: \n\n", last=None)
    return resumed


def last(number: int) -> bytes:
    return frame({"jsonrpc": "2.0", "id": number, "result": text("at last")})


def test_a_broken_stream_is_resumed_after_its_last_event() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    progress: Json = {"jsonrpc": "2.0", "method": "notifications/progress"}
    resumed = resuming(server, talk, frame(progress, "e2", 3000), last(2))
    calling = talk.begin(talk.call())
    talk.advance(0.4)
    assert resumed == []
    talk.advance(0.1)
    assert resumed == ["e1"]
    talk.advance(2.9)
    assert resumed == ["e1"]
    talk.advance(0.1)
    assert resumed == ["e1", "e2"]
    assert talk.result(calling) == text("at last")
    assert len(server.received("tools/call")) == 1


def test_a_stream_that_breaks_again_and_again_is_not_resumed_for_ever() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    resumed = resuming(server, talk)

    def break_off(request: Request) -> None:
        resumed.append(request.getHeader("last-event-id"))
        begin(request)
        hang_up(request)

    server.get = break_off
    calling = talk.begin(talk.call())
    for _ in range(30):
        talk.advance(60)
    with pytest.raises(McpBroke):
        talk.result(calling)
    assert len(resumed) == 3


def test_an_answer_may_be_polled_for() -> None:
    """SEP-1699. A server that closes its streams at once is not asked all the time."""
    server = FakeMcp()
    talk = Conversation(server)
    resumed = resuming(server, talk, *[b": nothing\n\n"] * 20, last(2))
    calling = talk.begin(talk.call())
    for _ in range(4):
        talk.advance(0.5)
    assert len(resumed) == 3, "as often as it says, at first"
    for _ in range(17):
        talk.advance(1)
    assert len(resumed) == 20
    talk.advance(1)
    assert talk.result(calling) == text("at last")


def test_an_answer_is_not_polled_for_without_end() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    resumed = resuming(server, talk, *[b": nothing\n\n"] * 1100)
    calling = talk.begin(talk.call())
    for _ in range(1100):
        talk.clock.advance(1)
        for _ in range(3):
            talk.agent.flush()
    with pytest.raises(McpBroke, match="before the result"):
        talk.result(calling)
    assert len(resumed) == 1000


def test_a_half_event_is_not_counted_as_seen() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    resumed = resuming(server, talk, last(2))
    server.handlers["tools/call"] = streamed(b"id: e1\ndata: \n\nid: e2\ndata: {", last=None)
    calling = talk.begin(talk.call())
    talk.advance(1)
    assert resumed == ["e1"]
    assert talk.result(calling) == text("at last")


def test_a_stream_without_numbers_cannot_be_resumed() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    server.handlers["tools/call"] = streamed(last=None)
    with pytest.raises(McpBroke, match="before the result"):
        talk.result(talk.call())
    assert len(server.received("tools/call")) == 1


HUGE = b'{"jsonrpc": "2.0", "id": 2, "result": "' + b"x" * (messages.MAX_MESSAGE + 1)
DEEP = b'{"jsonrpc": "2.0", "id": 2, "result": ' + b"[" * 10_000


@pytest.mark.parametrize(
    "lie",
    [
        raw(b"<html>It works!</html>", kind="text/html"),
        raw(b"<html>It works!</html>"),
        raw(b""),
        raw(b"null"),
        raw(b'"pong"'),
        raw(b"[1, 2]"),
        raw(b"[]"),
        raw(b"[" + b"{}," * 2000 + b"{}]"),
        raw(b'{"jsonrpc": "2.0", "id": 99, "result": {}}'),
        raw(b'{"jsonrpc": "2.0", "id": 2, "result": "pong"}'),
        raw(b'{"jsonrpc": "2.0", "id": 2, "error": "no"}'),
        raw(b'{"jsonrpc": "2.0", "id": 2, "error": {"message": 7}}'),
        raw(b'{"jsonrpc": "2.0", "id": 2}'),
        raw(b"\xff\xfe", 200),
        raw(HUGE),
        raw(DEEP),
        raw(b"", 202),
        raw(b"", 302),
        raw(b"<html>Bad gateway", 502, "text/html"),
        raw(b"", 401),
        streamed(frame("not json"), last=None),
        streamed(b"data: " + b"x" * (messages.MAX_MESSAGE + 1), last=None),
        streamed(frame({"jsonrpc": "2.0", "id": 99, "result": {}}), last=None),
        lambda request, message: hang_up(request),
    ],
)
def test_a_server_that_lies_costs_only_its_own_call(lie: Handler) -> None:
    server = FakeMcp()
    talk = Conversation(server)
    server.handlers["tools/call"] = lie
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    server.handlers["tools/call"] = result(text("sorry"))
    assert talk.result(talk.call()) == text("sorry")


def test_a_batch_is_understood() -> None:
    """As servers of 2025-03-26 may send."""
    server = FakeMcp()
    talk = Conversation(server)
    server.handlers["tools/call"] = raw(
        b'[{"jsonrpc": "2.0", "method": "notifications/progress"},'
        b' {"jsonrpc": "2.0", "id": 2, "result": {"content": []}}]'
    )
    assert talk.result(talk.call()) == {"content": []}


def test_a_redirect_is_not_followed_and_a_cookie_not_kept() -> None:
    server = FakeMcp()
    talk = Conversation(server)

    def cookie(request: Request, message: Json) -> None:
        request.setHeader("Set-Cookie", "a=b")
        result(text("pong"))(request, message)

    server.handlers["tools/call"] = cookie
    talk.result(talk.call())
    moved = {"Location": "http://mcp:9000/elsewhere"}
    server.handlers["tools/call"] = lambda request, _: answer(b"", 307, moved)(request)
    with pytest.raises(HttpRefused, match="redirect"):
        talk.result(talk.call())
    assert server.fields("Cookie")[-1] is None
    assert {each.path for each in server.asked} == {"/mcp"}


# --- credentials


def test_two_callers_with_other_credentials_have_other_sessions() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    for token in ("a", "b", "a"):
        talk.result(talk.session(("Authorization", f"Bearer {token}")).call("ping", {}, {}))
    assert len(server.received("initialize")) == 2
    tokens = server.fields("Authorization")
    assert tokens == ["Bearer a"] * 3 + ["Bearer b"] * 3 + ["Bearer a"]


def test_fields_that_are_ours_cannot_be_set() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    odd = [
        *[("Host", "x"), ("Mcp-Session-Id", "x"), ("Content-Length", "1"), ("X-Ok", "yes")],
        *[("X Bad", "x"), ("X-Bad", "a\r\nX-Smuggled: b"), ("Accept", "x"), ("Cookie", "c=d")],
    ]
    talk.result(talk.session(*odd).call("ping", {}, {}))
    sent = server.asked[-1].headers
    assert sent.getRawHeaders("X-Ok") == ["yes"]
    assert sent.getRawHeaders("Mcp-Session-Id") == ["s-1"]
    assert not {"X Bad", "X-Bad", "X-Smuggled", "Cookie"} & {
        name.decode() for name, _ in sent.getAllRawHeaders()
    }


def test_the_pool_is_bounded() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    talk.pool = SessionPool(talk.agent, talk.clock, max_sessions=2)
    for token in "ab":
        talk.result(talk.session(("Authorization", token)).call("ping", {}, {}))
    server.handlers["tools/call"] = never
    calling = talk.begin(talk.session(("Authorization", "b")).call("ping", {}, {}))
    server.handlers["tools/call"] = result(text("pong"))
    talk.result(talk.session(("Authorization", "c")).call("ping", {}, {}))
    assert [each.method for each in server.asked].count("DELETE") == 1
    server.session = "s-1"
    server.handlers["tools/call"] = never
    other = talk.begin(talk.session(("Authorization", "c")).call("ping", {}, {}))
    with pytest.raises(McpBroke, match="Too many"):
        talk.session(("Authorization", "d"))
    for each in (calling, other):
        each.addErrback(lambda _: None)
        each.cancel()


def test_no_two_callers_or_chats_share_a_session() -> None:
    """Servers keep state in sessions, and equal header fields do not make one caller of two."""
    server = FakeMcp()
    talk = Conversation(server)
    pool = SessionPool(talk.agent, talk.clock)
    one, other = (ClientContext.of(head_with({b"authorization": [name]})) for name in (b"a", b"b"))
    sessions = [
        pool.session(URL, (("X", "same"),), who, chat) for who in (one, other) for chat in ("", "c")
    ]
    assert len(set(map(id, sessions))) == 4
    assert pool.session(URL, (("X", "same"),), one, "c") is sessions[1]
    Deferred.fromCoroutine(pool.close())


def test_no_caller_can_have_all_sessions() -> None:
    talk = Conversation(FakeMcp())
    pool = SessionPool(talk.agent, talk.clock, max_sessions=100)
    greedy, modest = (
        ClientContext.of(head_with({b"authorization": [name]})) for name in (b"a", b"b")
    )
    oldest = pool.session(URL, (), modest)
    for number in range(1000):
        pool.session(URL, (), greedy, str(number))
    assert pool.session(URL, (), modest) is oldest
    assert len(pool._sessions) == 13
    for session in pool._sessions.values():
        session.busy = 1
    with pytest.raises(McpBroke, match="max-mcp-sessions"):
        pool.session(URL, (), greedy, "more")
    pool.session(URL, (), modest, "another")


# --- the old transport


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 411, 415, 422])
def test_a_refused_handshake_leads_to_the_old_transport(status: int) -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    assert talk.result(talk.call()) == text("pong")
    assert [each.method for each in server.asked[:3]] == ["POST", "GET", "POST"]
    assert server.asked[2].target == "/messages?session_id=1"


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_other_refusals_do_not(status: int) -> None:
    server = FakeMcp()
    server.handlers["initialize"] = raw(b"", status)
    talk = Conversation(server)
    with pytest.raises(HttpRefused, match=str(status)):
        talk.result(talk.call())
    assert [each.method for each in server.asked] == ["POST"]


def test_a_stream_that_ends_fails_its_calls_and_is_opened_again() -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    server.handlers["tools/call"] = never
    calling = talk.begin(talk.call())
    assert server.stream is not None
    server.stream.finish()
    with pytest.raises(McpBroke, match="closed its stream"):
        talk.result(calling)
    server.handlers["tools/call"] = result(text("pong"))
    assert talk.result(talk.call()) == text("pong")


def posting(request: Request, outcome: str) -> None:
    if outcome == "refused":
        answer(b"", 502)(request)
    elif outcome == "too long":
        answer(b"x" * 100_000, 200)(request)
    elif outcome == "cut":
        hang_up(request)


@pytest.mark.parametrize("outcome", ["refused", "too long", "cut", "never answered"])
def test_what_has_come_on_the_stream_counts_whatever_becomes_of_its_post(outcome: str) -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    talk.result(talk.session().tools())
    post = server._post

    def saying_first(request: Request, message: Json) -> None:
        server.say({"jsonrpc": "2.0", "id": message["id"], "result": text("pong")})
        talk.clock.callLater(1, posting, request, outcome)

    server._post = saying_first  # type: ignore[method-assign]
    assert talk.result(talk.call()) == text("pong")
    talk.advance(1)
    talk.advance(5)
    assert len(server.open) == 1, "the stream alone"
    server._post = post  # type: ignore[method-assign]
    assert talk.result(talk.call()) == text("pong")
    assert len(server.received("initialize")) == 2


@pytest.mark.parametrize("outcome", ["refused", "too long", "cut"])
def test_a_post_that_fails_before_its_response_has_come_is_a_failure(outcome: str) -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    talk.result(talk.session().tools())
    server._post = lambda request, message: posting(request, outcome)  # type: ignore[method-assign]
    with pytest.raises(McpBroke):
        talk.result(talk.call())
    assert len(server.open) == 1


@pytest.mark.parametrize(
    "endpoint", [b"http://evil:9000/messages", b"//evil/x", b"\xff", b"https://mcp:9000/messages"]
)
def test_messages_go_to_no_other_server(endpoint: bytes) -> None:
    server = FakeMcp(old=True)

    def listen(request: Request) -> None:
        begin(request)
        request.write(b"event: endpoint\ndata: " + endpoint + b"\n\n")

    server._listen = listen  # type: ignore[method-assign]
    talk = Conversation(server)
    with pytest.raises(ProxyError):
        talk.result(talk.session(("Authorization", "secret")).call("ping", {}, {}))
    assert [each.method for each in server.asked] == ["POST", "GET"]
    talk.advance(20)
    assert not server.open


def test_events_that_nobody_waits_for_are_ignored() -> None:
    server = FakeMcp(old=True)
    talk = Conversation(server)
    talk.result(talk.call())
    for odd in ({"jsonrpc": "2.0", "id": [], "result": {}}, {"id": 1, "result": {}}, {}):
        server.say(odd)
    talk.settle()
    assert talk.result(talk.call()) == text("pong")


# --- the stateless revision


def stateless(**more: Handler) -> FakeMcp:
    server = FakeMcp()
    server.session = ""
    supported: Any = {"supported": [messages.STATELESS], "requested": "2025-11-25"}
    server.handlers["initialize"] = error(-32022, "no", 400, data=supported)
    server.handlers["server/discover"] = result(
        {"resultType": "complete", "supportedVersions": [messages.STATELESS], "capabilities": {}}
    )
    server.handlers |= more
    return server


def test_a_server_that_knows_no_handshake_is_spoken_to_without() -> None:
    server = stateless()
    talk = Conversation(server)
    assert talk.result(talk.session().tools()) == [described("ping")]
    schema = {"properties": {"city": {"type": "string", "x-mcp-header": "City"}}}
    assert talk.result(talk.session().call("ping", {"city": "Tromsø"}, schema)) == text("pong")
    called = server.messages[-1]
    meta = called["params"]["_meta"]
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {}
    assert server.fields("MCP-Protocol-Version")[-1] == "2026-07-28"
    assert server.fields("Mcp-Method")[-1] == "tools/call"
    assert server.fields("Mcp-Name")[-1] == "ping"
    assert server.fields("Mcp-Param-City")[-1] == "=?base64?VHJvbXPDuA==?="
    assert len(server.received("initialize")) == 1
    assert not server.received("notifications/initialized")


def test_a_stateless_call_is_given_up_by_closing_its_connection() -> None:
    server = stateless(**{"tools/call": never})
    talk = Conversation(server)
    calling = talk.begin(talk.call())
    assert len(server.open) == 1
    calling.cancel()
    calling.addErrback(lambda _: None)
    talk.settle()
    assert not server.open
    assert not server.received("notifications/cancelled")


@pytest.mark.parametrize(
    "discovered", [error(-32601), raw(b"<html>"), result({"supportedVersions": ["2025-11-25"]})]
)
def test_a_server_that_speaks_neither_is_refused_for_its_first_reason(discovered: Handler) -> None:
    server = stateless()
    server.handlers["initialize"] = error(-32022, "only the future")
    server.handlers["server/discover"] = discovered
    talk = Conversation(server)
    with pytest.raises(McpBroke, match="only the future"):
        talk.result(talk.call())


def test_the_url_is_asked_as_it_was_given() -> None:
    server = FakeMcp()
    talk = Conversation(server)
    url = f"{URL}/a%2Fb/?key=1%202"
    talk.result(talk.session(url=url).call("ping", {}, {}))
    assert {each.target for each in server.asked} == {"/mcp/a%2Fb/?key=1%202"}
