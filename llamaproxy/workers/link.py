"""Link: what a worker and its parent ask each other, as AMP over a pair of sockets.

What they ask are commands of the features that need it, each with a locator of its own that
answers them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.deferreds import within
from llamaproxy.jsontext import Json

_log = Logger()

T = TypeVar("T")

#: Bytes of one value in a box (twisted.protocols.amp: MAX_VALUE_LENGTH).
_MAX_VALUE = 0xFFFF

#: The descriptor of a worker's end.
LINK_FD = 3


class Long(amp.Argument):
    """Bytes of any length: a value of AMP's holds less than 64 KiB, so it takes several.

    Names of arguments are identifiers of Python.
    """

    def __init__(self, optional: bool = False) -> None:
        amp.Argument.__init__(self, optional)
        self._take: Any = self.retrieve

    def toBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        given = self._take(objects, name.decode("ascii"), proto)
        if given is None:
            return  # it is optional
        value = self.toString(given)
        strings[name] = value[:_MAX_VALUE]
        for number, at in enumerate(range(_MAX_VALUE, len(value), _MAX_VALUE), 1):
            strings[b"%b.%d" % (name, number)] = value[at : at + _MAX_VALUE]

    def fromBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        first = self._take(strings, name, proto)
        if first is None:
            return
        parts, number = [first], 1
        while (more := strings.pop(b"%b.%d" % (name, number), None)) is not None:
            parts.append(more)
            number += 1
        objects[name.decode("ascii")] = self.fromString(b"".join(parts))

    def toString(self, inObject: Any) -> bytes:
        value: bytes = inObject
        return value

    def fromString(self, inString: bytes) -> Any:
        return inString


class LongJson(Long):
    """A JSON value of any length."""

    def toString(self, inObject: Any) -> bytes:
        return jsontext.dumps(inObject)

    def fromString(self, inString: bytes) -> Any:
        return jsontext.loads(inString)


@implementer(amp.IResponderLocator)
class _Locators:
    """The first of several that knows a command."""

    def __init__(self, locators: Sequence[Any]) -> None:
        self.all = list(locators)

    def locateResponder(self, name: bytes) -> Any:
        found = (each.locateResponder(name) for each in self.all)
        responder = next((responder for responder in found if responder is not None), None)
        return None if responder is None else partial(_respond, responder)


def _respond(responder: Callable[[amp.Box], Any], box: amp.Box) -> Deferred[Any]:
    """What *responder* answers: any fault of its own is an answer too, and not the link's end."""
    return maybeDeferred(responder, box).addErrback(_as_answer)


def _as_answer(failure: Failure) -> None:
    if failure.check(amp.RemoteAmpError):
        failure.raiseException()
    _log.failure("a process could not answer another", failure)
    remote: Any = amp.RemoteAmpError
    raise remote(amp.UNKNOWN_ERROR_CODE, type(failure.value).__name__)


class Link(amp.AMP):
    """One end: it asks, and has *locators* answer what the other end asks."""

    def __init__(self, *locators: amp.CommandLocator) -> None:
        self._locators = _Locators(locators)
        amp.AMP.__init__(self, locator=self._locators)
        #: Fires, with None, when the other end is gone.
        self.lost: Deferred[None] = Deferred()

    def answer_with(self, *locators: amp.CommandLocator) -> None:
        """Have *locators* answer too, which were built out of what uses the link."""
        self._locators.all += locators

    async def ask(
        self, clock: IReactorTime, seconds: float, command: type[amp.Command], **values: Any
    ) -> Json:
        """What the other end answers.

        :raises TimeoutError: Twisted's, if it does not within so many *seconds*.
        :raises Exception: one of the command's errors, or amp.RemoteAmpError for any other.
        """

        call_remote: Any = self.callRemote

        async def answer() -> Json:
            response: Json = await call_remote(command, **values)
            return response

        return await within(seconds, clock, answer())

    def makeConnection(self, transport: Any) -> None:
        amp.BinaryBoxProtocol.makeConnection(self, transport)  # AMP's own says so in the log

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None
        self.lost.callback(None)
