"""`bench/dynamic_k.py`: its losses are the model's, its rule is the kernels', and intervals are those of documents."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.data.token_file import TokenFile
from tenth.model.batch import Batch
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.weights.checkpoint import open_checkpoint
from tests.bench_scripts import script
from tests.data.token_files import write_tokens
from tests.weights.packed_models import TINY, write_dense

bench = script("dynamic_k")


def test_limits_as_written() -> None:
    assert bench.limit_of("0.9/k6") == ExpertLimit(0.9, 6)
    assert bench.limit_of("k3") == ExpertLimit(None, 3)
    assert bench.limit_of("0.5") == ExpertLimit(0.5)


def test_windows_are_of_all_files(tmp_path: Path) -> None:
    files = [
        TokenFile(write_tokens(tmp_path / f"{n}.tokens", [[(7 * i + n) % 512 for i in range(30)]] * 3, vocab_size=512))
        for n in range(2)
    ]
    pieces = list(bench.windows(files, 80))
    assert [(number, len(ids_T) - 1) for number, ids_T in pieces] == [(0, 29), (1, 11), (2, 29), (3, 11)]


@torch.inference_mode()
def test_losses_and_their_interval() -> None:
    decoder = initialise(Decoder(preset("tiny-moe")), seed=1, std=0.2)
    pieces = [(n, torch.randint(0, 512, (20,), generator=torch.Generator().manual_seed(n))) for n in range(3)]
    base, few = bench.losses_of(decoder, pieces, None), bench.losses_of(decoder, pieces, ExpertLimit(cap=1))
    log_TV = decoder(Batch.of([pieces[1][1]])).logits_NV.double().log_softmax(-1)
    expected = [-float(log_TV[at, pieces[1][1][at + 1]]) for at in range(19)]
    assert base.losses_N[19:38].tolist() == pytest.approx(expected, rel=1e-4)
    assert (base.experts, few.experts) == (2, 1)
    mean, half = bench.added(few, base)
    sums = [float((few.losses_N - base.losses_N)[19 * n : 19 * n + 19].sum()) for n in range(3)]
    assert mean == pytest.approx(sum(sums) / 57)
    spread = math.sqrt(sum((s / 19 - mean) ** 2 for s in sums) / 2 / 3)  # of three means
    assert half == pytest.approx(1.96 * spread)


@pytest.mark.parametrize("scale", [1.5, 4.0])
@torch.inference_mode()
def test_the_rule_is_ours(tmp_path: Path, scale: float) -> None:
    """Dropped in order of the choice, rescaled or not as the model's rule has it: what the kernels do with a limit."""
    config = replace(TINY, model_type="tenth", moe=MoeConfig(8, 4, 32, routed_scale=scale))
    write_dense(tmp_path / "m", initialise(Decoder(config), seed=2, std=0.3))
    with open_checkpoint(tmp_path / "m") as checkpoint:
        kernels = bench.load(checkpoint, 1, other=True).kernels
    logits_TE = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    for limit in (ExpertLimit(0.6), ExpertLimit(0.8, 2)):
        limits = TokenLimits.of([limit], [9])
        wanted = super(bench.OtherRule, kernels).route(logits_TE, config.moe.rule, None, limits)
        kernels.drops, kernels.rescale = bench.by_choice(limit), scale != 4
        for one, other in zip(kernels.route(logits_TE, config.moe.rule), wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_a_round_of_speeds() -> None:
    decoder = initialise(Decoder(preset("tiny-moe")), seed=1)
    found = bench.measure(decoder, [], {"k1": ExpertLimit(cap=1)}, 4, 2, 2)
    assert [row["limit"] for row in found] == ["none", "k1"]
    assert found[0]["speed-up"] == 1
    assert found[1]["tok_s"] > 0
