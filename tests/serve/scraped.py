"""A scrape of `/metrics`, read by the parser of `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class Scrape:
    """Families by name, and what their samples say."""

    families: dict[str, Metric]

    @classmethod
    async def of(cls, client: httpx.AsyncClient) -> Scrape:
        answer = await client.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=")
        families = list(text_string_to_metric_families(answer.text))
        assert len({family.name for family in families}) == len(families), "a family is there twice"
        return cls({family.name: family for family in families})

    @property
    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        found = {}
        for family in self.families.values():
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
        return found

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; there is one at least."""
        found = self.values(name, **labels)
        assert found, f"{name} {labels} is not there"
        return sum(found)

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            value
            for (sample, pairs), value in self.samples.items()
            if sample == name and labels.items() <= dict(pairs).items()
        ]

    def labels(self, name: str) -> set[str]:
        """Of all samples of this name."""
        return {label for sample, pairs in self.samples if sample == name for label, _ in pairs}

    def growing(self) -> Iterable[tuple[object, float]]:
        """All that may only grow."""
        for family in self.families.values():
            if family.type in ("counter", "histogram"):
                for sample in family.samples:
                    yield (sample.name, tuple(sorted(sample.labels.items()))), sample.value
