"""The names that may be asked for, against pages whose own name leads here."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.python.usage import UsageError
from zope.interface import implementer

from llamaproxy.config import values
from llamaproxy.server.hosts import AllowedHosts, admin_hosts_at, hosts_at, open_interface
from tests.test_twistd import PORT_LINE, Daemon, free_port

LOOPBACK = [
    b"localhost",
    b"LOCALHOST:8322",
    b"a.localhost",
    b"127.0.0.1:1",
    b"127.9.9.9",
    b"[::1]:8",
]


def test_what_is_longer_than_any_name_is_neither_allowed_nor_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[bytes] = []
    look = AllowedHosts._contains

    def counted(self: AllowedHosts, host: bytes) -> bool:
        looked_at.append(host)
        return look(self, host)

    monkeypatch.setattr(AllowedHosts, "_contains", counted)
    hosts = AllowedHosts([".example"])
    longest = b"a." * 123 + b"example.:65535"
    assert longest in hosts
    assert b"a." * 8000 + b"example" not in hosts
    assert looked_at == [longest]


def at(host: str) -> IAddress:
    """The address of a socket there; of a Unix one, if it is a path."""
    if host.startswith("/"):
        return UNIXAddress(host)
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 8322)


@pytest.mark.parametrize(
    ("hosts", "everything"),
    [
        (["127.0.0.1"], False),
        (["127.0.0.2", "::1"], False),
        (["::ffff:127.0.0.1"], False),
        (["0.0.0.0"], True),
        (["::"], True),
        (["10.0.0.1"], True),
        (["127.0.0.1", "10.0.0.1"], True),
        (["127.0.0.1", "/run/x"], True),
    ],
)
def test_where_only_this_machine_connects_only_its_names_are_served(
    hosts: list[str], everything: bool
) -> None:
    served = hosts_at(map(at, hosts), None)
    assert all(name in served for name in LOOPBACK)
    for name in (b"evil.example", b"evil.example:8322", b"localhost.evil.example", b"10.0.0.1"):
        assert (name in served) is everything


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_a_page_cannot_ask_the_admin_port_under_its_own_name(host: str) -> None:
    hosts = admin_hosts_at([at(host)], None)
    for name in (*LOOPBACK, b"10.0.0.1:8323", b"[fd00::1]:8323", b"llamaproxy:8323", b"PROMETHEUS"):
        assert name in hosts
    for name in (b"evil.example", b"evil.example:8323", b"10.0.0.1.evil.example", b"", b"a:b:c"):
        assert name not in hosts
    assert b"admin.example" in admin_hosts_at([at(host)], values.hosts("admin.example"))
    assert b"llamaproxy" not in admin_hosts_at([at(host)], values.hosts("admin.example"))


def test_an_admin_port_on_loopback_has_its_names_and_one_on_a_unix_socket_any() -> None:
    assert b"10.0.0.1" not in admin_hosts_at([at("127.0.0.1")], None)
    assert b"admin.example" in admin_hosts_at([at("/run/admin")], None)


@implementer(IAddress)
class Elsewhere:
    """Where an endpoint of somebody else's listens."""


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        (at("0.0.0.0"), "any interface"),
        (at("::"), "any interface"),
        (at("10.0.0.1"), "10.0.0.1"),
        (at("fd00::1"), "fd00::1"),
        (at("127.0.0.1"), ""),
        (at("::1"), ""),
        (at("/run/admin"), ""),
        (Elsewhere(), "any interface"),
    ],
)
def test_it_is_known_where_others_can_connect(address: IAddress, interface: str) -> None:
    assert open_interface(address) == interface


def test_the_operator_names_others() -> None:
    hosts = hosts_at([at("0.0.0.0")], values.hosts("Proxy.example, .internal, *.lan, [fd00::1]"))
    for name in (b"proxy.example:1", b"PROXY.EXAMPLE.", b"a.b.internal", b"x.lan", b"[fd00::1]:9"):
        assert name in hosts
    for name in (b"example", b"xproxy.example", b"internal.evil", b"evil", b"", b"internal"):
        assert name not in hosts
    assert b"whatever" in AllowedHosts()
    assert b"whatever" in values.hosts("a, *")


@pytest.mark.parametrize("text", ["", " , ", "a b", "http://a", "a/b"])
def test_what_is_no_name_stops_the_start(text: str) -> None:
    with pytest.raises((ValueError, UsageError)):
        values.hosts(text)


def answer_to(port: int, host: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize("line", [PORT_LINE, "tcp:{port}:127.0.0.1"])
def test_both_ports_refuse_a_name_that_is_not_theirs(tmp_path: Path, line: str) -> None:
    admin = free_port()
    daemon = Daemon(
        tmp_path / "log",
        *("--demo", "--admin", line.format(port=admin)),
        listen=line,
        LLAMAPROXY_ALLOWED_HOSTS="",
    )
    for port, path in ((daemon.port, "/v1/models"), (admin, "/status")):
        assert answer_to(port, f"localhost:{port}", path)[0] == 200
        status, text = answer_to(port, "rebound.evil.example", path)
        assert status == 421 and "--allowed-hosts" in text and "evil" not in text
    daemon.stop()
    assert "whoever reaches" not in daemon.log.read_text()
