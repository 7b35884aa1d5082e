"""deploy/haproxy.cfg and deploy/nginx.conf: valid, and nothing that was sent is sent again."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import Daemon, free_port

from .balancers import (
    DEPLOY,
    Balancer,
    Place,
    find,
    get,
    haproxy,
    haproxy_configuration,
    needs,
    nginx,
    nginx_configuration,
)

PLACES = [Place(18001, 18011), Place(18002, 18012), Place(18003, 18013)]


@needs("haproxy")
def test_haproxy_accepts_its_file_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(haproxy_configuration(PLACES, 18080, 18404))
    command = [str(find("haproxy")), "-c", "-dW", "-f", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs("haproxy")
def test_haproxy_accepts_what_its_file_has_as_comments(tmp_path: Path) -> None:
    """A server that is told the client's address by the PROXY protocol."""
    text = haproxy_configuration(PLACES, 18080, 18404)
    [server] = re.findall(r"^    # (server .*)$", text, re.MULTILINE)
    path = tmp_path / "haproxy.cfg"
    path.write_text(text.replace(f"# {server}", server.replace("llamaproxy-4:", "127.0.0.1:")))
    command = [str(find("haproxy")), "-c", "-dW", "-f", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs("nginx")
def test_nginx_accepts_its_file_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text(nginx_configuration(PLACES, 18080, tmp_path))
    command = [str(find("nginx")), "-t", "-p", str(tmp_path), "-c", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "[warn]" not in ran.stderr


def test_the_limits_of_the_files_leave_those_of_the_replicas_room() -> None:
    """A client hears of a limit from llamaproxy, which knows what it was."""
    haproxy_cfg, nginx_conf = (
        (DEPLOY / name).read_text() for name in ("haproxy.cfg", "nginx.conf")
    )
    connections = int(re.findall(r" maxconn (\d+)$", haproxy_cfg, re.MULTILINE)[0])
    assert connections < 4096  # --max-connections
    assert int(re.findall(r"keepalive_timeout (\d+)s", nginx_conf)[0]) < 75  # --client-timeout
    assert "client_max_body_size 0;" in nginx_conf


# --- what is sent once


@attrs.define
class Breaking:
    """A server that takes requests whole and breaks off, or answers; it counts what it has read."""

    answer: bytes | None
    read: Counter[str] = attrs.Factory(Counter)
    heads: list[str] = attrs.Factory(list)
    _socket: socket.socket = attrs.Factory(lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def place(self) -> Place:
        port: int = self._socket.getsockname()[1]
        return Place(port, port)

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,)).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self, connection: socket.socket) -> None:
        """Answer once, and close."""
        with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
            connection.settimeout(30)
            head = b"".join(iter(reader.readline, b"\r\n"))
            self.heads.append(head.decode())
            if match := re.search(rb"(?i)content-length: (\d+)", head):
                self.read[reader.read(int(match[1])).decode()] += 1
            answer = b"{}" if head.startswith(b"GET /ready ") else self.answer
            if answer is not None:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
                )


@contextlib.contextmanager
def three(
    balance: Callable[[Path, list[Place]], contextlib.AbstractContextManager[Balancer]],
    directory: Path,
) -> Iterator[tuple[Balancer, Breaking, Breaking]]:
    """A balancer before one server that breaks, one that answers, and one that is not there.

    Its probes are told that the last one is well: it has gone since.
    """
    broken, well = Breaking(None), Breaking(b'{"whole": true}')
    threads = [threading.Thread(target=server.serve) for server in (broken, well)]
    for thread in threads:
        thread.start()
    gone = Place(free_port(), well.place.port)
    try:
        with balance(directory, [broken.place, gone, well.place]) as balancer:
            yield balancer, broken, well
    finally:
        for server, thread in zip((broken, well), threads, strict=True):
            server.close()
            thread.join()


@pytest.mark.parametrize(
    "balance",
    [pytest.param(haproxy, marks=needs("haproxy")), pytest.param(nginx, marks=needs("nginx"))],
)
def test_what_may_have_been_acted_on_is_not_sent_again_by_anybody(
    balance: Callable[[Path, list[Place]], contextlib.AbstractContextManager[Balancer]],
    tmp_path: Path,
) -> None:
    """Not by the balancer, and not by the SDK, which is told; on a kept connection too."""
    outcomes: Counter[str] = Counter()
    with three(balance, tmp_path) as (balancer, broken, well):
        connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=30)
        for number in range(30):
            connection.request("POST", "/v1/chat/completions", f"chat {number}")
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status == 200:
                assert body == {"whole": True}
                outcomes["whole"] += 1
                continue
            assert response.status == 502
            assert body["error"].keys() == {"message", "type", "param", "code"}
            assert body["error"]["code"] == "replica_broke"
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["Content-Type"] == "application/json"
            outcomes["told"] += 1
        connection.close()
    # Those that could not be connected for went on to the one that is well.
    assert outcomes["whole"] == well.read.total()
    assert outcomes["told"] == broken.read.total() > 0
    assert broken.read + well.read == Counter({f"chat {number}": 1 for number in range(30)})


@needs("haproxy")
def test_what_was_sent_to_nobody_may_be_sent_again(tmp_path: Path) -> None:
    well = Breaking(b"{}")
    thread = threading.Thread(target=well.serve)
    thread.start()
    try:
        places = [Place(free_port(), well.place.port) for _ in range(3)]
        with haproxy(tmp_path, places) as balancer:
            connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=30)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/chat/completions", "chat")
                response = connection.getresponse()
                error = json.loads(response.read())["error"]
    finally:
        well.close()
        thread.join()
    assert (response.status, error["code"]) == (503, "no_replica")
    assert response.headers["Retry-After"] == "1"
    assert response.headers["x-should-retry"] is None


# --- what a replica learns


@pytest.mark.parametrize(
    "balance",
    [
        pytest.param("haproxy", marks=needs("haproxy")),
        pytest.param("PROXY protocol", marks=needs("haproxy")),
        pytest.param("nginx", marks=needs("nginx")),
    ],
)
def test_the_server_is_told_who_the_client_is(balance: str, tmp_path: Path) -> None:
    """And not what the client says of itself; its request's id is kept, or one is made."""
    server = Breaking(b"{}")
    thread = threading.Thread(target=server.serve)
    thread.start()
    admin, port = free_port(), free_port()
    listen = f"tcp:{port}:interface=127.0.0.1"
    trusted = ["--trusted-proxies", "127.0.0.1"]
    if balance == "PROXY protocol":
        listen, trusted = f"haproxy:{listen}:backlog=1024", []
    daemon = Daemon(
        tmp_path / "daemon.log",
        *("--llamastack-url", f"http://127.0.0.1:{server.place.port}"),
        *("--admin", f"tcp:{admin}:interface=127.0.0.1", "--listen", listen, *trusted),
    )
    places = [Place(port, admin)] * 3
    start: dict[str, Callable[[], contextlib.AbstractContextManager[Balancer]]] = {
        "haproxy": lambda: haproxy(tmp_path, places),
        "PROXY protocol": lambda: haproxy(tmp_path, places, "send-proxy-v2"),
        "nginx": lambda: nginx(tmp_path, places),
    }
    spoofed = {f"X-Forwarded-{name}": "of.the.client" for name in ("For", "Proto", "Host")}
    named = {"X-Request-Id": "named", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-01-01"}
    try:
        with start[balance]() as balancer:
            for fields in (named, {}):
                connection = http.client.HTTPConnection(
                    "127.0.0.1", balancer.port, timeout=30, source_address=("127.0.0.2", 0)
                )
                with contextlib.closing(connection):
                    connection.request("GET", "/v1/echo", headers=spoofed | fields)
                    response = connection.getresponse()
                    assert (response.status, response.read()) == (200, b"{}")
    finally:
        daemon.stop()
        server.close()
        thread.join()
    first, second = (
        dict(re.findall(r"^([\w-]+): (.*?)\r$", head.lower(), re.MULTILINE))
        for head in server.heads
        if head.startswith("GET /v1/echo ")
    )
    for head in (first, second):
        assert head["x-forwarded-for"].split(", ")[0] == "127.0.0.2"
        assert head["x-forwarded-proto"] == "http"
        assert head["x-forwarded-host"] == f"127.0.0.1:{balancer.port}"
    assert first["x-request-id"] == "named"
    assert first["traceparent"] == named["traceparent"]
    assert re.fullmatch(r"[0-9a-f-]{32,36}", second["x-request-id"])
    assert "traceparent" not in second


@needs("haproxy")
def test_operators_see_haproxys_figures(tmp_path: Path) -> None:
    well = Breaking(b"{}")
    thread = threading.Thread(target=well.serve)
    thread.start()
    try:
        with haproxy(tmp_path, [well.place] * 3) as balancer:
            assert b"haproxy_backend_active_servers{" in get(balancer.operators, "/metrics")
    finally:
        well.close()
        thread.join()
