"""Every case against llamaproxy alone; ``python -m tests.conformance`` compares it to others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cases import CASES
from .known import KNOWN
from .run import run
from .servers import Running, serving
from .upstream import Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving("llamaproxy", upstream.port, tmp_path_factory.mktemp("proxy")) as running:
        yield running


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(strict=True, reason=KNOWN[name])] if name in KNOWN else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in CASES])
def test_case(name: str, proxy: Running, upstream: Upstream) -> None:
    assert run(CASES[name], proxy.port, upstream) == []


def test_every_known_failure_is_a_case() -> None:
    assert set(KNOWN) <= set(CASES)
