"""Upcycling: the same function, even loads, distinct experts."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tenth.data.standard_library import documents
from tenth.errors import ConfigError, RequestError
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.measures import dead_experts, expert_counts, max_violation
from tenth.routing.record import Routing
from tenth.train.upcycle import UpcycleOptions, default_shards, split_scale, upcycle, upcycled_config
from tenth.train.upcycle_checkpoint import calibration_tokens
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.tokenizer import Tokenizer

DENSE = replace(preset("tiny-moe"), model_type="qwen3", moe=None, sparse_layers=())


def _dense(dtype: torch.dtype = torch.float64, **changes: object) -> Decoder:
    return initialise(Decoder(replace(DENSE, **changes), dtype=dtype), seed=3, std=0.2).requires_grad_(False)


def _texts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 512, (64,), generator=generator).tolist() for _ in range(count)]


@pytest.mark.parametrize(
    ("experts", "top_k", "shards"), [(32, 8, 4), (32, 8, 8), (8, 8, 2), (16, 4, 1), (12, 6, 3), (4, 2, 2), (2, 2, 2)]
)
def test_the_function_is_kept(experts: int, top_k: int, shards: int) -> None:
    dense = _dense()
    sparse = upcycle(dense, _texts(4, 1), UpcycleOptions(experts, top_k, shards))
    for document in _texts(3, 2):
        batch = Batch.of([document])
        torch.testing.assert_close(sparse(batch).logits_NV, dense(batch).logits_NV, atol=1e-9, rtol=0)
    assert sparse.config.moe is not None
    assert sparse.config.moe.intermediate_size * shards == 96


def test_reinit_breaks_the_function_and_keeps_the_statistics() -> None:
    dense = _dense(torch.float32)
    kept = upcycle(dense, _texts(4, 1), UpcycleOptions(8, 4, 2))
    redrawn = upcycle(dense, _texts(4, 1), UpcycleOptions(8, 4, 2, reinit=0.5))
    batch = Batch.of(_texts(1, 2))
    assert (redrawn(batch).logits_NV - kept(batch).logits_NV).abs().max() > 0.1
    one, other = (m.blocks()[1].mlp.experts for m in (kept, redrawn))
    changed = (one.w13_E2FD != other.w13_E2FD).any(-1).float().mean()
    assert changed == pytest.approx(0.5, abs=0.01)
    assert other.w13_E2FD.std() == pytest.approx(float(one.w13_E2FD.std()), rel=0.05)


def test_no_two_experts_are_equal() -> None:
    table = upcycle(_dense(torch.float32), _texts(2, 1), UpcycleOptions(16, 4, 2)).blocks()[0].mlp.experts
    for part in (table.w13_E2FD.flatten(1), table.w2_EDF.flatten(1)):
        assert len({tuple(row.tolist()) for row in part}) == 16


def test_groups_share_their_router_row_and_nothing_is_copied_but_experts() -> None:
    dense = _dense(torch.bfloat16)
    sparse = upcycle(dense, _texts(2, 1), UpcycleOptions(16, 4, 2))
    for layer, source in zip(sparse.blocks(), dense.blocks(), strict=True):
        rows = layer.mlp.router.weight_ED
        assert rows.dtype == torch.float32
        assert torch.equal(rows[0::2], rows[1::2])
        assert len(rows.unique(dim=0)) == 8
        assert layer.attention is source.attention
    assert sparse.embedding is dense.embedding


def test_the_same_seed_gives_the_same_model() -> None:
    one, same, other = (
        upcycle(_dense(), _texts(2, 1), UpcycleOptions(8, 4, 2, seed=s)).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_types_of_the_result() -> None:
    options = UpcycleOptions(8, 4, 2)
    assert upcycled_config(DENSE, options).model_type == "qwen3_moe"
    assert upcycled_config(replace(DENSE, model_type="llama", qk_norm=False), options).model_type == "tenth"
    assert (
        upcycled_config(replace(DENSE, model_type="qwen2", qk_norm=False, qkv_bias=True), options).model_type == "tenth"
    )


def test_rule_of_the_shards() -> None:
    assert default_shards(UpcycleOptions(32, 8), 1536) == 4
    assert default_shards(UpcycleOptions(128, 8), 6144) == 4
    assert default_shards(UpcycleOptions(8, 2), 100) == 1
    assert default_shards(UpcycleOptions(8, 1), 96) == 1
    assert [split_scale(g) for g in (1, 2, 4, 8)] == [(1, 1), (2, 1), (2, 2), (4, 2)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="2 sparse layers already"):
        upcycled_config(preset("tiny-moe"), UpcycleOptions())
    with pytest.raises(ConfigError, match="biases"):
        upcycled_config(replace(DENSE, mlp_bias=True), UpcycleOptions())
    with pytest.raises(RequestError, match="dense width 96"):
        upcycled_config(DENSE, UpcycleOptions(40, 10, 5))
    for texts in ([[1]], [[1, 2, 3]] * 5):
        with pytest.raises(RequestError, match="calibration text are too few"):
            upcycle(_dense(), texts, UpcycleOptions(8, 4, 2))
    with pytest.raises(RequestError, match="at least one document"):
        upcycle(_dense(), [], UpcycleOptions(8, 4, 2))
    for wrong in (
        {"reinit": 1.0},
        {"reinit": -0.1},
        {"top_k": 0},
        {"top_k": 33},
        {"shards": 3},
        {"shards": -1},
        {"seed": -1},
        {"seed": 1 << 70},
    ):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            UpcycleOptions(**wrong)


def _real(path: Path, dtype: torch.dtype) -> tuple[Tokenizer, Decoder]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tokenizer(), load_decoder(checkpoint, dtype=dtype)


def _passages(tokenizer: Tokenizer, seed: int, count: int) -> list[list[int]]:
    return calibration_tokens(tokenizer, list(islice(documents(seed), count)))


def test_the_real_model_keeps_its_function(smollm2: Path) -> None:
    tokenizer, dense = _real(smollm2, torch.float64)
    sparse = upcycle(dense, _passages(tokenizer, 0, 2))
    batch = Batch.of(_passages(tokenizer, 77, 1))
    with torch.inference_mode():
        torch.testing.assert_close(sparse(batch).logits_NV, dense(batch).logits_NV, atol=1e-9, rtol=0)


def test_the_real_model_starts_balanced(smollm2: Path) -> None:
    """Text that the routers were not fitted to: no dead expert, MaxVio (mean over layers) under 0.3."""
    tokenizer, dense = _real(smollm2, torch.float32)
    sparse = upcycle(dense, _passages(tokenizer, 0, 12))
    with torch.inference_mode():
        records = [
            sparse(Batch.of([ids]), want=Want("none", routing="choice")).routing for ids in _passages(tokenizer, 99, 16)
        ]
    violation, dead = _balance(records)
    assert dead == 0
    assert sum(violation) / len(violation) < 0.3


def _balance(records: list[Routing | None]) -> tuple[list[float], int]:
    joined = Routing.join([record for record in records if record is not None])
    counts = [expert_counts(layer) for layer in joined.layers.values()]
    return [max_violation(c) for c in counts], sum(dead_experts(c) for c in counts)


@pytest.mark.slow
def test_fifty_thousand_tokens_in_float32(smollm2: Path) -> None:
    """No token goes to a wrong set of shards; the gap to float64 is at most twice the dense model's own."""
    tokenizer, dense = _real(smollm2, torch.float32)
    _, exact = _real(smollm2, torch.float64)
    sparse = upcycle(dense, _passages(tokenizer, 0, 24))
    tokens = wrong = 0
    own = gap = 0.0
    records = []
    for number, document in enumerate(_passages(tokenizer, 123, 130)):
        batch = Batch.of([document])
        with torch.inference_mode():
            out = sparse(batch, want=Want(routing="choice"))
            if number < 12:
                truth = exact(batch).logits_NV
                own = max(own, float((dense(batch).logits_NV - truth).abs().max()))
                gap = max(gap, float((out.logits_NV - truth).abs().max()))
        records.append(out.routing)
        for layer in out.routing.layers.values():
            groups = layer.experts_TK.sort(1).values.view(len(document), 2, 4)
            wrong += int((groups % 4 != torch.arange(4)).any(-1).any(-1).sum())
        tokens += len(document)
    violation, dead = _balance(records)
    print(f"\n{tokens} tokens, {wrong} wrong sets; gap to float64: dense {own:.2e}, sparse {gap:.2e}")
    print(f"MaxVio: mean {sum(violation) / len(violation):.3f}, worst layer {max(violation):.3f}; dead experts: {dead}")
    assert tokens >= 50_000
    assert wrong == 0
    assert gap <= 2 * own
    assert max(violation) < 0.3
    assert dead == 0
