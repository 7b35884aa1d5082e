"""Check: ``--check``: what the server is, which tools there are, what is wrong. It calls none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, LogPublisher, globalLogPublisher
from zope.interface import provider

from llamaproxy import jsontext
from llamaproxy.advice import group_problem, problem, server_problem
from llamaproxy.errors import ProxyError, UpstreamTimeout
from llamaproxy.events import Event, ListRefreshed, Observers
from llamaproxy.report import Report, in_a_line
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.offers import Offer
from llamaproxy.upstream.client import MAX_JSON_BYTES, LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import DETECTION_TIMEOUT, PLAIN_OPENAI, ServerDialect, dialect_of
from llamaproxy.upstream.failures import is_page, redirect_target
from llamaproxy.upstream.response_head import ResponseHead

#: Seconds that all of it may take.
LIMIT = 60.0

#: Lines about one kind of thing.
_MAX_LINES = 200

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
    _report: Report = attrs.field(init=False)

    @_report.default
    def _nothing_yet(self) -> Report:
        return Report(self._write)

    async def run(self, clock: IReactorTime) -> int:
        """The exit status, within :data:`LIMIT` seconds."""
        questions = Deferred.fromCoroutine(self._ask_all())
        try:
            await questions.addTimeout(LIMIT, clock)
        except TimeoutError:
            self._report.doubt(problem("undecided", seconds=f"{LIMIT:g}", question=self._question))
        return self._report.end()

    async def _ask_all(self) -> None:
        if self._unused_key:
            self._report.note(problem("unused_key"))
        dialect = await self._server()
        if dialect is not None:
            await self._chat_completions(dialect)
            await self._models(dialect)
        if dialect is not None or self._named_servers:
            await self._tools(dialect)

    # --- the server

    async def _server(self) -> ServerDialect | None:
        """The generation of the server, None if it is of no use."""
        first = await self._look("GET", "/v1/version")
        if first is None:
            return None
        head, text = first
        version = _object(text).get("version") if head.status == 200 else None
        if isinstance(version, str):
            dialect = dialect_of(version[:100])
            runs = "runs its tools itself" if dialect.tool_runtime else "has llamaproxy call them"
            self._report.well(
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
        if _list_in(answer[1]) is not None:
            self._report.well(f"the server at {self._url} is an OpenAI server, and no Llama Stack")
            return PLAIN_OPENAI
        pages = [is_page(each.values(b"content-type"), text) for each, text in (first, answer)]
        self._report.fault(problem("web_page" if any(pages) else "wrong_path", url=self._url))
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
                self._report.fault(problem("no_chat", path=path))
                return
        if answer is None:
            return
        if not self._is_no_answer(answer[0], path):
            self._report.well(f"chat completions: {path}")

    async def _models(self, dialect: ServerDialect) -> None:
        path = dialect.upstream_path(b"GET", b"/v1/models").decode("ascii")
        self._question = f"which models there are ({path})"
        answer = await self._look("GET", path)
        if answer is None:
            return
        head, text = answer
        models = _list_in(text)
        if head.status not in _TROUBLE and self._is_no_answer(head, path):
            return
        if head.status != 200 or models is None:
            reason = _no_list(head, text)
            self._report.fault(problem("models_failed", reason=f"{reason} for {path}"))
        elif not models:
            self._report.fault(problem("no_models"))
        else:
            ids = [str(model.get("id")) for model in models]
            self._report.well(f"models: {len(models)}: {in_a_line(ids)}")

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
                self._report.well(f"{group}{where}: {count} tools: {in_a_line(listed.names)}")
            else:
                self._report.note(problem("empty_group", group=f"{group}{where}"))
        for group, error in _first(sorted(event.failures.items())):
            self._report.fault(group_problem(group, error))
        for line in _first(unfit):
            self._report.fault(
                problem("unfit_tool", group=line.get("group"), reason=line.get("reason"))
            )
        if event.left_out:
            names = in_a_line(event.left_out)
            self._report.fault(problem("left_out", count=len(event.left_out), names=names))
        if dialect is None:
            return  # why the server has none has been said
        listed_by_server = dialect.tool_runtime and self._runtime_tools
        if event.groups_error is not None:
            self._report.fault(group_problem("", event.groups_error))
        elif not event.groups and not event.failures:
            self._report.fault(problem("no_groups" if dialect.version else "plain_server"))
        # A list that one group has spoilt has been complained of.
        whole = not event.failures and event.groups_error is None
        await self._names_shared(listed_by_server and whole, offer)

    async def _names_shared(self, listed_by_server: bool, offer: Offer) -> None:
        """Tools of one name: of several MCP servers, or of several groups of an old server."""
        counts = Counter(tool.name for tool in offer.tools.values())
        if shared := [name for name, count in counts.items() if count > 1]:
            count = sum(counts[name] for name in shared)
            self._report.note(problem("renamed_tools", count=count, names=in_a_line(shared)))
        if not listed_by_server:
            return
        self._question = "whether names of tools are used twice"
        answer = await self._look("GET", "/v1/tools")
        if answer is None:
            return
        head, text = answer
        tools = _list_in(text)
        if head.status != 200 or tools is None:
            reason = _no_list(head, text)
            self._report.fault(problem("groups_failed", reason=f"{reason} for /v1/tools"))
            return
        names = Counter(str(tool.get("name") or tool.get("identifier")) for tool in tools)
        if hidden := [name for name, count in names.items() if count > 1]:
            self._report.fault(problem("hidden_tools", count=len(hidden), names=in_a_line(hidden)))

    # --- what is asked, and what is written

    async def _look(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[ResponseHead, bytes] | None:
        """The server's answer, None if there is none, which is then written."""
        try:
            return await self._client.look(
                method, path, _NOBODY, body, DETECTION_TIMEOUT, MAX_JSON_BYTES
            )
        except UpstreamTimeout as error:
            self._report.doubt(server_problem(self._url, error))
        except ProxyError as error:
            self._report.fault(server_problem(self._url, error))
        return None

    def _is_no_answer(self, head: ResponseHead, path: str) -> bool:
        """Whether the status is the reason why there is no other answer; it is then written."""
        if 300 <= head.status < 400:
            target = redirect_target(head.values(b"location"))
            self._report.fault(problem("redirect", url=self._url, target=target))
        elif head.status in _WHO:
            self._report.fault(problem("credentials", status=head.status, path=path))
        elif head.status in _TROUBLE:
            self._report.fault(problem("server_error", url=self._url, status=head.status))
        else:
            return False
        return True


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object in *text*; empty if there is none."""
    try:
        value = jsontext.loads_anyhow(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _list_in(text: bytes) -> list[dict[str, Any]] | None:
    """The objects in the list in *text*, None if there is no list."""
    answer = _object(text)
    entries = answer.get("data")
    if entries is None and answer.get("object") == "list":
        return []  # Ollama's, when it has no model
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict)]


def _no_list(head: ResponseHead, text: bytes) -> str:
    """Why an answer is of no use as a list."""
    if head.status != 200:
        return f"HTTP status {head.status}"
    return "a web page" if is_page(head.values(b"content-type"), text) else "an answer without data"


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
