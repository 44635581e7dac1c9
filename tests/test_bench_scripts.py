"""The scripts in `bench/`: what they make of other programs' output, and their sums. No other program runs here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench_scripts import script

peers = script("cpu_vs_peers")
IK, LLAMA = peers.PEERS


# ---- names of figures


@pytest.mark.parametrize(
    ("kind", "tokens", "depth", "batch", "name"),
    [
        ("prefill", 512, 0, 1, "prefill 512"),
        ("prefill", 2048, 0, 1, "prefill 2048"),
        ("prefill", 1, 1024, 1, None),  # comes with decoding at a depth
        ("decode", 64, 0, 1, "decode 64"),
        ("decode", 1, 0, 1, None),  # comes with a prompt
        ("decode", 32, 1024, 1, "decode 32 at depth 1024"),
        ("decode", 32, 4096, 1, "decode 32 at depth 4096"),
        ("decode", 32, 64, 1, "decode of 1 sequences"),
        ("decode", 32, 64, 16, "decode of 16 sequences"),
    ],
)
def test_names_of_our_runs(kind: str, tokens: int, depth: int, batch: int, name: str | None) -> None:
    assert peers._name_of({"kind": kind, "tokens": tokens, "depth": depth, "batch": batch}) == name


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ({"n_prompt": 512, "n_gen": 0, "n_depth": 0}, "prefill 512"),
        ({"n_prompt": 0, "n_gen": 64, "n_depth": 0}, "decode 64"),
        ({"n_prompt": 0, "n_gen": 32, "n_depth": 4096}, "decode 32 at depth 4096"),
        ({"n_prompt": 1024, "n_gen": 32}, "decode 32 at depth 1024"),  # of ik_llama.cpp: -gp 1024,32
    ],
)
def test_names_of_their_runs(test: dict[str, int], name: str) -> None:
    peer = peers.Peer(Namespace(ik=Path("ik"), llama=Path("llama")), IK)
    assert peer._name(test) == name


def test_every_row_has_figures() -> None:
    assert peers.figures_of("prefill") == ["prefill 512", "prefill 2048"]
    assert peers.figures_of("depth") == ["decode 32 at depth 1024", "decode 32 at depth 4096"]
    names = [name for row in peers.ROWS for name in peers.figures_of(row)]
    assert len(names) == len(set(names)) == 9


# ---- the table of llama-batched-bench

BATCHED = """
main: n_kv_max = 1536, n_batch = 2048, n_ubatch = 512, flash_attn = 0, n_gpu_layers = -1, n_threads = 2

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    64 |     32 |    1 |     96 |    0.302 |   211.92 |    1.020 |    31.37 |    1.322 |    72.62 |
|    64 |     32 |    4 |    384 |    1.190 |   215.13 |    2.489 |    51.43 |    3.679 |   104.38 |
|    32 |     16 |    8 |    384 |    1.237 |   207.00 |    2.015 |    63.53 |    3.252 |   118.10 |
|    64 |     32 |   16 |   1536 |    4.806 |   213.07 |    6.649 |    77.00 |   11.455 |   134.09 |

llama_print_timings:        load time =    1718.20 ms
"""


def test_the_table_of_batched_bench() -> None:
    speeds = {name: figure.tok_s for name, figure in peers.batched(BATCHED).items()}
    assert speeds == {
        "decode of 1 sequences": 31.37,
        "decode of 4 sequences": 51.43,
        "decode of 8 sequences": 63.53,
        "decode of 16 sequences": 77.0,
    }
    assert list(peers.complete(IK, "batch", peers.batched(BATCHED))) == peers.figures_of("batch")
    assert peers.batched("error: unknown argument\n") == {}


# ---- every row that was asked for


def test_a_row_that_did_not_come_back_is_named() -> None:
    cut = "\n".join(line for line in BATCHED.splitlines() if "|   16 |" not in line)  # as where 16 find no room
    with pytest.raises(SystemExit) as ended:
        peers.complete(IK, "batch", peers.batched(cut))
    message = str(ended.value.code)
    assert message.startswith("ik_llama.cpp: row batch: 'decode of 16 sequences' did not come back")
    assert "\n" not in message
    with pytest.raises(SystemExit, match=r"^tenth: row decode: 'decode 64' did not come back .* nothing$"):
        peers.complete("tenth", "decode", {})


class _Engine:
    """Gives each figure of a row the same speed, and notes that it was asked."""

    def __init__(self, name: str, asked: list[str], lacking: str = "") -> None:
        self._name, self._asked, self._lacking = name, asked, lacking

    def measure(self, row: str) -> dict[str, Any]:
        self._asked.append(self._name)
        return {what: peers.Figure(10.0) for what in peers.figures_of(row) if what != self._lacking}


def test_engines_take_turns_between_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: Iterator[float] = iter([60.0, 62.0, 64.0, 66.0, 50.0, 52.0, 54.0, 56.0])
    monkeypatch.setattr(peers, "probed", lambda program: next(probes))
    asked: list[str] = []
    engines = {name: _Engine(name, asked) for name in peers.ENGINES}
    options = Namespace(rows=["prefill"], rounds=2, probe=Path("probe"))
    taken = peers.take(options, engines)
    assert asked == ["tenth", IK, LLAMA, LLAMA, IK, "tenth"]
    got = [(t.engine, t.round, t.probe_gb_s) for t in taken if t.what == "prefill 512"]
    assert got == [("tenth", 0, 61), (IK, 0, 63), (LLAMA, 0, 65), (LLAMA, 1, 51), (IK, 1, 53), ("tenth", 1, 55)]
    assert len(taken) == 2 * len(got)


def test_an_engine_that_lacks_a_row_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "probed", lambda program: 60.0)
    asked: list[str] = []
    engines = {name: _Engine(name, asked, "prefill 2048" if name == IK else "") for name in peers.ENGINES}
    with pytest.raises(SystemExit, match=r"^ik_llama\.cpp: row prefill: 'prefill 2048' did not come back"):
        peers.take(Namespace(rows=["prefill"], rounds=2, probe=Path("probe")), engines)
    assert asked == ["tenth", IK]


# ---- the summary


def _rounds(what: str, probes: list[float], **speeds: list[float]) -> list[Any]:
    """Figures of each engine in each round; decoding, ours moves half a gigabyte a token at 0.8 of its walk's speed."""
    engines = dict(zip(peers.ENGINES, speeds.values(), strict=True))
    own = {"bytes_per_token": 0.5e9, "limit": 0.8} if what.startswith("decode") else {"limit": 0.4}
    return [
        peers.Taken(what, engine, n, probe, peers.Figure(tok_s[n], **(own if engine == "tenth" else {})))
        for n, probe in enumerate(probes)
        for engine, tok_s in engines.items()
    ]


def _bits(engine: str, what: str) -> float:
    return {"tenth": 1.0, IK: 1.2, LLAMA: 1.1}[engine]


def test_a_line_for_each_phase() -> None:
    """Two slow rounds and two fast ones: ratios are taken within a round, their median over rounds."""
    taken = _rounds("decode 64", [40, 50, 70, 80], ours=[40, 50, 90, 60], ik=[20, 50, 45, 80], llama=[10, 20, 30, 40])
    lines = peers.summarise(taken, _bits)
    assert [(line["what"], line["phase"], line["rounds"]) for line in lines] == [
        ("decode 64", "all", 4),
        ("decode 64", "fast", 2),
        ("decode 64", "slow", 2),
    ]
    everything, fast, slow = lines
    assert [line["probe_gb_s"] for line in lines] == [60, 75, 45]
    assert everything["tenth"] == {"tok_s": 55, "tok_s_min": 40, "tok_s_max": 90, "of_probe": pytest.approx(0.5)}
    # ratios 2, 1, 2, 0.75: their median is not the ratio of the medians, 55 / 47.5
    assert everything[IK]["ratio"] == 1.5
    assert [line[IK]["ratio"] for line in (fast, slow)] == [pytest.approx(1.375), 1.5]
    # a token of theirs moves 1.2 times our bytes: 20 * 0.6 / 40, 50 * 0.6 / 50
    assert slow[IK]["of_probe"] == pytest.approx((0.3 + 0.6) / 2)
    assert (slow[LLAMA]["tok_s_min"], fast[LLAMA]["tok_s_max"]) == (10, 40)
    assert [line["of_own_limit"] for line in lines] == [0.8] * 3
    assert "ratio" not in everything["tenth"]


def test_one_phase_is_one_line_and_prompts_have_no_share_of_the_probe() -> None:
    """A round belongs to the phase of its mean, whatever the probes around each engine were."""
    taken = _rounds("prefill 512", [60, 64], ours=[500, 520], ik=[250, 260], llama=[100, 104])
    taken += _rounds("decode 64", [70, 70], ours=[40, 40], ik=[40, 40], llama=[40, 40])
    (prefill, decode) = peers.summarise(taken, _bits)
    assert (prefill["what"], prefill["phase"], decode["what"]) == ("prefill 512", "all", "decode 64")
    assert prefill["of_own_limit"] == 0.4
    assert prefill[IK] == {"tok_s": 255, "tok_s_min": 250, "tok_s_max": 260, "ratio": 2}
    spread = [60, 63, 69]  # 64: between, with one engine in what would be fast
    mixed = [
        peers.Taken("decode 64", engine, n, probe, peers.Figure(1.0))
        for n in range(2)
        for engine, probe in zip(peers.ENGINES, spread, strict=True)
    ]
    assert [line["phase"] for line in peers.summarise(mixed, _bits)] == ["all"]


@pytest.mark.parametrize(
    ("probe", "phase"), [(54.9, "slow"), (55.0, "between"), (65.0, "between"), (65.1, "fast"), (0.0, "slow")]
)
def test_phases(probe: float, phase: str) -> None:
    assert peers.phase(probe) == phase


def test_the_table() -> None:
    taken = _rounds("decode 64", [40, 80], ours=[40, 60], ik=[20, 80], llama=[10, 40])
    taken += _rounds("prefill 512", [40, 80], ours=[500, 520], ik=[250, 260], llama=[100, 104])
    lines = peers.table(peers.summarise(taken, _bits)).splitlines()
    assert lines == [
        "| what | rounds | probe GB/s | tenth | ik_llama.cpp | llama.cpp | x ik_llama.cpp | x llama.cpp "
        "| of its own limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| decode 64 | 2 | 60.0 | 50.0 (40.0-60.0), 44% of the probe | 50.0 (20.0-80.0), 45% of the probe "
        "| 25.0 (10.0-40.0), 21% of the probe | 1.38 | 2.75 | 80% |",
        "| decode 64, fast phase | 1 | 80.0 | 60.0 (60.0-60.0), 38% of the probe | 80.0 (80.0-80.0), 60% of the probe "
        "| 40.0 (40.0-40.0), 28% of the probe | 0.75 | 1.50 | 80% |",
        "| decode 64, slow phase | 1 | 40.0 | 40.0 (40.0-40.0), 50% of the probe | 20.0 (20.0-20.0), 30% of the probe "
        "| 10.0 (10.0-10.0), 14% of the probe | 2.00 | 4.00 | 80% |",
        "| prefill 512 | 2 | 60.0 | 510.0 (500.0-520.0) | 255.0 (250.0-260.0) | 102.0 (100.0-104.0) "
        "| 2.00 | 5.00 | 40% |",
        "| prefill 512, fast phase | 1 | 80.0 | 520.0 (520.0-520.0) | 260.0 (260.0-260.0) | 104.0 (104.0-104.0) "
        "| 2.00 | 5.00 | 40% |",
        "| prefill 512, slow phase | 1 | 40.0 | 500.0 (500.0-500.0) | 250.0 (250.0-250.0) | 100.0 (100.0-100.0) "
        "| 2.00 | 5.00 | 40% |",
    ]


# ---- the engine beside servers

servers = script("engine_vs_peers")


def test_ratios_of_the_engine_are_taken_within_rounds() -> None:
    def taken(row: str, name: str, number: int, **figures: float) -> dict[str, Any]:
        return {"row": row, "name": name, "round": number, "probe": 30.0 + number, **figures}

    rounds = [
        *(taken("throughput", "tenth", n, tok_s=s) for n, s in enumerate((100.0, 50.0, 80.0))),
        *(taken("throughput", servers.LLAMA, n, tok_s=s) for n, s in enumerate((50.0, 50.0, 20.0))),
        *(taken("first", "tenth", n, p50_s=1.0, p99_s=2.0) for n in range(3)),
        *(taken("first", servers.LLAMA, n, p50_s=n + 1.0, p99_s=8.0) for n in range(3)),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in servers.table(rounds).splitlines()]
    table = {(line[0], line[1]): line[2:] for line in lines[2:]}
    assert table["throughput tok_s", servers.LLAMA] == ["3", "50 (20-50)", "2.00 x", "31.0"]
    assert table["throughput tok_s", "tenth"][1:3] == ["80 (50-100)", ""]
    assert table["first p50_s", servers.LLAMA][2] == "2.00 x"  # less is better
    assert table["first p99_s", servers.LLAMA][2] == "4.00 x"


def test_half_and_the_longest_of_few() -> None:
    assert servers.spread([float(n) for n in range(1, 21)]) == {"p50_s": 10.5, "p99_s": 20.0}
    assert servers.spread([float(n) for n in range(1, 201)])["p99_s"] == 198.0
