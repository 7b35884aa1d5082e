"""What a worker and its parent ask each other about the worker's life."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.protocols import amp


class Ready(amp.Command):
    """To the parent: clients are served from now on."""


class Ping(amp.Command):
    """To a worker: a sign of life."""


class Stop(amp.Command):
    """To a worker: end, once what is being served has ended; or, *now*, without waiting for it."""

    arguments: ClassVar[Any] = ((b"now", amp.Boolean()),)


class Reload(amp.Command):
    """To a worker: read the files again that are read again on SIGHUP."""
