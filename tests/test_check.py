"""``--check``: what it says of each thing that can be wrong; and its exit status, as a process."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from llamaproxy.advice import ADVICE, group_problem
from llamaproxy.application import assemble
from llamaproxy.check import LIMIT, Check
from llamaproxy.config.options import Options
from llamaproxy.errors import McpBroke, McpTimeout, McpUnavailable, ProxyError
from llamaproxy.events import ListRefreshed
from llamaproxy.report import UNDECIDED, WELL, WRONG
from tests.admin.inspected import Inspected
from tests.support import (
    Answer,
    FakeStack,
    Upstream,
    answer,
    hang_up,
    nothing,
    outcome,
    recorded,
    tool,
)
from tests.test_twistd import TWISTD, environment
from tests.tools.mcp_servers import FakeMcp, error, raw, result

MODELS = answer({"object": "list", "data": [{"id": "m1"}, {"id": "m2"}]})
PAGE = answer(b"<!doctype html><title>Chat</title>", 200, {"Content-Type": "text/html"})
NOT_FOUND = answer({"detail": "Not Found"}, 404)


def stack(version: str = "0.6.1", *tools: dict[str, Any]) -> FakeStack:
    """A server with which all is well, if it has tools."""
    server = FakeStack()
    server.on("GET /v1/version", answer({"version": version}))
    prefix = "/v1" if version >= "0.4" else "/v1/openai/v1"
    server.on(f"GET {prefix}/models", MODELS)
    server.on(f"GET {prefix}/chat/completions", answer({"detail": "Method Not Allowed"}, 405))
    server.on("GET /v1/tools", answer({"data": list(tools)}))
    return server


def plain() -> FakeStack:
    """A server of OpenAI's API alone."""
    server = FakeStack()
    server.on("GET /v1/version", NOT_FOUND)
    server.on("GET /v1/models", MODELS)
    server.on("GET /v1/chat/completions", answer({"detail": "Method Not Allowed"}, 405))
    return server


class Checked(Upstream):
    """A check of *server*, in memory."""

    def __init__(
        self, server: FakeStack, mcp: FakeMcp | None = None, settings: tuple[str, ...] = ()
    ) -> None:
        Upstream.__init__(self, server)
        names = ("--mcp-server", "web=http://mcp:9000/mcp") if mcp is not None else ()
        options = Options({})
        options.parseOptions([*names, *settings])
        anywhere = Upstream(mcp, self.clock).agent if mcp is not None else self.agent
        app = assemble(options, self.url, self.clock, self.agent, anywhere)
        self._anywhere, self.catalogue = anywhere, app.catalogue
        self.lines: list[str] = []
        check = Check(
            *("http://stack:8321", app.client, app.catalogue, app.tell, self.lines.append),
            named_servers=mcp is not None,
        )
        self.running = Deferred.fromCoroutine(check.run(self.clock))
        self.settle()

    def settle(self) -> None:
        for _ in range(40):
            self._anywhere.flush()
            self.agent.flush()
            self.clock.advance(0)

    @property
    def status(self) -> int:
        return outcome(self.running)

    def marked(self, mark: str) -> list[str]:
        return [line[6:] for line in self.lines if line[:6].strip() == mark]

    def advice(self) -> list[str]:
        """The names of what is said to be wrong, in their order."""
        return [name_of(line) for mark in ("WRONG", "?", "note") for line in self.marked(mark)]


def name_of(line: str) -> str:
    """Of which advice *line* is; each begins in a way of its own."""
    for name, advice in ADVICE.items():
        pieces = advice.what.replace("`", "").split("{")
        constant = [piece.rpartition("}")[2] for piece in pieces]
        if line.startswith(constant[0]) and all(piece in line for piece in constant):
            return name
    raise AssertionError(line)


def test_all_is_well() -> None:
    checked = Checked(stack("0.6.1", tool("get_weather"), tool("get_time")))
    assert checked.status == WELL
    assert checked.lines[-1] == "All is well."
    text = "\n".join(checked.lines)
    for words in (
        *("version 0.6.1", "runs its tools itself", "chat completions: /v1/chat/completions"),
        *("models: 2: m1, m2", "mcp::main: 2 tools: get_time, get_weather"),
    ):
        assert words in text


def test_an_old_server_has_its_endpoints_elsewhere() -> None:
    checked = Checked(stack("0.2.12", tool("a")))
    assert checked.status == WELL
    assert checked.marked("ok")[1] == "chat completions: /v1/openai/v1/chat/completions"


def test_a_new_server_has_the_proxy_call_its_connectors() -> None:
    mcp, server = FakeMcp("search"), stack("0.7.3")
    server.on("GET /v1beta/connectors", answer({"data": []}))
    checked = Checked(server, mcp)
    assert checked.status == WELL
    assert "has llamaproxy call them" in checked.lines[0]
    assert "web (http://mcp:9000/mcp): 1 tools: search" in checked.marked("ok")
    assert not mcp.received("tools/call")


def test_nothing_is_called_and_no_model_is_asked() -> None:
    server = stack("0.6.1", tool("a"))
    server.on("GET /v1/chat/completions", NOT_FOUND)
    server.on("POST /v1/chat/completions", answer({"detail": "messages is required"}, 400))
    assert Checked(server).status == WELL
    assert [each.body for each in server.asked if each.method == "POST"] == [b"{}"]


def broken(route: str, *answers: Answer, server: FakeStack | None = None) -> FakeStack:
    broken_server = server or stack("0.6.1", tool("a"))
    broken_server.on(route, *answers)
    return broken_server


def no_version(first: Answer, models: Answer = NOT_FOUND) -> FakeStack:
    server = broken("GET /v1/version", first, server=plain())
    server.on("GET /v1/models", models)
    return server


def chats_answer(each: Answer) -> FakeStack:
    """A server that answers so whatever is asked of its chat completions."""
    server = broken("GET /v1/chat/completions", each)
    server.on("POST /v1/chat/completions", each)
    return server


def listed_once(then: Answer) -> FakeStack:
    """A server that lists its tools once, and answers so from then on."""
    return broken("GET /v1/tools", answer({"data": [tool("a")]}), then)


MOVED = answer(b"", 301, {"Location": "https://u:secret@stack.example/v1/version?key=secret"})


@pytest.mark.parametrize(
    ("server", "advice"),
    [
        (no_version(hang_up), ["no_http"]),
        (no_version(PAGE, PAGE), ["web_page"]),
        (no_version(PAGE), ["web_page"]),
        (no_version(NOT_FOUND), ["wrong_path"]),
        (no_version(answer(b"hello", 200, {"Content-Type": "text/plain"})), ["wrong_path"]),
        (no_version(MOVED), ["redirect"]),
        (no_version(answer({"detail": "who?"}, 401)), ["credentials"]),
        (no_version(NOT_FOUND, answer({"detail": "who?"}, 403)), ["credentials"]),
        (no_version(answer(b"starting", 503)), ["server_error"]),
        (plain(), ["plain_server"]),
        (no_version(PAGE, MODELS), ["plain_server"]),
        (stack(), ["no_groups"]),
        (broken("GET /v1/models", answer({"data": []})), ["no_models"]),
        (broken("GET /v1/models", answer({"detail": "no"}, 500)), ["models_failed"]),
        (broken("GET /v1/models", answer({"detail": "who?"}, 401)), ["credentials"]),
        (broken("GET /v1/models", MOVED), ["redirect"]),
        (broken("GET /v1/models", PAGE), ["models_failed"]),
        (broken("GET /v1/models", hang_up), ["no_http"]),
        (broken("GET /v1/tools", answer({"detail": "who?"}, 401)), ["credentials"]),
        (listed_once(answer({"detail": "no"}, 500)), ["groups_failed"]),
        (listed_once(answer({"data": None})), ["groups_failed"]),
        (listed_once(hang_up), ["no_http"]),
        (broken("GET /v1/chat/completions", NOT_FOUND), ["no_chat"]),
        (chats_answer(answer(b"starting", 503)), ["server_error"]),
        (chats_answer(MOVED), ["redirect"]),
        (broken("GET /v1/tools", answer({"detail": "no"}, 500)), ["groups_failed"]),
        (stack("0.6.1", tool("a", "g"), tool("a", "h")), ["hidden_tools"]),
        (stack("0.7.3"), ["groups_failed"]),
    ],
)
def test_what_is_wrong_with_the_server_is_said_in_words(
    server: FakeStack, advice: list[str]
) -> None:
    checked = Checked(server)
    assert checked.advice() == advice, checked.lines
    assert checked.status == WRONG and checked.lines[-1] == "Something is wrong."
    assert sum(line.strip().startswith("what to do: ") for line in checked.lines) == len(advice)
    assert "secret" not in "\n".join(checked.lines)


def mcp_with(**handlers: Any) -> FakeMcp:
    server = FakeMcp()
    server.handlers |= {name.replace("__", "/"): each for name, each in handlers.items()}
    return server


@pytest.mark.parametrize(
    ("mcp", "advice"),
    [
        (mcp_with(initialize=raw(b"", 401)), ["group_refused"]),
        (mcp_with(initialize=raw(b"", 403)), ["group_refused"]),
        (mcp_with(initialize=raw(b"", 500)), ["group_failed"]),
        (mcp_with(tools__list=error(-32603)), ["group_failed"]),
        (mcp_with(initialize=raw(b"<html>", 200, "text/html")), ["group_failed"]),
    ],
)
def test_what_is_wrong_with_a_group_is_said_in_words(mcp: FakeMcp, advice: list[str]) -> None:
    checked = Checked(stack("0.6.1", tool("a")), mcp)
    assert checked.advice() == advice, checked.lines
    assert checked.status == WRONG


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (McpBroke("The MCP server ended with status 1."), "group_program"),
        (McpUnavailable("The MCP server has ended."), "group_program"),
        (McpTimeout(), "group_slow"),
    ],
)
def test_of_a_program_no_url_is_spoken(error: ProxyError, advice: str) -> None:
    error.where = "stdio://files"
    told = group_problem("files", error)
    assert told.name == advice and "URL" not in told.what + told.do


@pytest.mark.parametrize("tools", [(), (tool("a", "mcp::main"),)])
def test_a_group_of_which_the_server_lists_nothing_is_named(tools: tuple[Any, ...]) -> None:
    server = stack("0.6.1", *tools)
    endpoint = {"uri": "http://dead:9000/mcp?token=secret"}
    groups = [
        {"identifier": "mcp::main", "mcp_endpoint": endpoint},
        {"identifier": "builtin::rag", "mcp_endpoint": None},
        {"identifier": "mcp::dead", "mcp_endpoint": endpoint},
    ]
    server.on("GET /v1/toolgroups", answer({"data": groups if tools else groups[1:]}))
    checked = Checked(server)
    assert checked.advice() == ["missing_group"]
    assert "mcp::dead at http://dead:9000/mcp" in checked.marked("WRONG")[0]
    assert "secret" not in checked.marked("WRONG")[0]


def test_tools_without_room_are_named() -> None:
    tools = [tool(f"t{number:02}") for number in range(30)]
    checked = Checked(stack("0.6.1", *tools), settings=("--max-tools=1",))
    assert checked.advice() == ["left_out"] and checked.status == WRONG
    [line] = checked.marked("WRONG")
    assert line.startswith("29 tools") and line.endswith("and 9 more")


def test_a_tool_that_cannot_be_offered_is_named_with_the_reason() -> None:
    large = {"type": "object", "properties": {"x": {"description": "x" * 200_000}}}
    checked = Checked(stack("0.6.1", tool("a"), tool("b", input_schema=large)))
    assert checked.advice() == ["unfit_tool"], checked.lines


def test_names_that_two_groups_have_are_noted_and_all_is_well() -> None:
    checked = Checked(stack("0.6.1", tool("ping", "mcp::main")), FakeMcp("ping"))
    assert checked.advice() == ["renamed_tools"]
    assert checked.status == WELL


def test_a_group_without_tools_is_noted() -> None:
    checked = Checked(stack("0.6.1", tool("a")), mcp_with(tools__list=result({"tools": []})))
    assert checked.advice() == ["empty_group"]
    assert checked.status == WELL


def test_a_server_that_is_silent_leaves_it_undecided_within_the_limit() -> None:
    checked = Checked(no_version(nothing))
    for _ in range(int(LIMIT)):
        checked.clock.advance(1)
        checked.settle()
    assert checked.advice() == ["silent"]
    assert checked.status == UNDECIDED


@pytest.mark.parametrize(
    ("limit", "status", "advice"),
    [(LIMIT, WRONG, ["groups_failed", "silent"]), (40, UNDECIDED, ["silent", "undecided"])],
)
def test_it_ends_within_its_limit_whatever_is_slow(
    limit: float, status: int, advice: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaproxy.check.LIMIT", limit)
    server = stack("0.6.1", tool("a"))
    for route in ("chat/completions", "models", "tools", "toolgroups"):
        server.on(f"GET /v1/{route}", nothing)
    checked = Checked(server)
    for _ in range(int(limit) + 1):
        checked.clock.advance(1)
        checked.settle()
    assert checked.status == status
    assert sorted(checked.advice()) == advice
    checked.catalogue.stop()  # as the end of the process has it
    checked.settle()
    assert not server.open


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nok    b", "a{reason}b"])
def test_what_a_peer_says_is_one_line_that_does_nothing(name: str) -> None:
    server = stack("0.6.1", tool("a"))
    server.on("GET /v1/models", answer({"data": [{"id": name}]}))
    checked = Checked(server)
    assert all(line.isprintable() for line in checked.lines)
    assert checked.status == WELL


@pytest.mark.parametrize(
    "broken_server",
    [
        lambda: no_version(hang_up),
        lambda: no_version(PAGE, PAGE),
        lambda: no_version(answer(b"hello", 200, {"Content-Type": "text/plain"})),
        lambda: no_version(MOVED),
        lambda: no_version(answer(b"starting", 503)),
        lambda: no_version(answer({"detail": "no"}, 500)),
        lambda: broken("GET /v1/tools", answer({"detail": "no"}, 500)),
        lambda: no_version(PAGE, MODELS),
        plain,
        stack,
    ],
)
def test_the_status_of_the_daemon_says_the_same(broken_server: Callable[[], FakeStack]) -> None:
    world = Inspected(broken_server())
    world.chat()
    world.settle()
    status = json.loads(world.get("/status").body)
    checked = Checked(broken_server())
    assert [each["problem"] for each in status["advice"]] == checked.advice()
    listed = [each for each in world.events if isinstance(each, ListRefreshed)][-1]
    whole = not listed.failures and listed.groups_error is None
    assert whole == (checked.advice() in (["plain_server"], ["no_groups"]))


def test_each_advice_begins_in_a_way_of_its_own_and_is_whole() -> None:
    for name, advice in ADVICE.items():
        filled = advice.what.replace("`", "").format_map(_Capitals())
        assert name_of(filled) == name
        assert "|" not in advice.what + advice.do and "\n" not in advice.what + advice.do


class _Capitals(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key.upper()


# --- as a process


def ran(folder: Path, *arguments: str, before: Iterable[str] = ()) -> tuple[int, str]:
    """Exit status and output of a check, of which twistd leaves nothing."""
    process = subprocess.run(
        [*TWISTD, *before, "llamaproxy", "--check", *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert process.stderr == ""
    assert not list(folder.glob("*.log"))
    return process.returncode, process.stdout


@pytest.mark.parametrize("before", [(), ("-n",), ("-n", "--pidfile=")])
def test_its_exit_status_is_for_scripts(tmp_path: Path, before: tuple[str, ...]) -> None:
    status, text = ran(tmp_path, "--demo", before=before)
    assert status == WELL
    lines = text.splitlines()
    assert lines[-1] == "All is well." and all(line[:6] == "ok    " for line in lines[:-1])
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path) -> None:
    status, text = ran(tmp_path, "--llamastack-url", "http://127.0.0.1:1")
    assert status == WRONG
    where = "WRONG the server at http://127.0.0.1:1 cannot be reached"
    assert text.startswith(f"{where}: Connection was refused")
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_runs_in_the_same_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "twistd.pid").write_text("1")
    assert ran(tmp_path, "--demo")[0] == WELL
    assert (tmp_path / "twistd.pid").read_text() == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_decided(number: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started(tmp_path, "--llamastack-url", url, stdout=subprocess.PIPE) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(number)
                assert process.communicate(timeout=30) == ("", "")
                assert process.returncode == UNDECIDED


def test_one_who_reads_only_its_beginning_costs_it_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed, started(tmp_path, "--demo", stdout=closed) as process:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == WELL


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_terminal_it_is_wrapped_at_words(columns: int, tmp_path: Path) -> None:
    master, terminal = os.openpty()
    long_url = "http://127.0.0.1:1/a-path-that-is-longer-than-a-narrow-terminal-and-is-not-cut"
    with os.fdopen(terminal, "w") as out:
        arguments = ("--llamastack-url", long_url)
        with started(tmp_path, *arguments, stdout=out, COLUMNS=str(columns)) as process:
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode == WRONG
    with os.fdopen(master, "rb") as seen:
        lines = seen.read1(65536).decode().split("\r\n")
    words = [word for line in lines for word in line.split()]
    assert long_url in words and words[-3:] == ["Something", "is", "wrong."]
    assert all(len(line) <= columns or long_url in line for line in lines)
    assert all(line[:6].strip() in ("", "WRONG") or "Something" in line for line in lines)


KEYS = ("--api-keys-file", "keys")
STACK = ("--llamastack-url", "STACK")


@pytest.mark.parametrize(
    ("arguments", "key", "status", "words"),
    [
        (STACK, "", WRONG, "credentials"),
        (STACK, "right", WRONG, "LLAMASTACK_API_KEY is set and not used"),
        ((*STACK, *KEYS), "right", WELL, "models: 1: m"),
        ((*STACK, *KEYS), "wrong", WRONG, "credentials"),
        (("--demo", "--mcp-server", "web=http://127.0.0.1:1/mcp"), "", WRONG, "MCP server of web"),
        (("--demo", *KEYS), "", WELL, "calculate"),
        (("--llamastack-url", "http://no-such-host.invalid"), "", WRONG, "cannot be reached"),
        (("--llamastack-url", "ftp://x"), "", WRONG, "--llamastack-url must be"),
    ],
)
def test_its_exit_status_in_each_case(
    arguments: tuple[str, ...], key: str, status: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("a-clients-key\n")
    with locked_stack() as url:
        given = [url if each == "STACK" else each for each in arguments]
        variables = {"LLAMASTACK_API_KEY": key} if key else {}
        with started(tmp_path, *given, stdout=subprocess.PIPE, **variables) as process:
            out, complaints = process.communicate(timeout=90)
    assert (process.returncode, words in out + complaints) == (status, True), out + complaints
    assert "right" not in out.replace("cannot", "")


@contextmanager
def locked_stack() -> Iterator[str]:
    """The URL of a server that wants the key ``right``, in a thread."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body: object = {"data": [{"id": "m", "name": "a", "toolgroup_id": "g"}]}
            status = 200
            if path == "/v1/version":
                body = {"version": "0.6.1"}
            elif self.headers["Authorization"] != "Bearer right":
                status = 401
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def started(folder: Path, *arguments: str, stdout: Any, **variables: str) -> subprocess.Popen[str]:
    """A check that runs."""
    return subprocess.Popen(
        [*TWISTD, "llamaproxy", "--check", *arguments],
        env={**environment(), **variables},
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_ollama_without_models() -> None:
    """Its list has null where others have an empty list."""
    server = plain()
    server.on("GET /v1/models", recorded("ollama", "models_none"))
    assert "no_models" in Checked(server).advice()


def test_lm_studio_which_answers_200_to_everything() -> None:
    server = plain()
    server.on("GET /v1/version", recorded("lm-studio", "version"))
    server.on("GET /tools", recorded("lm-studio", "tools"))
    server.on("GET /v1/models", recorded("lm-studio", "models"))
    checked = Checked(server, FakeMcp("look"))
    assert checked.status == 0
    assert "models: 1: qwen3-8b" in checked.marked("ok")
