"""Real stores for tests: Valkey or Redis of Debian, on loopback, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import free_port

#: Seconds after which a store has failed to do what it was told.
PATIENCE = 20


def program(name: str) -> str:
    """The path of *name*, such as ``server`` or ``cli``, of Valkey or else of Redis.

    Without it the test is skipped, in CI it fails.
    """
    for family in ("valkey", "redis"):
        if path := shutil.which(f"{family}-{name}", path=f"{os.environ['PATH']}:/usr/bin"):
            return path
    consequence = "NO STORE IS TESTED: there is no valkey-server or redis-server (Debian: the same)"
    if os.environ.get("CI"):
        pytest.fail(consequence)
    pytest.skip(consequence)


@attrs.define(eq=False)
class Store:
    """A store with its *arguments*, as ``--name value``; it is asked by its own program."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = attrs.field(factory=free_port)
    #: How its program reaches it, beside host and port.
    reached: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Store:
        with (self.folder / f"log-{self.port}").open("ab") as log:
            self._process = subprocess.Popen(
                [program("server"), *self._listening(), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + PATIENCE
        while not self.ask("PING", check=False).strip():
            assert time.monotonic() < limit, (self.folder / f"log-{self.port}").read_text()
            time.sleep(0.02)  # until it is there; nothing tells
        return self

    def _listening(self) -> list[str]:
        return ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]

    def ask(self, *command: str, check: bool = True) -> str:
        """What the store answers to *command*."""
        asking = [program("cli"), "-h", "127.0.0.1", "-p", str(self.port), *self.reached, *command]
        ran = subprocess.run(asking, capture_output=True, timeout=PATIENCE, check=check)
        return ran.stdout.decode("latin-1")

    def names(self) -> list[str]:
        """The names of all turns that it has."""
        return [name for name in self.ask("KEYS", "*").split() if not name.endswith(":trial")]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Have it end at once, if it is there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Have it accept connections, as the kernel does, and answer nothing."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)


@attrs.define(eq=False)
class Sentinel(Store):
    """Watches a store."""

    def _listening(self) -> list[str]:
        # It writes what it learns into its file.
        return [str(self.folder / "sentinel.conf"), "--sentinel"]

    @classmethod
    def of(cls, folder: Path, name: str, store: Store) -> Sentinel:
        sentinel = cls(folder)
        (folder / "sentinel.conf").write_text(
            f"bind 127.0.0.1\nport {sentinel.port}\ndir {folder}\n"
            f"sentinel monitor {name} 127.0.0.1 {store.port} 1\n"
            f"sentinel down-after-milliseconds {name} 300\n"
            f"sentinel failover-timeout {name} 2000\n"
        )
        return sentinel


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    """Stores that end when the test does."""
    started: list[Store] = []
    yield started
    for store in started:
        store.stop()


@pytest.fixture
def store(tmp_path: Path, stores: list[Store]) -> Store:
    """A store that anybody may ask."""
    started = Store(tmp_path).start()
    stores.append(started)
    return started
