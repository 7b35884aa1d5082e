"""What twistd's plugin names: the options, and the daemon, which is loaded once they are right."""

from __future__ import annotations

import gc

from twisted.application.service import IService

from llamaproxy.config.options import Options

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The daemon that *options* describe, loaded and built.

    :raises SystemExit: with the outcome of ``--check``, for which there is no daemon.
    """
    # What is loaded stays. The garbage collector looks through it no more: not through twistd
    # while the rest is loaded, which would take a twentieth of the start, and not while requests
    # are served.
    gc.freeze()
    from llamaproxy import tap

    if options["check"]:
        # Now, while twistd has neither a log nor a pid file, and is not in the background.
        raise SystemExit(tap.check(options))
    service = tap.makeService(options)
    gc.freeze()
    return service
