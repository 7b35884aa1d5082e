"""Containers as a Docker engine would run them, but run by crun in a folder of files.

What the image says is what is done: its entry point, variables, user and folder. The root is
read-only but for ``/tmp``; nothing is allowed that a user without rights may not do; processes,
mounts and the network are the container's own, and reached from here all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .processes import PATIENCE

#: crun knows cgroups of version 1 or 2 and refuses both together, wherever a container's may be.
CRUN = [
    *("unshare", "--mount", "sh", "-c"),
    'umount /sys/fs/cgroup/unified 2> /dev/null; exec "$@"',
    *("sh", "crun", "--cgroup-manager=disabled"),
]

#: Linux's number for network namespaces, in setns(2).
CLONE_NEWNET = 0x40000000

NAMESPACES = ("ipc", "mount", "network", "pid", "uts")


@attrs.frozen
class Bundle:
    """What crun starts: a folder of files, and an image's configuration."""

    files: Path
    image: Mapping[str, Any]
    folder: Path  # for what crun and the container's log need
    read_only: bool = True
    user: str | None = None  # another than the image's
    mounts: Mapping[str, Path] = attrs.field(factory=dict)  # by their places in the container

    def start(self, *arguments: str, **variables: str) -> Container:
        """Start a container; the *arguments* are in the place of the image's own."""
        name = f"{self.folder.name}-{len([*self.folder.iterdir()])}"
        bundle = self.folder / name
        bundle.mkdir()
        specification = json.dumps(self._specification(arguments, variables))
        (bundle / "config.json").write_text(specification, "utf-8")
        user = self.user or self.image["User"]
        return Container(name, bundle, user, self.image["Healthcheck"]["Test"])

    def _specification(
        self, arguments: Sequence[str], variables: Mapping[str, str]
    ) -> dict[str, Any]:
        """An OCI runtime's configuration."""
        uid, _, gid = (self.user or self.image["User"]).partition(":")
        environment = [*self.image["Env"], *(f"{k}={v}" for k, v in variables.items())]
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n", "utf-8")
        bound = {"/etc/hosts": hosts, **self.mounts}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": int(uid), "gid": int(gid)},
                "args": [*self.image["Entrypoint"], *(arguments or self.image["Cmd"] or ())],
                "env": environment,
                "cwd": self.image["WorkingDir"],
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.files), "readonly": self.read_only},
            "hostname": "container",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                _temporary("/dev", "mode=755"),
                _temporary("/tmp", "mode=1777"),
                *(
                    {"destination": at, "source": str(path), "options": ["bind", "ro"]}
                    for at, path in bound.items()
                ),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES]},
        }


def _temporary(place: str, *options: str) -> dict[str, Any]:
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", *options],
    }


class Container:
    """A container that has been started."""

    def __init__(self, name: str, bundle: Path, user: str, healthcheck: Sequence[str]) -> None:
        self._crun = [*CRUN, "--root", str(bundle / "state")]
        self._name = name
        self._user = user
        self._healthcheck = healthcheck
        self._pid_file = bundle / "pid"
        self._log = bundle / "log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [
                    *(*self._crun, "run", "--bundle", str(bundle)),
                    *("--pid-file", str(self._pid_file), name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def until_healthy(self) -> Container:
        """Wait as an engine does: until the image's own check is content."""
        self.until(lambda: self._pid_file.exists() and self.healthcheck().returncode == 0)
        return self

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what only asking tells."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and self._popen.poll() is None:
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError(self.log())

    def healthcheck(self) -> subprocess.CompletedProcess[str]:
        """Run the image's health check in the container."""
        kind, *command = self._healthcheck
        assert kind == "CMD"
        return self.run(*command)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, by its user, with its variables."""
        return subprocess.run(
            [*self._crun, "exec", "--user", self._user, self._name, *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    @contextlib.contextmanager
    def connection(self, port: int, host: str = "127.0.0.1") -> Iterator[socket.socket]:
        """A connection that begins in the container."""
        # What this thread opens belongs to the network that it is in just then.
        with open("/proc/thread-self/ns/net", "rb") as own:
            with open(f"/proc/{self._pid_file.read_text()}/ns/net", "rb") as other:
                _enter(other.fileno())
            try:
                opened = socket.create_connection((host, port), timeout=30)
            finally:
                _enter(own.fileno())
        with opened:
            yield opened

    def ask(
        self, port: int, path: str, body: object = None, host: str = "127.0.0.1"
    ) -> tuple[int, str]:
        """GET, or POST if there is a *body*, from the container: status and body."""
        client = http.client.HTTPConnection("localhost")
        with self.connection(port, host) as client.sock:
            method, text = ("GET", None) if body is None else ("POST", json.dumps(body))
            client.request(method, path, text)
            response = client.getresponse()
            return response.status, response.read().decode("utf-8")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.terminate()
        return self.wait()

    def terminate(self) -> None:
        self._kill("TERM")

    def wait(self) -> int:
        """The exit status, when it has ended by itself."""
        return self._popen.wait(PATIENCE)

    def kill(self) -> None:
        """See that nothing is left of it."""
        if self._popen.poll() is None:
            self._kill("KILL")
            self._popen.wait(PATIENCE)

    def _kill(self, number: str) -> None:
        subprocess.run([*self._crun, "kill", self._name, number], check=True, timeout=PATIENCE)


def _enter(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
