"""When a worker is replaced, what each has of the daemon's limits, and whole lines. Pure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.config import cores
from llamaproxy.config.options import Options
from llamaproxy.worker import main
from llamaproxy.workers import lines
from llamaproxy.workers.division import divide
from llamaproxy.workers.life import Backoff, Liveness
from llamaproxy.workers.lines import WholeLines
from llamaproxy.workers.process import _environment
from llamaproxy.workers.sockets import shared


def test_the_next_one_comes_at_once_and_then_later_and_later() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_who_has_lived_long_is_replaced_at_once() -> None:
    backoff = Backoff()
    assert [backoff.after(lived) for lived in (1, 1, 1, 60, 59, 1, 3600)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_number_of_deaths_has_no_end() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(3000)][-1] == 30


def looks(liveness: Liveness) -> int:
    """Looks until it is stuck, which are two seconds apart."""
    count = 1
    while not liveness.look():
        count += 1
    return count


def test_who_is_silent_for_ten_seconds_is_stuck() -> None:
    liveness = Liveness()
    assert looks(liveness) == 31, "a minute to get ready"
    liveness = Liveness()
    liveness.sign()
    assert [liveness.look() for _ in range(5)] == [False] * 5
    liveness.sign()
    assert looks(liveness) == 6


@given(st.integers(1, 256))
def test_each_has_its_part_of_the_limits(count: int) -> None:
    options = Options({})
    options.parseOptions([])
    whole = dict(options)
    divide(options, count)
    changed = {name for name in whole if options[name] != whole[name]}
    parts = {"max-connections", "max-calls", "max-chat-bodies", "max-callers", "max-mcp-sessions"}
    assert changed == ((parts | {"memory-entries", "memory-bytes"}) if count > 1 else set())
    for name in changed - {"max-mcp-sessions"}:
        assert 0 <= options[name] * count - whole[name] < count
    assert options["max-mcp-sessions"] >= 8, "as few as the option allows"


def test_no_part_is_nothing_but_of_nothing() -> None:
    options = Options({})
    options.parseOptions(["--max-calls", "1", "--memory-entries", "0"])
    divide(options, 8)
    assert options["max-calls"] == 1 and options["memory-entries"] == 0


@given(st.lists(st.binary(max_size=6).map(lambda data: data.replace(b"x", b"\n"))))
def test_lines_are_passed_on_as_a_whole(pieces: list[bytes]) -> None:
    taken: list[bytes] = []
    whole = WholeLines(taken.append)
    for piece in pieces:
        whole.feed(piece)
        assert all(lines.endswith(b"\n") for lines in taken)
    data = b"".join(pieces)
    assert b"".join(taken) == data[: data.rfind(b"\n") + 1]
    whole.end()
    assert b"".join(taken) == data + (b"\n" if data and not data.endswith(b"\n") else b"")


def test_a_line_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST", 10)
    taken: list[bytes] = []
    whole = WholeLines(taken.append)
    for _ in range(5):
        whole.feed(b"12345")
    assert taken == [b"123451234512345\n"]


@pytest.mark.parametrize(
    ("described", "taken"),
    [
        ("tcp:8322", "tcp:8322"),
        ("unix:/run/systemd:x", "unix:/run/systemd:x"),
        ("systemd:domain=UNIX:name=clients", "tcp:0"),
        ("haproxy:systemd:domain=INET:index=0", "haproxy:tcp:0"),
    ],
)
def test_only_the_parent_knows_systemds_descriptors(described: str, taken: str) -> None:
    assert shared(described) == taken


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 2**31),
        ({"a/b": "max 100000", "a": "max 100000"}, 2**31),
        ({"a/b": "max 100000", "a": "250000 100000"}, 2.5),
        ({"a/b": "50000 100000", "a": "250000 100000"}, 0.5),
        ({"": "400000 100000"}, 4),
        ({"a": "nonsense"}, 2**31),
    ],
)
def test_control_groups_limit_the_cores(
    tmp_path: Path, limits: dict[str, str], expected: float
) -> None:
    for name, text in limits.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cpu.max").write_text(text + "\n")
    assert cores._share("1:cpu:/x\n0::/a/b\n", tmp_path) == expected


def test_a_group_elsewhere_limits_nothing(tmp_path: Path) -> None:
    assert cores._share("0::/../../elsewhere\n", tmp_path) == 2**31
    assert cores._share("1:cpu:/x\n", tmp_path) == 2**31


def test_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(affinity: int, share: float) -> int:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(affinity)))
        monkeypatch.setattr(cores, "_share", lambda *_: share)
        options = Options({"LLAMAPROXY_WORKERS": "auto"})
        options.parseOptions([])
        number: int = options["workers"]
        return number

    assert [workers(8, 2**31), workers(8, 2.5), workers(8, 0.5), workers(1, 4)] == [8, 2, 1, 1]


def test_workers_do_not_speak_to_the_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they take its sockets for theirs; modules they find where their parent does."""
    monkeypatch.setattr("sys.path", ["", "/somewhere"])
    mine = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "9", "LISTEN_FDS": "1", "LLAMASTACK_URL": "u"}
    given = _environment(mine, "2 4 twisted.internet.epollreactor /var/lib/llama proxy")
    assert given == {
        "LLAMASTACK_URL": "u",
        "PYTHONPATH": f"{Path.cwd()}:/somewhere",
        "LLAMAPROXY_WORKER": "2 4 twisted.internet.epollreactor /var/lib/llama proxy",
    }


def test_a_worker_is_started_by_nobody_else() -> None:
    with pytest.raises(SystemExit, match="a worker is started by twistd llamaproxy --workers"):
        main()
