"""Settings for all tests."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from llamaproxy.events import Event, Observers

# No deadline: a busy machine is no failure.
settings.register_profile("llamaproxy", deadline=None, max_examples=50)
settings.load_profile("llamaproxy")

# A shell starts what goes to the background with SIGINT ignored, nohup anything with SIGHUP, and
# daemons inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def listener_failures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Observers]]:
    """Sees that no listener fails in what any test does; one whose own does clears the list."""
    made: list[Observers] = []
    make: Any = Observers.__init__

    def remembered(observers: Observers, *listeners: Callable[[Event], None]) -> None:
        make(observers, *listeners)
        made.append(observers)

    monkeypatch.setattr(Observers, "__init__", remembered)
    yield made
    assert [each.failures for each in made if each.failures] == []
