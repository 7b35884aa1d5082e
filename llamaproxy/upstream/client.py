"""LlamaStackClient: the requests that llamaproxy itself makes of a Llama Stack server."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import attrs
from hyperlink import DecodedURL, EncodedURL
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.errors import (
    ProxyError,
    UpstreamBroke,
    UpstreamNotJson,
    UpstreamRedirected,
    UpstreamRefused,
)
from llamaproxy.heads import Fields, headers_of
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import BytesUpload
from llamaproxy.upstream.chunks import (
    MAX_ANSWER_BYTES,
    ChunkHandler,
    chunks_in,
    completion_in,
    looks_like_json,
    relay_chunks,
)
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.failures import is_page, redirect_target, response_within
from llamaproxy.upstream.relay import read_body
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.upstream.responses import Response, SendingAgent
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.treq_client import AgentForTreq, treq_request
from llamaproxy.upstream.urls import as_uri, read_url, url_for_log
from llamaproxy.upstream.whole import ERROR_TIMEOUT, MAX_ERROR_BYTES, WholeAnswer

#: The most bytes of an answer to a request of the proxy's own: a list of tools, a tool's result.
MAX_JSON_BYTES = 16 * 1024 * 1024

#: What the proxy itself can read.
_ACCEPT = (b"Accept", b"application/json, text/event-stream")

#: What it sends.
_JSON = (b"Content-Type", b"application/json")

#: Seconds for a CORS preflight request.
PREFLIGHT_TIMEOUT = 2.0


#: Is called with the status and the fields of an answer as soon as they are there.
OnFields = Callable[[int, Fields], None]


class _ReadyURL(EncodedURL):
    """A URL that is encoded already: treq would encode it again for every request."""

    _ready: str

    def to_uri(self) -> _ReadyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._ready


def _locate(error: ProxyError, url: _ReadyURL) -> None:
    """Note *url* as the place of *error*, for the log, unless it has another."""
    error.where = error.where or url_for_log(url.to_text())


@lru_cache(maxsize=256)
def _url(base: str, path: str) -> _ReadyURL:
    # The base is text because hashing a DecodedURL decodes its host, every time.
    return _encoded(read_url(base), path, {})


def _encoded(base: DecodedURL, path: str, query: dict[str, str]) -> _ReadyURL:
    # Not kept like the others: a query may hold a user's token.
    segments = (*base.path, *path.strip("/").split("/"))
    url = as_uri(base.replace(path=segments, query=tuple(query.items())))
    ready = _ReadyURL(url.scheme, url.host, url.path, url.query, port=url.port)
    ready._ready = url.to_text()
    return ready


@attrs.frozen(eq=False, repr=False)
class LlamaStackClient:
    """Requests JSON and completions of a Llama Stack server, within limits of size and time.

    *clock* is that of all time limits; *timeout*: seconds to the first byte of an answer, and of
    silence after it.
    """

    _agent: SendingAgent
    _url: DecodedURL
    clock: IReactorTime
    timeout: float
    _secret: Secret = attrs.Factory(Secret)
    _base: str = attrs.field(init=False)

    @_base.default
    def _text_of_url(self) -> str:
        return self._url.to_text()

    async def ask(
        self,
        method: str,
        path: str,
        caller: ClientContext,
        body: bytes | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
        limit: int = MAX_JSON_BYTES,
    ) -> Json:
        """The JSON object, of at most *limit* bytes, that the server answers.

        :param timeout: seconds; None for the client's own.

        :raises UpstreamRefused: if the status is not 2xx.
        :raises ProxyError: if there is no usable answer.
        """
        answer = await self.ask_any(method, path, caller, body, query, timeout, limit)
        if not isinstance(answer, dict):
            raise UpstreamBroke("Llama Stack did not answer with a JSON object.")
        return answer

    async def ask_any(
        self,
        method: str,
        path: str,
        caller: ClientContext,
        body: bytes | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
        limit: int = MAX_JSON_BYTES,
    ) -> Any:
        """The same of whatever JSON value."""
        seconds = self.timeout if timeout is None else timeout
        url = _encoded(self._url, path, query) if query else _url(self._base, path)
        fields = caller.fields()
        if body is not None:
            fields.append(_JSON)
        try:
            head, text = await self._whole(method, url, fields, body, seconds, limit)
            return self._json_in(head.status, head.fields, text)
        except ProxyError as error:
            _locate(error, url)
            raise

    async def look(
        self,
        method: str,
        path: str,
        caller: ClientContext,
        body: bytes | None = None,
        timeout: float | None = None,
        limit: int = MAX_ERROR_BYTES,
    ) -> tuple[ResponseHead, bytes]:
        """The answer of whatever status and kind, for who wants to know what there is.

        :raises ProxyError: if there is none of HTTP, or one of more than *limit* bytes.
        """
        url = _url(self._base, path)
        fields = caller.fields()
        if body is not None:
            fields.append(_JSON)
        seconds = self.timeout if timeout is None else min(timeout, self.timeout)
        try:
            head, text = await self._whole(method, url, fields, body, seconds, limit)
        except ProxyError as error:
            _locate(error, url)
            raise
        head.fields = self._secret.masked_fields(head.fields)
        return head, self._secret.masked(text)

    async def preflight(self, path: str, origin: bytes) -> Headers:
        """The fields of the answer to a CORS preflight for a POST to *path* by a page of *origin*.

        :raises ProxyError: if there is none, or a 5xx, which says nothing of pages.
        """
        fields = [
            (b"Origin", origin),
            (b"Access-Control-Request-Method", b"POST"),
            (b"Access-Control-Request-Headers", b"content-type"),
        ]
        url = _url(self._base, path)
        head, _ = await self._whole(
            "OPTIONS", url, fields, None, PREFLIGHT_TIMEOUT, MAX_ERROR_BYTES
        )
        if head.status >= 500:
            raise UpstreamRefused(head.status, "")
        return headers_of(head.fields)

    async def whole(
        self, path: str, caller: ClientContext, body: BytesUpload, on_fields: OnFields
    ) -> bytes:
        """The answer to a request for a completion, for :meth:`completion`.

        All of the client's fields are sent along. *on_fields* is called with those of the answer,
        whatever its status, as soon as they are there.

        :raises UpstreamRefused: for an error status.
        :raises ProxyError: if there is no answer.
        """

        def on_head(head: ResponseHead) -> None:
            on_fields(head.status, self._secret.masked_fields(head.fields))

        url = _url(self._base, path)
        answer = WholeAnswer(self.clock, self.timeout, MAX_ANSWER_BYTES, on_head)
        answer.collect(self._post(url, caller, body, answer))
        try:
            head, text = await answer.collected
            if not 200 <= head.status < 300:
                self._json_in(head.status, head.fields, text)
        except ProxyError as error:
            _locate(error, url)
            raise
        return text

    def completion(self, text: bytes) -> Json | list[Json | None]:
        """The completion in *text*, or the chunks of one that was not to be streamed.

        :raises UpstreamRefused: for an error in it.
        :raises ProxyError: if it is none.
        """
        try:
            if text.strip() and not looks_like_json(text):
                return chunks_in(text)
            return completion_in(text)
        except ProxyError as error:
            raise self._located(error) from None

    async def open(
        self, path: str, caller: ClientContext, body: BytesUpload, on_fields: OnFields
    ) -> Response:
        """The answer, as :meth:`whole` has it, that has begun to come: for :meth:`relay`."""
        url = _url(self._base, path)
        response = Response()
        response.exchange = self._post(url, caller, body, response)
        try:
            await response_within(response.begun, self.clock, self.timeout)
            on_fields(response.code, self._secret.masked_fields(response.fields))
            if not 200 <= response.code < 300:
                text = await self._error_body(response, min(self.timeout, ERROR_TIMEOUT))
                self._json_in(response.code, response.fields, text)
        except ProxyError as error:
            _locate(error, url)
            raise
        response.fields = []  # a stream would keep them to its end
        return response

    async def relay(self, response: Response, handle: ChunkHandler) -> None:
        """Hand the chunks of *response* to *handle* as they come (see :func:`relay_chunks`)."""
        try:
            await relay_chunks(response, self.clock, self.timeout, handle)
        except ProxyError as error:
            raise self._located(error) from None

    def _located(self, error: ProxyError) -> ProxyError:
        """*error*, which was in an answer of the server's, without a secret that it repeats."""
        if isinstance(error, UpstreamRefused):
            error = self._secret.refusal(error)
        error.where = error.where or url_for_log(self._base)
        return error

    def _post(
        self, url: _ReadyURL, caller: ClientContext, body: BytesUpload, taker: AnswerTaker
    ) -> Exchange:
        """Request a completion, which *taker* is told of."""
        fields = caller.chat_fields()
        fields += (_JSON, _ACCEPT)
        target = url.to_text().encode("ascii") + caller.query
        return self._agent.send(b"POST", target, fields, body, taker)

    async def _whole(
        self,
        method: str,
        url: _ReadyURL,
        fields: Fields,
        body: bytes | None,
        timeout: float,
        limit: int,
    ) -> tuple[ResponseHead, bytes]:
        """Head and body of an answer, by treq."""
        fields.append(_ACCEPT)
        agent = AgentForTreq(self._agent, fields, self.clock, timeout, limit)
        upload = None if body is None else BytesUpload(body)
        await treq_request(agent, method, url, upload)
        return agent.answer

    def _json_in(self, status: int, fields: Fields, text: bytes) -> Any:
        """The JSON value *text* of an answer, of whatever kind.

        :raises UpstreamRefused: for an error status.
        :raises UpstreamBroke: for a redirect, or what is no JSON.
        """
        try:
            answer = jsontext.loads_anyhow(text)
        except ValueError:
            answer = text[:2000].decode("utf-8", "replace")
        if 200 <= status < 300:
            if isinstance(answer, str):
                kinds = [value for name, value in fields if name.lower() == b"content-type"]
                raise UpstreamNotJson(is_page(kinds, text))
            return answer
        if status < 400:
            locations = [value for name, value in fields if name.lower() == b"location"]
            target = redirect_target([self._secret.masked(each) for each in locations])
            raise UpstreamRedirected(status, target)
        raise self._secret.refusal(UpstreamRefused(status, answer))

    async def _error_body(self, response: Any, timeout: float) -> bytes:
        """The body of an error; empty if it breaks off, for its status is enough."""
        try:
            return await read_body(response, self.clock, timeout, MAX_ERROR_BYTES)
        except ProxyError:
            return b""
