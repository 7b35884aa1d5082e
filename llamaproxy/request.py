"""ProxyRequest: the life of one request, and all that is known of it on the way."""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from contextvars import Context, copy_context
from functools import cached_property
from typing import IO, Any, Protocol
from urllib.parse import parse_qs, unquote_to_bytes

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET, Request, version

from llamaproxy.deferreds import let_go_of_frames
from llamaproxy.errors import ProxyError, error_response
from llamaproxy.events import request_id
from llamaproxy.heads import Fields, RequestHead, answer_head, date, fields_of, headers_of, without
from llamaproxy.records import RequestRecord

_log = Logger()

#: Requests of one connection that may be served in one turn of the reactor: a client that sends
#: hundreds at once is not to keep the others waiting.
MAX_PIPELINED_PER_TURN = 8


#: Logged as the status of an answer that did not come to its end, as nginx does it.
CUT_OFF_STATUS = 499


_ANY_HOST = IPv4Address("TCP", "0.0.0.0", 0)


class Work(Protocol):
    """What is done for a request, and ends when its client leaves."""

    def cancel(self) -> None: ...


class ProxyRequest(Request):
    """A request from its head on, until it has been answered or its client has left.

    To resources it is a request of Twisted's, without what they do not use of it here: cookies,
    forms, and the ways to set ``ETag`` and ``Last-Modified``. What not all of them ask for is made
    when it is asked for.
    """

    # A stream has it as long as it lasts: what each request has is cheaper here than in a dict.
    __slots__ = (
        *("site", "transport", "head", "content", "method", "uri", "path"),
        *("clientproto", "client_host", "id", "notifications", "record", "_secure"),
    )
    site: Any
    transport: Any
    content: Any
    #: Of the answer: whether its head is all of it; whether its end can be seen.
    _bodiless = False
    _framed = False
    #: The head, until the beginning of the body is sent with it.
    _unsent = b""
    #: What tells the sender from those with other API keys: a digest, which is sent nowhere.
    key_id = b""
    #: Whether a client that has closed its side may still wait for the answer.
    half_closable = True
    #: Fields of the upstream's for the answer, whoever gives it; the proxy's own replace them.
    relayed_fields: Fields = []  # noqa: RUF012 (replaced, never changed)
    #: None when the client has left, and when the answer has come to its end.
    channel: Any = None
    #: Why the daemon does not wait any longer for the answer, None while it does.
    stopped: ProxyError | None = None
    #: What is then cancelled, and when the client leaves.
    work: Work | None = None
    #: What all who watch know of it, from when it is served.
    record: RequestRecord
    #: In which it is served: its id, its span.
    _context: Context

    def __init__(self, channel: Any, head: RequestHead, content: IO[bytes]) -> None:
        """:param content: its body, all of which has come."""
        # Not Request's, which makes ten things that few requests need.
        Componentized.__init__(self)
        self.channel = channel
        self.site = channel.site
        self.transport = channel.transport
        self.head = head
        self.content = content
        self.method, self.uri = head.line.method, head.line.target
        self.path = head.path
        self.clientproto = b"HTTP/1.1" if head.line.minor else b"HTTP/1.0"
        self.client_host: str | None = channel.client_host
        self._secure: bool = channel.secure
        #: By which the client, the log and the upstream know the request.
        self.id = head.id.decode("latin-1")
        self.notifications = []

    # Requests are members of sets; Request's own is a function in Python.
    __hash__ = object.__hash__

    @cached_property
    def client(self) -> Any:
        return self.transport.getPeer()

    @cached_property
    def requestHeaders(self) -> Headers:  # type: ignore[override]
        return headers_of(self.head.fields)

    @cached_property
    def responseHeaders(self) -> Headers:  # type: ignore[override]
        return Headers()

    @cached_property
    def args(self) -> dict[bytes, list[bytes]]:  # type: ignore[override]
        return parse_qs(self.uri.partition(b"?")[2], keep_blank_values=True)

    @cached_property
    def prepath(self) -> list[bytes]:  # type: ignore[override]
        return []

    @cached_property
    def postpath(self) -> list[bytes]:  # type: ignore[override]
        return list(map(unquote_to_bytes, self.path[1:].split(b"/")))

    def isSecure(self) -> bool:
        return self._secure

    def note(self, error: ProxyError) -> None:
        """Have those who watch know of the *error* that it ends with."""
        self.record.kind, self.record.error = error.kind, error.logged

    def respond(self, work: Coroutine[Any, Any, bytes | int | None]) -> int:
        """Let *work* answer; it is cancelled when the client leaves.

        It returns the body, or None if it has sent that itself, or ``NOT_DONE_YET`` if the
        connection ends in another way. What it raises becomes an error of OpenAI's shape, or, once
        the answer has begun, an abnormal end.
        """
        self.work = answering = Deferred.fromCoroutine(self._answer_with(work))
        # Nothing can fail in it any more but for an error of our own.
        answering.addErrback(self._log_failure)
        return NOT_DONE_YET

    def _log_failure(self, failure: Failure) -> None:
        _log.failure("a request failed", failure, request=self.id)

    async def _answer_with(self, work: Coroutine[Any, Any, bytes | int | None]) -> None:
        body: bytes | int | None
        try:
            body = await work
        except Exception as failure:
            self.fail(failure)
            let_go_of_frames(failure)
            return
        if self.channel is None:
            return
        if isinstance(body, bytes):
            self.write(body)
        if body != NOT_DONE_YET:
            self.finish()

    def noted(self, failure: Exception) -> ProxyError:
        """What a client is told of *failure*, which those who watch know of from now on."""
        error = self._error_of(failure)
        self.note(error)
        let_go_of_frames(failure)
        return error

    def _error_of(self, failure: Exception) -> ProxyError:
        """The same; a fault of the proxy is logged."""
        if isinstance(failure, ProxyError):
            return failure
        if isinstance(failure, CancelledError) and self.stopped is not None:
            return self.stopped
        # Its id is said here: what the upstream does is told in no request's context.
        self._log_failure(Failure(failure))
        return ProxyError()

    def fail(self, failure: Exception) -> None:
        """End with *failure*, unless the client has left: as an error of OpenAI's shape.

        If the answer has begun, the status has been sent, so only an abnormal end can tell the
        client now, and the connection is closed.
        """
        if self.channel is None:
            return
        error = self._error_of(failure)
        if not self.startedWriting:
            self.write(error_response(self, error))
            self.finish()
            return
        self.note(error)
        _log.warn("an answer was cut short: {kind}", kind=error.kind, request=self.id)
        self.cut_off()

    def stop(self, error: ProxyError) -> None:
        """End at once, with *error*."""
        if self.channel is None:
            return  # it had waited for what another held, and has ended
        self.stopped = error
        if self.work is None:
            self.fail(error)
        else:
            self.work.cancel()

    def cut_off(self) -> None:
        """End an answer that has begun so that it does not look whole."""
        channel = self.channel
        if self._framed or channel is None:
            self.loseConnection()
        else:
            # To a client of HTTP/1.0 the end of the connection is that of the answer: only a reset
            # tells it otherwise.
            channel.transport.abortConnection()

    # --- the answer

    def begin(
        self,
        status: int,
        phrase: bytes,
        fields: Fields,
        body_follows: bool = False,
        names: Collection[bytes] | None = None,
    ) -> None:
        """Send the head of the answer, of the end-to-end *fields* as they are.

        Those that belong to the connection are added, and what every answer has: the id, a date.

        :param body_follows: whether something is written in the same turn, which it then goes with.

        :param names: those of the fields, in lower case, if they are known.
        """
        channel, line = self.channel, self.head.line
        if channel is None:
            return
        self.startedWriting = 1
        self.record.first_byte = self.site.now()
        self.code, self.code_message = status, phrase
        if names is None:
            names = {name.lower() for name, _ in fields}
        has_length = b"content-length" in names
        self._bodiless = line.method == b"HEAD" or status in NO_BODY_CODES
        added: Fields = []
        if b"server" not in names:
            added.append((b"Server", version))
        if b"date" not in names:  # an upstream without a clock (RFC 9110 section 6.6.1)
            added.append((b"Date", date()))
        if b"x-request-id" not in names:  # else: the upstream's own
            added.append((b"X-Request-Id", self.head.id))
        if line.minor == 0 and channel.persistent:
            # It knows no other way to see where an answer ends, and expects to be told so.
            channel.persistent = has_length
            added.append((b"Connection", b"keep-alive" if has_length else b"close"))
        elif not channel.persistent:
            added.append((b"Connection", b"close"))
        if not has_length and not self._bodiless and line.minor:
            self.chunked = 1
            added.append((b"Transfer-Encoding", b"chunked"))
            self.head.let_go()  # a stream would keep them to its end
        self._framed = bool(has_length or self.chunked)
        self._unsent = answer_head(line.minor, status, phrase, [*fields, *added])
        if not body_follows:
            self._send_head()

    def _send_head(self) -> None:
        head, self._unsent = self._unsent, b""
        if head and self.channel is not None:
            self.transport.write(head)

    def write(self, data: bytes) -> None:
        """Send *data* of the body; the head before it, if it has not been sent."""
        if self.finished:
            raise RuntimeError("Request.write called on a request after Request.finish was called.")
        if not self.startedWriting:
            # If any have been set; a stream does not need them as long as it lasts.
            own = fields_of(self.__dict__.pop("responseHeaders", None))
            fields, self.relayed_fields = self.relayed_fields, []
            if own:
                fields = own + without(fields, {name.lower() for name, _ in own})
            self.begin(self.code, self.code_message, fields, body_follows=True)
        if not data or self._bodiless or self.channel is None:
            self._send_head()
            return
        self.sentLength += len(data)
        # A copy costs less than several writes, or one of a list.
        if self.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        self.transport.write(data)

    def finish(self) -> None:
        """The answer has been given as a whole."""
        channel = self.channel
        if channel is None:
            raise RuntimeError("There is nobody, or nobody any more, to be answered.")
        if not self.startedWriting or self._unsent:
            self.write(b"")
        if self.chunked:
            self.transport.write(b"0\r\n\r\n")
        self.finished = 1
        self.work = None
        self._end(self.code)
        channel.requestDone(self)
        for waiter in self.notifications:
            waiter.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """The client has left, or its connection is another protocol's and has ended."""
        self._disconnected = True
        self.channel = None
        try:
            # First, so that whoever hears of the end finds that of its rounds and calls as well.
            # Both refer to the request: it would be left to the garbage collector.
            work, self.work, self.producer = self.work, None, None
            if work is not None:
                work.cancel()
        finally:
            self._end(101 if self.code == 101 else CUT_OFF_STATUS)
        for waiter in self.notifications:
            waiter.errback(reason)

    def _end(self, status: int) -> None:
        self.site.ended(self, status)
        self.channel = None
        self.content.close()

    # --- being served

    def process(self) -> None:
        # A context of its own, or else the next request would have this one's id.
        self._context = copy_context()
        self._context.run(self._process)

    def _process(self) -> None:
        request_id.set(self.id)
        self.site.began(self)
        channel: Any = self.channel
        channel.served += 1
        if channel.served <= MAX_PIPELINED_PER_TURN:
            self._answer()
        else:
            channel.site.clock.callLater(0, self._context.run, self._answer)

    def _answer(self) -> None:
        if self.channel is None:
            return  # the client has gone
        if self.uri == b"*":  # OPTIONS of the proxy as a whole
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"0"])
            self.finish()
            return
        try:
            self.render(self.site.resource)
        except BaseException:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """A fault of the proxy: an error of OpenAI's shape as well, and never a page."""
        failure: Any = reason.value
        self.fail(failure)
        return reason

    def getRequestHostname(self) -> bytes:
        """Always the same: no route depends on it, and Klein fails over hosts that are no names."""
        return b"llamaproxy"

    def getHost(self) -> IPv4Address:
        """Always the same: Klein, which alone asks, looks at a port that no route depends on."""
        return _ANY_HOST
