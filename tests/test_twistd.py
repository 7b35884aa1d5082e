"""The daemon as a process: started, spoken to, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.processes import free_port as free_port  # which others have from here

ROOT = Path(__file__).parents[1]

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

PORT_LINE = "tcp:{port}:interface=127.0.0.1"


def question(text: str, **more: object) -> dict[str, object]:
    """A chat completion request to the demo's model."""
    return {"model": "demo/scripted", "messages": [{"role": "user", "content": text}], **more}


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA", "PROXY_", "OTEL_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def twistd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run to its end a twistd that is not expected to serve."""
    return subprocess.run(
        [*TWISTD, "-n", "--pidfile=", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Daemon:
    """A running ``twistd llamaproxy``."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        at: int | None = None,
        listen: str = PORT_LINE,
        **variables: str,
    ) -> None:
        self.port = at or free_port()
        self.log = log
        listen = listen.format(port=self.port)
        variables.setdefault("LLAMAPROXY_ADMIN", "off")
        variables.setdefault("LLAMAPROXY_ALLOWED_HOSTS", "*")
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*TWISTD, "-n", "--pidfile=", "llamaproxy", "--listen", listen, *arguments],
                env={**environment(), **variables},
                stdout=out,
                stderr=out,
            )
        self._wait_until_it_serves()

    def _wait_until_it_serves(self) -> None:
        for _ in range(300):
            try:
                self.get("/health")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)  # until the process is there; nothing tells
            else:
                return
        raise AssertionError(self.log.read_text())

    def get(self, path: str, method: str = "GET", body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("demo") / "log", "--demo")
    yield daemon
    daemon.process.kill()
    daemon.process.wait()


def test_the_plugin_is_found_and_its_help_names_every_option() -> None:
    result = twistd("llamaproxy", "--help")
    assert result.returncode == 0
    for option in ("--port=", "--listen=", "--llamastack-url=", "--demo", "--log-format="):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--port", "http"), "--port must be a whole number from 0 to 65535, not 'http'"),
        (("--llamastack-url", "nowhere"), "--llamastack-url must be a URL"),
        (("--nonsense",), "option --nonsense not recognized"),
        (("surplus",), "unexpected argument: surplus"),
        (("--listen", "carrier:pigeon"), "cannot listen on 'carrier:pigeon'"),
    ],
)
def test_a_mistake_stops_the_start_with_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = twistd("llamaproxy", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"twistd llamaproxy: {line}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_taken_port_stops_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = PORT_LINE.format(port=taken.getsockname()[1])
        result = twistd("llamaproxy", "--admin", "off", "--listen", listen)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "cannot listen on" in line]
    assert "Address already in use" in line
    assert "Traceback" not in result.stdout + result.stderr


def test_health_is_the_proxys_own(demo: Daemon) -> None:
    assert demo.get("/health") == (200, b'{"status": "healthy"}')
    assert demo.get("/health", "HEAD") == (200, b"")


def test_the_demo_answers_a_chat_with_what_its_tools_say(demo: Daemon) -> None:
    body = question("What is 6*7?")
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
        status, answer = demo.get(path, "POST", body)
        assert status == 200
        assert json.loads(answer)["choices"][0]["message"]["content"] == "6*7 = 42."


def test_the_demo_streams(demo: Daemon) -> None:
    body = question("What is 6*7?", stream=True)
    status, answer = demo.get("/v1/chat/completions", "POST", body)
    assert status == 200
    *events, done = [line[6:] for line in answer.splitlines() if line.startswith(b"data: ")]
    assert done == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == "6*7 = 42."


def test_sigterm_stops_it_cleanly(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    assert daemon.stop() in (0, -signal.SIGTERM)
    log = daemon.log.read_text()
    assert "Server Shut Down." in log
    assert "Traceback" not in log
    assert "Unhandled" not in log


def test_a_request_in_flight_ends_before_the_daemon_does(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    body = question("Wait 1 second, then what is 6*7?", stream=True)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    response = connection.getresponse()  # the stream has begun: the first round is under way
    daemon.process.send_signal(signal.SIGTERM)
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    assert daemon.process.wait(30) in (0, -signal.SIGTERM)


def test_the_log_can_be_json_and_tells_nothing_that_was_said(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo", "--log-format", "json")
    body = question("Roll 2d6 with seed 777000777")
    status, _ = daemon.get("/v1/chat/completions?key=hidden", "POST", body)
    assert status == 200
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    access = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert [(line["method"], line["status"]) for line in access] == [("POST", 200)]
    tools = [line for line in lines if line.get("tool")]
    assert [line["tool"] for line in tools] == ["roll_dice"]
    assert "777000777" not in daemon.log.read_text()
    assert "hidden" not in daemon.log.read_text()


def test_a_client_that_leaves_is_in_the_access_log_too(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    body = question("Wait 60 seconds", stream=True)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    response = connection.getresponse()
    connection.close()
    response.close()
    assert daemon.stop() in (0, -signal.SIGTERM)
    log = daemon.log.read_text()
    assert "POST /v1/chat/completions 499" in log
    [line] = [line for line in log.splitlines() if "POST /v1/chat/completions 499" in line]
    assert "tools: 4, rounds: 1" in line, "as far as it had come"


def test_json_lines_go_to_the_log_file_that_twistd_was_given(tmp_path: Path) -> None:
    path = tmp_path / "file.log"
    listen = PORT_LINE.format(port=free_port())
    arguments = ["--demo", "--log-format", "json", "--listen", listen]
    with subprocess.Popen(
        [*TWISTD, "-n", "--pidfile=", "--logfile", str(path), "llamaproxy", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
    ) as process:
        for _ in range(300):
            # Ports are there before the reactor runs, and SIGTERM then ends the process at once.
            if path.exists() and "GreetingService" in path.read_text():
                break
            time.sleep(0.1)  # until the process is there; nothing tells
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert out == b""
    assert json.loads(path.read_text().splitlines()[-1])["message"] == "Server Shut Down."


def test_an_operator_asks_on_a_port_of_his_own(tmp_path: Path) -> None:
    port = free_port()
    admin = ("--admin", PORT_LINE.format(port=port))
    daemon = Daemon(tmp_path / "log", "--demo", *admin)
    body = question("What is 6*7?")
    daemon.get("/v1/chat/completions", "POST", body)
    proxy, daemon.port = daemon.port, port
    assert daemon.get("/live") == (200, b'{"status":"live"}')
    code, ready = daemon.get("/ready")
    assert (code, json.loads(ready)["status"]) == (200, "ready")
    status = json.loads(daemon.get("/status")[1])
    assert status["upstream"]["server"] == "version 0.6.1"
    group = status["tool_groups"]["demo::tools"]
    assert group["tools"] == len(group["names"]) == 4 and "calculate" in group["names"]
    assert (group["error"], group["calls"], group["failed_calls"]) == (None, 1, 0)
    assert status["tools"] == {"error": None, "left_out": [], "callers": 1}
    code, nowhere = daemon.get("/nothing")
    assert code == 404 and "/status" in json.loads(nowhere)["error"]["message"]
    counted = (
        b'llamaproxy_tool_calls_total{group="demo::tools",outcome="answered",tool="calculate"} 1.0'
    )
    assert counted in daemon.get("/metrics")[1]
    daemon.port = proxy
    assert daemon.get("/live")[0] == 404, "no path of the upstream is shadowed"
    daemon.stop()


@pytest.mark.parametrize("port", [0, 8323], ids=["another", "the default by name"])
def test_an_admin_port_that_was_asked_for_and_is_taken_stops_the_start(port: int) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else's, which is as good
            taken = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            port = taken.getsockname()[1]
        admin = PORT_LINE.format(port=port)
        listen = PORT_LINE.format(port=free_port())
        result = twistd("llamaproxy", "--demo", "--listen", listen, "--admin", admin)
    assert result.returncode == 1
    assert "cannot listen on" in result.stdout


def test_a_default_admin_port_that_is_taken_is_one_warning(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else's, which is as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8323)))
        daemon = Daemon(tmp_path / "log", "--demo", LLAMAPROXY_ADMIN="")
        assert daemon.get("/health")[0] == 200
        daemon.stop()
    assert daemon.log.read_text().count("going on without") == 1


def admin_of(daemon: Daemon, port: int, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        method = "GET" if body is None else "POST"
        fields = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), fields)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_the_admin_port_shows_a_daemon_that_runs_and_changes_its_log(tmp_path: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path / "log", "--demo", "--admin", f"tcp:{port}", "--log-level", "warn")
    try:
        daemon.get("/v1/chat/completions", "POST", question("What is 6*7?"))
        assert admin_of(daemon, port, "/ready")[0] == 200
        _, status = admin_of(daemon, port, "/status")
        assert status["upstream"]["server"] == "version 0.6.1" and status["advice"] == []
        assert status["upstream"]["reachable"] is True
        assert status["tool_lists"]["callers"] == 1 and status["requests"]["running"] == 0
        assert status["connections"]["max"] == 4096
        assert {"turn_memory", "chat_bodies", "mcp_sessions", "upstream_pool"} <= status.keys()
        assert " POST /v1/chat/completions " not in daemon.log.read_text()
        assert admin_of(daemon, port, "/log-level", {"level": "info"})[0] == 200
        daemon.get("/v1/chat/completions", "POST", question("What is 6*7?"))
    finally:
        assert daemon.stop() in (0, -signal.SIGTERM)
    text = daemon.log.read_text()
    assert text.count("whoever reaches any interface may use the admin port") == 1
    assert text.count(" POST /v1/chat/completions ") == 1
    assert "the log level is info from now on" in text


@pytest.mark.parametrize(
    ("endpoint", "in_container"), [("tcp:0:interface=127.0.0.1", ""), ("tcp:0", "1")]
)
def test_an_admin_port_where_it_belongs_is_not_warned_of(
    tmp_path: Path, endpoint: str, in_container: str
) -> None:
    variables = {"LLAMAPROXY_ADMIN": endpoint, "LLAMAPROXY_IN_CONTAINER": in_container}
    daemon = Daemon(tmp_path / "log", "--demo", at=None, **variables)
    daemon.stop()
    assert "whoever reaches" not in daemon.log.read_text()


def test_the_image_has_the_admin_port_where_probes_reach_it() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert "LLAMAPROXY_ADMIN=tcp:8323 " in text and "LLAMAPROXY_IN_CONTAINER=1 " in text
    for page in ("README.md", "docs/operate.md"):
        assert "`tcp:8323`" in (ROOT / page).read_text("utf-8")
