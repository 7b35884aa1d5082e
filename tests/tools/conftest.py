"""No conversation is left open by a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tools.mcp_servers import Conversation


@pytest.fixture(autouse=True)
def everybody_says_goodbye() -> Iterator[None]:
    """What is garbage while it waits would complain in the midst of another test."""
    yield
    while Conversation.going_on:
        Conversation.going_on.pop().end()
