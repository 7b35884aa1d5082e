"""What tests of chats share: unary and streamed chats, and an end of those still open."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.chat.script import Ask, Chat
from tests.support import Exchange, Proxy


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Asks for a chat (:mod:`tests.chat.script`), unary and streamed: rules hold for both."""
    return partial(Chat, stream=request.param)


@pytest.fixture(autouse=True)
def everybody_leaves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is garbage while it waits would complain in the midst of another test."""
    begun: list[tuple[Proxy, Exchange]] = []
    request = Proxy.request

    def noted(proxy: Proxy, *args: Any, **more: Any) -> Exchange:
        exchange = request(proxy, *args, **more)
        begun.append((proxy, exchange))
        return exchange

    monkeypatch.setattr(Proxy, "request", noted)
    yield
    for proxy, exchange in begun:
        if not exchange.ended:
            exchange.leave()
        proxy.catalogue.stop()
