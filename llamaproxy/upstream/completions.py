"""Completions: chat completions asked of whatever generation the upstream is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client import LlamaStackClient, without_error
from llamaproxy.upstream.generation import Detector
from llamaproxy.upstream.headers import Caller


@attrs.frozen
class Completions:
    """Asks for one completion, where this upstream serves them."""

    _client: LlamaStackClient
    _detector: Detector

    async def complete(self, body: Json, caller: Caller) -> Json:
        """A whole completion.

        :raises ProxyError: if there is none.
        """
        text = jsontext.dumps(body)
        path = await self._path()
        try:
            answer = await self._client.ask("POST", path, caller, text)
        except UpstreamRefused as error:
            path = await self._moved(path, error)
            answer = await self._client.ask("POST", path, caller, text)
        except UpstreamUnavailable:
            self._detector.forget()
            raise
        return without_error(answer)

    async def stream(self, body: Json, caller: Caller) -> AsyncGenerator[Json | None, None]:
        """A completion's chunks; iterate inside :func:`contextlib.aclosing`.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        text = jsontext.dumps(body)
        path = await self._path()
        begun = False
        try:
            async with aclosing(self._client.stream(path, caller, text)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except UpstreamRefused as error:
            if begun:
                raise
            path = await self._moved(path, error)
        except UpstreamUnavailable:
            self._detector.forget()
            raise
        async with aclosing(self._client.stream(path, caller, text)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _path(self) -> str:
        return f"{(await self._detector.generation()).openai_prefix}/chat/completions"

    async def _moved(self, path: str, error: UpstreamRefused) -> str:
        """Where the route is now, if *error* says that it is not at *path* (any more).

        A missing route, and nothing else, is exactly ``{"detail": "Not Found"}`` on every
        generation (recorded), so the server has not acted on the request.
        """
        if error.status == 404 and str(error) == "Not Found":
            self._detector.forget()
            now = await self._path()
            if now != path:
                return now
        raise error
