"""What twistd's plugin names: the options, and the daemon, which is loaded once they are right."""

from __future__ import annotations

import gc

from twisted.application.service import IService

from llamaproxy.config.options import Options

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The daemon that *options* describe, loaded and built."""
    # Modules and what they define stay: while they are loaded, the collector would look through
    # them again and again, for a tenth of the start, and find nothing.
    gc.disable()
    try:
        from llamaproxy import tap

        service = tap.makeService(options)
    finally:
        gc.enable()
    gc.freeze()  # nor does it look at them while requests are served
    return service
