"""Families of metrics with values that are read elsewhere, as `prometheus_client` takes them from a collector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from tenth.serve.meter import Histogram

__all__ = ["Families", "Metric"]

Values = float | Mapping[Any, float]
"""One value, or several, each under a tuple of its labels."""


class Families:
    """Families whose names begin with `tenth_`; with a `model` all have the label `model_name`."""

    def __init__(self, model: str | None = None) -> None:
        self._labels, self._values = ([], []) if model is None else (["model_name"], [model])

    def counter(self, name: str, text: str, values: Values, labels: tuple[str, ...] = ()) -> Metric:
        """A number that only grows; its name ends with `_total` where it is shown."""
        return self._filled(CounterMetricFamily(f"tenth_{name}", text, labels=[*self._labels, *labels]), values)

    def gauge(self, name: str, text: str, values: Values, labels: tuple[str, ...] = ()) -> Metric:
        """A number that goes up and down; none where it is not known, NaN."""
        return self._filled(GaugeMetricFamily(f"tenth_{name}", text, labels=[*self._labels, *labels]), values)

    def histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        """Values by their size."""
        family = HistogramMetricFamily(f"tenth_{name}", text, labels=self._labels)
        family.add_metric(self._values, histogram.upto(), histogram.sum)
        return family

    def _filled(self, family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
        for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
            if not math.isnan(value):
                family.add_metric([*self._values, *labels], value)
        return family
