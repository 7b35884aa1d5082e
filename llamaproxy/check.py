"""Check: ``--check``: what the server is, which tools there are, what is wrong. It calls none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import contextmanager, suppress
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, LogPublisher, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

from llamaproxy import jsontext
from llamaproxy.advice import Problem, group_problem, problem, server_problem
from llamaproxy.config.logformat import safe
from llamaproxy.errors import ProxyError, UpstreamTimeout
from llamaproxy.events import Event, ListRefreshed, Observers
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.offers import Offer
from llamaproxy.upstream.client import MAX_JSON_BYTES, LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import DETECTION_TIMEOUT, PLAIN_OPENAI, ServerDialect, dialect_of
from llamaproxy.upstream.failures import redirect_target
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.upstream.urls import url_for_log

#: Seconds that all of it may take.
LIMIT = 60.0

#: Exit statuses: all is well, something is wrong, it cannot be told.
WELL, WRONG, UNDECIDED = 0, 1, 2

#: Names in one line, and lines about one kind of thing.
_MAX_NAMES, _MAX_LINES = 20, 200

#: Statuses that say nothing of what is there: too slow, too early, too often; or trouble.
_TROUBLE = (408, 425, 429, *range(500, 600))

#: Of a server that wants to know who asks.
_WHO = (401, 403)

#: What the tools of an upstream, and of MCP servers, log of one that is of no use.
_UNFIT = "a tool of {group} is not offered: {reason}"

_NOBODY = ClientContext()


@attrs.define(eq=False, repr=False)
class Check:
    """Asks the server at *url* and the MCP servers, and writes what it finds by *write*, by lines.

    *named_servers*: whether there are any of ``--mcp-server``; *runtime_tools*: whether the
    server's own list of tools counts, if it has one; *unused_key*: whether there is a key for the
    server that it does not get.
    """

    _url: str
    _client: LlamaStackClient
    _catalogue: Catalogue
    _tell: Observers
    _write: Callable[[str], object]
    _named_servers: bool = False
    _runtime_tools: bool = True
    _unused_key: bool = False
    #: What is being asked.
    _question: str = attrs.field(init=False, default="what the server is")
    _problems: list[Problem] = attrs.field(init=False, factory=list)
    _wrong: bool = attrs.field(init=False, default=False)
    _undecided: bool = attrs.field(init=False, default=False)

    async def run(self, clock: IReactorTime) -> int:
        """The exit status, within :data:`LIMIT` seconds."""
        questions = Deferred.fromCoroutine(self._ask_all())
        try:
            await questions.addTimeout(LIMIT, clock)
        except TimeoutError:
            self._doubt(problem("undecided", seconds=f"{LIMIT:g}", question=self._question))
        if self._wrong:
            self._write("Something is wrong.")
            return WRONG
        if self._undecided:
            self._write("It cannot be told whether all is well.")
            return UNDECIDED
        self._write("All is well.")
        return WELL

    async def _ask_all(self) -> None:
        if self._unused_key:
            self._note(problem("unused_key"))
        dialect = await self._server()
        if dialect is not None:
            await self._chat_completions(dialect)
            await self._models(dialect)
        if dialect is not None or self._named_servers:
            await self._tools(dialect)

    # --- the server

    async def _server(self) -> ServerDialect | None:
        """The generation of the server, None if it is of no use."""
        answer = await self._look("GET", "/v1/version")
        if answer is None:
            return None
        head, text = answer
        version = _object(text).get("version") if head.status == 200 else None
        if isinstance(version, str):
            dialect = dialect_of(version[:100])
            runs = "runs its tools itself" if dialect.tool_runtime else "has llamaproxy call them"
            self._well(
                f"the server at {self._url} is Llama Stack or OGX, {dialect.name}: it {runs}"
            )
            return dialect
        # 404 is another kind of server, or a wrong path; so is a page, for many have one for all
        # paths that they do not know.
        if self._is_no_answer(head, "/v1/version"):
            return None
        answer = await self._look("GET", "/v1/models")
        if answer is None or self._is_no_answer(answer[0], "/v1/models"):
            return None
        if _models_in(answer[1]) is not None:
            self._well(f"the server at {self._url} is an OpenAI server, and no Llama Stack")
            return PLAIN_OPENAI
        pages = [_is_page(*answer), _is_page(head, text)]
        self._fault(problem("web_page" if any(pages) else "wrong_path", url=self._url))
        return None

    async def _chat_completions(self, dialect: ServerDialect) -> None:
        """Whether chats can be asked for: by requests that no model is asked for."""
        path = f"{dialect.openai_prefix}/chat/completions"
        self._question = f"whether there is {path}"
        answer = await self._look("GET", path)
        if answer is not None and answer[0].status in (404, *_TROUBLE):
            # Some servers say so of methods too; a request that is empty is refused by all.
            answer = await self._look("POST", path, b"{}")
            if answer is not None and answer[0].status in (404, 405) and b"model" not in answer[1]:
                self._fault(problem("no_chat", path=path))
                return
        if answer is None:
            return
        if not self._is_no_answer(answer[0], path):
            self._well(f"chat completions: {path}")

    async def _models(self, dialect: ServerDialect) -> None:
        path = dialect.upstream_path(b"GET", b"/v1/models").decode("ascii")
        self._question = f"which models there are ({path})"
        answer = await self._look("GET", path)
        if answer is None:
            return
        head, text = answer
        entries = _models_in(text)
        if head.status in _WHO:
            self._fault(problem("credentials", status=head.status, path=path))
        elif head.status != 200 or entries is None:
            reason = f"HTTP status {head.status}" if head.status != 200 else "it is no list"
            self._fault(problem("models_failed", reason=f"{reason} for {path}"))
        elif not entries:
            self._fault(problem("no_models"))
        else:
            ids = [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]
            self._well(f"models: {len(entries)}: {_names(ids)}")

    # --- the tools

    async def _tools(self, dialect: ServerDialect | None) -> None:
        self._question = "which tools there are"
        refreshed: list[ListRefreshed] = []

        def listen(event: Event) -> None:
            if isinstance(event, ListRefreshed):
                refreshed.append(event)

        self._tell.listen(listen, ListRefreshed)
        with _logged(_UNFIT) as unfit:
            offer = await self._catalogue.refreshed(_NOBODY)
        event = refreshed[-1]
        for group, listed in _first(sorted(event.groups.items())):
            where = f" ({listed.endpoint})" if listed.endpoint else ""
            if listed.names:
                count = len(listed.names)
                self._well(f"{group}{where}: {count} tools: {_names(listed.names)}")
            else:
                self._note(problem("empty_group", group=f"{group}{where}"))
        for group, error in _first(sorted(event.failures.items())):
            self._fault(group_problem(group, error))
        for line in _first(unfit):
            self._fault(problem("unfit_tool", group=line.get("group"), reason=line.get("reason")))
        if event.left_out:
            names = _names(event.left_out)
            self._fault(problem("left_out", count=len(event.left_out), names=names))
        if dialect is None:
            return  # why the server has none has been said
        listed_by_server = dialect.tool_runtime and self._runtime_tools
        if event.groups_error is not None:
            self._fault(group_problem("", event.groups_error))
        elif listed_by_server and await self._missing_groups({*event.groups, *event.failures}):
            pass  # which has been said
        elif not event.groups and not event.failures:
            self._fault(problem("no_groups" if dialect.version else "plain_server"))
        await self._names_shared(listed_by_server, offer)

    async def _missing_groups(self, groups: set[str]) -> bool:
        """Whether there are others than *groups*: a server may list nothing of a dead one.

        Llama Stack 0.6.1 does (recorded): its list is a success without that group's tools.
        """
        self._question = "which groups there are"
        missing = [
            (group["identifier"], group["mcp_endpoint"].get("uri"))
            for group in await self._entries("/v1/toolgroups")
            if isinstance(group.get("mcp_endpoint"), dict)
            and isinstance(group.get("identifier"), str)
            and group["identifier"] not in groups
        ]
        for group, url in _first(missing):
            self._fault(problem("missing_group", group=group, url=url_for_log(str(url))))
        return bool(missing)

    async def _names_shared(self, listed_by_server: bool, offer: Offer) -> None:
        """Tools of one name: of several MCP servers, or of several groups of an old server."""
        counts = Counter(tool.name for tool in offer.tools.values())
        if shared := [name for name, count in counts.items() if count > 1]:
            count = sum(counts[name] for name in shared)
            self._note(problem("renamed_tools", count=count, names=_names(shared)))
        if not listed_by_server:
            return
        self._question = "whether names of tools are used twice"
        tools = await self._entries("/v1/tools")
        names = Counter(str(tool.get("name") or tool.get("identifier")) for tool in tools)
        if hidden := [name for name, count in names.items() if count > 1]:
            self._fault(problem("hidden_tools", count=len(hidden), names=_names(hidden)))

    # --- what is asked, and what is written

    async def _entries(self, path: str) -> list[dict[str, Any]]:
        """The objects in a list of the server's; none if it cannot be had, as has been said."""
        try:
            head, text = await self._client.look(
                "GET", path, _NOBODY, None, DETECTION_TIMEOUT, MAX_JSON_BYTES
            )
        except ProxyError:
            return []
        entries = _object(text).get("data") if head.status == 200 else None
        return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []

    async def _look(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[ResponseHead, bytes] | None:
        """The server's answer, None if there is none, which is then written."""
        try:
            return await self._client.look(
                method, path, _NOBODY, body, DETECTION_TIMEOUT, MAX_JSON_BYTES
            )
        except UpstreamTimeout as error:
            self._doubt(server_problem(self._url, error))
        except ProxyError as error:
            self._fault(server_problem(self._url, error))
        return None

    def _is_no_answer(self, head: ResponseHead, path: str) -> bool:
        """Whether the status is the reason why there is no other answer; it is then written."""
        if 300 <= head.status < 400:
            target = redirect_target(head.values(b"location"))
            self._fault(problem("redirect", url=self._url, target=target))
        elif head.status in _WHO:
            self._fault(problem("credentials", status=head.status, path=path))
        elif head.status in _TROUBLE:
            self._fault(problem("server_error", url=self._url, status=head.status))
        else:
            return False
        return True

    def _well(self, text: str) -> None:
        self._line("ok", text)

    def _note(self, noted: Problem) -> None:
        self._say("note", noted)

    def _fault(self, fault: Problem) -> None:
        self._wrong = True
        self._say("WRONG", fault)

    def _doubt(self, doubt: Problem) -> None:
        self._undecided = True
        self._say("?", doubt)

    def _say(self, mark: str, problem: Problem) -> None:
        if problem in self._problems:
            return
        self._problems.append(problem)
        self._line(mark, problem.what)
        self._line("", f"what to do: {problem.do}")

    def _line(self, mark: str, text: str) -> None:
        self._write(f"{mark:6}{safe(text)}")


def _models_in(text: bytes) -> list[Any] | None:
    """The entries of a list of models; None if it is none."""
    answer = _object(text)
    entries = answer.get("data")
    if entries is None and answer.get("object") == "list":
        return []  # Ollama's, when it has no model
    return entries if isinstance(entries, list) else None


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object in *text*; empty if there is none."""
    try:
        value = jsontext.loads_anyhow(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_page(head: ResponseHead, text: bytes) -> bool:
    kinds = head.values(b"content-type")
    return any(b"html" in kind.lower() for kind in kinds) or text.lstrip()[:1] == b"<"


def _names(names: Iterable[str]) -> str:
    """The first of *names*, and how many there are besides."""
    every = list(names)
    more = len(every) - _MAX_NAMES
    return ", ".join(every[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _first(things: Iterable[Any]) -> list[Any]:
    return list(things)[:_MAX_LINES]


@contextmanager
def _logged(log_format: str, publisher: LogPublisher = globalLogPublisher) -> Any:
    """The lines of that format which are logged in the block."""
    lines: list[LogEvent] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_format") == log_format and len(lines) < _MAX_LINES:
            lines.append(event)

    publisher.addObserver(observe)
    try:
        yield lines
    finally:
        publisher.removeObserver(observe)


def run_to_exit(
    reactor: Any, work: Coroutine[Any, Any, int], write: Callable[[str], object]
) -> int:
    """Run *reactor* until *work* has ended; its result, the exit status.

    A signal ends it before, with :data:`UNDECIDED`.
    """
    statuses: list[int] = []

    def fail(failure: Failure) -> None:
        if not failure.check(CancelledError):
            write(failure.getTraceback())

    def start() -> None:
        done = Deferred.fromCoroutine(work)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        done.addCallbacks(statuses.append, fail)
        done.addBoth(lambda _: reactor.callLater(0, stop))

    def stop() -> None:
        with suppress(ReactorNotRunning):  # a signal has come before
            reactor.stop()

    reactor.callWhenRunning(start)
    reactor.run()
    return statuses[0] if statuses else UNDECIDED
