"""`bench/memory_budget.py` and `bench/expert_policies.py`: limits, sums and simulations, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench_scripts import script

budget = script("memory_budget")
policies = script("expert_policies")


# ---- a hard limit


@pytest.mark.parametrize(
    ("membership", "folder", "limit", "peak"),
    [
        ("5:cpu:/\n4:memory:/a/b\n0::/\n", "memory/a/b", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        ("0::/user.slice/x\n", "user.slice/x", "memory.max", "memory.peak"),
    ],
)
def test_a_group_lies_below_our_own(tmp_path: Path, membership: str, folder: str, limit: str, peak: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    group = budget.MemoryGroup(8_000_000, root=tmp_path, membership=membership)
    assert group.folder.parent == tmp_path / folder
    assert (group.folder / limit).read_text() == "8000000"
    (group.folder / peak).write_text("123\n")
    assert group.peak() == 123


def test_where_no_group_can_be_made_one_line_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no memory cgroup can be made here .*: run as root") as ended:
        budget.MemoryGroup(1, root=tmp_path, membership="0::/none\n")
    assert "\n" not in str(ended.value.code)


# ---- sums


def _run(way: str, steps: list[float], **other: Any) -> dict[str, Any]:
    cached = {"cache_bytes": 30e6, "reads": 20, "stalled_s": 0.5, "hits": 60, "asked": 100, "late": 10}
    decode = {"read_bytes": 30e6} | (cached | {"predicted": 40, "right": 30, "ahead": 5} if way == "budget" else {})
    one = {"way": way, "round": 0, "steps_s": steps, "prompt_tok_s": 5.0, "resident": 900, "resident_beside": 200}
    return one | {"peak": 800, "disk": 2e9, "decode": decode, "slots": [3, 9, 100] if way == "budget" else None} | other


def test_figures_of_both_ways() -> None:
    runs = [_run("budget", [0.25, 0.5, 0.25]), _run("budget", [0.5, 0.5, 1.0], resident=950)]
    done = budget.summary(runs, 700)
    assert done["tok_s"] == pytest.approx((3 / 1 + 3 / 2) / 2)
    assert done["tok_s_quartiles"] == pytest.approx([2, 2, 1 / 0.3125])
    assert done["read_mb_a_token"] == pytest.approx(10)
    assert done["read_gb_s"] == pytest.approx(0.02)
    assert (done["hit_rate"], done["late_rate"], done["right_rate"], done["ahead_rate"]) == (0.6, 0.1, 0.75, 0.25)
    assert done["stalled_share"] == pytest.approx(1 / 3)
    assert (done["of_the_model_at_most"], done["counted_of_read_bytes"]) == (750, 1)
    mapped = budget.summary([_run("map", [0.75] * 3)], 700)
    report = {"model": "m", "memory": 700, "limit": 1000, "same_bits": True, "ways": {"budget": done, "map": mapped}}
    table = budget.table_of(report)
    assert "| experts there when asked for | 60.0% |  |" in table
    assert table.endswith("1.69 times the map's speed")


def test_bits_are_compared_as_far_as_both_went() -> None:
    assert budget.same_bits([["a", "b"], ["a", "b", "c"]])
    assert not budget.same_bits([["a", "x"], ["a", "b", "c"]])


# ---- policies


def _trace(tmp_path: Path, ids: list[list[int]], experts: int = 4) -> Any:
    """One layer, one prompt of a token, then token by token."""
    ids_TLK = np.array(ids, np.int16)[:, None, :]
    np.savez_compressed(tmp_path / "t.npz", ids_TLK=ids_TLK, lengths=[[1, len(ids)]], experts=experts)
    return policies.Trace.read(tmp_path / "t.npz")


def test_a_trace_is_steps_of_distinct_experts(tmp_path: Path) -> None:
    ids_TLK = np.array([[[0, 1], [2, 3]], [[1, 0], [2, 2]], [[3, 1], [0, 1]]], np.int16)
    np.savez_compressed(tmp_path / "t.npz", ids_TLK=ids_TLK, lengths=[[2, 3]], experts=4)
    trace = policies.Trace.read(tmp_path / "t.npz")
    steps = [(layer, ids.tolist()) for layer, ids in trace.steps]
    assert steps == [(0, [0, 1]), (1, [6, 7]), (0, [1, 3]), (1, [4, 5])]


def test_reads_by_hand(tmp_path: Path) -> None:
    """Expert 0 all the time, others pass by: least recently used drops what it needs, the others do not."""
    trace = _trace(tmp_path, [[0], [0], [1], [2], [0], [3], [1], [0]])
    make = {name: next(iter(makes.values())) for name, makes in policies.FAMILIES.items()}
    assert policies.reads(trace, 2, make["LRU"]) == 7
    assert policies.reads(trace, 2, lambda t, s: policies.Frequency(t, s, 16)) == 5
    assert policies.reads(trace, 2, make["oracle"]) == 5


@pytest.mark.parametrize("slots", [2, 3, 5, 8])
def test_no_policy_reads_less_than_the_oracle_nor_less_than_there_are_experts(tmp_path: Path, slots: int) -> None:
    chance = np.random.default_rng(slots)
    ids = [chance.choice(8, 2, replace=False, p=np.arange(1, 9) / 36).tolist() for _ in range(80)]
    trace = _trace(tmp_path, ids, experts=8)
    best = policies.reads(trace, slots, policies.Oracle)
    assert best >= len({expert for step in ids for expert in step})
    for makes in policies.FAMILIES.values():
        for make in makes.values():
            count = policies.reads(trace, slots, make)
            assert best <= count <= 160
            if slots == 8:
                assert count == best == 8
