"""Back-pressure on connections in memory, which have none of their own."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.test import iosim

from llamaproxy.server.channel import ProxyChannel


class Connections:
    """The connections in memory, and which of them are told to read no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._paused: set[Any] = set()
        self._channels: list[ProxyChannel] = []
        register = ProxyChannel.registerProducer

        def registered(channel: ProxyChannel, producer: Any, streaming: bool) -> None:
            self._channels.append(channel)
            register(channel, producer, streaming)

        transport: Any = iosim.FakeTransport
        monkeypatch.setattr(ProxyChannel, "registerProducer", registered)
        monkeypatch.setattr(transport, "pauseProducing", lambda each: self._paused.add(each))
        monkeypatch.setattr(transport, "resumeProducing", lambda each: self._paused.discard(each))

    @property
    def paused(self) -> set[Any]:
        """Those of our side of upstream connections that are told to read no more."""
        return {each for each in self._paused if not each.isServer and not each.disconnected}

    @property
    def to_the_client(self) -> Any:
        """What the client's connection pauses; in memory only the proxy registers a producer."""
        return self._channels[0]
