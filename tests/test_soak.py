"""A short soak; ``python -m tests.soak --minutes 10`` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak import soak

MINUTES = float(os.environ.get("LLAMAPROXY_SOAK", "0"))


@pytest.mark.skipif(not MINUTES, reason="LLAMAPROXY_SOAK=minutes is not set")
def test_nothing_grows_under_mixed_load_with_clients_that_leave(tmp_path: Path) -> None:
    outcomes = soak(tmp_path, MINUTES, seed=5)
    for outcome in ("answered", "left", "never asked"):
        assert any(kind.endswith(outcome) for kind in outcomes), outcomes
