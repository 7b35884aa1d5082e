"""Which of several workers takes the next client."""

from __future__ import annotations

import os
from functools import partial

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.workers.balance import Balance, Board


@attrs.define
class Worker:
    """One that has so many clients."""

    balance: Balance = attrs.field(init=False)
    clients: int = 0

    def offered(self) -> bool:
        """Whether it takes the next client."""
        if self.balance.leaves():
            return False
        self.clients += 1
        self.balance.note()
        return True


def crew(count: int, most: int = 1000) -> tuple[Board, list[Worker]]:
    board = Board(count)
    workers = [Worker() for _ in range(count)]
    for number, worker in enumerate(workers, 1):
        worker.balance = Balance(board, number, partial(getattr, worker, "clients"), most)
        worker.balance.note()
    return board, workers


def test_all_see_one_board() -> None:
    board = Board(3)
    theirs = Board(3, os.dup(board.descriptor))
    assert board.fewest(1) is None
    theirs.has(2, 7)
    theirs.has(3, 5)
    assert (board.fewest(1), board.fewest(2), board.fewest(3)) == (5, 5, 7)
    board.gone(3)
    assert theirs.fewest(1) == 7


@given(st.lists(st.integers(0, 3), max_size=200))
def test_nobody_has_many_more_than_others(order: list[int]) -> None:
    """Whoever wakes up first."""
    _, workers = crew(4)
    for first in order:
        rota = workers[first:] + workers[:first]
        assert any(worker.offered() for worker in rota)
        counts = [worker.clients for worker in workers]
        assert max(counts) <= min(counts) + 2 + min(counts) // 8


def test_one_alone_takes_all() -> None:
    board, workers = crew(2, most=3)
    board.gone(2)
    assert [workers[0].offered() for _ in range(5)] == [True] * 5, "and refuses what is too many"


def test_who_is_full_leaves_clients_to_others() -> None:
    _, [one, other] = crew(2, most=3)
    one.clients, other.clients = 3, 2
    other.balance.note()
    assert not one.offered() and other.offered()
    one.balance.went()
    assert not one.offered()
    one.balance.went()
    assert one.offered(), "all are full: somebody has to refuse"
    assert not one.offered()


def test_who_takes_nobody_is_not_waited_for_again() -> None:
    _, [busy, stuck] = crew(2)
    busy.clients = 9
    stuck.clients = 1
    stuck.balance.note()
    for _ in range(10):
        assert not busy.offered()
        busy.balance.went()
        assert busy.offered(), "nobody waits for long"
    assert [busy.offered() for _ in range(50)] == [True] * 50
    assert stuck.offered()
    assert not busy.offered(), "it is well again"


@pytest.mark.parametrize(("clients", "takes"), [(0, True), (1, True), (2, False)])
def test_a_new_one_is_left_the_next_clients(clients: int, takes: bool) -> None:
    _, [old, _] = crew(2)
    old.clients = clients
    assert old.offered() == takes
