"""Completions: chat completions of the upstream, at the path of its generation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
from twisted.web.http_headers import Headers

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamRefused, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import BytesUpload, LateUpload
from llamaproxy.upstream.chunks import ChunkHandler
from llamaproxy.upstream.client import LlamaStackClient, OnFields
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector, ServerDialect

T = TypeVar("T")

#: Asks for a completion.
Ask = Callable[[str, ClientContext, BytesUpload, OnFields], Awaitable[T]]


@attrs.frozen(eq=False, repr=False)
class Completions:
    """Makes :class:`ClientCompletions`."""

    _client: LlamaStackClient
    _detector: Detector

    async def preflight(self, origin: bytes) -> Headers:
        """The upstream's answer to a CORS preflight for a completion, by a page of *origin*.

        :raises ProxyError: if there is none.
        """
        dialect = await self._detector.generation()
        return await self._client.preflight(_path(dialect), origin)

    def for_client(self, caller: ClientContext, on_fields: OnFields) -> ClientCompletions:
        """Completions for the client's request *caller*, whose fields and query are sent along."""
        return ClientCompletions(self._client, self._detector, caller, on_fields)


@attrs.define(eq=False, repr=False)
class ClientCompletions:
    """Requests completions on behalf of one client."""

    _client: LlamaStackClient
    _detector: Detector
    _caller: ClientContext
    _on_fields: OnFields

    async def complete(self, body: Json) -> Json | list[Json | None]:
        """A completion, or the chunks of one from a server that streams without being asked.

        :raises ProxyError: if there is none.
        """
        return self._client.completion(await self._at_its_path(self._client.whole, body))

    async def stream(self, body: Json, handle: ChunkHandler) -> None:
        """Call *handle* with each chunk of a completion as it comes.

        :raises ProxyError: if the stream is refused or breaks off.
        """
        await self._client.relay(await self._at_its_path(self._client.open, body), handle)

    async def _at_its_path(self, ask: Ask[T], body: Json) -> T:
        """What *ask* comes to, at the path where completions are served."""
        dialect = await self._detector.generation()
        try:
            return await self._ask_at(dialect, ask, body)
        except UpstreamRefused as error:
            # The server has not acted on a request for a path that it does not serve (any more).
            elsewhere = await self._moved_from(dialect) if error.missing_route else None
            if elsewhere is None:
                raise
            return await self._ask_at(elsewhere, ask, body)
        except UpstreamUnavailable:
            self._detector.forget()
            raise

    def _ask_at(self, dialect: ServerDialect, ask: Ask[T], body: Json) -> Awaitable[T]:
        caller = dialect.chat_context_for(self._caller)
        upload = LateUpload(lambda: jsontext.dumps(body))
        return ask(_path(dialect), caller, upload, self._on_fields)

    async def _moved_from(self, previous: ServerDialect) -> ServerDialect | None:
        """The dialect of the upstream now; None if that asks at the path of the *previous* one."""
        self._detector.forget()
        current = await self._detector.generation()
        return None if _path(current) == _path(previous) else current


def _path(generation: ServerDialect) -> str:
    return f"{generation.openai_prefix}/chat/completions"
