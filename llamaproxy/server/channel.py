"""ProxyChannel: takes requests off a client's connection, and refuses what is doubtful."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import IO, Any

from twisted.internet import interfaces
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaproxy.errors import ProxyError
from llamaproxy.heads import RequestHead
from llamaproxy.request import ProxyRequest
from llamaproxy.server.body import StoredBody
from llamaproxy.server.checks import HEAD_CHECKS, SITE_CHECKS
from llamaproxy.server.framing import RequestRefused, keeps_connection, request_id
from llamaproxy.server.head import LineReader, read_head, read_head_again
from llamaproxy.server.state import ANSWER, BODY, CLOSING, TUNNEL, ConnectionState

_log = Logger()

#: Bytes that are read of the requests that follow the one that is being answered.
MAX_PIPELINED_BYTES = 16384


@implementer(interfaces.IHalfCloseableProtocol, interfaces.IPushProducer)
class ProxyChannel(Protocol):
    """Takes requests off a connection, one after the other.

    It is the producer of its transport, and the channel of the request that it has. Its deadline is
    looked at by :class:`llamaproxy.server.connections.Connections`.
    """

    # Thousands of them wait for their next request, and do nothing else.
    __slots__ = (
        *("site", "transport", "secure", "connected", "state", "_client_host"),
        *("request", "persistent", "served", "_reader", "_head", "_body", "_reading"),
        *("_pipelined", "_read_paused", "_producer", "_receive", "_half_closed_check"),
    )

    def __init__(self, site: Any) -> None:
        self.site = site
        self.transport: Any = None
        self._client_host: str | None = None
        #: The request that is being answered; whether another may follow it.
        self.request: ProxyRequest | None = None
        self.persistent = True
        #: Requests that have been served in this turn of the reactor.
        self.served = 0
        #: What reads a head that comes in pieces, and what has been read of the request that comes.
        self._reader: LineReader | None = None
        self._head: RequestHead | None = None
        self._body: StoredBody | None = None
        #: What has come after the request that is being answered.
        self._pipelined: bytes | bytearray = b""
        self._reading = self._read_paused = False
        self._producer: interfaces.IPushProducer | None = None
        self._half_closed_check: interfaces.IDelayedCall | None = None

    # --- the connection

    def connectionMade(self) -> None:
        #: Whether it has come over TLS.
        self.secure = bool(interfaces.ISSLTransport.providedBy(self.transport))
        self.site.connections.opened(self)
        limits = self.site.limits
        excess = self.site.connections.connected - limits.connections
        self.state = ConnectionState(self.site.now, limits, over_limit=excess > 0)
        if interfaces.ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        if excess > limits.over_limit_connections:
            self.state.close()
            self.site.turned_away()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections.closed(self)
        if self._half_closed_check is not None:
            self._half_closed_check.cancel()
        self._producer = None
        if self._head is not None and self._body is not None:
            self._body.file.close()
            self.site.left(self._head, self.client_host)
        if self.request is not None:
            self.request.connectionLost(reason)

    def readConnectionLost(self) -> None:
        """The client sends nothing more: it waits for its answers, or has left.

        Only something that is sent to it can tell: it is refused if nobody is there. What is done
        for a chat does not wait for that, but ends at once (DESIGN: L17).
        """
        self.state.half_closed = True
        if self.state.phase != ANSWER and not self._pipelined:
            self.loseConnection()
        elif self._half_closed_check is None:
            self._check_half_closed()

    def client_closed(self, whole: bool) -> None:
        """What reading would tell, did it go on: the client has closed its side, or the *whole*."""
        if self.state.phase != ANSWER:
            return  # it is told by reading on, or by a deadline
        if whole:
            self.transport.abortConnection()
        elif self._half_closed_check is None:
            self._check_half_closed()

    def writeConnectionLost(self) -> None:
        """Our side has been closed, after a refusal."""

    def _check_half_closed(self, sent_before: object = None) -> None:
        # A client that has left is sent nothing twice, and leaves nothing unread.
        self._half_closed_check = None
        request = self.request
        sent = request and (request, request.sentLength)
        is_chat = request is not None and not request.half_closable
        if is_chat or (sent == sent_before and not self.state.stalled):
            self.transport.abortConnection()
        else:
            seconds, clock = self.site.limits.half_closed_timeout, self.site.clock
            self._half_closed_check = clock.callLater(seconds, self._check_half_closed, sent)

    def loseConnection(self) -> None:
        """Close once all that was written has been sent."""
        if self.state.phase != CLOSING:
            self.state.close()
            self.transport.unregisterProducer()
        self.transport.loseConnection()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state.phase in (ANSWER, CLOSING, TUNNEL):
            self.transport.abortConnection()
        else:
            if self.state.over_limit and not self.state.receiving:
                self.site.turned_away()
            self.end(RequestRefused(408, "The request did not come in time."))

    def end(self, error: ProxyError) -> None:
        """Close the connection; a request that is still being sent is refused with *error*."""
        if self.state.receiving:
            self.refuse(error)
        else:
            self.loseConnection()

    def refuse(self, error: ProxyError | OSError) -> None:
        """Answer in place of a request that will not be served, and close."""
        if isinstance(error, OSError):
            _log.failure("a request body could not be stored")
            error = ProxyError("The request body could not be stored.")
        self.state.refuse()
        head = self._head if self._reader is None else self._reader.head
        self.transport.write(self.site.refusal(error, head, self.client_host))
        if self._body is not None:
            with suppress(OSError):  # what could not be stored cannot be flushed either
                self._body.file.close()
            self._body = None
        self.transport.unregisterProducer()
        if self.secure:
            self.transport.loseConnection()  # which goes on reading until the client closes too
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        """Answer with *head*, after which no HTTP is spoken; *receive* gets what comes from now on.

        What has come already, in place of a request that would follow, is the beginning of it.
        """
        self.state.tunnel_begins()
        if self.request is not None:
            self.request.record.first_byte = self.site.now()
        self._receive = receive
        self.transport.write(head)
        if pipelined := self._taken():
            receive(pipelined)
        self.transport.resumeProducing()

    # --- what comes

    @property
    def client_host(self) -> str | None:
        """The client's address, None for one of a Unix socket.

        Behind a load balancer that speaks the PROXY protocol (``haproxy:`` endpoints), it is known
        only when the first bytes have come.
        """
        if self._client_host is None:
            self._client_host = getattr(self.transport.getPeer(), "host", None)
        return self._client_host

    @property
    def is_idle(self) -> bool:
        """Whether there is no request, and none has begun to come (but for half a line)."""
        begun = self._reader is not None and self._reader.head is not None
        return self.state.phase not in (BODY, ANSWER, TUNNEL) and not (begun or self._pipelined)

    def dataReceived(self, data: bytes) -> None:
        if (phase := self.state.phase) == CLOSING:
            self.state.linger()
        elif phase == TUNNEL:
            self._receive(data)
        elif phase != ANSWER and not self.state.stalled and not self._reading:
            self._read(data)
        else:
            pipelined = self._pipelined = self._pipelined or bytearray()
            pipelined += data
            if len(pipelined) > MAX_PIPELINED_BYTES:
                self._pause_reading(True)

    def _taken(self) -> bytes:
        """What was put aside, which is not any more."""
        taken, self._pipelined = bytes(self._pipelined), b""
        return taken

    def _read(self, data: bytes) -> None:
        """Serve the requests in *data*, one after the other, up to one that is not answered yet.

        None is served to a client that has not read the answer before, or they would pile up.
        """
        self._reading, self.served = True, 0
        try:
            while data and self.state.phase <= BODY and not self.state.stalled:
                data = (self._read_body if self.state.phase == BODY else self._read_head)(data)
                if self._pipelined and not data:
                    data = self._taken()
        except (ProxyError, OSError) as error:
            self.refuse(error)
            return
        finally:
            self._reading = False
        if data:
            self.dataReceived(data + self._taken())
        elif self.state.half_closed and self.state.phase <= BODY:
            self.loseConnection()  # nothing more can come

    def _read_head(self, data: bytes) -> bytes:
        """Take what *data* has of a head; what follows that is returned."""
        read = None
        if self._reader is None:
            read = read_head_again(data) or read_head(data)
        if read is not None:
            head, rest = read[0], data[read[1] :]
        else:
            self.state.head_begins()
            reader = self._reader = self._reader or LineReader()
            unread = reader.read(data)
            if unread is None or reader.head is None:
                return b""
            head, rest = reader.head, unread
        self._head, self._reader = head, None
        head.over_limit = self.state.over_limit
        for check in HEAD_CHECKS if head.kind is None else SITE_CHECKS:
            check(head, self.site)
        head.identify(request_id(head.by_name.get(b"x-request-id", ())))
        self.persistent = keeps_connection(head)
        if head.body_length == 0:
            self._serve(head, BytesIO())
            return rest
        self._body = StoredBody(head.body_length, self.site.limits.body_to(head.path))
        self.state.body_continues()
        if head.expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return rest

    def _read_body(self, data: bytes) -> bytes:
        """The same of a body."""
        head, body = self._head, self._body
        assert head is not None and body is not None
        rest = body.receive(data)
        if rest is None:
            self.state.body_continues()
        else:
            self._serve(head, body.file)
        return rest or b""

    def _serve(self, head: RequestHead, content: IO[bytes]) -> None:
        self.state.answer_begins()
        self._head = self._body = None
        content.seek(0)
        self.request = ProxyRequest(self, head, content)
        self.request.process()

    def requestDone(self, request: ProxyRequest) -> None:
        """The answer has been written to its end."""
        self.request = self._producer = None
        if not self.persistent:
            self.loseConnection()
            return
        self.state.answer_ended()
        self._pause_reading(self.state.stalled)
        if not self._reading and (self._pipelined or self.state.half_closed):
            self._read(self._taken())

    # --- back-pressure

    def registerProducer(self, producer: interfaces.IPushProducer, streaming: bool) -> None:
        """Have *producer*, which makes the answer, paused while the client does not read."""
        self._producer = producer
        if self.state.stalled:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.state.stall()
        if self._producer is not None:
            self._producer.pauseProducing()
        if self.request is None:  # else: what follows it is bounded
            self._pause_reading(True)

    def resumeProducing(self) -> None:
        self.state.unstall()
        if self._producer is not None:
            self._producer.resumeProducing()
        if self.request is None and self.state.phase <= BODY:
            self._pause_reading(False)
            if not self._reading:
                self._read(self._taken())

    def _pause_reading(self, paused: bool) -> None:
        if paused != self._read_paused:
            self._read_paused = paused
            self.site.connections.unread(self, paused)
            (self.transport.pauseProducing if paused else self.transport.resumeProducing)()

    def stopProducing(self) -> None:
        if self._producer is not None:
            self._producer.stopProducing()
