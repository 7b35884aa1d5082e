"""ChatCompletions: one HTTP request, unary or streamed, around the loop."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.chat.answer import StreamedAnswer, UnaryAnswer
from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.loop import ToolLoop
from llamaproxy.chat.messages import as_object, parse_request, wants_json
from llamaproxy.chat.openwebui import is_background_task
from llamaproxy.chat.request_checks import check_coding, check_origin
from llamaproxy.chat.round_merging import CompletionHeader
from llamaproxy.cors import CorsMemory, origin_in
from llamaproxy.errors import ProxyError, ShuttingDown, UpstreamTimeout, UpstreamUnavailable
from llamaproxy.events import ChatRecord, FirstByte, Tell, tell_nobody
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest
from llamaproxy.upstream.client_context import ClientContext, ClientContextReader
from llamaproxy.upstream.completions import ClientCompletions, Completions
from llamaproxy.upstream.headers import answer_fields


@attrs.frozen
class ChatCompletions:
    """Answers chat completion requests.

    *keep_alive*: seconds between comments in a silent stream.
    """

    _loop: ToolLoop
    _upstream: Completions
    _clock: IReactorTime
    _keep_alive: float
    _bodies: BodyBudget
    _callers: ClientContextReader = attrs.Factory(ClientContextReader)
    _cors: CorsMemory = attrs.Factory(CorsMemory)
    _tell: Tell = tell_nobody
    _log: ClassVar[Logger] = Logger()

    async def respond(self, request: ProxyRequest) -> bytes | None:
        """The whole answer, or None if it has been streamed already.

        :raises ProxyError: if nothing has been sent to the client yet.
        """
        check_origin(request.requestHeaders)
        check_coding(request.requestHeaders)
        caller = self._callers.of(request, request.identity)
        chat = ChatRecord()
        content: Any = request.content
        try:
            content.seek(0)
            text = content.read()
            content.close()  # it would be kept until the answer has ended
            with self._bodies.holding(text):
                body = parse_request(text)
                del text
                return await self._respond(request, body, caller, chat)
        except BaseException as error:
            if isinstance(error, ProxyError):
                await self._ask_for_page(request, error)
            if chat.run:
                # SDKs obey it: what a tool has done must not be done again (L15c).
                request.responseHeaders.setRawHeaders(b"X-Should-Retry", [b"false"])
            raise
        finally:
            request.note(**_counts(chat))

    async def _ask_for_page(self, request: ProxyRequest, error: ProxyError) -> None:
        """Find out whether a page may read *error*, if nothing is known of it."""
        origin = origin_in(request.requestHeaders)
        unreachable = isinstance(error, UpstreamUnavailable | UpstreamTimeout)
        if origin is None or origin in self._cors or unreachable or request.channel is None:
            return
        try:
            self._cors.learn(origin, await self._upstream.preflight(origin))
        except ProxyError:
            return
        self._cors.apply(origin, request.responseHeaders)

    async def _respond(
        self, request: ProxyRequest, body: Json, caller: ClientContext, chat: ChatRecord
    ) -> bytes | None:
        identity = CompletionHeader(body.get("model"), f"chatcmpl-{secrets.token_hex(16)}")
        cards = _field(request, b"x-openwebui-message-id") != ""
        completions = self._upstream.for_client(caller, _AnswerFields(request, self._cors).take)
        if body.get("stream"):
            await self._stream(request, body, caller, completions, identity, cards, chat)
            return None
        answer = UnaryAnswer(completions, identity, cards, wants_json(body))
        await self._answer(request, body, caller, answer, chat)
        text = jsontext.dumps(answer.result())
        self._tell(FirstByte(chat))
        request.responseHeaders.setRawHeaders(b"Content-Type", [b"application/json"])
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(text)])
        return text

    async def _stream(
        self,
        request: ProxyRequest,
        body: Json,
        caller: ClientContext,
        completions: ClientCompletions,
        identity: CompletionHeader,
        cards: bool,
        chat: ChatRecord,
    ) -> None:
        events = EventStream(
            request, self._clock, self._keep_alive, lambda: self._tell(FirstByte(chat))
        )
        options = as_object(body.get("stream_options"))
        include_usage = bool(options.get("include_usage"))
        answer = StreamedAnswer(
            completions, identity, events, include_usage, cards, wants_json(body)
        )
        try:
            await self._answer(request, body, caller, answer, chat)
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
            request.note(error=error.logged, kind=error.kind)
            await answer.fail(error)
        finally:
            events.close()

    async def _answer(
        self,
        request: ProxyRequest,
        body: Json,
        caller: ClientContext,
        answer: UnaryAnswer | StreamedAnswer,
        chat: ChatRecord,
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
            await self._loop.pass_on(body, caller, answer, chat)
        else:
            patterns = [word.strip() for word in wanted.split(",") if word.strip()]
            await self._loop.run(body, caller, answer, patterns or None, chat)


class _AnswerFields:
    """Gives a client the fields of the upstream's last answer, until its own begins (L8)."""

    def __init__(self, request: ProxyRequest, cors: CorsMemory) -> None:
        self._request = request
        self._cors = cors
        self._given: list[bytes] = []

    def take(self, headers: Headers) -> None:
        """*headers* are those of the upstream's answer to the round that has begun."""
        if self._request.startedWriting:
            return
        fields = self._request.responseHeaders
        self._cors.answered(origin_in(self._request.requestHeaders), headers, fields)
        for name in self._given:
            fields.removeHeader(name)
        relayed = list(answer_fields(headers).getAllRawHeaders())
        self._given = [name for name, _ in relayed]
        for name, values in relayed:
            fields.setRawHeaders(name, values)


def _field(request: ProxyRequest, name: bytes) -> str:
    """A header field's value, its repetitions joined by commas (RFC 9110 section 5.3)."""
    values = request.requestHeaders.getRawHeaders(name) or []
    return b",".join(values).decode("latin-1").strip()


def _counts(chat: ChatRecord) -> dict[str, int]:
    """What the access line says of a chat; of one that was refused at once, nothing."""
    counts = {"tools": chat.tools, "rounds": chat.rounds, "calls": chat.calls}
    if chat.failed:
        counts["failed"] = chat.failed
    return counts if chat.rounds else {}
