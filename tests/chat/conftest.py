"""Nobody is left behind by a test: a stream that it leaves open is one that its client leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import Exchange, Proxy


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
