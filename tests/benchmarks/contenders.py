"""The programs that are compared, and what is missing of them on this machine."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from . import processes

OURS: Final = "llamaproxy"
BEFORE: Final = "before"
"""The daemon of another checkout, to see what a change has brought."""
TWO: Final = "two workers"
"""The daemon with two processes that serve, which need another CPU."""
UNSEEN: Final = "admin off"
"""The daemon without an admin port: nobody watches it, and nothing is counted."""

_TWISTD: Final = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")


@attrs.frozen
class Contender:
    """A program that is measured."""

    name: str
    command: Callable[[int, int], list[str]]
    """What starts it, given its own port and that of the upstream."""
    root: Path = processes.ROOT
    """The checkout that it is loaded from."""
    ready: str = "/health"
    """What it answers with 200 once it serves."""
    workers: bool = False
    """Whether it is several processes."""


def stub(port: int, *tools: int) -> list[str]:
    """The command that starts the stand-in for Llama Stack, with so many tools."""
    return [sys.executable, "-m", f"{__package__}.stub", str(port), *map(str, tools)]


def llamaproxy(port: int, upstream: int) -> list[str]:
    """The command that starts the daemon, as `twistd` would."""
    return [
        *(sys.executable, *_TWISTD, "llamaproxy"),
        *("--listen", f"tcp:{port}:interface=127.0.0.1"),
        *("--llamastack-url", f"http://127.0.0.1:{upstream}"),
    ]


def contenders(directory: Path, before: Path | None) -> tuple[list[Contender], list[str]]:
    """All that can run here, and a note for each that cannot.

    What has to be built or configured is put into `directory`.
    """

    def python(module: str, *arguments: str) -> Callable[[int, int], list[str]]:
        def command(port: int, upstream: int) -> list[str]:
            name = f"{__package__}.{module}"
            return [sys.executable, "-m", name, str(port), *arguments, str(upstream)]

        return command

    there = [
        Contender(OURS, llamaproxy),
        Contender(TWO, lambda *ports: [*llamaproxy(*ports), "--workers", "2"], workers=True),
        Contender(UNSEEN, lambda port, upstream: [*llamaproxy(port, upstream), "--admin", "off"]),
        Contender("twisted.web", python("bare", "resource")),
        Contender("bare protocol", python("bare", "protocol")),
        Contender("relay", python("relay")),
    ]
    missing = []
    if before is not None:
        there.append(Contender(BEFORE, llamaproxy, before))
    else:
        missing.append("no earlier checkout was named (--before): nothing is compared with it")
    if shutil.which("nginx"):
        there.append(Contender("nginx", _nginx(directory)))
    else:
        missing.append("there is no nginx")
    built, reason = _built(directory)
    if built:
        there.append(Contender("Go", _go(built, "0s")))
        there.append(Contender("Go cached", _go(built, "1m")))
    else:
        missing.append(f"there are no Go proxies ({reason}): most targets cannot be looked at")
    if importlib.util.find_spec("litellm"):
        there.append(Contender("LiteLLM", _litellm(directory), ready="/health/liveliness"))
    else:
        missing.append("LiteLLM is not installed")
    return there, missing


def _go(program: Path, keep: str) -> Callable[[int, int], list[str]]:
    return lambda port, upstream: [
        str(program),
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{upstream}",
        keep,
    ]


def _built(directory: Path) -> tuple[Path | None, str]:
    """The Go proxy, built without a network; or why not."""
    go = shutil.which("go")
    if go is None:
        return None, "no go"
    program = directory / "goproxy"
    built = subprocess.run(
        [go, "build", "-o", str(program), "."],
        cwd=Path(__file__).with_name("goproxy"),
        env={**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GO111MODULE": "on"},
        capture_output=True,
        text=True,
    )
    return (program, "") if built.returncode == 0 else (None, built.stderr.strip())


def _nginx(directory: Path) -> Callable[[int, int], list[str]]:
    def command(port: int, upstream: int) -> list[str]:
        own = directory / f"nginx-{port}"
        own.mkdir()
        configuration = own / "nginx.conf"
        configuration.write_text(_NGINX.format(own=own, port=port, upstream=upstream))
        return ["nginx", "-e", str(own / "error.log"), "-c", str(configuration)]

    return command


def _litellm(directory: Path) -> Callable[[int, int], list[str]]:
    def command(port: int, upstream: int) -> list[str]:
        configuration = directory / f"litellm-{port}.yaml"
        configuration.write_text(_LITELLM.format(upstream=upstream))
        return [
            *(sys.executable, "-c", "from litellm import run_server; run_server()"),
            *("--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)),
        ]

    return command


# One process, so that its account is all of it.
_NGINX: Final = """
daemon off;
master_process off;
pid {own}/pid;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log {own}/access.log;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    client_max_body_size 0;
    keepalive_requests 1000000000;
    upstream stack {{
        server 127.0.0.1:{upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://stack;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""

_LITELLM: Final = """
model_list:
  - model_name: "*"
    litellm_params:
      model: "openai/*"
      api_base: "http://127.0.0.1:{upstream}/v1"
      api_key: "benchmark"
general_settings:
  dangerously_permit_weak_or_unset_master_key: true
"""
