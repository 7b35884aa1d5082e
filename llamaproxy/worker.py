"""A process that serves clients for a daemon with ``--workers``, which starts it.

It is given the daemon's arguments, its end of the link to it, and the listening sockets.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.usage import UsageError

from llamaproxy import jsontext
from llamaproxy.config import logformat
from llamaproxy.config.options import Options
from llamaproxy.start import YOUNG
from llamaproxy.workers.child import WorkerLife
from llamaproxy.workers.commands import Ready
from llamaproxy.workers.link import LINK_FD, Link
from llamaproxy.workers.logpipe import LogPipe
from llamaproxy.workers.process import FILES_FD, WORKER_VARIABLE

_log = Logger()


def main() -> None:
    """Serve until the parent says that it is enough; if that is not possible, say why and exit."""
    try:
        number, count, reactor, directory = os.environ.pop(WORKER_VARIABLE).split(maxsplit=3)
    except (KeyError, ValueError):
        raise SystemExit("a worker is started by twistd llamaproxy --workers") from None
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])  # as llamaproxy.start does
    gc.freeze()
    try:
        importlib.import_module(reactor).install()
        with _paths_beginning_in(directory):
            with open(FILES_FD, "rb") as files:
                options = Options(files=jsontext.loads(files.read()))
            options.parseOptions(sys.argv[1:])
            link, life, services = _built(options, int(number), int(count))
        _serve(link, life, services)
    except (SystemExit, Exception) as error:
        # One line, which the parent shows; there is no log yet, or it has the rest.
        if not isinstance(error, UsageError | SystemExit):
            _log.failure("a worker cannot start")
        reason = str(error).removeprefix("twistd llamaproxy: ")
        os.write(2, f"{logformat.safe(reason or type(error).__name__)}\n".encode())
        raise SystemExit(1) from None


@contextmanager
def _paths_beginning_in(directory: str) -> Iterator[None]:
    """Be for a while where the daemon was started, if this user may, and not where it went."""
    here = None
    with suppress(OSError):
        here = os.open(".", os.O_RDONLY)
        os.chdir(directory)
    yield
    if here is not None:
        os.fchdir(here)
        os.close(here)


def _built(options: Options, number: int, count: int) -> tuple[Link, WorkerLife, MultiService]:
    """The link to the parent, the worker's part in its life, and what it consists of."""
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from llamaproxy import crew

    logformat.worker = number
    logformat.as_json = options["log-format"] == "json"
    logformat.threshold.level = options["log-level"]
    globalLogBeginner.beginLoggingTo([logformat.observer_on(LogPipe(1))])
    link = Link()
    return link, *crew.make_worker(options, number, count, reactor, link)


def _serve(link: Link, life: WorkerLife, services: MultiService) -> None:
    from twisted.internet import reactor

    gc.freeze()
    services.privilegedStartService()
    services.startService()
    scheduler: Any = reactor
    scheduler.adoptStreamConnection(LINK_FD, socket.AF_UNIX, Factory.forProtocol(lambda: link))
    os.close(LINK_FD)
    link.lost.addCallback(lambda _: life.parent_gone())
    tell: Any = link.callRemote
    tell(Ready).addErrback(lambda _: None)  # link.lost says it too
    scheduler.callWhenRunning(life.take_signals)
    scheduler.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()
