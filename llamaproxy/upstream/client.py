"""LlamaStackClient: the requests that llamaproxy itself makes of a Llama Stack server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import attrs
from hyperlink import DecodedURL, EncodedURL
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from llamaproxy import jsontext
from llamaproxy.errors import (
    BodyTooLarge,
    ProxyError,
    UpstreamBroke,
    UpstreamRefused,
)
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import WholeBody
from llamaproxy.upstream.chunks import (
    MAX_ANSWER,
    ChunkHandler,
    chunks_in,
    completion_in,
    looks_like_json,
    relay_chunks,
)
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.failures import answered, redirect_target
from llamaproxy.upstream.relay import read_body
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.urls import as_uri, bare, read_url

#: Bytes of an answer to a question of the proxy's own: a list of tools, a tool's result.
MAX_ASKED = 16 * 1024 * 1024

#: Bytes and seconds of silence for the body of an error, which says no more than its status does.
_MAX_REFUSAL, _REFUSAL_TIMEOUT = 1024 * 1024, 10.0

#: Seconds for what a browser would have asked.
PREFLIGHT_TIMEOUT = 2.0


class _ReadyURL(EncodedURL):
    """A URL encoded once and for all: treq would have it done again for every request."""

    _ready: str

    def to_uri(self) -> _ReadyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._ready


@contextmanager
def _about(url: _ReadyURL) -> Iterator[None]:
    """Let errors within say which URL they are about."""
    try:
        yield
    except ProxyError as error:
        error.where = error.where or bare(url.to_text())
        raise


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


def _with_query(url: _ReadyURL, query: bytes) -> _ReadyURL:
    """*url* with the *query* of a client's request, which begins with its question mark."""
    if not query:
        return url
    ready = _ReadyURL(url.scheme, url.host, url.path, port=url.port)
    ready._ready = url.to_text() + query.decode("ascii")
    return ready


@attrs.frozen
class LlamaStackClient:
    """Asks a Llama Stack server for completions and other JSON, within limits.

    *timeout* is the seconds to the first byte of an answer, and of silence after it.
    """

    _http: HTTPClient
    _url: DecodedURL
    _clock: IReactorTime
    _timeout: float
    _secret: Secret = attrs.Factory(Secret)
    _base: str = attrs.field(init=False)

    @_base.default
    def _text_of_url(self) -> str:
        return self._url.to_text()

    @property
    def clock(self) -> IReactorTime:
        """The clock by which the server is waited for."""
        return self._clock

    @property
    def timeout(self) -> float:
        """Seconds that the server is given to begin an answer."""
        return self._timeout

    async def ask(
        self,
        method: str,
        path: str,
        caller: ClientContext,
        body: bytes | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
        limit: int = MAX_ASKED,
    ) -> Json:
        """One JSON object of at most *limit* bytes for one request.

        :raises UpstreamRefused: if the status is not 2xx.
        :raises ProxyError: if there is no usable answer.
        """
        seconds = self._timeout if timeout is None else timeout
        url = _encoded(self._url, path, query) if query else _url(self._base, path)
        headers = caller.headers()
        if body is not None:
            headers.setRawHeaders(b"Content-Type", [b"application/json"])
        sent = None if body is None else WholeBody(body)
        with _about(url):
            response = await self._send(method, url, headers, sent, seconds)
            answer = await self._json(response, seconds, limit)
        if not isinstance(answer, dict):
            raise UpstreamBroke("Llama Stack did not answer with a JSON object.")
        return answer

    async def preflight(self, path: str, origin: bytes) -> Headers:
        """The fields with which the server answers what browsers ask before a POST to *path*.

        :raises ProxyError: if there is no answer.
        """
        question = {
            b"Origin": [origin],
            b"Access-Control-Request-Method": [b"POST"],
            b"Access-Control-Request-Headers": [b"content-type"],
        }
        headers = Headers({name: list(values) for name, values in question.items()})
        url = _url(self._base, path)
        response = await self._send("OPTIONS", url, headers, None, PREFLIGHT_TIMEOUT)
        await self._body(response, PREFLIGHT_TIMEOUT, _MAX_REFUSAL)
        fields: Headers = response.headers
        return fields

    async def open(
        self,
        path: str,
        caller: ClientContext,
        body: WholeBody,
        on_fields: Callable[[Headers], None],
    ) -> IResponse:
        """The beginning of a completion, to be read with :meth:`completion` or :meth:`relay`.

        All of the client's fields go along. *on_fields* is told those of the answer.

        :raises UpstreamRefused: for an error status.
        :raises ProxyError: if there is no answer.
        """
        url = _with_query(_url(self._base, path), caller.query)
        headers = caller.chat_headers()
        headers.setRawHeaders(b"Content-Type", [b"application/json"])
        with _about(url):
            response = await self._send("POST", url, headers, body, self._timeout)
            self._secret.hide_in_fields(response.headers)
            on_fields(response.headers)
            if not 200 <= response.code < 300:
                await self._json(response, self._timeout, _MAX_REFUSAL)
        return response

    async def completion(self, response: IResponse) -> Json | list[Json | None]:
        """The whole completion in *response*, or the chunks of one that was not to be streamed.

        :raises UpstreamRefused: for an error in it.
        :raises ProxyError: if it is none.
        """
        text = await self._body(response, self._timeout, MAX_ANSWER)
        try:
            if text.strip() and not looks_like_json(text):
                return chunks_in(text)
            return completion_in(text)
        except UpstreamRefused as error:
            raise self._secret.refusal(error) from None

    async def relay(self, response: IResponse, take: ChunkHandler) -> None:
        """Hand the chunks of *response* to *take* as they come (see :func:`relay_chunks`)."""
        try:
            await relay_chunks(response, self._clock, self._timeout, take)
        except UpstreamRefused as error:
            raise self._secret.refusal(error) from None

    async def _send(
        self, method: str, url: _ReadyURL, headers: Headers, body: WholeBody | None, timeout: float
    ) -> IResponse:
        headers.setRawHeaders(b"Accept", [b"application/json, text/event-stream"])
        request = self._http.request(
            method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True
        )
        response: IResponse = await answered(request, self._clock, timeout, where=self._base)
        return response

    async def _json(self, response: Any, timeout: float, limit: int) -> Any:
        if response.code < 400:
            text = await self._body(response, timeout, limit)
        else:
            text = await self._refusal(response, min(timeout, _REFUSAL_TIMEOUT))
        try:
            answer = jsontext.loads_anyhow(text)
        except ValueError:
            answer = text[:2000].decode("utf-8", "replace")
        if 200 <= response.code < 300:
            if isinstance(answer, str):
                raise UpstreamBroke("Llama Stack answered with something that is not JSON.")
            return answer
        if response.code < 400:
            raise UpstreamBroke(
                f"Llama Stack answered with a redirect ({response.code}) to "
                f"{redirect_target(response.headers)}, which is not followed."
            )
        raise self._secret.refusal(UpstreamRefused(response.code, answer))

    async def _refusal(self, response: Any, timeout: float) -> bytes:
        """What an error says; nothing if it breaks off, for its status counts all the same."""
        try:
            return await read_body(response, self._clock, timeout, _MAX_REFUSAL)
        except ProxyError:
            return b""

    async def _body(self, response: Any, timeout: float, limit: int) -> bytes:
        try:
            return await read_body(response, self._clock, timeout, limit)
        except BodyTooLarge as error:
            raise UpstreamBroke(str(error)) from None
