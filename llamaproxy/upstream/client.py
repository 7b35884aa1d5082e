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
from llamaproxy.upstream.failures import redirect_target, response_within
from llamaproxy.upstream.relay import read_body
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.urls import as_uri, read_url, url_for_log

#: The most bytes of an answer to a request of the proxy's own: a list of tools, a tool's result.
MAX_JSON_BYTES = 16 * 1024 * 1024

#: The most bytes, and seconds of silence, of the body of an error.
_MAX_ERROR_BYTES, _ERROR_TIMEOUT = 1024 * 1024, 10.0

#: Seconds for a CORS preflight request.
PREFLIGHT_TIMEOUT = 2.0


class _ReadyURL(EncodedURL):
    """A URL that is encoded already: treq would encode it again for every request."""

    _ready: str

    def to_uri(self) -> _ReadyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._ready


@contextmanager
def _located_at(url: _ReadyURL) -> Iterator[None]:
    """Note *url* as the place of errors raised within (``ProxyError.where``, for the log)."""
    try:
        yield
    except ProxyError as error:
        error.where = error.where or url_for_log(url.to_text())
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


@attrs.frozen(eq=False, repr=False)
class LlamaStackClient:
    """Requests JSON and completions of a Llama Stack server, within limits of size and time.

    *clock* is that of all time limits; *timeout*: seconds to the first byte of an answer, and of
    silence after it.
    """

    _http: HTTPClient
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
        seconds = self.timeout if timeout is None else timeout
        url = _encoded(self._url, path, query) if query else _url(self._base, path)
        headers = caller.headers()
        if body is not None:
            headers.setRawHeaders(b"Content-Type", [b"application/json"])
        upload = None if body is None else BytesUpload(body)
        with _located_at(url):
            response = await self._send(method, url, headers, upload, seconds)
            answer = await self._json(response, seconds, limit)
        if not isinstance(answer, dict):
            raise UpstreamBroke("Llama Stack did not answer with a JSON object.")
        return answer

    async def preflight(self, path: str, origin: bytes) -> Headers:
        """The fields of the answer to a CORS preflight for a POST to *path* by a page of *origin*.

        :raises ProxyError: if there is no answer.
        """
        preflight_fields = {
            b"Origin": [origin],
            b"Access-Control-Request-Method": [b"POST"],
            b"Access-Control-Request-Headers": [b"content-type"],
        }
        headers = Headers({name: list(values) for name, values in preflight_fields.items()})
        url = _url(self._base, path)
        response = await self._send("OPTIONS", url, headers, None, PREFLIGHT_TIMEOUT)
        await self._body(response, PREFLIGHT_TIMEOUT, _MAX_ERROR_BYTES)
        fields: Headers = response.headers
        return fields

    async def open(
        self,
        path: str,
        caller: ClientContext,
        body: BytesUpload,
        on_fields: Callable[[Headers], None],
    ) -> IResponse:
        """Request a completion: a response to read with :meth:`completion` or :meth:`relay`.

        All of the client's fields are sent along. *on_fields* is called with those of the answer,
        of whatever status.

        :raises UpstreamRefused: for an error status.
        :raises ProxyError: if there is no answer.
        """
        url = _with_query(_url(self._base, path), caller.query)
        headers = caller.chat_headers()
        headers.setRawHeaders(b"Content-Type", [b"application/json"])
        with _located_at(url):
            response = await self._send("POST", url, headers, body, self.timeout)
            self._secret.mask_fields(response.headers)
            on_fields(response.headers)
            if not 200 <= response.code < 300:
                await self._json(response, self.timeout, _MAX_ERROR_BYTES)
        return response

    async def completion(self, response: IResponse) -> Json | list[Json | None]:
        """The whole completion in *response*, or the chunks of one that was not to be streamed.

        :raises UpstreamRefused: for an error in it.
        :raises ProxyError: if it is none.
        """
        text = await self._body(response, self.timeout, MAX_ANSWER_BYTES)
        try:
            if text.strip() and not looks_like_json(text):
                return chunks_in(text)
            return completion_in(text)
        except UpstreamRefused as error:
            raise self._secret.refusal(error) from None

    async def relay(self, response: IResponse, handle: ChunkHandler) -> None:
        """Hand the chunks of *response* to *handle* as they come (see :func:`relay_chunks`)."""
        try:
            await relay_chunks(response, self.clock, self.timeout, handle)
        except UpstreamRefused as error:
            raise self._secret.refusal(error) from None

    async def _send(
        self,
        method: str,
        url: _ReadyURL,
        headers: Headers,
        body: BytesUpload | None,
        timeout: float,
    ) -> IResponse:
        headers.setRawHeaders(b"Accept", [b"application/json, text/event-stream"])
        request = self._http.request(
            method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True
        )
        response: IResponse = await response_within(request, self.clock, timeout, where=self._base)
        return response

    async def _json(self, response: Any, timeout: float, limit: int) -> Any:
        if response.code < 400:
            text = await self._body(response, timeout, limit)
        else:
            text = await self._error_body(response, min(timeout, _ERROR_TIMEOUT))
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

    async def _error_body(self, response: Any, timeout: float) -> bytes:
        """The body of an error; empty if it breaks off, for its status is enough."""
        try:
            return await read_body(response, self.clock, timeout, _MAX_ERROR_BYTES)
        except ProxyError:
            return b""

    async def _body(self, response: Any, timeout: float, limit: int) -> bytes:
        try:
            return await read_body(response, self.clock, timeout, limit)
        except BodyTooLarge as error:
            raise UpstreamBroke(str(error)) from None
