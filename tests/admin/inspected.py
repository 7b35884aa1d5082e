"""The whole application in memory with the page's side of its admin port."""

from __future__ import annotations

import json
from typing import Any

from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.serving import Serving, ThisProcess
from llamaproxy.admin.status import Status
from llamaproxy.adminport import ADMIN_LIMITS, _dialect_shown, inspector_of, own_answers
from llamaproxy.config.options import Options
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.site import ProxySite
from tests.server.door import Answer, Client
from tests.support import CHAT, FakeStack, Proxy

#: Where its clients come in.
CLIENTS = "http://localhost:8322"


class Inspected(Proxy):
    """llamaproxy in front of *stack*, and an admin port on the same clock."""

    def __init__(self, stack: FakeStack, contents: bool = False, **more: Any) -> None:
        Proxy.__init__(self, stack, **more)
        self.stack = stack
        self.front = ProxySite(
            self.app.resource, self.clock, keys=more.get("keys"), tell=self.app.tell
        )
        self._front._agent._serverFactory = self.front
        self.options = Options({})
        self.options.parseOptions(["--inspect-contents"] if contents else [])
        serving, self.shown = self._watched()
        self.draining = False
        draining = lambda: self.draining  # noqa: E731
        self.inspector = inspector_of(
            *(self.options, self.app, self.url, self.clock, self.shown, serving, draining),
            lambda: [CLIENTS],
        )
        self.reachability = Reachability(self.clock, self.app.detector.answers)
        status = Status(
            url=self.url.to_text(),
            clock=self.clock,
            tools=self.tool_status,
            reachability=self.reachability,
            draining=draining,
            dialect=lambda: _dialect_shown(self.app.detector.last),
            serving=serving,
            trouble=lambda: self.app.detector.trouble,
        )
        admin = AdminApp(status, self.inspector)
        hosts = AllowedHosts(["127.0.0.1"])
        self.site = ProxySite(admin.resource(), self.clock, ADMIN_LIMITS, hosts=hosts)

    def _watched(self) -> tuple[Serving, Any]:
        """Those who serve clients, and the answers that they give: this process itself."""
        serving = ThisProcess(self.metrics, self.tool_status.calls, {})
        shown = own_answers(
            self.options, self.app, self.clock, self.front.connections, lambda: [CLIENTS]
        )
        return serving, shown

    def stack_answers(self, *answers: Any) -> None:
        """Have the model answer so."""
        self.stack.on(CHAT, *answers)

    def page(self, *fields: bytes) -> Page:
        """One that has just been opened."""
        page = Page(self)
        page.ask("/feed", *fields)
        return page

    def page_of(self, path: str) -> Page:
        """What has come of asking for *path* by now."""
        page = Page(self)
        page.ask(path)
        self.settle()
        return page

    def get(self, path: str, *fields: bytes) -> Answer:
        return self.ask(path, *fields)

    def post(self, path: str, body: object = None, *fields: bytes) -> Answer:
        text = json.dumps({} if body is None else body).encode()
        given = fields or (b"Content-Type: application/json",)
        return self.ask(path, b"Content-Length: %d" % len(text), *given, method="POST", body=text)

    def opened(self, path: str, body: object) -> Page:
        """A page that has posted *body*, and may still wait for the answer."""
        text = json.dumps(body).encode()
        page = Page(self)
        fields = b"Content-Type: application/json", b"Content-Length: %d" % len(text)
        page.ask(path, *fields, method="POST", body=text)
        self.settle()
        return page

    def ask(self, path: str, *fields: bytes, method: str = "GET", body: bytes = b"") -> Answer:
        client = Page(self)
        client.ask(path, *fields, method=method, body=body)
        for _ in range(20):
            self.advance(0)
        if b"\r\nTransfer-Encoding: chunked" in client.head:
            status, *lines = client.head.decode("latin-1").split("\r\n")
            named: dict[str, list[str]] = {}
            for name, _, value in (line.partition(": ") for line in lines):
                named.setdefault(name.lower(), []).append(value)
            return Answer(int(status.split(" ")[1]), named, client.text())
        [answer] = client.answers(heads=method == "HEAD")
        return answer


class Page(Client):
    """One connection to the admin port."""

    def __init__(self, inspected: Inspected) -> None:
        door: Any = inspected
        Client.__init__(self, door)

    def ask(self, path: str, *fields: bytes, method: str = "GET", body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1:8323", *fields, b"", body]
        self.send(b"\r\n".join(lines))

    @property
    def head(self) -> bytes:
        head: bytes = self.line.value().partition(b"\r\n\r\n")[0]
        return head

    def text(self) -> bytes:
        """The body so far, without its chunks."""
        body: bytes = self.line.value().partition(b"\r\n\r\n")[2]
        text = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            length = int(size, 16)
            text, body = text + rest[:length], rest[length + 2 :]
        return text

    def events(self) -> list[tuple[str, Any]]:
        """The events so far, each with its data."""
        events = []
        for block in self.text().split(b"\n\n"):
            lines = dict(line.split(b": ", 1) for line in block.splitlines() if line[:1] != b":")
            if lines:
                events.append((lines[b"event"].decode(), json.loads(lines[b"data"])))
        return events

    def rows(self) -> list[list[Any]]:
        """The rows of each event of rows so far."""
        return [data["rows"] for name, data in self.events() if name == "rows"]
