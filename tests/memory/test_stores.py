"""Turns in a real Redis or Valkey, which is stopped, started, hung and replaced."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted  # type: ignore[import-untyped]
import trustme
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from llamaproxy.chat.memory import TurnMemory
from llamaproxy.chat.mixed_turns import new_mark
from llamaproxy.chat.shared_turns import SharedTurns
from llamaproxy.config.storeaddress import store_address
from llamaproxy.memory import keeper
from llamaproxy.memory.turns import RedisTurns, redis_turns
from llamaproxy.server.listen import ListenService
from tests.memory.stores import Sentinel, Store, store, stores
from tests.support import call, completion
from tests.test_sockets import (
    Asked,
    Wires,
    dechunked,
    head_and_body,
    on_sockets,
    wires,
)

__all__ = ["store", "stores", "wires"]

from tests.test_twistd import Daemon, free_port, question

reactor: Any = _reactor

SECRET = "correct horse battery staple"

OWNER = b"o" * 32

#: Seconds that things may take on a busy machine where nothing but a bug can delay them.
PATIENCE = 30.0


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* is true; of processes of others nothing tells."""
    limit = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < limit
        await deferLater(reactor, 0.01)


@attrs.define
class Clients:
    """Machines that share turns, and the lines that they log."""

    _started: list[RedisTurns] = attrs.field(factory=list)
    lines: list[str] = attrs.field(factory=list)

    def start(
        self, url: str, secret: str = SECRET, age: float = 60, ca: Path | None = None
    ) -> RedisTurns:
        options = {
            "memory": store_address(url),
            "memory-secret": secret,
            "memory-age": age,
            "memory-bytes": 64 * 1024 * 1024,
            "memory-ca": None if ca is None else str(ca),
        }
        turns = redis_turns(options, reactor)
        self._started.append(turns)
        turns.keeper.startService()
        return turns

    async def up(self, url: str, **options: Any) -> RedisTurns:
        turns = self.start(url, **options)
        await until(lambda: turns.keeper.up)
        return turns

    async def away(self, url: str, **options: Any) -> tuple[RedisTurns, str]:
        """A machine whose store cannot be used, and what it says why."""
        turns = self.start(url, **options)
        await until(lambda: self.lines)
        assert not turns.keeper.up
        return turns, self.lines[-1]

    def note(self, event: Any) -> None:
        if str(event.get("log_namespace")).startswith("llamaproxy.memory"):
            self.lines.append(event["log_format"].format(**event))

    async def close(self) -> None:
        for turns in self._started:
            stopping: Any = turns.keeper.stopService()
            if stopping is not None:
                await stopping


@pytest_twisted.async_yield_fixture  # type: ignore[untyped-decorator]
async def clients(patience: None) -> AsyncIterator[Clients]:
    opened = Clients()
    observer: Any = opened.note
    globalLogPublisher.addObserver(observer)
    yield opened
    await opened.close()
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow store, and a trial needs no second."""
    monkeypatch.setattr(keeper, "ASK_SECONDS", PATIENCE)
    monkeypatch.setattr(keeper, "TRIAL_SECONDS", PATIENCE)
    monkeypatch.setattr(keeper, "FIRST_REST", 0.05)
    monkeypatch.setattr(keeper, "LAST_REST", 0.1)


async def remembered(turns: RedisTurns, text: bytes = b'["secret words"]') -> str:
    mark = new_mark()
    await turns.remember(OWNER, mark, text)
    return mark


def url(store: Store) -> str:
    return f"redis://127.0.0.1:{store.port}"


@on_sockets
async def test_what_one_machine_remembers_another_recalls(store: Store, clients: Clients) -> None:
    first, second = await clients.up(url(store)), await clients.up(url(store) + "/0")
    texts = [b"[]", json.dumps(["x" * 200_000]).encode(), bytes(range(256))]
    marks = [await remembered(first, text) for text in texts]
    found = await second.recall(OWNER, [new_mark(), *marks])
    assert found == dict(zip(marks, texts, strict=True))
    assert await second.recall(b"x" * 32, marks) == {}
    assert (second.found, second.missing) == (3, 4)
    assert second.figures()["errors"] == dict.fromkeys(keeper.KINDS, 0)


@on_sockets
async def test_nothing_that_is_said_can_be_read_in_the_store(
    store: Store, clients: Clients, tmp_path: Path
) -> None:
    turns = await clients.up(url(store))
    words = "pomegranate " * 1000
    mark = await remembered(turns, json.dumps([words]).encode())
    store.ask("SAVE")
    dump = (tmp_path / "dump.rdb").read_bytes()
    [name] = store.names()
    assert name.encode() in dump
    for text in (b"pomegranate", mark.encode(), OWNER, SECRET.encode()):
        assert text not in dump
    assert len(dump) < len(words)  # it is compressed


@on_sockets
async def test_who_has_another_secret_finds_nothing(store: Store, clients: Clients) -> None:
    mark = await remembered(await clients.up(url(store)))
    stranger = await clients.up(url(store), secret="another secret of others")
    assert await stranger.recall(OWNER, [mark]) == {}


@on_sockets
async def test_what_was_changed_in_the_store_is_forgotten(store: Store, clients: Clients) -> None:
    turns = await clients.up(url(store))
    first, second = await remembered(turns), await remembered(turns)
    one, two = store.names()
    store.ask("RENAME", one, two)  # one turn under the other's name
    assert await turns.recall(OWNER, [first, second]) == {}
    assert turns.keeper.errors["undecipherable"] == 1 and turns.keeper.up
    store.ask("SETRANGE", two, "5", "x")
    assert await turns.recall(OWNER, [first, second]) == {}


@on_sockets
async def test_a_turn_expires_after_its_last_use(store: Store, clients: Clients) -> None:
    turns = await clients.up(url(store), age=1000.2)
    mark = await remembered(turns)
    [name] = store.names()

    def left() -> int:
        return int(store.ask("TTL", name))

    assert 900 < left() <= 1001
    for use in (lambda: turns.recall(OWNER, [mark]), None):
        store.ask("EXPIRE", name, "100")
        if use is None:
            turns.refresh(OWNER, [mark])
        else:
            assert await use()
        await until(lambda: left() > 900)


@on_sockets
async def test_so_many_bytes_are_read_at_once_and_the_latest(
    store: Store, clients: Clients
) -> None:
    turns = await clients.up(url(store))
    texts = [bytes(1_000_000 + n) for n in range(6)]
    marks = [await remembered(turns, text) for text in texts]
    found = await turns.recall(OWNER, marks)
    assert found == dict(zip(marks[2:], texts[2:], strict=True))
    assert await turns.recall(OWNER, [await remembered(turns, bytes(1024 * 1024 + 1))]) == {}
    assert len(store.names()) == 6


@on_sockets
async def test_a_user_with_few_rights_is_enough(store: Store, clients: Clients) -> None:
    rights = ["~llamaproxy:*", "+set", "+mget", "+strlen", "+expire"]
    store.ask("ACL", "SETUSER", "proxy", "on", ">p@ss/word", *rights, "+select")
    store.ask("ACL", "SETUSER", "default", "off")
    turns = await clients.up(f"redis://proxy:p%40ss%2Fword@127.0.0.1:{store.port}/3")
    mark = await remembered(turns)
    assert await turns.recall(OWNER, [mark])
    assert clients.lines == [f"turns are shared in redis://proxy@127.0.0.1:{store.port}/3"]


@on_sockets
async def test_a_user_without_one_of_them_is_refused_at_once(
    store: Store, clients: Clients
) -> None:
    rights = ["~llamaproxy:*", "+set", "+mget", "+strlen"]
    store.ask("ACL", "SETUSER", "proxy", "on", ">password", *rights)
    turns, line = await clients.away(f"redis://proxy:password@127.0.0.1:{store.port}")
    assert line.endswith("cannot be used: it answers EXPIRE with NOPERM")
    assert turns.keeper.errors["refused"] == 1
    store.ask("ACL", "SETUSER", "proxy", "+expire")
    await until(lambda: turns.keeper.up)


@pytest.mark.parametrize("user", ["", "proxy"])
@on_sockets
async def test_a_wrong_password_is_refused_and_not_repeated(
    store: Store, clients: Clients, user: str
) -> None:
    store.ask("ACL", "SETUSER", "proxy", "on", ">right", "~*", "+@all")
    store.ask("CONFIG", "SET", "requirepass", "right")
    turns, line = await clients.away(f"redis://{user}:hunter2hunter2@127.0.0.1:{store.port}")
    assert line.endswith("it answers AUTH with WRONGPASS") and "hunter2" not in line
    # Not for good: what is mended is found.
    for name in ("proxy", "default"):
        rule = [">hunter2hunter2"]
        command = ["-a", "right", "ACL", "SETUSER", name, *rule]
        store.ask(*command)
    await until(lambda: turns.keeper.up)
    assert "hunter2" not in "".join(clients.lines)


@on_sockets
async def test_a_store_that_is_full_is_not_asked(store: Store, clients: Clients) -> None:
    store.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    store.ask("CONFIG", "SET", "maxmemory", "1")
    _, line = await clients.away(url(store))
    assert line.endswith("it answers SET with OOM")


@on_sockets
async def test_by_a_unix_socket(tmp_path: Path, stores: list[Store], clients: Clients) -> None:
    path = tmp_path / "store.sock"
    stores.append(Store(tmp_path, ("--unixsocket", str(path))).start())
    turns = await clients.up(f"redis+unix://{path}?db=2")
    assert await turns.recall(OWNER, [await remembered(turns)])
    assert stores[0].ask("-n", "2", "KEYS", "*").count("llamaproxy:turn:1:") == 2


@attrs.frozen
class Secured:
    """A store by TLS alone, and the file with its authority."""

    store: Store
    authorities: Path


@pytest.fixture
def secured(tmp_path: Path, stores: list[Store]) -> Secured:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    file = tmp_path / "ca.pem"
    # As in a bundle, ours is not the first.
    trustme.CA().cert_pem.write_to_path(str(file))
    authority.cert_pem.write_to_path(str(file), append=True)
    secured = Store(
        tmp_path,
        (
            *("--tls-cert-file", str(tmp_path / "certificate.pem")),
            *("--tls-key-file", str(tmp_path / "key.pem")),
            *("--tls-ca-cert-file", str(file), "--tls-auth-clients", "no"),
        ),
        reached=("--tls", "--cacert", str(file)),
    )
    secured.arguments += ("--tls-port", str(secured.port), "--port", "0")
    stores.append(secured.start())
    return Secured(secured, file)


@on_sockets
async def test_by_tls(secured: Secured, clients: Clients) -> None:
    address = f"rediss://127.0.0.1:{secured.store.port}"
    turns = await clients.up(address, ca=secured.authorities)
    texts = [b"[]", bytes(range(256)) * 3000]
    marks = [await remembered(turns, text) for text in texts]
    assert await turns.recall(OWNER, marks) == dict(zip(marks, texts, strict=True))


@on_sockets
async def test_a_certificate_that_is_not_trusted_is_refused(
    secured: Secured, clients: Clients
) -> None:
    turns, line = await clients.away(f"rediss://:password@127.0.0.1:{secured.store.port}")
    assert line.endswith("the TLS handshake failed (certificate verify failed)")
    assert turns.keeper.errors["tls"] == 1


@on_sockets
async def test_so_is_that_of_another_host(secured: Secured, clients: Clients) -> None:
    address = f"rediss://localhost:{secured.store.port}"
    _, line = await clients.away(address, ca=secured.authorities)
    assert line.endswith("its certificate is another host's")


@on_sockets
async def test_a_store_that_speaks_no_tls_is_left(
    store: Store, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "TRIAL_SECONDS", 0.2)
    turns, line = await clients.away(f"rediss://127.0.0.1:{store.port}")
    assert line.endswith("it has let nobody in within 0.2 s")  # it waits for a line's end
    assert turns.keeper.errors["unreachable"] == 1


@on_sockets
async def test_a_store_that_is_killed_and_started_again(store: Store, clients: Clients) -> None:
    turns = await clients.up(url(store))
    mark = await remembered(turns)
    store.ask("SAVE")
    store.stop()
    await until(lambda: not turns.keeper.up)
    assert await turns.recall(OWNER, [mark]) == {}
    await turns.remember(OWNER, new_mark(), b"[]")
    store.start()
    await until(lambda: turns.keeper.up)
    assert await turns.recall(OWNER, [mark])
    shared = f"turns are shared in {url(store)}"
    away = f"turns are not shared: {url(store)} cannot be used: the connection was closed"
    assert clients.lines == [shared, away, shared]


@on_sockets
async def test_what_a_store_has_lost_it_is_given_again(store: Store, clients: Clients) -> None:
    first, second = await clients.up(url(store)), await clients.up(url(store))
    local = TurnMemory(reactor, max_entries=10, max_bytes=1000, max_age=60)
    first.refill_from(local)
    shared = SharedTurns(reactor, local, first, 60)
    before, meanwhile = new_mark(), new_mark()
    await shared.remember(OWNER, before, b"1")
    store.stop()
    await until(lambda: not first.keeper.up and not second.keeper.up)
    await shared.remember(OWNER, meanwhile, b"2")
    store.start()
    await until(lambda: first.keeper.up and second.keeper.up)
    await until(lambda: len(store.names()) == 2)
    assert await second.recall(OWNER, [before, meanwhile]) == {before: b"1", meanwhile: b"2"}


@on_sockets
async def test_a_store_that_hangs(
    store: Store, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = await clients.up(url(store))
    mark = await remembered(turns)
    store.pause()
    monkeypatch.setattr(keeper, "ASK_SECONDS", 0.025)
    for _ in range(3):
        assert turns.keeper.up
        assert await turns.recall(OWNER, [mark]) == {}
    assert not turns.keeper.up
    # It is accepted by the kernel alone, and so no trial succeeds.
    monkeypatch.setattr(keeper, "TRIAL_SECONDS", 0.2)
    await until(lambda: turns.keeper.errors["unreachable"] + turns.keeper.errors["slow"] > 3)
    assert await turns.recall(OWNER, [mark]) == {}
    store.resume()
    monkeypatch.setattr(keeper, "ASK_SECONDS", PATIENCE)
    monkeypatch.setattr(keeper, "TRIAL_SECONDS", PATIENCE)
    await until(lambda: turns.keeper.up)
    assert await turns.recall(OWNER, [mark])


@on_sockets
async def test_a_store_that_is_not_there_yet(
    tmp_path: Path, stores: list[Store], clients: Clients
) -> None:
    late = Store(tmp_path)
    turns, line = await clients.away(url(late))
    assert line.endswith("cannot be used: Connection was refused by other side")
    stores.append(late.start())
    await until(lambda: turns.keeper.up)


@pytest.fixture
def watched(tmp_path: Path, store: Store, stores: list[Store]) -> Sentinel:
    """A sentinel that watches *store*, which has a replica."""
    folder = tmp_path / "replica"
    folder.mkdir()
    stores.append(Store(folder, ("--replicaof", f"127.0.0.1 {store.port}")).start())
    folder = tmp_path / "sentinel"
    folder.mkdir()
    sentinel = Sentinel.of(folder, "turns", store)
    sentinel.start()
    stores.append(sentinel)
    return sentinel


@on_sockets
async def test_sentinels_lead_to_the_new_master(
    store: Store, stores: list[Store], watched: Sentinel, clients: Clients
) -> None:
    nobody = Store(watched.folder)
    places = f"127.0.0.1:{nobody.port},127.0.0.1:{watched.port}"
    turns = await clients.up(f"redis+sentinel://{places}/turns")
    mark = await remembered(turns)
    [replica] = [each for each in stores if each is not store and not isinstance(each, Sentinel)]
    await until(replica.names)
    await until(lambda: "num-slaves\n1" in watched.ask("SENTINEL", "MASTER", "turns"))
    store.stop()
    await until(lambda: not turns.keeper.up)
    await until(lambda: turns.keeper.up)
    assert await turns.recall(OWNER, [mark])
    await remembered(turns)
    assert len(replica.names()) == 2


@on_sockets
async def test_a_name_that_no_sentinel_has_leads_nowhere(
    watched: Sentinel, clients: Clients
) -> None:
    _, line = await clients.away(f"redis+sentinel://127.0.0.1:{watched.port}/other")
    assert line.endswith("of its sentinels, none knows a master of that name")


@on_sockets
async def test_sentinels_may_have_a_password(
    store: Store, watched: Sentinel, clients: Clients
) -> None:
    store.ask("CONFIG", "SET", "requirepass", "password")
    watched.ask("SENTINEL", "SET", "turns", "auth-pass", "password")
    watched.ask("ACL", "SETUSER", "default", "resetpass", ">password")
    turns = await clients.up(f"redis+sentinel://:password@127.0.0.1:{watched.port}/turns/1")
    assert await turns.recall(OWNER, [await remembered(turns)])


# --- daemons

TOOLS = [{"type": "function", "function": {"name": "ask_user", "parameters": {"type": "object"}}}]


async def answers(wires: Wires, body: Any) -> Asked:
    """Answer the next request with *body*."""
    asked = await wires.stack.asked()
    asked.answer(json.dumps(body).encode(), "Content-Type: application/json")
    return asked


@pytest.mark.parametrize("stream", [False, True])
@on_sockets
async def test_a_client_may_come_back_to_another_daemon(
    wires: Wires, store: Store, patience: None, stream: bool
) -> None:
    """DESIGN: L20."""
    shared = ("--memory", url(store), "--memory-secret", SECRET)
    first, second = (wires.proxy(*shared) for _ in range(2))
    daemons: list[Any] = wires._services
    services = [each for daemon in daemons for each in daemon]
    keepers = [each for each in services if isinstance(each, keeper.StoreKeeper)]
    await until(lambda: all(each.up for each in keepers))
    question = {"role": "user", "content": "What time is it?"}
    peer = await wires.chat(first, messages=[question], tools=TOOLS, stream=False)
    calls = [call("clock", {}, "call_s"), call("ask_user", {}, "call_u")]
    await answers(wires, completion({"content": None, "tool_calls": calls}, "tool_calls"))
    await answers(wires, {"content": "12:00"})
    message = json.loads(head_and_body(await peer.end())[1])["choices"][0]["message"]
    [handed_over] = message["tool_calls"]
    result = {"role": "tool", "tool_call_id": handed_over["id"], "content": "yes"}
    history = [question, message, result]
    peer = await wires.chat(second, messages=history, tools=TOOLS, stream=stream)
    asked = await answers(wires, completion({"content": "Noon."}))
    roles = [each["role"] for each in json.loads(asked.body)["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]
    assert b"Noon." in await peer.end()


def test_a_daemon_goes_on_without_a_store_and_says_so_without_secrets(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    daemon = Daemon(
        log,
        "--demo",
        "--memory",
        f"redis://proxy:hunter2@{nowhere}/0",
        LLAMAPROXY_MEMORY_SECRET=SECRET,
        LLAMAPROXY_LOG_FORMAT="json",
    )
    try:
        status, body = daemon.get("/v1/chat/completions", "POST", question("hello"))
        assert status == 200, body
        limit = time.monotonic() + PATIENCE
        while "turns are" not in log.read_text():
            assert time.monotonic() < limit
            time.sleep(0.05)  # until it has been refused; nothing tells
        assert daemon.stop() in (0, -signal.SIGTERM)
    finally:
        daemon.process.kill()
    lines = [line for line in log.read_text().splitlines() if "turns are" in line]
    [away] = [json.loads(line) for line in lines]
    assert away["level"] == "warn" and away["url"] == f"redis://proxy@{nowhere}/0"
    assert away["reason"] == "Connection was refused by other side"
    for secret in ("hunter2", SECRET):
        assert secret not in log.read_text()


@on_sockets
async def test_the_status_shows_the_store_without_its_password(
    wires: Wires, store: Store, patience: None
) -> None:
    store.ask("ACL", "SETUSER", "default", ">hunter2hunter2", "resetpass", ">hunter2hunter2")
    anywhere = "tcp:0:interface=127.0.0.1"
    place = f"127.0.0.1:{store.port}/1"
    daemon: Any = wires.start(
        *("--listen", anywhere, "--admin", anywhere, "--demo"),
        *("--memory", f"redis://default:hunter2hunter2@{place}", "--memory-secret", SECRET),
    )
    [kept] = [each for each in daemon if isinstance(each, keeper.StoreKeeper)]
    await until(lambda: kept.up)
    listening = [each for each in daemon if isinstance(each, ListenService)]
    hosts: list[Any] = [port.getHost() for each in listening for port in each._ports]
    shown = []
    for port in [host.port for host in hosts]:
        answer = await (await wires.ask(port, "GET /status")).end()
        head, body = head_and_body(answer)
        if b" 200 " in head.partition(b"\r\n")[0]:
            shown.append(json.loads(dechunked(body) if b"chunked" in head.lower() else body))
    [status] = shown
    assert status["memory_store"] == {
        "url": f"redis://default@{place}",
        "up": True,
        "found": 0,
        "missing": 0,
        "errors": dict.fromkeys(keeper.KINDS, 0),
    }
    assert "hunter2" not in json.dumps(status) and SECRET not in json.dumps(status)
