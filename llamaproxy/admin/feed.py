"""Feed: server-sent events to open pages (WHATWG HTML standard, section 9.2)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.admin.shown import Shown
from llamaproxy.errors import Overloaded
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest

#: Pages that may be open at the same time.
MAX_PAGES = 20

#: Seconds between two events of one kind, at least: of rows, and of tools.
ROWS_INTERVAL, TOOLS_INTERVAL = 0.2, 2.0

#: How much is sent in a second when there is a lot: what an open page costs does not grow with the
#: number of chats, nor of tools.
ROWS_PER_SECOND, _TOOL_BYTES_PER_SECOND = 100, 256 * 1024

#: Seconds between two looks at the answers that run, and how many of them there are between two
#: comments.
_BEAT, _BEATS_PER_COMMENT = 0.2, 75

_COMMENT = b": keep-alive\n\n"

#: Milliseconds after which a browser asks again for a feed that has broken off; by itself it would
#: wait longer.
_RETRY = b"retry: 1000\n"


@implementer(IPushProducer)
class Page:
    """One page that is open, and what it has been told: numbers alone, no texts."""

    def __init__(self, request: ProxyRequest, feed: Feed) -> None:
        self.request = request
        self._feed = feed
        self.paused = False
        #: Up to which change, and version of the tools; and the rows that it has.
        self.change = -1
        self.tools = -1
        self.keys: frozenset[int] = frozenset()

    def cancel(self) -> None:
        """The page has gone, or is to go."""
        self._feed.leave(self)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self._feed.catch_up()

    def stopProducing(self) -> None:
        """The connection is lost: the request hears of that as well."""


class Feed(Service):
    """Tells open pages of answers and tools; with none open it hears of nothing.

    What has changed is made into text once for all pages, however often it has. A page that does
    not read is told nothing, and how things stand when it reads again. As a service it sends the
    pages away when it is stopped, after they have been told how the last answers ended.
    """

    def __init__(
        self,
        shown: Shown,
        tools: Callable[[], Json],
        hello: Callable[[], Json],
        draining: Callable[[], Json | None],
        clock: IReactorTime,
    ) -> None:
        """:param tools: returns what a page is told of the tools; *hello* the same at first.

        :param draining: the same of the daemon's end when that has begun; None before.
        """
        self._shown = shown
        self._tools = tools
        self._hello = hello
        self._draining = draining
        self._clock = clock
        self._pages: dict[Page, None] = {}
        self._tools_version = 0
        self._tools_changed = False
        self._rows_due = self._tools_due = 0.0
        self._rows_call: IDelayedCall | None = None
        self._tools_call: IDelayedCall | None = None
        self._beat_call: IDelayedCall | None = None
        self._beats = 0
        self._drain: Json | None = None
        self._stopped = False

    def open(self, request: ProxyRequest) -> None:
        """Answer *request* for as long as its page is open.

        :raises Overloaded: if there are too many already.
        """
        if self._stopped or len(self._pages) >= MAX_PAGES:
            raise Overloaded(f"There are {len(self._pages)} pages open already; close one.")
        page = Page(request, self)
        request.work = page
        request.half_closable = False
        # Nothing is served after it: when it ends, the daemon stops.
        request.channel.persistent = False
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"x-accel-buffering", b"no")
        if not self._pages:
            self._shown.open(self._schedule_rows, self._note_tools)
            self._beat_call = self._clock.callLater(_BEAT, self._beat)
        self._pages[page] = None
        request.registerProducer(page, True)
        request.write(_RETRY + _event(b"hello", self._hello()))
        if self._shown.change >= 0:
            self._tell_rows(page, {})
        self._tell_tools(page, {})
        if self._drain is not None:
            request.write(_event(b"draining", self._drain))

    def leave(self, page: Page) -> None:
        """*page* is told nothing any more."""
        if page not in self._pages:
            return
        del self._pages[page]
        if page.request.channel is not None:
            page.request.unregisterProducer()
            page.request.finish()
        if not self._pages:
            self._shown.close()
            for call in (self._rows_call, self._tools_call, self._beat_call):
                if call is not None:
                    call.cancel()
            self._rows_call = self._tools_call = self._beat_call = None

    def stopService(self) -> Deferred[None] | None:
        """The daemon stops: it does not wait for pages."""
        Service.stopService(self)
        self._stopped = True
        for call in (self._rows_call, self._tools_call):
            if call is not None:
                call.cancel()
        self._rows_call = self._tools_call = None
        if self._pages:
            self._tell_drain()
            self._flush_rows()
            self._flush_tools()
        for page in list(self._pages):
            self.leave(page)
        return None

    def catch_up(self) -> None:
        """A page reads again."""
        self._schedule_rows()
        self._schedule_tools()

    def _note_tools(self) -> None:
        self._tools_changed = True
        self._schedule_tools()

    def _schedule_rows(self) -> None:
        if self._rows_call is None and self._pages:
            seconds = max(0.0, self._rows_due - self._clock.seconds())
            self._rows_call = self._clock.callLater(seconds, self._flush_rows)

    def _schedule_tools(self) -> None:
        if self._tools_call is None and self._pages:
            seconds = max(0.0, self._tools_due - self._clock.seconds())
            self._tools_call = self._clock.callLater(seconds, self._flush_tools)

    def _flush_rows(self) -> None:
        self._shown.settle()  # what is heard of now is told now, and needs no further call
        self._rows_call = None
        texts: dict[int, bytes] = {}
        made = 0
        for page in list(self._pages):
            if not page.paused and page.change < self._shown.change:
                made += self._tell_rows(page, texts)
        interval = max(ROWS_INTERVAL, made / ROWS_PER_SECOND)
        self._rows_due = self._clock.seconds() + interval

    def _flush_tools(self) -> None:
        self._tools_call = None
        if self._tools_changed:
            self._tools_changed = False
            self._tools_version += 1
        texts: dict[int, bytes] = {}
        for page in list(self._pages):
            if not page.paused and page.tools < self._tools_version:
                self._tell_tools(page, texts)
        size = max(map(len, texts.values()), default=0)
        interval = max(TOOLS_INTERVAL, size / _TOOL_BYTES_PER_SECOND)
        self._tools_due = self._clock.seconds() + interval

    def _tell_rows(self, page: Page, texts: dict[int, bytes]) -> int:
        """Tell *page* what it does not know; how many rows have been made for that.

        :param texts: what has been made already, by what is known.
        """
        keys, made = self._shown.keys, 0
        if gone := page.keys - keys:
            page.request.write(_event(b"gone", {"keys": sorted(gone)}))
        text = texts.get(page.change)
        if text is None:
            rows, made = self._shown.rows_since(page.change)
            text = texts[page.change] = _event(b"rows", {"rows": rows})
        page.change, page.keys = self._shown.change, keys
        page.request.write(text)
        return made

    def _tell_tools(self, page: Page, texts: dict[int, bytes]) -> None:
        text = texts.get(0)
        if text is None:
            text = texts[0] = _event(b"tools", self._tools())
        page.tools = self._tools_version
        page.request.write(text)

    def _tell_drain(self) -> None:
        """Tell each page, once, that the daemon has begun to stop."""
        if self._drain is None and (drain := self._draining()) is not None:
            self._drain = drain
            for page in list(self._pages):
                page.request.write(_event(b"draining", drain))

    def _beat(self) -> None:
        self._beat_call = self._clock.callLater(_BEAT, self._beat)
        if not all(page.paused for page in self._pages):
            self._shown.look(self._rows_due <= self._clock.seconds() + _BEAT)
        self._tell_drain()
        self._beats += 1
        if self._beats % _BEATS_PER_COMMENT == 0:
            for page in list(self._pages):
                if not page.paused:
                    page.request.write(_COMMENT)


def _event(name: bytes, body: Json) -> bytes:
    """One event; the text of JSON has no line ends."""
    return b"event: %b\ndata: %b\n\n" % (name, jsontext.dumps_strictly(body))
