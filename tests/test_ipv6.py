"""Servers at IPv6 addresses, and URLs in capitals, over real connections to ``::1``."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet import reactor as _reactor
from twisted.web.server import Site

from llamaproxy.server.listen import ListenService
from tests.support import FakeStack, answer, calling, saying
from tests.test_sockets import Peer, Wires, on_sockets, status_of, twisteds_own_warning, wires
from tests.tools.mcp_servers import FakeMcp
from tests.upstream.test_tls import certificate

__all__ = ["wires"]

reactor: Any = _reactor


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = [
    twisteds_own_warning,
    pytest.mark.skipif(not _has_ipv6(), reason="IPv6 IS NOT TESTED: there is no ::1 here"),
]


def served(wires: Wires, resource: Any, tls: Any = None) -> str:
    """Serve *resource* at an IPv6 address; its authority is returned."""
    site: Any = Site
    factory = site(resource)
    factory.noisy = False
    return f"[::1]:{wires.listen(factory, tls, interface='::1')}"


def stack() -> FakeStack:
    made = FakeStack()
    made.on("GET /v1/models", answer({"data": ["m"]}))
    made.on("POST /v1/chat/completions", calling("ping"), saying("Done."))
    return made


async def content(peer: Peer) -> str:
    said: str = json.loads((await peer.end()).partition(b"\r\n\r\n")[2])["choices"][0]["message"][
        "content"
    ]
    return said


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
@on_sockets
async def test_a_server_at_an_ipv6_address(wires: Wires, scheme: str) -> None:
    server = stack()
    place = served(wires, server)
    port = wires.proxy(upstream=f"{scheme}://{place}/v1")
    models = await (await wires.ask(port, "GET /v1/models")).end()
    assert b'{"data": ["m"]}' in models
    [asked] = server.asked_for("GET /v1/models")
    assert asked.headers.getRawHeaders("Host") == [place]


@on_sockets
async def test_a_server_at_an_ipv6_address_over_tls(wires: Wires, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    place = served(wires, stack(), certificate(authority, "::1"))
    port = wires.proxy("--upstream-ca", str(tmp_path / "ca.pem"), upstream=f"HTTPS://{place}")
    assert status_of(await (await wires.ask(port, "GET /v1/models")).end()) == 200


@pytest.mark.parametrize("old", [False, True], ids=["streamable", "sse"])
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
@on_sockets
async def test_a_named_mcp_server_at_an_ipv6_address(wires: Wires, scheme: str, old: bool) -> None:
    tools, server = FakeMcp("ping", old=old), stack()
    named = f"x={scheme}://{served(wires, tools)}/mcp"
    port = wires.proxy("--mcp-server", named, upstream=f"http://{served(wires, server)}")
    assert await content(await wires.chat(port)) == "Done."
    assert len(tools.received("tools/call")) == 1


@pytest.mark.parametrize("old", [False, True], ids=["streamable", "sse"])
@on_sockets
async def test_a_connector_at_an_ipv6_address(wires: Wires, old: bool) -> None:
    tools, server = FakeMcp("ping", old=old), stack()
    url = f"HTTP://{served(wires, tools)}/mcp"
    server.on("GET /v1/version", answer({"version": "1.5.0"}))
    connectors = {"data": [{"connector_id": "x", "url": url, "connector_type": "mcp"}]}
    server.on("GET /v1alpha/admin/connectors", answer(connectors))
    port = wires.proxy(upstream=f"http://{served(wires, server)}")
    assert await content(await wires.chat(port)) == "Done."
    assert len(tools.received("tools/call")) == 1


@on_sockets
async def test_clients_come_over_ipv6(wires: Wires) -> None:
    server = stack()
    services: Any = wires.start(
        *("--listen", r"tcp6:0:interface=\:\:1"),
        *("--llamastack-url", f"http://{served(wires, server)}"),
    )
    [listening] = [each for each in services if isinstance(each, ListenService)]
    number = listening._ports[0].getHost().port  # type: ignore[attr-defined]
    peer = await wires.client(number, host="::1")
    host = f"[::1]:{number}"
    peer.send(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert status_of(await peer.end()) == 200
    [asked] = server.asked_for("GET /v1/models")
    assert asked.headers.getRawHeaders("X-Forwarded-For") == ["::1"]
    assert asked.headers.getRawHeaders("X-Forwarded-Host") == [host]
