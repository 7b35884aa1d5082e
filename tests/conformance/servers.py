"""The servers that are compared, each configured as an operator would for a plain reverse proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]

#: Seconds that clients get for a head and for more of a body, and upstreams for an answer.
CLIENT_PATIENCE = 2
UPSTREAM_PATIENCE = 2

_NGINX = """
daemon off; master_process off; worker_processes 1;
pid @DIR@/nginx.pid; error_log @DIR@/error.log;
events { worker_connections 4000; }
http {
  access_log off;
  client_body_temp_path @DIR@/body; proxy_temp_path @DIR@/proxy; fastcgi_temp_path @DIR@/f;
  uwsgi_temp_path @DIR@/u; scgi_temp_path @DIR@/s;
  client_max_body_size 4g; client_header_timeout @CLIENT@s; client_body_timeout @CLIENT@s;
  keepalive_timeout 75s;
  upstream app { server 127.0.0.1:@UPSTREAM@; keepalive 16; }
  server {
    listen 127.0.0.1:@PORT@ backlog=4096;
    location / {
      proxy_pass http://app;
      proxy_http_version 1.1; proxy_read_timeout @PATIENCE@s;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Request-Id $request_id;
      add_header X-Request-Id $request_id always;
    }
  }
}
"""

_HAPROXY = """
global
  maxconn 4000
defaults
  mode http
  timeout connect 2s
  timeout client @CLIENT@s
  timeout server @PATIENCE@s
  timeout http-request @CLIENT@s
  option http-keep-alive
frontend in
  bind 127.0.0.1:@PORT@ backlog 4096
  unique-id-format %{+X}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
  http-request set-header X-Request-Id %[unique-id] unless { req.hdr(X-Request-Id) -m found }
  http-request set-var(txn.id) req.hdr(X-Request-Id)
  http-response set-header X-Request-Id %[var(txn.id)]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  default_backend app
backend app
  http-reuse safe
  server app 127.0.0.1:@UPSTREAM@
"""


class NotServing(Exception):
    """A server did not start; the text has the end of what it wrote."""


@attrs.frozen
class Running:
    """A server that accepts connections."""

    name: str
    pid: int
    port: int

    def memory(self, field: str = "VmHWM") -> float:
        """Resident memory in MiB: the most there ever was, or now (``VmRSS``)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise LookupError(field)


def installed() -> list[str]:
    """The names of the servers that can be started on this machine."""
    return [name for name in ("nginx", "haproxy") if _program(name)] + ["llamaproxy"]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def serving(
    name: str, upstream: int, directory: Path, patience: int = UPSTREAM_PATIENCE
) -> Iterator[Running]:
    """Run a server in front of a port until the end of the block.

    :param patience: seconds that the upstream gets for an answer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(name, port, upstream, directory, patience),
            cwd=directory,
            env=_environment(),
            stdout=output,
            stderr=output,
        )
    try:
        if not _accepts(process, port):
            raise NotServing(f"{name}: {log.read_text(errors='replace')[-2000:]}")
        yield Running(name, process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(name: str, port: int, upstream: int, directory: Path, patience: int) -> list[str]:
    if name == "llamaproxy":
        twistd = "from twisted.scripts.twistd import run; run()"
        return [
            *(sys.executable, "-c", twistd, "-n", "--pidfile=", "llamaproxy", "--admin", "off"),
            *("--listen", f"tcp:{port}:interface=127.0.0.1:backlog=4096"),
            *("--llamastack-url", f"http://127.0.0.1:{upstream}"),
            *("--upstream-timeout", str(patience), "--header-timeout", str(CLIENT_PATIENCE)),
            *("--client-timeout", str(CLIENT_PATIENCE)),
            *("--max-body", str(4 * 1024**3), "--allowed-hosts", "*"),
        ]
    program = _program(name)
    assert program is not None, f"{name} is not installed"
    text = _NGINX if name == "nginx" else _HAPROXY
    said = {
        "@DIR@": str(directory),
        "@PORT@": str(port),
        "@UPSTREAM@": str(upstream),
        "@CLIENT@": str(CLIENT_PATIENCE),
        "@PATIENCE@": str(patience),
    }
    for mark, value in said.items():
        text = text.replace(mark, value)
    file = directory / "conf"
    file.write_text(text)
    if name == "nginx":
        return [program, "-p", str(directory), "-c", str(file), "-e", str(directory / "error.log")]
    return [program, "-db", "-f", str(file)]


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA", "PROXY_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _accepts(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server accepts connections; false if it ended or the time is up."""
    limit = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.05)  # until the process is there; nothing tells
    return False
