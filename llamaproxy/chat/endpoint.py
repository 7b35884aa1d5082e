"""ChatCompletions: one HTTP request, unary or streamed, around the loop."""

from __future__ import annotations

import secrets
from typing import ClassVar

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request

from llamaproxy import jsontext
from llamaproxy.access import identity_of
from llamaproxy.chat.answer import Identity, StreamedAnswer, UnaryAnswer
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.loop import ToolLoop
from llamaproxy.chat.messages import parse_request
from llamaproxy.chat.openwebui import is_background_task
from llamaproxy.errors import ProxyError, ShuttingDown
from llamaproxy.jsontext import Json
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.headers import Caller


@attrs.frozen
class ChatCompletions:
    """Answers chat completion requests.

    *keep_alive*: seconds between comments in a silent stream.
    """

    _loop: ToolLoop
    _upstream: Completions
    _clock: IReactorTime
    _keep_alive: float
    _log: ClassVar[Logger] = Logger()

    async def respond(self, request: Request) -> bytes | None:
        """The whole answer, or None if it has been streamed already.

        :raises ProxyError: if nothing has been sent to the client yet.
        """
        assert request.content is not None
        body = parse_request(request.content.read())
        request.content.close()  # it would be kept until the answer has ended
        caller = Caller.of(request.requestHeaders, identity_of(request))
        model = body.get("model")
        identity = Identity(self._clock, model, f"chatcmpl-{secrets.token_hex(16)}")
        cards = _field(request, b"x-openwebui-message-id") != ""
        if body.get("stream"):
            await self._stream(request, body, caller, identity, cards)
            return None
        answer = UnaryAnswer(self._upstream, caller, identity, cards)
        await self._answer(request, body, caller, answer)
        text = jsontext.dumps(answer.result())
        request.responseHeaders.setRawHeaders(b"Content-Type", [b"application/json"])
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(text)])
        return text

    async def _stream(
        self, request: Request, body: Json, caller: Caller, identity: Identity, cards: bool
    ) -> None:
        events = EventStream(request, self._clock, self._keep_alive)
        options = body.get("stream_options")
        wanted = isinstance(options, dict) and bool(options.get("include_usage"))
        answer = StreamedAnswer(self._upstream, caller, identity, events, wanted, cards)
        try:
            await self._answer(request, body, caller, answer)
            await answer.end()
        except CancelledError:
            if request.channel is None or not events.started:
                raise
            # The client is there: it is the daemon that cannot wait any longer.
            await answer.fail(ShuttingDown())
        except Exception as error:
            if not events.started:
                raise
            if not isinstance(error, ProxyError):
                self._log.failure("a stream broke")
                error = ProxyError()
            self._log.warn(
                "a stream ended with an error: {error_type}", error_type=type(error).__name__
            )
            await answer.fail(error)
        finally:
            events.close()

    async def _answer(
        self, request: Request, body: Json, caller: Caller, answer: UnaryAnswer | StreamedAnswer
    ) -> None:
        wanted = _field(request, b"x-llamaproxy-tools")
        plain = (
            body.get("tool_choice") == "none"
            or (isinstance(body.get("n"), int) and body["n"] > 1)
            or wanted.lower() == "none"
            or _field(request, b"x-openwebui-task") != ""
            or is_background_task(body)
        )
        if plain:
            await self._loop.pass_on(body, answer)
        else:
            patterns = [word.strip() for word in wanted.split(",") if word.strip()]
            await self._loop.run(body, caller, answer, patterns or None)


def _field(request: Request, name: bytes) -> str:
    """A header field's value, its repetitions joined by commas (RFC 9110 section 5.3)."""
    values = request.requestHeaders.getRawHeaders(name) or []
    return b",".join(values).decode("latin-1").strip()
