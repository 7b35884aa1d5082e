"""Pending: the requests of a session whose responses come on one stream, in any order."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages


class Pending:
    """What has been requested and not been answered, by the ids of the requests."""

    def __init__(self) -> None:
        self._responses: dict[object, Deferred[Json]] = {}

    def __len__(self) -> int:
        return len(self._responses)

    def expect(self, message: Json) -> Deferred[Json]:
        """Fires with the response to the request *message*; :meth:`forget` it in the end."""
        response = self._responses[message["id"]] = Deferred()
        return response

    def forget(self, message: Json) -> None:
        """Nobody waits any more for the response to *message*."""
        self._responses.pop(message["id"], None)

    def take(self, message: Json) -> bool:
        """Hand *message* to who waits for it, if it is a response that somebody waits for.

        An error that does not say what it is about is that of the only request there is.
        """
        response = None
        request_id = messages.response_id(message)
        if messages.is_response(message) and isinstance(request_id, str | int):
            response = self._responses.pop(request_id, None)
        elif messages.is_error_without_id(message) and len(self._responses) == 1:
            response = self._responses.popitem()[1]
        if response is None:
            return False
        response.callback(message)
        return True

    def fail(self, reason: McpBroke) -> None:
        """There will be no responses any more."""
        responses, self._responses = list(self._responses.values()), {}
        for response in responses:
            response.errback(reason)
