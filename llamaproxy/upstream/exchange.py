"""Exchanges: what asks servers, and what is told of their answers, by plain calls."""

from __future__ import annotations

from typing import Protocol

from llamaproxy.heads import SomeFields
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.response_head import ResponseHead

#: The field that asks for another protocol (RFC 9110 section 7.8): the only one that is known.
WEBSOCKET = (b"Upgrade", b"websocket")


class AnswerTaker(Protocol):
    """Is told of an answer."""

    def answered(self, head: ResponseHead) -> None:
        """The head is there: called once and first, unless there is no answer.

        What it says of the body stays as it is: the connection goes by that. The fields are the
        taker's.
        """

    def received(self, data: bytes) -> None:
        """The next bytes of the body, never none.

        May be called once more after :meth:`Exchange.pause`, with what had been read by then.
        """

    def ended(self) -> None:
        """The answer is complete: the last call."""

    def failed(self, error: Exception) -> None:
        """There is no answer, or no end of it: the last call. *error* is a ``ProxyError``."""


class Exchange(Protocol):
    """A request that is under way, and its answer. After its end nothing here does anything."""

    def pause(self) -> None:
        """Read no more of the answer, until :meth:`resume`."""

    def resume(self) -> None:
        """Read on."""

    def cancel(self) -> None:
        """End it now: the taker is told nothing any more, and the connection is closed."""


class Sender(Protocol):
    """Sends requests."""

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        """Send a request for *target*, and tell *taker* of the answer.

        The taker may be told of a failure before this returns, but of nothing else.

        :param target: a URL, or what follows its authority if the server is known.

        :param fields: without ``Host`` and those of the framing.

        :param body: is closed at the end, however that comes about.

        :raises BadRequest: if this could not be sent as it is.
        """
