"""What twistd's plugin names: the options, and the daemon, which is loaded once they are right."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.application.service import IService


@contextmanager
def _loading() -> Iterator[None]:
    """What comes into being in the block stays, so the garbage collector does not look through it.

    Not on the way, which would take a tenth of the start, and not while requests are served.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


with _loading():
    from llamaproxy.config.options import Options

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The daemon that *options* describe, loaded and built."""
    with _loading():
        from llamaproxy import tap

        return tap.makeService(options)
