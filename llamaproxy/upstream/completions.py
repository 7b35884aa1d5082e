"""Completions: chat completions asked of whatever generation the upstream is."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import WholeBody
from llamaproxy.upstream.chunks import ChunkHandler
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector, ServerDialect

#: Is told the fields of each answer as soon as they are there.
OnFields = Callable[[Headers], None]


@attrs.frozen
class Completions:
    """Asks for completions, where this upstream serves them."""

    _client: LlamaStackClient
    _detector: Detector

    async def preflight(self, origin: bytes) -> Headers:
        """What the upstream says to a page of *origin* that wants to ask for a completion.

        :raises ProxyError: if it says nothing.
        """
        served = await self._detector.generation()
        return await self._client.preflight(_path(served), origin)

    def for_client(self, caller: ClientContext, on_fields: OnFields) -> ClientCompletions:
        """The completions of one client's request, whose fields and query go along."""
        return ClientCompletions(self._client, self._detector, caller, on_fields)


@attrs.frozen
class ClientCompletions:
    """Asks for completions on behalf of one client."""

    _client: LlamaStackClient
    _detector: Detector
    _caller: ClientContext
    _on_fields: OnFields

    async def complete(self, body: Json) -> Json | list[Json | None]:
        """A whole completion, or the chunks of one from a server that streams without being asked.

        :raises ProxyError: if there is none.
        """
        response = await self._served(body)
        return await self._client.completion(response)

    async def stream(self, body: Json, take: ChunkHandler) -> None:
        """Hand a completion's chunks to *take* as they come.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        response = await self._served(body)
        await self._client.relay(response, take)

    async def _served(self, body: Json) -> IResponse:
        """The successful answer to *body*, at the path where completions are served."""
        served = await self._detector.generation()
        try:
            return await self._ask(served, body)
        except UpstreamRefused as error:
            served = await self._moved(served, error)
            return await self._ask(served, body)
        except UpstreamUnavailable:
            self._detector.forget()
            raise

    async def _ask(self, served: ServerDialect, body: Json) -> IResponse:
        asking = served.completing(self._caller)
        # Serialised anew where it is asked twice: it may be large, and is not kept meanwhile.
        return await self._client.open(
            _path(served), asking, WholeBody(jsontext.dumps(body)), self._on_fields
        )

    async def _moved(self, before: ServerDialect, error: UpstreamRefused) -> ServerDialect:
        """What serves the route now, if *error* says that it is not where it was (any more).

        The server has not acted on the request then.
        """
        if error.missing_route:
            self._detector.forget()
            now = await self._detector.generation()
            if _path(now) != _path(before):
                return now
        raise error


def _path(generation: ServerDialect) -> str:
    return f"{generation.openai_prefix}/chat/completions"
