"""DemoService: runs the stand-in for Llama Stack beside the proxy."""

from __future__ import annotations

import socket
import time
from typing import Any, ClassVar

from hyperlink import DecodedURL
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.server import Site

from llamaproxy.demo.stack import DemoStack


class _QuietSite(Site):
    """Logs nothing: every request of the stand-in's is one of the proxy's own."""

    def log(self, request: Any) -> None:
        pass


class DemoService(Service):
    """Runs the stand-in for Llama Stack on a loopback port of the system's choice."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        # Bound now, because the rest of the daemon must know the port before anything runs.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.url = DecodedURL.from_text(f"http://127.0.0.1:{self._socket.getsockname()[1]}")
        self._port: Any = None

    def startService(self) -> None:
        Service.startService(self)
        quiet: Any = _QuietSite
        site = quiet(DemoStack(self._reactor, now=time.time).resource())
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), socket.AF_INET, site)
        self._socket.close()
        self._log.warn(
            "demo: the model is scripted, a stand-in that knows a few words; the tools run"
        )

    def stopService(self) -> Deferred[None] | None:
        Service.stopService(self)
        stopped: Deferred[None] | None = self._port.stopListening()
        return stopped
