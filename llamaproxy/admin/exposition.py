"""Exposition: what is measured, as prometheus_client has it; that is loaded when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

import attrs

from llamaproxy.admin.names import Series
from llamaproxy.admin.tallies import Histogram, Measured, Sample

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


@attrs.frozen
class Collector:
    """What prometheus_client asks for all that *measured* returns."""

    measured: Callable[[], Iterable[Measured]]

    def collect(self) -> Iterator[Metric]:
        for series, samples in self.measured():
            yield _family(series, samples)

    def registry(self) -> CollectorRegistry:
        """All of it, and what the system knows of this process."""
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        return registry


def exposed(measured: Iterable[Measured]) -> tuple[str, bytes]:
    """The type and the text with which a scraper is answered."""
    # Loaded in some 10 ms, when they are first asked for.
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    every = list(measured)
    return CONTENT_TYPE_LATEST, generate_latest(Collector(lambda: every).registry())


def _family(series: Series, samples: Iterable[Sample]) -> Metric:
    """*samples* as prometheus_client's; those of a histogram are counted up to each bound."""
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.utils import floatToGoString

    if series.kind == "histogram":
        histograms = HistogramMetricFamily(series.name, series.meaning, labels=series.labels)
        bounds = [*map(floatToGoString, series.bounds), "+Inf"]
        for labels, value in samples:
            assert isinstance(value, Histogram)
            buckets = list(zip(bounds, accumulate(value.counts), strict=True))
            histograms.add_metric(labels, buckets, value.total)
        return histograms
    family = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
    numbers = family(series.name, series.meaning, labels=series.labels)
    for labels, value in samples:
        assert not isinstance(value, Histogram)
        numbers.add_metric(labels, value)
    return numbers
