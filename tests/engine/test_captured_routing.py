"""Captured steps of a sigmoid router with biases and groups beside a shared expert: the decoder's bits, everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.engine.captured import CapturedDecoder, runner_of
from tenth.engine.sequence import CachedSequence
from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.machine import instruction_sets
from tenth.model.batch import Batch, Want
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tests.weights.packed_models import write_dense

MOE = MoeConfig(12, 4, 32, True, 24, True, "sigmoid", True, num_groups=4, top_groups=2, routed_scale=2.5)
CONFIG = replace(preset("tiny-moe"), model_type="tenth", moe=MOE)
PROMPT = torch.randint(0, 512, (30,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder = initialise(Decoder(CONFIG), seed=1, std=0.2).requires_grad_(False)
    for layer in CONFIG.sparse_layers:
        generator = torch.Generator().manual_seed(layer)
        decoder.get_parameter(f"layers.{layer}.mlp.router.bias_E").normal_(0, 0.3, generator=generator)
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_dense(folder, decoder)
    return folder


@pytest.fixture(scope="module", params=instruction_sets())
def decoder(request: pytest.FixtureRequest, packed: Path) -> Iterator[Decoder]:
    with open_checkpoint(packed) as checkpoint:
        kernels = choose_kernels("cpu", packed=True, head_dim=16, instruction_set=request.param)
        yield load_decoder(checkpoint, kernels=kernels)


@torch.inference_mode()
def test_captured_decoding_is_the_decoders(decoder: Decoder) -> None:
    runner = runner_of(decoder)
    assert isinstance(runner, CapturedDecoder)
    eager, captured = CachedSequence(decoder), CachedSequence(runner)
    for piece in (PROMPT[:17], PROMPT[17:18], PROMPT[18:]):
        (one, record), (other, copied) = (sequence.extend(piece, "full") for sequence in (eager, captured))
        assert torch.equal(one, other)
        assert record is not None
        assert copied is not None
        for index, layer in record.layers.items():
            for name in ("experts_TK", "gates_TK", "logits_TE"):
                assert torch.equal(getattr(layer, name), getattr(copied.layers[index], name)), name


@torch.inference_mode()
def test_choices_are_the_references(decoder: Decoder, packed: Path) -> None:
    with open_checkpoint(packed) as checkpoint:
        reference = load_decoder(checkpoint)
    batch, want = Batch.of([PROMPT]), Want(routing="full")
    one, other = decoder(batch, want=want), reference(batch, want=want)
    layer, expected = (out.routing.layers[CONFIG.sparse_layers[0]] for out in (one, other))
    same = (layer.experts_TK == expected.experts_TK).all(-1)
    assert same.float().mean() > 0.9  # attention in bfloat16 moves a choice now and then
    torch.testing.assert_close(layer.gates_TK[same], expected.gates_TK[same], atol=2e-2, rtol=0)
    torch.testing.assert_close(layer.gates_TK.sum(-1), torch.full((30,), 2.5))
