"""As many connections as the system has descriptors for."""

from __future__ import annotations

import resource

import pytest

from llamaproxy.server.limits import Limits, connections_possible

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "possible", "raised"),
    [
        (100_000, 100_000, 4096, None),
        (NO_LIMIT, NO_LIMIT, 4096, None),
        (1024, 1_048_576, 4096, True),
        (1024, NO_LIMIT, 4096, True),
        (1024, 3512, 1000, True),
        (256, 256, 1, None),
    ],
)
def test_room_is_made_or_fewer_connections_are_taken(
    soft: int, hard: int, possible: int, raised: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    assert connections_possible(4096) == possible
    if raised:
        [(new, new_hard)] = set_to
        assert soft < new
        assert new_hard == hard
        assert hard == NO_LIMIT or new <= hard


def test_a_path_has_a_limit_of_its_own_whatever_is_asked_there() -> None:
    limits = Limits(body=2, bodies={b"/chat": 1})
    targets = [b"/chat", b"/chat?a=/x", b"/chat/", b"/x?a=/chat", b"/"]
    assert [limits.body_to(target) for target in targets] == [1, 1, 2, 2, 2]
