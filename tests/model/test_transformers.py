"""The network against the implementation that defined it, over every option."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenth.model.batch import Batch, Want
from tests.model.configs import ours, raw_configs, theirs


@given(raw=raw_configs(), seed=st.integers(0, 1 << 16))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_logits_and_routing_equal(raw: dict[str, Any], seed: int) -> None:
    model = theirs(raw, seed)
    decoder = ours(raw, model)
    generator = torch.Generator().manual_seed(seed)
    lengths = [int(n) for n in torch.randint(1, 20, (3,), generator=generator)]
    documents = [torch.randint(0, raw["vocab_size"], (n,), generator=generator) for n in lengths]
    out = decoder(Batch.of(documents), want=Want(routing="full"))
    # asked for without a sparse layer it fails there
    record = {"output_router_logits": True} if decoder.config.sparse_layers else {}
    start = 0
    for document in documents:
        with torch.no_grad():
            reference = model(document[None], use_cache=False, **record)
        rows = slice(start, start + len(document))
        torch.testing.assert_close(out.logits_NV[rows], reference.logits[0], atol=1e-4, rtol=0)
        _check_routing(out, rows, reference, raw)
        start += len(document)


def _check_routing(out: Any, rows: slice, reference: Any, raw: dict[str, Any]) -> None:
    logits = getattr(reference, "router_logits", None) or ()
    assert len(logits) == len(out.routing.layers)
    for layer, expected_TE in zip(out.routing.select(rows).layers.values(), logits, strict=True):
        torch.testing.assert_close(layer.logits_TE, expected_TE, atol=1e-4, rtol=0)
        top = expected_TE.softmax(-1).topk(raw["num_experts_per_tok"])
        gap = top.values[:, :-1] - top.values[:, 1:]
        if gap.numel() == 0 or gap.min() > 1e-5:  # their own choice is no accident of rounding
            assert torch.equal(layer.experts_TK.sort().values, top.indices.sort().values)


def test_float64_stays_float64() -> None:
    raw = _moe_raw()
    model = theirs(raw, dtype=torch.float64)
    decoder = ours(raw, model, dtype=torch.float64)
    tokens = torch.arange(12)
    out = decoder(Batch.of([tokens]), want=Want(routing="full"))
    assert {layer.gates_TK.dtype for layer in out.routing.layers.values()} == {torch.float64}
    again = decoder(Batch.of([tokens]), want=Want(), routing=out.routing)
    torch.testing.assert_close(out.logits_NV, again.logits_NV, atol=1e-12, rtol=0)


def test_bfloat16_routes_in_float32() -> None:
    raw = _moe_raw()
    decoder = ours(raw, theirs(raw), dtype=torch.bfloat16)
    out = decoder(Batch.of([[1, 2, 3]]), want=Want(routing="full"))
    layer = out.routing.layers[1]
    assert out.logits_NV.dtype == torch.bfloat16
    assert (layer.logits_TE.dtype, layer.gates_TK.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(layer.gates_TK.sum(-1), torch.ones(3))


def _moe_raw() -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        "rope_theta": 1e4,
    }
