"""What twistd's plugin names: the options, and the daemon, which is loaded once they are right."""

from __future__ import annotations

import gc

from twisted.application.service import IService

from llamaproxy.config.options import Options

__all__ = ["Options", "makeService"]

#: Objects more than there were after which the collector looks through those that are new. By its
#: own 700 it would do that for every dozen of chats, and find that they are still being answered:
#: a chat leaves no garbage, nor does one that the server refuses or breaks off, nor a client that
#: leaves. A server that cannot be reached, or a coroutine that is cancelled (a call's, or the
#: question what the server is), leaves up to some hundreds of objects in cycles of Twisted's, but
#: no body. So many are those of the chats of 150 clients.
YOUNG = 10000


def makeService(options: Options) -> IService:
    """The daemon that *options* describe, loaded and built.

    :raises SystemExit: with the outcome of ``--check``, for which there is no daemon.
    """
    # What is loaded stays. The garbage collector looks through it no more: not through twistd
    # while the rest is loaded, which would take a twentieth of the start, and not while requests
    # are served.
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    gc.freeze()
    from llamaproxy import tap

    if options["check"]:
        # Now, while twistd has neither a log nor a pid file, and is not in the background.
        raise SystemExit(tap.check(options))
    service = tap.makeService(options)
    gc.freeze()
    return service
