"""The feed on sockets: a page, a chat that is stopped, a daemon that waits for no page."""

from __future__ import annotations

import json
from typing import Any

from llamaproxy.config.options import Options
from llamaproxy.server.listen import ListenService
from llamaproxy.tap import makeService
from tests.test_sockets import Wires, on_sockets, reactor, wires

__all__ = ["wires"]


def port_of(service: ListenService) -> int:
    port: Any = service._ports[0]
    number: int = port.getHost().port
    return number


@on_sockets
async def test_a_page_sees_a_chat_stops_it_and_holds_up_nothing(wires: Wires) -> None:
    endpoint = "tcp:0:interface=127.0.0.1"
    options = Options({"LLAMAPROXY_ALLOWED_HOSTS": "*"})
    url = f"http://127.0.0.1:{wires.listen(wires.stack)}"
    options.parseOptions(
        ["--listen", endpoint, "--admin", endpoint, "--llamastack-url", url, "--drain-timeout=0"]
    )
    services: Any = makeService(options, reactor)
    services.startService()
    admin, clients = (port_of(each) for each in services if isinstance(each, ListenService))
    page, stalled = await wires.ask(admin, "GET /feed"), await wires.ask(admin, "GET /feed")
    await page.reads(b"event: tools")
    transport: Any = stalled.transport
    transport.pauseProducing()
    chat = await wires.chat(clients)
    text = await page.reads(b'"key":1,')
    assert b'"status":0,' in text
    stop = await wires.ask(
        admin, "POST /answers/1/stop", "Content-Type: application/json", body=b"{}"
    )
    assert (await stop.end()).startswith(b"HTTP/1.1 204 ")
    head, _, body = (await chat.end()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ") and b"X-Should-Retry: false" in head
    assert json.loads(body)["error"]["code"] == "stopped"
    await page.reads(b'"kind":"stopped"')
    cut = await wires.chat(clients)
    await page.reads(b'"key":2,')
    passed = await wires.ask(clients, "GET /v1/slow")
    while (await wires.stack.asked()).line != b"GET /v1/slow HTTP/1.1":
        pass
    # Neither for a page, nor until one reads.
    await services.stopService()
    assert b"shutting_down" in await cut.end()
    shown = await page.end()
    assert b"event: draining" in shown and b'"path":"/v1/slow"' in shown
    assert b"shutting_down" in await passed.end()
    assert b'"kind":"shutting_down"' in shown and shown.endswith(b"\r\n0\r\n\r\n")
