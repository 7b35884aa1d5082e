"""LlamaStackClient: the requests that llamaproxy itself makes of a Llama Stack server."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs
from hyperlink import DecodedURL, EncodedURL
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IResponse

from llamaproxy import jsontext
from llamaproxy.errors import (
    BodyTooLarge,
    UpstreamBroke,
    UpstreamRefused,
)
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import WholeBody
from llamaproxy.upstream.chunks import Take, relay_chunks, without_error
from llamaproxy.upstream.failures import answered
from llamaproxy.upstream.headers import Caller
from llamaproxy.upstream.relay import read_body

#: The most bytes of one JSON answer that are kept in memory.
MAX_ANSWER = 64 * 1024 * 1024

#: Fields of an error answer that tell a client when or how to come back.
_KEPT_ERROR_FIELDS = (b"retry-after", b"www-authenticate")


class _ReadyURL(EncodedURL):
    """A URL encoded once and for all: treq would have it done again for every request."""

    _ready: str

    def to_uri(self) -> _ReadyURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._ready


@lru_cache(maxsize=256)
def _url(base: str, path: str) -> _ReadyURL:
    # The base is text because hashing a DecodedURL decodes its host, every time.
    return _encoded(DecodedURL.from_text(base), path, {})


def _encoded(base: DecodedURL, path: str, query: dict[str, str]) -> _ReadyURL:
    # Not kept like the others: a query may hold a user's token.
    segments = (*base.path, *path.strip("/").split("/"))
    url = base.replace(path=segments, query=tuple(query.items())).to_uri()
    ready = _ReadyURL(url.scheme, url.host, url.path, url.query, port=url.port)
    ready._ready = url.to_text()
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
    _base: str = attrs.field(init=False)

    @_base.default
    def _text_of_url(self) -> str:
        return self._url.to_text()

    @property
    def timeout(self) -> float:
        """Seconds that the server is given to begin an answer."""
        return self._timeout

    async def ask(
        self,
        method: str,
        path: str,
        caller: Caller,
        body: bytes | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Json:
        """One JSON object for one request.

        :raises UpstreamRefused: if the status is not 2xx.
        :raises ProxyError: if there is no usable answer.
        """
        seconds = self._timeout if timeout is None else timeout
        response = await self._request(method, path, caller, body, query, seconds)
        answer = await self._json(response, seconds)
        if not isinstance(answer, dict):
            raise UpstreamBroke("Llama Stack did not answer with a JSON object.")
        return answer

    async def open(self, path: str, caller: Caller, body: bytes) -> IResponse:
        """The beginning of a streamed completion, to be read with :meth:`relay`.

        :raises UpstreamRefused: for an error status.
        :raises ProxyError: if there is no answer.
        """
        response = await self._request("POST", path, caller, body, None, self._timeout)
        if not 200 <= response.code < 300:
            await self._json(response, self._timeout)
        return response

    async def relay(self, response: IResponse, take: Take) -> None:
        """Hand the chunks of *response* to *take* as they come.

        A server that answers with one JSON object although a stream was asked for gives that
        object. The last thing handed over is None if the server ended with ``[DONE]``.

        :raises UpstreamRefused: for an error event.
        :raises ProxyError: if the stream breaks off.
        """
        content_type = response.headers.getRawHeaders(b"content-type", [b""])[0].lower()
        if b"event-stream" in content_type:
            await relay_chunks(response, self._clock, self._timeout, take)
            return
        answer = await self._json(response, self._timeout)
        if not isinstance(answer, dict):
            raise UpstreamBroke("Llama Stack answered with neither a stream nor an object.")
        take(without_error(answer))

    async def _request(
        self,
        method: str,
        path: str,
        caller: Caller,
        body: bytes | None,
        query: dict[str, str] | None,
        timeout: float,
    ) -> IResponse:
        url = _encoded(self._url, path, query) if query else _url(self._base, path)
        headers = caller.headers()
        headers.setRawHeaders(b"Accept", [b"application/json, text/event-stream"])
        if body is not None:
            headers.setRawHeaders(b"Content-Type", [b"application/json"])
        request = self._http.request(
            method,
            url,
            headers=headers,
            data=None if body is None else WholeBody(body),
            allow_redirects=False,
            unbuffered=True,
        )
        response: IResponse = await answered(request, self._clock, timeout)
        return response

    async def _json(self, response: Any, timeout: float) -> Any:
        try:
            text = await read_body(response, self._clock, timeout, MAX_ANSWER)
        except BodyTooLarge as error:
            raise UpstreamBroke(str(error)) from None
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
                f"Llama Stack answered with a redirect ({response.code}), which is not followed."
            )
        kept = {
            name.decode(): values[0].decode("latin-1")
            for name in _KEPT_ERROR_FIELDS
            if (values := response.headers.getRawHeaders(name))
        }
        raise UpstreamRefused(response.code, answer, kept)
