"""ChatCompletions: answers ``POST /v1/chat/completions``, unary or streamed."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.chat.answer import UnaryAnswer
from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.injection import why_not_injected
from llamaproxy.chat.loop import ToolLoop
from llamaproxy.chat.messages import as_object, parse_request, wants_json
from llamaproxy.chat.request_checks import check_coding, check_origin
from llamaproxy.chat.round_merging import CompletionHeader
from llamaproxy.chat.streamed import StreamedAnswer
from llamaproxy.cors import CorsMemory
from llamaproxy.errors import ProxyError, UpstreamTimeout, UpstreamUnavailable
from llamaproxy.events import ChatBegan, Tell, tell_nobody
from llamaproxy.heads import Fields, headers_of
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord, name_of
from llamaproxy.request import ProxyRequest
from llamaproxy.upstream.client_context import ClientContext, ClientContextReader
from llamaproxy.upstream.completions import ClientCompletions, Completions
from llamaproxy.upstream.headers import answer_fields


@attrs.frozen(eq=False, repr=False)
class ChatCompletions:
    """Reads chat completion requests, has the loop answer them, and reports errors.

    *keep_alive*: seconds of silence in a stream until a comment is sent.
    """

    _loop: ToolLoop
    _upstream: Completions
    _clock: IReactorTime
    _keep_alive: float
    _bodies: BodyBudget
    _clients: ClientContextReader = attrs.Factory(ClientContextReader)
    _cors: CorsMemory = attrs.Factory(CorsMemory)
    _tell: Tell = tell_nobody

    async def respond(self, request: ProxyRequest) -> bytes | None:
        """The body of a unary answer; None if it was streamed, and has been sent already.

        :raises ProxyError: if the request fails before anything has been sent.
        """
        check_origin(request.head)
        check_coding(request.head)
        client = self._clients.of(request, request.key_id)
        record = request.record.chat = ChatRecord(request.record, self._clock.seconds)
        content: Any = request.content
        try:
            content.seek(0)
            text = content.read()
            content.close()  # its memory would be held until the answer has ended
            held = self._bodies.hold(text)
            try:
                chat = _Chat(request, parse_request(text), client, record)
                del text
                record.model = name_of(chat.body.get("model"))
                record.streamed = bool(chat.body.get("stream"))
                record.conversation = name_of(client.chat)
                self._tell(ChatBegan(record))
                return await self._respond(chat)
            finally:
                self._bodies.release(held)
        except BaseException as error:
            if isinstance(error, ProxyError):
                await self._learn_cors(request, error)
            if record.run:
                # SDKs heed it: tools that have run must not be run again (L15c).
                request.responseHeaders.setRawHeaders(b"X-Should-Retry", [b"false"])
            raise

    async def _learn_cors(self, request: ProxyRequest, error: ProxyError) -> None:
        """Ask the upstream whether this request's page may read *error*, if it is not known."""
        origin = request.head.origin
        unreachable = isinstance(error, UpstreamUnavailable | UpstreamTimeout)
        if origin is None or origin in self._cors or unreachable or request.channel is None:
            return
        try:
            self._cors.learn(origin, await self._upstream.preflight(origin))
        except ProxyError:
            return
        self._cors.apply(origin, request.responseHeaders)

    async def _respond(self, chat: _Chat) -> bytes | None:
        header = CompletionHeader(chat.body.get("model"))
        cards = chat.field(b"x-openwebui-message-id") != ""
        relay = _AnswerFields(chat.request, self._cors).relay
        completions = self._upstream.for_client(chat.client, relay)
        if chat.body.get("stream"):
            await self._stream(chat, completions, header, cards)
            return None
        answer = UnaryAnswer(completions, header, cards, wants_json(chat.body))
        await self._answer(chat, answer)
        text = jsontext.dumps(answer.result())
        chat.request.relayed_fields = [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(text)),
            *chat.request.relayed_fields,
        ]
        return text

    async def _stream(
        self, chat: _Chat, completions: ClientCompletions, header: CompletionHeader, cards: bool
    ) -> None:
        request, body = chat.request, chat.body
        events = EventStream(request, self._clock, self._keep_alive, chat.record)
        include_usage = bool(as_object(body.get("stream_options")).get("include_usage"))
        answer = StreamedAnswer(completions, header, events, include_usage, cards, wants_json(body))
        try:
            await self._answer(chat, answer)
            await answer.end()
        except Exception as failure:
            if request.channel is None or not events.started:
                raise
            await answer.fail(request.noted(failure))
        finally:
            events.close()

    def _answer(self, chat: _Chat, answer: UnaryAnswer | StreamedAnswer) -> Awaitable[None]:
        body, patterns = chat.body, chat.field(b"x-llamaproxy-tools")
        if patterns:
            chat.record.note_patterns(patterns)
        reason = why_not_injected(body, patterns, chat.field(b"x-openwebui-task"))
        if reason:
            chat.record.not_injected = reason
            return self._loop.pass_on(body, chat.client, answer, chat.record)
        listed = [word.strip() for word in patterns.split(",") if word.strip()]
        return self._loop.run(body, chat.client, answer, listed or None, chat.record)


@attrs.define(eq=False, repr=False)
class _Chat:
    """A chat completion request, and the record of its answer."""

    request: ProxyRequest
    body: Json
    client: ClientContext
    record: ChatRecord

    def field(self, name: bytes) -> str:
        """The request's fields of that *name*, in lower case, joined (RFC 9110 section 5.3)."""
        values = self.request.head.by_name.get(name)
        return b",".join(values).decode("latin-1").strip() if values else ""


class _AnswerFields:
    """Relays the header fields of the upstream's answers until the client's has begun (L8)."""

    def __init__(self, request: ProxyRequest, cors: CorsMemory) -> None:
        self._request = request
        self._cors = cors

    def relay(self, status: int, fields: Fields) -> None:
        """Replace the fields of the round before by those in *fields*, of an answer of *status*."""
        request = self._request
        if request.startedWriting:
            return
        if (origin := request.head.origin) is not None:
            answer = headers_of(fields)
            self._cors.learn_from_answer(origin, status, answer, request.responseHeaders)
        request.relayed_fields = answer_fields(fields)
