"""The names that may be asked for, against pages whose own name leads here."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

import pytest
from twisted.python.usage import UsageError

from llamaproxy.config import values
from llamaproxy.server.hosts import AllowedHosts, admin_hosts_for, hosts_for, open_interface
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


@pytest.mark.parametrize(
    ("endpoints", "everything"),
    [
        (["tcp:8322"], True),
        (["tcp:8322:interface=127.0.0.1"], False),
        (["tcp:8322:interface=127.0.0.1:backlog=4"], False),
        ([r"tcp6:8322:interface=\:\:1"], False),
        (["ssl:8443:interface=localhost:privateKey=k"], False),
        (["tcp:8322:interface=127.0.0.1", "tcp:8322:interface=10.0.0.1"], True),
        (["tcp:8322:interface=127.0.0.1", "unix:/run/x"], True),
        (["tcp:8322:interface=0.0.0.0"], True),
    ],
)
def test_where_only_this_machine_connects_only_its_names_are_served(
    endpoints: list[str], everything: bool
) -> None:
    hosts = hosts_for(endpoints, None)
    assert all(name in hosts for name in LOOPBACK)
    for name in (b"evil.example", b"evil.example:8322", b"localhost.evil.example", b"10.0.0.1"):
        assert (name in hosts) is everything


@pytest.mark.parametrize(
    "endpoint", ["tcp:8323", "tcp:8323:interface=10.0.0.1", "ssl:1:privateKey=k"]
)
def test_a_page_cannot_ask_the_admin_port_under_its_own_name(endpoint: str) -> None:
    hosts = admin_hosts_for(endpoint, None)
    for name in (*LOOPBACK, b"10.0.0.1:8323", b"[fd00::1]:8323", b"llamaproxy:8323", b"PROMETHEUS"):
        assert name in hosts
    for name in (b"evil.example", b"evil.example:8323", b"10.0.0.1.evil.example", b"", b"a:b:c"):
        assert name not in hosts
    assert b"admin.example" in admin_hosts_for(endpoint, values.hosts("admin.example"))
    assert b"llamaproxy" not in admin_hosts_for(endpoint, values.hosts("admin.example"))


def test_an_admin_port_on_loopback_has_its_names_and_one_on_a_unix_socket_any() -> None:
    assert b"10.0.0.1" not in admin_hosts_for("tcp:8323:interface=127.0.0.1", None)
    assert b"admin.example" in admin_hosts_for("unix:/run/admin", None)


@pytest.mark.parametrize(
    ("endpoint", "interface"),
    [
        ("tcp:8323", "any interface"),
        ("tcp:8323:interface=0.0.0.0", "any interface"),
        (r"tcp6:8323:interface=\:\:", "any interface"),
        ("tcp:8323:interface=10.0.0.1", "10.0.0.1"),
        (r"tcp6:8323:interface=fd00\:\:1:backlog=4", "fd00::1"),
        ("tcp:8323:interface=127.0.0.1", ""),
        ("tcp:8323:interface=localhost", ""),
        (r"tcp6:8323:interface=\:\:1", ""),
        ("unix:/run/admin", ""),
    ],
)
def test_it_is_known_where_others_can_connect(endpoint: str, interface: str) -> None:
    assert open_interface(endpoint) == interface


def test_the_operator_names_others() -> None:
    hosts = hosts_for(["tcp:8322"], values.hosts("Proxy.example, .internal, *.lan, [fd00::1]"))
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


def test_both_ports_refuse_a_name_that_is_not_theirs(tmp_path: Path) -> None:
    admin = free_port()
    daemon = Daemon(
        tmp_path / "log",
        "--demo",
        "--admin",
        PORT_LINE.format(port=admin),
        LLAMAPROXY_ALLOWED_HOSTS="",
    )
    for port, path in ((daemon.port, "/v1/models"), (admin, "/status")):
        assert answer_to(port, f"localhost:{port}", path)[0] == 200
        status, text = answer_to(port, "rebound.evil.example", path)
        assert status == 421 and "--allowed-hosts" in text and "evil" not in text
    daemon.stop()
