"""Snapshots of several servers as one: what one server that had done all their work would tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tenth.routing.counts import RoutingCounts
from tenth.routing.drift import Drift
from tenth.serve.live_snapshot import CacheUse, DriftSeen, Experts, Row, Snapshot, Speed, merge

LAYERS, EXPERTS = (1, 3), 5


def counts(seed: int, tokens: int = 20, layers: tuple[int, ...] = LAYERS) -> RoutingCounts:
    found = RoutingCounts.empty(layers, EXPERTS)
    found.counts_LE += np.random.default_rng(seed).integers(0, 9, found.counts_LE.shape)
    found.tokens = tokens
    return found


def seen(bits: float) -> DriftSeen:
    drift = Drift(LAYERS, np.array([bits, 0.0]), np.array([0.1, 0.1]), 1000)
    return DriftSeen(drift, 0.1, drift.excess > 0.1)


def snapshot(seed: int) -> Snapshot:
    rows = tuple(
        Row(f"{seed}-{n}", "key", f"tenant {seed}", "waiting" if n else "running", 3, n, 10.0 * seed + n)
        for n in range(3)
    )
    experts = Experts(counts(seed), counts(seed + 10, 300), 300.0)
    return Snapshot(
        f"m{seed}", "ready", seed, experts, None, rows, CacheUse(1, 100, 40, 10 * seed), Speed(5, 2, 1e9, 2e9)
    )


def test_counts_and_numbers_add_up() -> None:
    told = merge([snapshot(1), snapshot(2)]).json(None)
    alone = replace(snapshot(1), experts=Experts(counts(1).add(counts(2)), counts(11, 300).add(counts(12, 300)), 300.0))
    assert told["experts"] == alone.json(None)["experts"]
    assert told["experts"]["recent"]["tokens"] == 600
    assert told["cache"] == {"used_tokens": 2, "tokens": 200, "prefix_hit_rate": 30 / 80}
    assert told["speed"]["generated_per_s"] == 10
    assert told["speed"]["limit"] == {"bytes_per_s": 2e9, "machine_bytes_per_s": 4e9, "share": 0.5}
    assert (told["requests"]["running"], told["requests"]["waiting"]) == (2, 4)
    assert [row["id"] for row in told["requests"]["list"]] == ["2-2", "2-1", "2-0", "1-2", "1-1", "1-0"]
    assert [row["id"] for row in merge([snapshot(1), snapshot(2)]).json("tenant 1")["requests"]["list"]] == [
        "1-2",
        "1-1",
        "1-0",
    ]
    assert merge([snapshot(2)]).json(None) == snapshot(2).json(None)


def test_what_was_merged_stays_as_it_was() -> None:
    one = snapshot(1)
    before = one.json(None)
    merge([one, snapshot(2), snapshot(3)])
    assert one.json(None) == before


def test_what_a_part_does_not_know_is_no_sum() -> None:
    blind = replace(snapshot(2), speed=Speed(1.0, 1.0, None, 2e9))
    assert merge([snapshot(1), blind]).json(None)["speed"]["limit"] is None
    loading = replace(snapshot(2), phase="loading", experts=None, why="the model is not loaded yet")
    told = merge([loading, snapshot(1)]).json(None)
    assert (told["phase"], told["model"], "why" in told) == ("ready", "m1", False)
    assert told["experts"] == snapshot(1).json(None)["experts"]
    told = merge([loading, loading]).json(None)
    assert (told["phase"], told["experts"], told["why"]) == ("loading", None, "the model is not loaded yet")


def test_models_of_other_shapes_are_not_added_up() -> None:
    own = snapshot(1).experts
    assert own is not None
    other = replace(snapshot(2), experts=Experts(counts(1, layers=(0, 3)), counts(1, layers=(0, 3)), 300.0))
    told = merge([snapshot(1), other]).json(None)
    assert (told["experts"], "other layers" in told["why"]) == (None, True)


def test_drift_is_that_of_who_moved_furthest() -> None:
    ones = [replace(snapshot(n), experts=Experts(counts(n), counts(n), 300.0, seen(n / 4))) for n in (1, 3, 2)]
    drift = merge(ones).json(None)["experts"]["drift"]
    assert drift["bits"] == pytest.approx((0.75 - 0.1 + 0.0 - 0.1) / 2)
    assert drift["by_layer"] == [pytest.approx(0.65), 0.0]
    assert (drift["layer"], drift["alarm"], drift["judged"]) == (1, True, True)


def test_a_list_has_a_hundred_requests() -> None:
    rows = tuple(Row(str(n), "key", "tenant", "running", 1, 1, float(n)) for n in range(250))
    requests = replace(snapshot(1), rows=rows).json(None)["requests"]
    assert (requests["running"], len(requests["list"]), requests["list"][0]["id"]) == (250, 100, "249")
