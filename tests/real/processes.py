"""Programs that run beside the tests, on loopback ports of their own."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

# A server's first start imports a thousand modules, on a busy machine with cold disks.
PATIENCE = 120.0

# What must not reach a program from the test run's own environment: paths of another interpreter,
# what makes it compile its thousand modules again at every start, ways out of loopback, and options
# of llamaproxy.
UNWANTED = re.compile(
    r"PYTHONPATH|PYTHONHOME|PYTHONDONTWRITEBYTECODE|VIRTUAL_ENV"
    r"|(https?|all)_proxy|LLAMAPROXY_.*|LLAMASTACK_.*|PROXY_PORT",
    re.IGNORECASE,
)

Command = Callable[[int], Sequence[str]]


def free_port() -> int:
    """A loopback port that nobody listens on, for now.

    None of those that a system gives whoever asks for any (Linux: 32768 to 60999): it would soon.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@attrs.define(eq=False)
class Process:
    """A program that serves HTTP: started, waited for until it answers, and ended as a whole."""

    name: str
    command: Command  # given the port
    ready: str  # a path that answers as soon as the program is of use
    log: Path
    environment: Mapping[str, str] = attrs.field(factory=dict)
    port: int = attrs.field(factory=free_port)
    ready_status: int = 200
    boot_seconds: float = 0.0
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    def start(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not UNWANTED.fullmatch(k)}
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command(self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,  # so that whatever it starts can be ended with it
            )
        started = time.monotonic()
        try:
            self._wait_until_ready(started + PATIENCE)
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - started

    def stop(self) -> int | None:
        """End the program, politely at first. Its exit status, if it was running."""
        if self._popen is None:
            return None
        popen, self._popen = self._popen, None
        self._signal(popen, signal.SIGTERM)
        try:
            popen.wait(5)
        except subprocess.TimeoutExpired:
            pass
        self._signal(popen, signal.SIGKILL)  # the rest of the group, if there is one
        return popen.wait(5)

    def restart(self) -> None:
        """Stop, and start again on the same port."""
        self.stop()
        self.start()

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        if not self.log.exists():
            return ""
        text = self.log.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def get(self, path: str, timeout: float = 20.0) -> tuple[int, bytes]:
        """GET from the program: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._popen is not None
        seen: Any = "nothing"
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                seen = f"exit status {self._popen.returncode}"
                break
            try:
                seen, _ = self.get(self.ready)
            except (OSError, http.client.HTTPException) as error:
                seen = error
            if seen == self.ready_status:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not get ready ({seen}). Its log ends:\n{self.tail()}")

    @staticmethod
    def _signal(popen: subprocess.Popen[bytes], number: int) -> None:
        try:
            os.killpg(popen.pid, number)
        except ProcessLookupError:
            pass
