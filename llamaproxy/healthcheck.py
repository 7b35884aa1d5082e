"""``python -m llamaproxy.healthcheck``: whether the daemon of this container answers.

It asks where the daemon was told to listen: by the arguments of process 1, which is the daemon or
what started it, and by the environment, which both share.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import sys
from pathlib import Path

from twisted.python.usage import UsageError

from llamaproxy.config.options import Options
from llamaproxy.server.places import client_url

#: Seconds that the daemon is given to answer.
TIMEOUT = 4.0


def daemon_arguments(command: bytes) -> list[str]:
    """The arguments of llamaproxy in a *command* line of twistd, as ``/proc`` has it."""
    words = [word.decode("utf-8", "surrogateescape") for word in command.split(b"\0") if word]
    return words[words.index("llamaproxy") + 1 :] if "llamaproxy" in words else []


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        http.client.HTTPConnection.__init__(self, "localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def connection_to(endpoint: str) -> http.client.HTTPConnection:
    """A connection to the Twisted *endpoint*; whose certificate it is does not matter here.

    :raises ValueError: if nobody but the daemon knows where it listens.
    """
    scheme, _, place = client_url(endpoint).partition("://")
    if scheme == "http+unix":
        return _UnixConnection(place)
    match = re.fullmatch(r"(.*):([0-9]+)", place)
    if match is None:
        raise ValueError(f"the port of {endpoint!r} is not known here")
    host, port = match[1].strip("[]"), int(match[2])
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)


def main() -> int:
    """The exit status: 0 if the daemon says that it is healthy."""
    options = Options()
    try:
        options.parseOptions(daemon_arguments(Path("/proc/1/cmdline").read_bytes()))
        [endpoint, *_] = options["listen"]
        connection = connection_to(endpoint)
        # A name that is served whatever --allowed-hosts says.
        connection.request("GET", "/health", headers={"Host": "localhost"})
        response = connection.getresponse()
        status, body = response.status, response.read(200)
    except (OSError, ValueError, UsageError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(status, body.decode("utf-8", "replace"))
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
