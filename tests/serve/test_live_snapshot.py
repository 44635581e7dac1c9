"""Snapshots as viewers see them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tenth.routing.counts import RoutingCounts
from tenth.routing.drift import Drift
from tenth.serve.live_snapshot import CacheUse, DriftSeen, Experts, Row, Snapshot, Speed

LAYERS, EXPERTS = (1, 3), 5


def counts(seed: int, tokens: int = 20) -> RoutingCounts:
    found = RoutingCounts.empty(LAYERS, EXPERTS)
    found.counts_LE += np.random.default_rng(seed).integers(0, 9, found.counts_LE.shape)
    found.tokens = tokens
    return found


def snapshot() -> Snapshot:
    rows = tuple(Row(f"{n}", "key", f"tenant {n % 2}", "waiting" if n else "running", 3, n, 10.0 + n) for n in range(3))
    experts = Experts(counts(1), counts(11, 300), 300.0)
    return Snapshot("m", "ready", 1.0, experts, None, rows, CacheUse(1, 100, 40, 10), Speed(5, 2, 1e9, 2e9))


def test_everybody_sees_numbers_and_only_own_requests() -> None:
    told, own = snapshot().json(None), snapshot().json("tenant 0")
    assert told["cache"] == {"used_tokens": 1, "tokens": 100, "sought_tokens": 40, "prefix_hit_rate": 0.25}
    assert told["speed"]["limit"] == {"bytes_per_s": 1e9, "machine_bytes_per_s": 2e9, "share": 0.5}
    assert (told["requests"]["running"], told["requests"]["waiting"]) == (1, 2)
    assert [row["id"] for row in told["requests"]["list"]] == ["2", "1", "0"]
    assert [row["id"] for row in own["requests"]["list"]] == ["2", "0"]
    assert {**own, "requests": None} == {**told, "requests": None}


def test_what_is_not_known_has_no_limit() -> None:
    blind = replace(snapshot(), speed=Speed(1.0, 1.0, None, 2e9))
    assert blind.json(None)["speed"]["limit"] is None


def test_drift_is_told_beyond_chance() -> None:
    drift = Drift(LAYERS, np.array([0.75, 0.0]), np.array([0.1, 0.1]), 1000)
    seen = DriftSeen(drift, 0.1, drift.excess > 0.1)
    told = replace(snapshot(), experts=Experts(counts(1), counts(2), 300.0, seen)).json(None)["experts"]["drift"]
    assert told["bits"] == pytest.approx((0.75 - 0.1 + 0.0 - 0.1) / 2)
    assert told["by_layer"] == [pytest.approx(0.65), 0.0]
    assert (told["layer"], told["alarm"], told["judged"]) == (1, True, True)


def test_a_list_has_a_hundred_requests() -> None:
    rows = tuple(Row(str(n), "key", "tenant", "running", 1, 1, float(n)) for n in range(250))
    requests = replace(snapshot(), rows=rows).json(None)["requests"]
    assert (requests["running"], len(requests["list"]), requests["list"][0]["id"]) == (250, 100, "249")
