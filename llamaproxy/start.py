"""What twistd's plugin names: the options, and the daemon, which is loaded once they are right."""

from __future__ import annotations

import gc

from twisted.application.service import IService

from llamaproxy.config.options import Options

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The daemon that *options* describe, loaded and built."""
    # What is loaded stays. The garbage collector looks through it no more: not through twistd
    # while the rest is loaded, which would take a twentieth of the start, and not while requests
    # are served.
    gc.freeze()
    from llamaproxy import tap

    service = tap.makeService(options)
    gc.freeze()
    return service
