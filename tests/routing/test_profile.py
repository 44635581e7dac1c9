"""Routing profiles: a slow count by hand, sums in any order, and the file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import FileFormatError, MachineError, RequestError
from tenth.observe.profile_text import broken_words
from tenth.routing.profile import Block, ProfiledModel, RoutingProfile, Span
from tenth.routing.profile_file import from_bytes, is_profile, read_profile, read_unfinished, to_bytes, write_profile
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.stacked import stacked

MODEL = ProfiledModel("model", "abc", (1, 2, 5), 6, 3)


def record(seed: int, tokens: int, *, dropped: float = 0.0, full: bool = True, outputs: bool = True) -> Routing:
    generator = torch.Generator().manual_seed(seed)

    def layer() -> LayerRouting:
        logits_TE = torch.randn(tokens, MODEL.experts, generator=generator)
        gates_TK, experts_TK = logits_TE.softmax(-1).topk(MODEL.top_k)
        gates_TK = gates_TK * (torch.rand(gates_TK.shape, generator=generator) >= dropped)
        norms_TK = torch.rand(gates_TK.shape, generator=generator) * (gates_TK != 0)
        sizes = {"norms_TK": norms_TK, "peaks_TK": norms_TK / 2} if outputs else {}
        return LayerRouting(
            MODEL.experts,
            experts_TK,
            gates_TK,
            logits_TE if full else None,
            gates_TK == 0,
            limited=dropped > 0,
            **sizes,
        )

    return Routing({index: layer() for index in MODEL.layers})


def spans(tokens: int, seed: int) -> list[Span]:
    cuts = sorted({0, tokens, *(int(x) for x in np.random.default_rng(seed).integers(0, tokens + 1, 3))})
    domains = ("code", "prose")
    return [Span(a, b, domains[(seed + n) % 2], n % 3) for n, (a, b) in enumerate(pairwise(cuts))]


def profile(seed: int, tokens: int = 20, *, dropped: float = 0.0) -> RoutingProfile:
    found = RoutingProfile.empty(MODEL)
    found.take(record(seed, tokens, dropped=dropped), spans(tokens, seed))
    return found


def same(one: RoutingProfile, other: RoutingProfile, *, peaks: bool = True) -> None:
    """Counts exactly, sums of float64 to 1e-12."""
    assert one.model == other.model
    assert (one.counts.tokens, one.counts.judged) == (other.counts.tokens, other.counts.judged)
    assert one.counts.counts_LE.tolist() == other.counts.counts_LE.tolist()
    assert one.counts.broken_L.tolist() == other.counts.broken_L.tolist()
    assert one.pairs_LEE.tolist() == other.pairs_LEE.tolist()
    assert {key: (block.tokens, block.counts_LE.tolist()) for key, block in one.blocks.items()} == {
        key: (block.tokens, block.counts_LE.tolist()) for key, block in other.blocks.items()
    }
    np.testing.assert_allclose(one.counts.gates_LE, other.counts.gates_LE, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.counts.entropy_L, other.counts.entropy_L, rtol=1e-12, atol=1e-12)
    assert (one.outputs is None) == (other.outputs is None)
    if one.outputs is not None and other.outputs is not None:
        assert one.outputs.counts_LE.tolist() == other.outputs.counts_LE.tolist()
        assert not peaks or one.outputs.peaks_LE.tolist() == other.outputs.peaks_LE.tolist()
        np.testing.assert_allclose(one.outputs.norms_LE, other.outputs.norms_LE, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one.outputs.saliency_LE, other.outputs.saliency_LE, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropped", [0.0, 0.4])
def test_a_slow_count_by_hand(dropped: float) -> None:
    routing, cut = record(3, 25, dropped=dropped), spans(25, 3)
    found = RoutingProfile.empty(MODEL)
    found.take(routing, cut)
    for at, index in enumerate(MODEL.layers):
        layer = routing.layers[index]
        counts, gates, pairs, norms, saliency = Counter(), Counter(), Counter(), Counter(), Counter()  # type: ignore[var-annotated]
        domains: Counter[tuple[str, int, int]] = Counter()
        entropy = 0.0
        for t in range(25):
            where = next(span for span in cut if span.begin <= t < span.end)
            chosen = [
                (int(e), float(g), float(n))
                for e, g, n in zip(layer.experts_TK[t], layer.gates_TK[t], layer.norms_TK[t], strict=True)  # type: ignore[index]
                if g != 0
            ]
            for e, g, n in chosen:
                counts[e] += 1
                gates[e] += g
                norms[e] += n
                saliency[e] += n * g
                domains[where.domain, where.block, e] += 1
                for other, _, _ in chosen:
                    pairs[e, other] += 1
            assert layer.logits_TE is not None
            p = layer.logits_TE[t].double().softmax(0)
            entropy -= float((p * p.log()).sum()) / np.log(MODEL.experts)
        experts = range(MODEL.experts)
        assert found.counts.counts_LE[at].tolist() == [counts[e] for e in experts]
        assert found.pairs_LEE[at].tolist() == [[pairs[e, f] for f in experts] for e in experts]
        assert found.counts.gates_LE[at] == pytest.approx([gates[e] for e in experts], abs=1e-12)
        assert found.counts.entropy_L[at] == pytest.approx(entropy, abs=1e-6)
        assert found.outputs is not None
        assert found.outputs.norms_LE[at] == pytest.approx([norms[e] for e in experts], abs=1e-12)
        assert found.outputs.saliency_LE[at] == pytest.approx([saliency[e] for e in experts], abs=1e-12)
        for (domain, number), block in found.blocks.items():
            assert block.counts_LE[at].tolist() == [domains[domain, number, e] for e in experts]
    assert sum(block.tokens for block in found.blocks.values()) == found.counts.tokens == 25


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 3))
def test_sums_are_associative_and_commutative(order: list[int], cut: int) -> None:
    parts = [profile(seed, dropped=0.3 * (seed % 2)) for seed in range(4)]
    straight = parts[0] + parts[1] + parts[2] + parts[3]
    mixed = [parts[n] for n in order]
    left, right = RoutingProfile.empty(MODEL), RoutingProfile.empty(MODEL)
    for part in mixed[:cut]:
        left.add(part)
    for part in mixed[cut:]:
        right.add(part)
    same(straight, left + right)
    same(straight - parts[2], parts[0] + parts[1] + parts[3], peaks=False)  # they cannot be taken away
    same(from_bytes(to_bytes(straight), "")[0], straight)


def test_steps_together_are_steps_one_by_one() -> None:
    one, other = RoutingProfile.empty(MODEL), RoutingProfile.empty(MODEL)
    records = [record(seed, seed + 1) for seed in range(3)]
    one.take_steps([step for r in records if (step := stacked(r)) is not None], [Span(0, 6, "served")])
    for seed, routing in enumerate(records):
        other.take(routing, [Span(0, seed + 1, "served")])
    same(one, other)


def test_what_does_not_belong_together_is_refused() -> None:
    mine = profile(1)
    before = mine.copy()
    with pytest.raises(RequestError, match="only compared"):
        mine.add(replace(profile(2), model=replace(MODEL, version="xyz")))
    with pytest.raises(RequestError, match="6 experts, other 7"):
        mine.add(RoutingProfile.empty(replace(MODEL, name="other", experts=7)))
    with pytest.raises(RequestError, match="no part of this one"):
        mine.add(profile(2), -1)
    same(mine, before)
    bare = RoutingProfile.empty(MODEL)
    bare.take(record(1, 20, outputs=False), spans(20, 1))
    with pytest.raises(RequestError, match="made with more measures"):
        bare.add(before, -1)
    nothing = mine - before
    assert (nothing.counts.tokens, nothing.blocks, nothing.counts.counts_LE.sum()) == (0, {}, 0)


def test_tokens_whose_gates_are_no_numbers_are_told_and_left_out() -> None:
    routing = record(1, 8)
    routing.layers[2].gates_TK[3:5, 1] = float("nan")
    found = RoutingProfile.empty(MODEL)
    found.take(routing, [Span(0, 8, "code")])
    assert found.counts.broken_L.tolist() == [0, 2, 0]
    assert found.counts.counts_LE.sum(1).tolist() == [24, 18, 24]
    assert np.isfinite(found.counts.gates_LE).all()
    assert found.outputs is not None
    assert np.isfinite(found.outputs.saliency_LE).all()
    same(from_bytes(to_bytes(found), "")[0], found)


def test_outputs_that_are_no_numbers_are_in_no_sum() -> None:
    routing, whole = record(1, 8), RoutingProfile.empty(MODEL)
    whole.take(record(1, 8), [Span(0, 8, "code")])
    layer = routing.layers[2]
    assert layer.norms_TK is not None
    assert layer.peaks_TK is not None
    layer.norms_TK[3, 1] = layer.peaks_TK[3, 1] = float("nan")
    expert = int(layer.experts_TK[3, 1])
    found = RoutingProfile.empty(MODEL)
    found.take(routing, [Span(0, 8, "code")])
    assert found.outputs is not None
    assert whole.outputs is not None
    missing_LE = whole.outputs.counts_LE - found.outputs.counts_LE
    assert (int(missing_LE[1, expert]), int(missing_LE.sum())) == (1, 1)
    others = np.arange(MODEL.experts) != expert
    assert found.outputs.norms_LE[1, others].tolist() == whole.outputs.norms_LE[1, others].tolist()
    assert np.argwhere(~np.isfinite(found.outputs.peaks_LE)).tolist() == [[1, expert]]
    same(from_bytes(to_bytes(found), "")[0], found, peaks=False)
    assert broken_words(found) == "in layer 2 outputs of 1 expert are no numbers"


def test_measures_of_no_tokens_are_no_numbers() -> None:
    empty = RoutingProfile.empty(MODEL)
    assert np.isnan(empty.counts.max_violation_L).all()
    assert empty.co_activation_LEE.max() == 0
    assert (empty.norms_LE, empty.saliency_LE, empty.domains) == (None, None, ())
    same(from_bytes(to_bytes(empty), "")[0], empty)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.profile"
    write_profile(profile(1), path)
    same(read_profile(path), profile(1))
    assert is_profile(path)
    assert not is_profile(tmp_path / "none")
    write_profile(profile(2), path, {"windows": 3})
    assert read_unfinished(path)[1] == {"windows": 3}
    with pytest.raises(RequestError, match="is unfinished"):
        read_profile(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_profile(tmp_path / "none")
    assert [one.name for one in path.parent.iterdir()] == ["p.profile"]
    with pytest.raises(MachineError, match="cannot be written"):
        write_profile(profile(1), path / "below" / "a.profile")


def test_broken_files_are_one_line() -> None:
    whole = to_bytes(profile(1))
    for data in (b"", b"x" * 100, whole[:-3], whole[:50], (1 << 60).to_bytes(8, "little") + whole):
        with pytest.raises(FileFormatError, match=r"^there: is no routing profile"):
            from_bytes(data, "there")
    for change in (
        lambda p: p.counts.counts_LE.__setitem__((0, 0), 99),
        lambda p: p.pairs_LEE.__setitem__((0, 0, 1), -1),
        lambda p: p.blocks.update({("code", 9): Block(1, np.zeros_like(p.counts.counts_LE))}),
        lambda p: p.counts.__setattr__("gates_LE", p.counts.gates_LE[:1]),
        lambda p: p.__setattr__("model", replace(MODEL, top_k=9)),
        lambda p: p.counts.gates_LE.__setitem__((0, 0), np.nan),
        lambda p: p.blocks.update({("code", 9): Block(-1, np.zeros_like(p.counts.counts_LE))}),
        lambda p: p.__setattr__("blocks", {key: replace(block, tokens=0) for key, block in p.blocks.items()}),
    ):
        broken = profile(1)
        change(broken)
        with pytest.raises(FileFormatError, match=r"^there: is a broken routing profile"):
            from_bytes(to_bytes(broken), "there")
    size = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + size])
    for key, value in (("model", {}), ("blocks", 3), ("tokens", "x"), ("tokens", float("inf")), ("version", 3)):
        inner = json.loads(head["__metadata__"]["profile"]) | {key: value}
        raw = json.dumps(head | {"__metadata__": head["__metadata__"] | {"profile": json.dumps(inner)}}).encode()
        with pytest.raises(FileFormatError, match="routing profile"):
            from_bytes(len(raw).to_bytes(8, "little") + raw + whole[8 + size :], "there")
