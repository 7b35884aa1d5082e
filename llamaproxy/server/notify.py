"""NotifyService: tells the service manager what the daemon is doing (sd_notify(3), systemd)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

ADDRESS_VARIABLE = "NOTIFY_SOCKET"


class NotifyService(Service):
    """Says when clients are served, when the daemon stops or reloads, and that it is not stuck."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, reactor: Any, environment: Mapping[str, str], serving: Deferred[None] | None = None
    ) -> None:
        """:param environment: has :data:`ADDRESS_VARIABLE`.

        :param serving: fires when clients are served; by default they are when the reactor runs.
        """
        self._reactor = reactor
        address = environment[ADDRESS_VARIABLE]
        # An abstract name is written with an @ for the byte 0 that it begins with.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._serving = serving
        self._interval = _watchdog_seconds(environment) / 2

    def startService(self) -> None:
        Service.startService(self)
        if self._interval:
            self._reactor.callWhenRunning(self._sign)
        if self._serving is None:
            self._reactor.callWhenRunning(self.notify, "READY=1")
        else:
            self._serving.addCallback(lambda _: self.notify("READY=1"))

    def stopService(self) -> None:
        Service.stopService(self)
        self.notify("STOPPING=1")

    def reloading(self, done: Deferred[None] | None) -> None:
        """What is read again on SIGHUP is being read, until *done* fires; None: it has been."""
        self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if done is None:
            self.notify("READY=1")
        else:
            done.addCallback(lambda _: self.notify("READY=1"))

    def notify(self, message: str) -> None:
        """Send one message; a service manager that does not take it is no reason to end."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.setblocking(False)
                sending.sendto(message.encode("ascii"), self._address)
        except OSError as error:
            self._log.warn("the service manager does not hear: {reason}", reason=str(error))

    def _sign(self) -> None:
        """A sign of life, now and until the process ends: stopping may take a while."""
        self.notify("WATCHDOG=1")
        self._reactor.callLater(self._interval, self._sign)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Seconds in which a sign of life is due; 0 if none is (sd_watchdog_enabled(3))."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
