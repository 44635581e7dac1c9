"""The walk beside a decode step reads exactly what the files say the step's matrices weigh; operations are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.kernels.choice import choose_kernels
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.machine import built, instruction_sets, machine, usable_cpus
from tenth.kernels.packed import PackedFormat
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.observe.sequences import Sequences
from tenth.observe.step_limits import prefill_work, read_step
from tenth.observe.weight_reads import StepWeights, read_speed, weight_walks
from tenth.routing.counts import Assignments
from tenth.routing.record import Routing
from tenth.routing.stacked import StackedLayers, stacked
from tenth.weights.budget import Budget, budget_decoder
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.packed_index import PackedIndex
from tenth.weights.synthetic import write_synthetic
from tests.weights.packed_models import ODD, TINY

if not built():
    pytest.skip("the native kernels are not built", allow_module_level=True)

from tenth.kernels.cpu.limits import Peaks, StepWalk

# a dense layer, a shared expert with its gate, a tied head, widths that fill neither tiles nor panels
SHARED = replace(ODD, head_dim=16)


def loaded(folder: Path, config: ModelConfig, form: str) -> tuple[Decoder, PackedIndex]:
    write_synthetic(folder, config, PackedFormat.parse(form), seed=0)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        kernels = choose_kernels("cpu", packed=True, head_dim=config.head_dim, threads=1)
        return load_decoder(checkpoint, kernels=kernels), checkpoint.packed.index


def step_bytes(index: PackedIndex, config: ModelConfig, routing: Routing) -> int:
    """By the index alone: every matrix but the embedding, which is looked up, and the experts that nobody chose."""
    total = 0
    for name, tensor in index.tensors.items():
        if len(tensor.formats) == 3:
            layer, expert = int(name.split(".")[1]), int(name.split(".")[-1])
            total += tensor.nbytes if bool((routing.layers[layer].experts_TK == expert).any()) else 0
        elif name.startswith("embedding"):
            total += tensor.nbytes if config.tie_word_embeddings else 0
        elif tensor.formats or "router" in name:
            total += tensor.nbytes
    return total


def cache_bytes(config: ModelConfig, sequences: int, length: int, kv: KVType) -> int:
    """Keys lie in groups of 16 tokens, values in pairs; as bytes both with their scales in groups of 64."""
    heads = sequences * config.num_layers * config.num_kv_heads
    if kv == "int8":
        return heads * 2 * (config.head_dim + 4) * -(-length // 64) * 64
    tokens = -(-length // 16) * 16 + -(-length // 2) * 2
    return heads * config.head_dim * 2 * tokens


@pytest.mark.parametrize(("batch", "kv"), [(1, "bf16"), (3, "bf16"), (3, "int8")])
@pytest.mark.parametrize("form", ["int4-g32", "int8-g32", "fp32"])
@pytest.mark.parametrize("config", [TINY, SHARED], ids=["tiny", "shared"])
def test_a_walk_reads_the_bytes_of_the_step(
    config: ModelConfig, form: str, batch: int, kv: KVType, tmp_path: Path
) -> None:
    decoder, index = loaded(tmp_path / "model", config, form)
    sequences = Sequences(decoder, batch, 20, kv)
    tokens_BT = torch.randint(config.vocab_size, (batch, 19))
    sequences.show(tokens_BT, 0)
    routing = sequences.show(tokens_BT[:, :1], 19, "choice").routing
    assert routing is not None
    walk = StepWalk(machine(1))
    read_step(walk, decoder, routing, sequences.cache, 20)
    assert walk.nbytes == step_bytes(index, config, routing) + cache_bytes(config, batch, 20, kv)
    assert walk.run() > 0


@pytest.mark.parametrize(
    "config", [TINY, SHARED, replace(TINY, moe=None, sparse_layers=())], ids=["tiny", "shared", "dense"]
)
def test_steps_read_what_their_walks_read(config: ModelConfig, tmp_path: Path) -> None:
    decoder, index = loaded(tmp_path / "model", config, "int4-g32")
    weights, total = StepWeights.of(decoder), 0
    assert weights is not None
    steps = list[StackedLayers]()
    for tokens in (1, 5, 2):
        routing = Sequences(decoder, tokens, 1).show(torch.randint(config.vocab_size, (tokens, 1)), 0, "choice").routing
        assert routing is not None
        total += step_bytes(index, config, routing)
        steps += [layers for layers in [stacked(routing)] if layers is not None]
    at_work_LE = Assignments.of(steps).steps_at_work([1, 5, 2]) if steps else None
    assert weights.read(3, at_work_LE) == total
    walks = weight_walks(decoder, at_work_LE)
    assert sum(walk.nbytes for walk in walks) <= weights.read(1, None if at_work_LE is None else at_work_LE > 0)
    assert read_speed(walks, 0.001) > 1e6


def test_of_experts_on_disk_and_of_other_kernels_it_is_not_known(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "model", replace(TINY, head_dim=32), PackedFormat.parse("int4-g32"), seed=1)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.packed is not None
        kernels = choose_kernels("cpu", packed=True, head_dim=32, threads=1)
        there = budget_decoder(checkpoint.packed, checkpoint.config, kernels, Budget(0, 6, 8192))
        assert StepWeights.of(there) is None
    assert StepWeights.of(Decoder(TINY)) is None


def test_a_walk_of_all_experts_reads_the_model(tmp_path: Path) -> None:
    decoder, index = loaded(tmp_path / "model", TINY, "int4-g32")
    assert TINY.moe is not None
    walk = StepWalk(machine(1))
    for layer in TINY.sparse_layers:
        walk.experts(decoder.blocks()[layer].mlp.experts, range(TINY.moe.num_experts), 8)
    assert walk.nbytes == sum(tensor.nbytes for tensor in index.tensors.values() if len(tensor.formats) == 3)


def test_the_cache_has_the_size_of_the_sequences(tmp_path: Path) -> None:
    decoder, _ = loaded(tmp_path / "model", TINY, "int4-g32")
    keys, _ = Sequences(decoder, 3, 33).cache.pools(0)
    assert keys.shape[0] == 3
    assert keys.numel() == 3 * TINY.num_kv_heads * 64 * TINY.head_dim  # whole groups of 32 tokens


def test_sequences_are_shown_like_documents_without_a_cache(tmp_path: Path) -> None:
    """In a batch, in pieces, behind others: the logits that each sequence has by itself."""
    decoder, _ = loaded(tmp_path / "model", TINY, "fp32")
    tokens_BT = torch.randint(TINY.vocab_size, (2, 24))
    pieces = Sequences(decoder, 2, 24)
    pieces.fill(tokens_BT[:, :20], 0, 7)
    got = [pieces.show(tokens_BT[:, at : at + 1], at).logits_NV for at in range(20, 24)][-1]
    for row in range(2):
        alone = Sequences(decoder, 1, 24).show(tokens_BT[row : row + 1], 0).logits_NV
        assert got is not None
        assert alone is not None
        assert torch.equal(got[row], alone[0])


@pytest.mark.parametrize("tokens", [1, 7])
def test_the_work_of_a_prompt_is_the_configs(tokens: int, tmp_path: Path) -> None:
    decoder, _ = loaded(tmp_path / "model", TINY, "int4-g32")
    work, head = prefill_work(decoder, tokens, 5), 2 * TINY.vocab_size * TINY.hidden_size
    expected = sum(TINY.flops_per_token(6 + at) - head for at in range(tokens)) + head
    assert work.integer + work.floating == pytest.approx(expected, rel=1e-12)
    attention = sum(TINY.flops_per_token(6 + at) - TINY.flops_per_token() for at in range(tokens))
    assert work.floating == attention + tokens * 2 * TINY.parameters.router
    assert work.seconds(Peaks(2.0, 4.0)) == pytest.approx(work.integer / 2 + work.floating / 4)


def test_the_work_of_float_matrices_is_floating(tmp_path: Path) -> None:
    decoder, _ = loaded(tmp_path / "model", SHARED, "bf16")
    assert prefill_work(decoder, 3, 0).integer == 0


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("threads", [1, len(usable_cpus())])
def test_walks_of_odd_sizes_end(name: str, threads: int) -> None:
    walk = StepWalk(machine(threads, name))
    for size in (1, 63, 64, 4 * 64 + 1, 100_003):
        walk.memory([torch.zeros(size, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)])
    assert walk.nbytes == 1 + 63 + 64 + 257 + 100_003 + 5 * 3
    assert walk.run() > 0


@pytest.mark.parametrize("name", instruction_sets())
def test_peaks_of_every_instruction_set(name: str) -> None:
    peaks = Peaks.measured(machine(1, name), 1e-3)
    assert 1e7 < peaks.integer < 1e15
    assert 1e7 < peaks.floating < 1e15
