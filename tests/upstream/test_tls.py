"""HTTPS towards the upstream: who is trusted, and what is said of those who are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.python.usage import UsageError

from llamaproxy.config.options import Options
from llamaproxy.errors import UpstreamTls
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.relay import read_body
from llamaproxy.upstream.urls import read_url
from tests.test_sockets import (
    Peer,
    Wires,
    error_of,
    on_sockets,
    status_of,
    twisteds_own_warning,
    wires,
)

__all__ = ["wires"]

pytestmark = twisteds_own_warning

reactor: Any = _reactor

BODY = b'{"messages": []}'


def certificate(authority: trustme.CA, *names: str, **more: Any) -> CertificateOptions:
    issued = authority.issue_cert(*names, **more)
    options: CertificateOptions = PrivateCertificate.loadPEM(
        issued.private_key_and_cert_chain_pem.bytes()
    ).options()
    return options


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def file(authority: trustme.CA, tmp_path: Path) -> str:
    """A bundle with two authorities, the second of which is the one."""
    path = tmp_path / "ca.pem"
    path.write_bytes(trustme.CA().cert_pem.bytes() + authority.cert_pem.bytes())
    return str(path)


@pytest.mark.parametrize("named", [False, True], ids=["system's", "named"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("line", ["GET /x", "POST /v1/chat/completions"])
@on_sockets
async def test_an_authority_of_the_systems_or_the_one_that_was_named_is_trusted(
    wires: Wires,
    authority: trustme.CA,
    file: str,
    host: str,
    line: str,
    named: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not named:
        monkeypatch.setenv("SSL_CERT_FILE", file)
    secure = wires.listen(wires.stack, certificate(authority, host))
    arguments = ("--upstream-ca", file) if named else ()
    port = wires.proxy(*arguments, upstream=f"https://{host}:{secure}")
    client = await wires.ask(port, line, body=BODY if line[0] == "P" else b"")
    message = b'{"choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]}'
    (await wires.stack.asked()).answer(message, "Content-Type: application/json")
    assert status_of(answer := await client.end()) == 200
    assert b"safe" in answer


PAST = datetime.now(UTC) - timedelta(days=2)
FUTURE = datetime.now(UTC) + timedelta(days=2)

DISTRUSTED = {
    "another host": ({}, "elsewhere", "its certificate is not for localhost"),
    "an address": ({}, "127.0.0.1", "its certificate is not for localhost"),
    "expired": (
        {"not_before": PAST - timedelta(days=1), "not_after": PAST},
        "localhost",
        "its certificate has expired",
    ),
    "not yet": ({"not_before": FUTURE}, "localhost", "its certificate is not valid yet"),
}


@pytest.mark.parametrize("line", ["GET /x", "POST /x", "POST /v1/chat/completions"])
@pytest.mark.parametrize("name", DISTRUSTED)
@on_sockets
async def test_what_is_wrong_with_a_certificate_is_said(
    wires: Wires, authority: trustme.CA, file: str, name: str, line: str
) -> None:
    more, host, message = DISTRUSTED[name]
    secure = wires.listen(wires.stack, certificate(authority, host, **more))
    port = wires.proxy("--upstream-ca", file, upstream=f"https://localhost:{secure}")
    answer = await (await wires.ask(port, line, body=BODY if line[0] == "P" else b"")).end()
    assert status_of(answer) == 502
    error = error_of(answer)
    assert error["code"] == "upstream_tls"
    assert error["message"].endswith(f"securely: {message}.")
    assert all(peer.received == b"" for peer in wires.stack.peers)


@pytest.mark.parametrize("line", ["GET /x", "POST /v1/chat/completions"])
@pytest.mark.parametrize("named", [False, True])
@on_sockets
async def test_an_authority_that_nobody_named_is_not_trusted(
    wires: Wires, file: str, named: bool, line: str
) -> None:
    secure = wires.listen(wires.stack, certificate(trustme.CA(), "localhost"))
    arguments = ("--upstream-ca", file) if named else ()
    port = wires.proxy(*arguments, upstream=f"https://localhost:{secure}")
    answer = await (await wires.ask(port, line, body=BODY if line[0] == "P" else b"")).end()
    assert status_of(answer) == 502
    assert error_of(answer)["code"] == "upstream_tls"
    assert "from an authority that is not trusted" in error_of(answer)["message"]


@on_sockets
async def test_the_systems_authorities_are_not_trusted_where_others_are_named(
    wires: Wires, authority: trustme.CA, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = trustme.CA()
    system.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    secure = wires.listen(wires.stack, certificate(system, "localhost"))
    port = wires.proxy("--upstream-ca", file, upstream=f"https://localhost:{secure}")
    answer = await (await wires.ask(port, "GET /x")).end()
    assert error_of(answer)["code"] == "upstream_tls"


@on_sockets
async def test_a_server_that_speaks_no_tls(wires: Wires, file: str) -> None:
    class Plain(Peer):
        def dataReceived(self, data: bytes) -> None:
            self.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    plain: Any = Factory.forProtocol(Plain)
    port = wires.proxy("--upstream-ca", file, upstream=f"https://localhost:{wires.listen(plain)}")
    answer = await (await wires.ask(port, "GET /x")).end()
    assert error_of(answer)["code"] == "upstream_tls"
    assert "handshake failed" in error_of(answer)["message"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@on_sockets
async def test_a_server_that_does_not_shake_hands_in_time(wires: Wires, scheme: str) -> None:
    """The connection to a server that does nothing is made, by its system."""
    silent = wires.listen(wires.stack)
    arguments = ("--connect-timeout", "0.3", "--upstream-timeout", "0.6")
    port = wires.proxy(*arguments, upstream=f"{scheme}://localhost:{silent}")
    client = await wires.ask(port, "GET /x")
    answer = await client.end()
    assert status_of(answer) == 504
    connected = "accept a connection" not in error_of(answer)["message"]
    assert connected == (scheme == "http")
    for peer in wires.stack.peers:
        await peer.end()


@on_sockets
async def test_a_kept_connection_is_used_again_and_one_that_was_closed_is_not(
    wires: Wires, authority: trustme.CA, file: str
) -> None:
    secure = wires.listen(wires.stack, certificate(authority, "localhost"))
    port = wires.proxy("--upstream-ca", file, upstream=f"https://localhost:{secure}")
    peers = []
    for last in (False, False, True, True, False):
        client = await wires.ask(port, "POST /x", body=b"x")
        asked = await wires.stack.asked()
        peers.append(asked.peer)
        asked.answer(b"safe")
        if last:
            transport: Any = asked.peer.transport
            transport.loseConnection()
        assert (await client.end()).endswith(b"safe")
    assert peers[0] is peers[1] is peers[2]
    assert len(set(map(id, peers))) == 3


@pytest.mark.parametrize("certificate_host", ["named", "system"])
@on_sockets
async def test_mcp_servers_may_have_an_authority_of_the_systems_or_the_one_that_was_named(
    wires: Wires,
    authority: trustme.CA,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate_host: str,
) -> None:
    system = trustme.CA()
    system.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    issuer = system if certificate_host == "system" else authority
    secure = wires.listen(wires.stack, certificate(issuer, "localhost"))
    other = wires.listen(wires.stack, certificate(trustme.CA(), "localhost"))
    pool: Any = UpstreamPool(reactor)
    agent: Any = AgentForAnywhere(reactor, pool, authorities=file)
    response = await agent.request(b"GET", b"https://localhost:%d/v1/version" % secure)
    assert b"0.6.1" in await read_body(response, reactor, silence=10, limit=1000)
    with pytest.raises(UpstreamTls):
        await agent.request(b"GET", b"https://localhost:%d/v1/version" % other)
    pool.close()


@on_sockets
async def test_a_connection_that_the_mcp_side_trusts_is_none_of_the_servers(
    wires: Wires, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = trustme.CA()
    system.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    url = f"https://localhost:{wires.listen(wires.stack, certificate(system, 'localhost'))}"
    pool: Any = UpstreamPool(reactor)
    anywhere: Any = AgentForAnywhere(reactor, pool, authorities=file)
    response = await anywhere.request(b"GET", f"{url}/v1/version".encode())
    assert b"0.6.1" in await read_body(response, reactor, silence=10, limit=1000)
    server: Any = UpstreamAgent(reactor, read_url(url), pool, authorities=file)
    with pytest.raises(UpstreamTls):
        await server.request(b"GET", f"{url}/v1/version".encode())
    pool.close()


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_stops_the_start(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^--upstream-ca must be a readable file .*ca\.pem'$"):
        Options({}).parseOptions(["--upstream-ca", str(path)])
