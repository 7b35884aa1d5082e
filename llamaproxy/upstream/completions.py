"""Completions: chat completions asked of whatever generation the upstream is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.chunks import Take, without_error
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.generation import Detector, Generation
from llamaproxy.upstream.headers import Caller

T = TypeVar("T")


@attrs.frozen
class Completions:
    """Asks for one completion, where this upstream serves them."""

    _client: LlamaStackClient
    _detector: Detector

    async def complete(self, body: Json, caller: Caller) -> Json:
        """A whole completion.

        :raises ProxyError: if there is none.
        """
        ask = partial(self._client.ask, "POST")
        return without_error(await self._served(ask, caller, jsontext.dumps(body)))

    async def stream(self, body: Json, caller: Caller, take: Take) -> None:
        """Hand a completion's chunks to *take* as they come.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        response = await self._served(self._client.open, caller, jsontext.dumps(body))
        await self._client.relay(response, take)

    async def _served(
        self,
        ask: Callable[[str, Caller, bytes], Coroutine[Any, Any, T]],
        caller: Caller,
        text: bytes,
    ) -> T:
        """What comes of *ask*, at the path where completions are served, in that server's words."""
        served = await self._detector.generation()
        try:
            return await ask(_path(served), served.caller(caller), text)
        except UpstreamRefused as error:
            served = await self._moved(served, error)
            return await ask(_path(served), served.caller(caller), text)
        except UpstreamUnavailable:
            self._detector.forget()
            raise

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
