"""What a parent hears of the server from its workers: what one process would have heard."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llamaproxy.admin.reachability import Reachability
from llamaproxy.events import Observers, RequestEnded
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord, RequestRecord, RoundRecord
from llamaproxy.workers.watched import NewsTold
from llamaproxy.workers.watching import Watching

#: Seconds, in 64ths, until a request ends, but no two within 0.1 s, which count as one; the worker
#: that answers it; what came of its rounds; and for how many seconds a tool has run since the last.
STEPS = st.lists(
    st.tuples(
        st.sampled_from([8, 9, 20, 40, 60, 64 * 2, 64 * 5, 64 * 9, 64 * 20]),
        st.integers(0, 2),
        st.sampled_from([("",), ("upstream_broke",), ("", "upstream_broke")]),
        st.sampled_from([0, 0, 0, 0.5, 3]),
    ),
    max_size=16,
)


class LinkTo:
    """A link to a parent that hears all at once."""

    def __init__(self, parent: Watching) -> None:
        self._parent = parent

    async def ask(self, clock: Clock, seconds: float, command: Any, news: Any) -> Json:
        return self._parent.server_heard(news)


def unasked(clock: Clock) -> Reachability:
    """What hears of the server, and asks nothing."""
    reachability = Reachability(clock, Deferred)
    reachability.stop()
    return reachability


def ended(clock: Clock, kinds: tuple[str, ...], since: float) -> RequestRecord:
    record = RequestRecord("r", "-", "POST", "/v1/chat/completions", 0.0, ended=clock.seconds())
    record.chat, record.kind = ChatRecord(record), kinds[-1]
    for number, kind in enumerate(kinds, 1):
        round = RoundRecord(record.chat, number, 0.0, ended=clock.seconds() - since, kind=kind)
        record.chat.rounds.append(round)
    return record


@given(STEPS)
def test_of_several_workers_a_parent_knows_what_one_process_would(history: Any) -> None:
    clock = Clock()
    clock.advance(100)
    alone, parent = unasked(clock), unasked(clock)
    tell = Observers()
    alone.listen(tell)
    watching: Any = Watching.__new__(Watching)
    watching._clock, watching.reachability = clock, parent
    workers = [Observers() for _ in range(3)]
    for each in workers:
        link: Any = LinkTo(watching)
        NewsTold(link, clock).listen(each)
    for ticks, worker, kinds, since in history:
        clock.pump([1 / 64] * ticks)
        record = ended(clock, kinds, since)
        tell(RequestEnded(record))
        workers[worker](RequestEnded(record))
    clock.pump([1 / 64] * 80)
    expected, known = alone.as_json(), parent.as_json()
    assert (known["reachable"] is True) == (expected["reachable"] is True)
    assert known["reachable"] is not False or expected["reachable"] is False
    if expected["answered_seconds_ago"] is not None:
        assert abs(known["answered_seconds_ago"] - expected["answered_seconds_ago"]) <= 1.2
