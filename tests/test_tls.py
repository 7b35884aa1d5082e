"""Clients over TLS: ``--listen ssl:…``, with certificates of an authority made for the test."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from llamaproxy.server.listen import ListenService
from tests.support import chunk, event
from tests.test_sockets import (
    MORE_THAN_IS_READ,
    PATIENCE,
    Wires,
    dechunked,
    fields,
    head_and_body,
    on_sockets,
    status_of,
    twisteds_own_warning,
    wires,
)
from tests.test_twistd import free_port, twistd

__all__ = ["wires"]

pytestmark = twisteds_own_warning


@attrs.frozen
class Secured:
    """An authority, and the files with the certificate that it has issued."""

    authority: trustme.CA
    key: Path
    certificate: Path

    def endpoint(self, port: int = 0) -> str:
        return f"ssl:{port}:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate = Secured(authority, tmp_path / "key.pem", tmp_path / "certificate.pem")
    issued.private_key_pem.write_to_path(str(certificate.key))
    issued.cert_chain_pems[0].write_to_path(str(certificate.certificate))
    return certificate


def listen(wires: Wires, secured: Secured, *arguments: str) -> int:
    """Start the daemon; its TLS port."""
    upstream = f"http://127.0.0.1:{wires.listen(wires.stack)}"
    services: Any = wires.start(
        "--listen", secured.endpoint(), "--llamastack-url", upstream, *arguments
    )
    [listening] = [each for each in services if isinstance(each, ListenService)]
    port: Any = listening._ports[-1]
    number: int = port.getHost().port
    return number


def exchange(port: int, context: ssl.SSLContext, message: bytes) -> Deferred[bytes]:
    """What is answered to *message*, until the connection is closed."""

    def run() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
            secure.makefile("rb") as stream,
        ):
            secure.sendall(message)
            return stream.read()

    return deferToThread(run)


CLOSE = b"Host: localhost\r\nConnection: close\r\n"


@on_sockets
async def test_a_request_over_tls_is_forwarded_as_such(wires: Wires, secured: Secured) -> None:
    port = listen(wires, secured)
    answer = exchange(port, secured.client(), b"GET /x HTTP/1.1\r\n" + CLOSE + b"\r\n")
    asked = await wires.stack.asked()
    assert asked.fields("X-Forwarded-Proto") == [b"https"]
    asked.answer(bytes(1_000_000))
    assert len(head_and_body(await answer)[1]) == 1_000_000


@on_sockets
async def test_a_chain_of_certificates_is_shown(wires: Wires, tmp_path: Path) -> None:
    root = trustme.CA()
    issued = root.create_child_ca().issue_cert("localhost")
    secured = Secured(root, tmp_path / "key.pem", tmp_path / "certificate.pem")
    issued.private_key_pem.write_to_path(str(secured.key))
    issued.cert_chain_pems[0].write_to_path(str(secured.certificate))
    issued.cert_chain_pems[1].write_to_path(str(tmp_path / "chain.pem"))
    port = listen(
        wires, secured, "--listen", secured.endpoint() + f":extraCertChain={tmp_path / 'chain.pem'}"
    )
    answer = await exchange(port, secured.client(), b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert status_of(answer) == 200


@on_sockets
async def test_an_upload_over_tls_arrives_whole(wires: Wires, secured: Secured) -> None:
    port = listen(wires, secured)
    body = bytes(1_000_000)
    head = b"PUT /x HTTP/1.1\r\n" + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body)
    answer = exchange(port, secured.client(), head + body)
    asked = await wires.stack.asked()
    assert asked.body == body
    asked.answer(b"taken")
    assert (await answer).endswith(b"taken")


@on_sockets
async def test_a_chat_is_streamed_over_tls(wires: Wires, secured: Secured) -> None:
    port = listen(wires, secured)
    body = b'{"messages": [], "stream": true}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + CLOSE
    answer = exchange(
        port, secured.client(), head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    asked = await wires.stack.asked()
    asked.begin("Content-Type: text/event-stream")
    asked.piece(event(chunk({"content": "one"})))
    asked.piece(event(chunk({"content": "two"}, "stop")))
    asked.piece(b"")
    head, message = head_and_body(await answer)
    assert fields(head, "Content-Type") == [b"text/event-stream"]
    assert dechunked(message).endswith(b"data: [DONE]\n\n")


@on_sockets
async def test_a_client_that_leaves_behind_more_than_is_read_stops_the_model(
    wires: Wires, secured: Secured
) -> None:
    port = listen(wires, secured)

    def ask() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
        secure = secured.client().wrap_socket(plain, server_hostname="localhost")
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + CLOSE + b"Content-Length: 16\r\n\r\n"
        secure.sendall(head + b'{"messages": []}' + MORE_THAN_IS_READ)
        return secure

    secure = await deferToThread(ask)
    asked = await wires.stack.asked()
    await exchange(port, secured.client(), b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n")
    secure.close()
    await asked.peer.end()


@on_sockets
async def test_http_2_is_not_offered(wires: Wires, secured: Secured) -> None:
    port = listen(wires, secured)
    context = secured.client()
    context.set_alpn_protocols(["h2", "http/1.1"])

    def negotiated() -> str | None:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.selected_alpn_protocol()

    assert await deferToThread(negotiated) == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_sockets
async def test_current_versions_of_tls_are_spoken(
    wires: Wires, secured: Secured, version: ssl.TLSVersion
) -> None:
    port = listen(wires, secured)
    context = secured.client()
    context.minimum_version = context.maximum_version = version
    answer = await exchange(port, context, b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert status_of(answer) == 200


@on_sockets
async def test_a_client_that_speaks_no_tls_is_not_answered(wires: Wires, secured: Secured) -> None:
    port = listen(wires, secured)
    client = await wires.client(port)
    client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"HTTP" not in await client.end()


@pytest.mark.parametrize("message", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["silent", "half"])
@on_sockets
async def test_a_client_that_never_shakes_hands_is_closed(
    wires: Wires, secured: Secured, message: bytes
) -> None:
    port = listen(wires, secured, "--header-timeout", "0.1")
    client = await wires.client(port)
    client.send(message)
    assert await client.end() == b""


# --- what stops the start


@pytest.mark.parametrize("broken", ["key", "certificate"])
@pytest.mark.parametrize("how", ["missing", "nonsense", "other"])
def test_files_that_cannot_be_used_stop_the_start_with_one_line(
    secured: Secured, broken: str, how: str
) -> None:
    path: Path = getattr(secured, broken)
    if how == "missing":
        path.unlink()
    elif how == "nonsense":
        path.write_text("nonsense")
    else:
        other = trustme.CA().issue_cert("localhost")
        certificate = other.private_key_pem if broken == "key" else other.cert_chain_pems[0]
        certificate.write_to_path(str(path))
    endpoint = secured.endpoint(free_port())
    result = twistd("llamaproxy", "--demo", "--admin", "off", "--listen", endpoint)
    assert result.returncode == 1
    [line] = [each for each in (result.stderr + result.stdout).splitlines() if "twistd" in each]
    assert "cannot listen on 'ssl:" in line
    assert {"missing": "No such file", "nonsense": "not PEM", "other": "do not match"}[how] in line
    assert "Traceback" not in result.stderr + result.stdout
