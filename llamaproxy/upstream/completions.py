"""Completions: chat completions asked of whatever generation the upstream is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client import LlamaStackClient, without_error
from llamaproxy.upstream.generation import Detector, Generation
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
        served = await self._detector.generation()
        try:
            answer = await self._client.ask("POST", _path(served), served.caller(caller), text)
        except UpstreamRefused as error:
            served = await self._moved(served, error)
            answer = await self._client.ask("POST", _path(served), served.caller(caller), text)
        except UpstreamUnavailable:
            self._detector.forget()
            raise
        return without_error(answer)

    async def stream(self, body: Json, caller: Caller) -> AsyncGenerator[Json | None, None]:
        """A completion's chunks; iterate inside :func:`contextlib.aclosing`.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        text = jsontext.dumps(body)
        served = await self._detector.generation()
        begun = False
        try:
            async with aclosing(self._stream(served, caller, text)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except UpstreamRefused as error:
            if begun:
                raise
            served = await self._moved(served, error)
        except UpstreamUnavailable:
            self._detector.forget()
            raise
        async with aclosing(self._stream(served, caller, text)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _stream(
        self, served: Generation, caller: Caller, text: bytes
    ) -> AsyncGenerator[Json | None, None]:
        return self._client.stream(_path(served), served.caller(caller), text)

    async def _moved(self, before: Generation, error: UpstreamRefused) -> Generation:
        """What serves the route now, if *error* says that it is not where it was (any more).

        The server has not acted on the request then.
        """
        if error.missing_route:
            self._detector.forget()
            now = await self._detector.generation()
            if _path(now) != _path(before):
                return now
        raise error


def _path(generation: Generation) -> str:
    return f"{generation.openai_prefix}/chat/completions"
