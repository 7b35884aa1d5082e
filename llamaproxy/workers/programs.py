"""Programs of ``--mcp-config`` run in the parent, once for all workers, which have it call them."""

from __future__ import annotations

import hashlib
from itertools import count
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.protocols import amp

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke, ParentSilent, ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.http import NO_LIMIT, Fields
from llamaproxy.tools.mcp.messages import RpcError
from llamaproxy.tools.mcp.programs import ProgramPool, Programs, ProgramServer
from llamaproxy.tools.wire import error_json, error_of
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.workers.link import Link, Long


class CallProgram(amp.Command):
    """Call a tool of a program: *call* says which, as JSON; *answer* what it comes to.

    *number* is that of the call, which may be cancelled by it.
    """

    arguments: ClassVar[Any] = ((b"number", amp.Integer()), (b"call", Long()))
    response: ClassVar[Any] = ((b"answer", Long()),)


class CancelProgramCall(amp.Command):
    """Nobody waits for the call of that *number* any more."""

    arguments: ClassVar[Any] = ((b"number", amp.Integer()),)


@attrs.frozen(eq=False, repr=False)
class _Tools:
    """A program's tools, as a worker calls them; the parent alone lists them."""

    _programs: ProgramsOfParent
    _endpoint: str
    _owner: str
    instructions: object = None

    async def tools(self, fields: Fields = ()) -> list[Json]:
        raise McpBroke("A worker lists no tools.")

    async def call(self, name: str, arguments: Json, schema: Json, fields: Fields = ()) -> Json:
        call = [self._endpoint, self._owner, name, arguments, schema, fields]
        return await self._programs.ask(jsontext.dumps(call))


class ProgramsOfParent:
    """The programs, as a worker's application sees them.

    Implements :class:`llamaproxy.tools.mcp.programs.Programs`.
    """

    def __init__(self, link: Link, clock: IReactorTime) -> None:
        self._link = link
        self._clock = clock
        self._numbers = count(1)

    def configure(self, servers: list[ProgramServer]) -> None:
        """Nothing to do: the parent has them."""

    def session(self, endpoint: str, caller: ClientContext) -> _Tools:
        return _Tools(self, endpoint, _owner(caller))

    def figures(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        """Nothing to do."""

    async def ask(self, call: bytes) -> Json:
        """What the *call* comes to.

        :raises McpBroke: if it comes to an error.

        :raises ParentSilent: if the parent is gone, or cannot answer.
        """
        number = next(self._numbers)
        try:
            answer = await self._link.ask(
                self._clock, NO_LIMIT, CallProgram, number=number, call=call
            )
        except CancelledError:
            cancelling: Any = self._link.callRemote
            cancelling(CancelProgramCall, number=number).addErrback(lambda _: None)
            raise
        except ConnectionClosed:
            raise ParentSilent("The parent process, which runs programs, is gone.") from None
        except amp.AmpError:
            raise ParentSilent("The parent process, which runs programs, broke.") from None
        return _result_in(answer["answer"])


class ProgramCalls(amp.CommandLocator):
    """Calls programs of *pool* for one worker."""

    def __init__(self, pool: ProgramPool) -> None:
        amp.CommandLocator.__init__(self)
        self._pool = pool
        self._running: dict[int, Deferred[Json]] = {}

    def stop(self) -> None:
        """The worker is gone, and nobody waits for its calls."""
        for call in list(self._running.values()):
            call.cancel()

    @CallProgram.responder
    def call_program(self, number: int, call: bytes) -> Deferred[Json]:
        running = self._running[number] = Deferred.fromCoroutine(self._answer(call))
        running.addBoth(self._ended, number)
        return running

    @CancelProgramCall.responder
    def cancel_program_call(self, number: int) -> Json:
        if number in self._running:
            self._running[number].cancel()
        return {}

    def _ended(self, outcome: Any, number: int) -> Any:
        del self._running[number]
        return outcome

    async def _answer(self, call: bytes) -> Json:
        endpoint, owner, name, arguments, schema, fields = jsontext.loads_exactly(call)
        try:
            session = self._pool.session_of(endpoint, owner)
            result = await session.call(name, arguments, schema, tuple(map(tuple, fields)))
            answer: Json = {"result": result}
        except CancelledError:
            answer = {"error": error_json(McpBroke("Nobody waited for it any longer."))}
        except RpcError as error:
            answer = {"rpc": {"code": error.rpc_code, "message": error.rpc_message}}
        except ProxyError as error:
            answer = {"error": error_json(error)}
        return {"answer": jsontext.dumps(answer)}


class CallsOfWorkers:
    """The parent's :class:`ProgramCalls`, one for each worker."""

    def __init__(self, pool: Programs) -> None:
        assert isinstance(pool, ProgramPool)
        self._pool = pool
        self._calls: dict[Link, ProgramCalls] = {}

    def joined(self, link: Link) -> ProgramCalls:
        """What answers a new worker, which asks by *link*."""
        return self._calls.setdefault(link, ProgramCalls(self._pool))

    def left(self, link: Link) -> None:
        """It is gone: its calls end."""
        calls = self._calls.pop(link, None)
        if calls is not None:
            calls.stop()


def _owner(caller: ClientContext) -> str:
    """What tells callers apart; their credentials stay in the worker."""
    return hashlib.blake2b(repr(caller.credentials).encode(), digest_size=16).hexdigest()


def _result_in(text: bytes) -> Json:
    answer = jsontext.loads_exactly(text)
    if "rpc" in answer:
        raise RpcError(answer["rpc"])
    if "error" in answer:
        raise error_of(answer["error"])
    result: Json = answer["result"]
    return result
