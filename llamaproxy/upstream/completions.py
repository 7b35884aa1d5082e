"""Completions: chat completions asked of whatever generation the upstream is."""

from __future__ import annotations

import attrs
from twisted.web.iweb import IResponse

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.chunks import Take, without_error
from llamaproxy.upstream.client import LlamaStackClient
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

    async def stream(self, body: Json, caller: Caller, take: Take) -> None:
        """Hand a completion's chunks to *take* as they come.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        await self._client.relay(await self._open(jsontext.dumps(body), caller), take)

    async def _open(self, text: bytes, caller: Caller) -> IResponse:
        served = await self._detector.generation()
        try:
            return await self._client.open(_path(served), served.caller(caller), text)
        except UpstreamRefused as error:
            served = await self._moved(served, error)
            return await self._client.open(_path(served), served.caller(caller), text)
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
