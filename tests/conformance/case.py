"""What a case is made of: bytes to send, an upstream's answer, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from .upstream import Answer, Seen
from .wire import CLOSE, Reply, Step

#: What the authority of the server under test stands for in the bytes that are sent.
AUTHORITY = b"@AUTHORITY@"

#: The status of a connection that is closed without an answer.
SILENCE = 0

#: Statuses by which a server refuses a request line or a framing that it does not take.
REFUSED = frozenset({400})
UNSUPPORTED = frozenset({400, 501})

OPEN, CLOSED, ANY = "open", "closed", "any"


@attrs.frozen
class Outcome:
    """What came of a case at one server."""

    raw: bytes
    replies: list[Reply]
    malformed: str
    closed: bool
    seen: list[Seen]
    garbage: list[str]

    @property
    def finals(self) -> list[Reply]:
        """The replies that are not interim."""
        return [reply for reply in self.replies if reply.status >= 200]


Check = Callable[[Outcome], str]
"""Says what is wrong, or nothing."""


@attrs.frozen(kw_only=True)
class Case:
    """One exchange.

    *statuses*: for each answer in turn, what it may be; *seen*: how many requests the upstream
    may see, or by default as many as were answered with a status below 400; *after*: what must
    become of the connection, by default what the last answer announces, and closed after a 400;
    *cut*: whether the last answer must break off, as the client can see.
    """

    name: str
    rfc: str
    send: tuple[Step, ...]
    statuses: tuple[frozenset[int], ...] = (frozenset({200}),)
    answers: tuple[Answer, ...] = (Answer(),)
    seen: frozenset[int] | None = None
    after: str = ANY
    cut: bool = False
    methods: tuple[bytes, ...] = ()
    checks: tuple[Check, ...] = ()
    timeout: float = 3.0

    @property
    def asked(self) -> tuple[bytes, ...]:
        """The methods of the requests, as far as answers to them are framed otherwise."""
        first = next((step for step in self.send if isinstance(step, bytes)), b"")
        return self.methods or (first.partition(b" ")[0],)


def request(
    *lines: bytes | str,
    target: bytes | str = "/echo",
    method: str = "GET",
    version: str = "HTTP/1.1",
    host: bytes | str | None = "example.com",
    body: bytes = b"",
) -> bytes:
    """The bytes of a request; *lines* are its fields as they are."""
    head = [_bytes(method) + b" " + _bytes(target) + b" " + _bytes(version)]
    if host is not None:
        head.append(b"Host: " + _bytes(host))
    head += [_bytes(line) for line in lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def post(*lines: bytes | str, body: bytes = b"", length: bool = True, **more: str) -> bytes:
    """The bytes of a POST, with a Content-Length unless told otherwise."""
    framing = (f"Content-Length: {len(body)}",) if length else ()
    return request(*framing, *lines, method="POST", body=body, **more)


def chunked(body: bytes, *lines: str, **more: str) -> bytes:
    """The bytes of a POST with a chunked body, as *body* frames it."""
    return post("Transfer-Encoding: chunked", *lines, body=body, length=False, **more)


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def case(
    name: str,
    rfc: str,
    *send: Step,
    status: int | Iterable[int] = 200,
    more: Sequence[int | Iterable[int]] = (),
    seen: int | Iterable[int] | None = None,
    answers: Sequence[Answer] = (Answer(),),
    after: str = ANY,
    cut: bool = False,
    methods: Sequence[bytes] = (),
    checks: Sequence[Check] = (),
    timeout: float = 3.0,
) -> Case:
    """A case; *more* are the statuses of further answers."""
    return Case(
        name=name,
        rfc=rfc,
        send=send,
        statuses=tuple(_set(each) for each in (status, *more)),
        answers=tuple(answers),
        seen=None if seen is None else _set(seen),
        after=after,
        cut=cut,
        methods=tuple(methods),
        checks=tuple(checks),
        timeout=timeout,
    )


def refused(
    name: str, rfc: str, *send: Step, status: int | Iterable[int] = REFUSED, after: str = CLOSED
) -> Case:
    """A request that must be refused, with nothing forwarded, and the connection closed."""
    return case(name, rfc, *send, status=status, seen=0, after=after)


def answered(
    name: str,
    rfc: str,
    *steps: Step,
    send: bytes = request(),
    status: int | Iterable[int] = 200,
    cut: bool = False,
    checks: Sequence[Check] = (),
    seen: int | Iterable[int] | None = (1, 2),
    after: str = ANY,
    timeout: float = 3.0,
) -> Case:
    """A request whose answer by the upstream is what matters."""
    return case(
        *(name, rfc, send),
        status=status,
        answers=[Answer(tuple(steps))],
        cut=cut,
        checks=checks,
        seen=seen,
        after=after,
        timeout=timeout,
    )


def closing(*steps: Step) -> tuple[Step, ...]:
    """*steps*, and then the upstream closes."""
    return (*steps, CLOSE)


def _set(said: int | Iterable[int]) -> frozenset[int]:
    return frozenset({said} if isinstance(said, int) else said)
