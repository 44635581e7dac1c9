"""Experts on disk: the bits of the model in memory, whatever the budget; reads that a slow count confirms."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.async_engine import AsyncEngine
from tenth.engine.captured import runner_of
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import cached_generate
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import WeightsError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.expert_cache import CachedExpertTable, ExpertCache, LayerUses
from tenth.kernels.packed import PackedFormat
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.preset import preset
from tenth.routing.record import Routing
from tenth.weights.budget import Budget, budget_decoder, expert_cache
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import write_synthetic

# experts of 4.4 and 8.8 KB: not whole pages; a shared expert, a dense layer between sparse ones
CONFIG = replace(
    preset("tiny-moe"),
    head_dim=32,
    num_layers=5,
    sparse_layers=(0, 1, 3, 4),
    moe=MoeConfig(10, 3, 48, shared_intermediate_size=16, shared_gate=True),
)
LEAST, ALL = 3, 40


@dataclass(frozen=True)
class Files:
    folder: Path
    resident: Decoder


@pytest.fixture(scope="module", params=["int4-g16-s4", "int8-g32"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    folder = tmp_path_factory.mktemp("cache") / "model"
    write_synthetic(folder, CONFIG, PackedFormat.parse(request.param), seed=2)
    with open_checkpoint(folder) as checkpoint:
        yield Files(folder, load_decoder(checkpoint, kernels=_kernels(1)))


def _kernels(threads: int):  # type: ignore[no-untyped-def]
    return choose_kernels("cpu", packed=True, head_dim=32, threads=threads)


def _decoder(folder: Path, slots: int, *, threads: int = 1, ahead: bool = True) -> tuple[Decoder, ExpertCache]:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        experts = [t.nbytes for t in checkpoint.packed.index.tensors.values() if len(t.formats) == 3]
        slot_bytes = -(-max(experts) // 4096) * 4096
        decoder = budget_decoder(checkpoint.packed, CONFIG, _kernels(threads), Budget(0, slots, slot_bytes))
    for table in _tables(decoder):
        table.forecast = table.forecast if ahead else None
    cache = expert_cache(decoder)
    assert cache is not None
    return decoder, cache


def _tables(decoder: Decoder) -> list[CachedExpertTable]:
    tables = [layer.mlp.experts for layer in decoder.blocks() if isinstance(layer.mlp, SparseMlp)]
    return [table for table in tables if isinstance(table, CachedExpertTable)]


def _drawn(count: int, seed: int) -> list[int]:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class _Run:
    """Sequences in one cache of keys and values, shown to a decoder in steps of any company."""

    def __init__(self, decoder: Decoder, sequences: int) -> None:
        self.runner, self.cache = (
            runner_of(decoder),
            KVCache(CONFIG, sequences, 128, torch.bfloat16, kernels=decoder.kernels),
        )
        self.seen = [0] * sequences

    def step(self, parts: Sequence[tuple[int, list[int]]]) -> tuple[torch.Tensor, Routing]:
        """Show some sequences their next tokens: logits of all, and the routing."""
        bounds, positions, slots = [0], [], []
        for sequence, tokens in parts:
            place = np.arange(self.seen[sequence], self.seen[sequence] + len(tokens))
            self.seen[sequence] += len(tokens)
            bounds.append(bounds[-1] + len(tokens))
            positions.append(place)
            slots.append(place + sequence * self.cache.page_size)
        batch = Batch(
            tuple(bounds),
            torch.from_numpy(np.concatenate(positions)),
            tokens_T=torch.tensor([token for _, tokens in parts for token in tokens]),
            placement=Placement(
                torch.from_numpy(np.concatenate(slots)),
                tuple(torch.tensor([sequence]) for sequence, _ in parts),
                tuple(self.seen[sequence] for sequence, _ in parts),
            ),
        )
        out = self.runner(batch, self.cache, Want(routing="full"))
        assert out.logits_NV is not None
        assert out.routing is not None
        return out.logits_NV, out.routing


STEPS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 1, 2, 3, 17])),
        min_size=1,
        max_size=3,
        unique_by=lambda p: p[0],
    ),
    min_size=1,
    max_size=7,
)


@torch.inference_mode()
@given(
    slots=st.integers(LEAST, ALL),
    steps=STEPS,
    ahead=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0),
)
@settings(deadline=None, max_examples=40)
def test_any_budget_any_company_the_same_bits(
    files: Files, slots: int, steps: list[list[tuple[int, int]]], ahead: bool, threads: int, seed: int
) -> None:
    decoder, cache = _decoder(files.folder, slots, threads=threads, ahead=ahead)
    runs = _Run(files.resident, 3), _Run(decoder, 3)
    routings = []
    for number, counts in enumerate(steps):
        parts = [(sequence, _drawn(count, seed % 1000 + number)) for sequence, count in counts]
        (wanted_NV, routing), (got_NV, got) = (run.step(parts) for run in runs)
        assert torch.equal(wanted_NV, got_NV)
        for index, layer in routing.layers.items():
            assert torch.equal(layer.experts_TK, got.layers[index].experts_TK)
            assert torch.equal(layer.gates_TK, got.layers[index].gates_TK)
        routings.append(routing)
    counts_now, asked = cache.statistics, _asked(routings)
    assert counts_now.steps == len(asked)
    assert counts_now.hits + counts_now.late + counts_now.misses == sum(len(experts) for _, experts in asked)
    if not ahead:
        reads = _least_used(asked, slots)
        assert (counts_now.misses, counts_now.reads, counts_now.late) == (reads, reads, 0)
        assert counts_now.bytes_read == reads * cache.slot_bytes  # here all experts are of one size


def _asked(routings: Sequence[Routing]) -> list[tuple[int, list[int]]]:
    """The distinct experts of each layer's step, in order."""
    return [
        (index, sorted(set(layer.experts_TK.flatten().tolist())))
        for routing in routings
        for index, layer in routing.layers.items()
    ]


def _least_used(asked: Sequence[tuple[int, list[int]]], slots: int) -> int:
    """Reads of a cache that drops what is used least; a use counts half after 16 steps of its layer.

    Of a step, those that are there are used first, then the others; they go, first used first, when there is nothing
    else that could.
    """
    held: list[tuple[int, int]] = []  # oldest use first
    uses: dict[tuple[int, int], list[int]] = {}
    steps: dict[int, int] = {}
    reads = 0
    for layer, experts in asked:
        steps[layer] = steps.get(layer, 0) + 1
        keys = [(layer, expert) for expert in experts]
        for key in keys:
            uses.setdefault(key, []).append(steps[layer])
        there, others = [key for key in keys if key in held], [key for key in held if key not in keys]
        held = [*others, *there]
        for key in keys:
            if key in there:
                continue
            reads += 1
            if len(held) == slots:
                gone = min(others, key=lambda one: sum(2 ** (step / 16) for step in uses[one])) if others else held[0]
                held.remove(gone)
                others = [one for one in others if one != gone]
            held.append(key)
    return reads


@torch.inference_mode()
def test_predictions_are_counted_by_what_was_predicted(files: Files) -> None:
    """Against the forecasts computed apart, from the inputs of the layers."""
    decoder, cache = _decoder(files.folder, 20)
    run, inputs = _Run(decoder, 1), []
    tables = _tables(decoder)
    for number in range(6):
        tokens = _drawn(1 + number % 3, number)
        before = cache.statistics
        _, routing = run.step([(0, tokens)])
        done = cache.statistics - before
        inputs.append((tokens, done, routing))
    replayed = _Run(files.resident, 1)
    for tokens, done, routing in inputs:
        states = _expert_inputs(files.resident, replayed, tokens)
        predicted = right = 0
        layers = list(routing.layers)
        for table, layer, following in zip(tables, layers, layers[1:], strict=False):
            assert table.forecast is not None
            scores_TE = states[layer] @ table.forecast.weight.dense().T
            expected = set(scores_TE.topk(2, -1).indices.flatten().tolist())  # of three, the likelier half
            predicted += len(expected)
            right += len(expected & set(routing.layers[following].experts_TK.flatten().tolist()))
        assert (done.predicted, done.right) == (predicted, right)
        assert tables[-1].forecast is None
    total = cache.statistics
    assert total.right_rate == total.right / total.predicted
    assert 0 < total.ahead <= total.reads


def _expert_inputs(decoder: Decoder, run: _Run, tokens: list[int]) -> dict[int, torch.Tensor]:
    """What goes into each sparse layer: the captured plan has no room to look, so the decoder itself runs."""
    states: dict[int, torch.Tensor] = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, given, index=index: states.__setitem__(index, given[0]))
        for index, layer in enumerate(decoder.blocks())
    ]
    captured, run.runner = run.runner, decoder
    try:
        run.step([(0, tokens)])
    finally:
        run.runner = captured
        for hook in hooks:
            hook.remove()
    return states


@torch.inference_mode()
def test_without_a_cache_of_keys_too(files: Files) -> None:
    """What is not captured runs operation by operation."""
    decoder, _ = _decoder(files.folder, LEAST)
    batch = Batch.of([_drawn(30, 1), _drawn(3, 2)])
    assert torch.equal(decoder(batch).logits_NV, files.resident(batch).logits_NV)


def test_an_expert_is_read_dense(files: Files) -> None:
    decoder, _ = _decoder(files.folder, LEAST)
    for cached, layer in zip(_tables(decoder), CONFIG.sparse_layers, strict=True):
        mlp = files.resident.blocks()[layer].mlp
        assert isinstance(mlp, SparseMlp)
        for index in (0, 9):
            for got, wanted in zip(cached.expert(index), mlp.experts.expert(index), strict=True):
                assert torch.equal(got, wanted)
        assert cached.nbytes == mlp.experts.nbytes


@torch.inference_mode()
def test_generation_is_the_resident_model_s(files: Files) -> None:
    prompt = _drawn(25, 5)

    def tokens(decoder: Decoder) -> list[int]:
        sampler = Sampler(Sampling(temperature=0.8, seed=3), prompt, CONFIG.vocab_size)
        return [s.token for s in cached_generate(CachedSequence(runner_of(decoder)), prompt, sampler, max_tokens=25)]

    wanted = tokens(files.resident)
    for slots in (LEAST, 11, ALL):
        assert tokens(_decoder(files.folder, slots)[0]) == wanted


@torch.inference_mode()
@pytest.mark.parametrize("ahead", [False, True])
def test_a_file_that_has_become_shorter_is_an_error_and_the_model_stays(
    files: Files, tmp_path: Path, ahead: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(files.folder, folder)
    decoder, cache = _decoder(folder, 12, ahead=ahead)
    path = folder / "layer-00003.safetensors"
    whole = path.read_bytes()
    sequence, again = CachedSequence(runner_of(decoder)), CachedSequence(runner_of(files.resident))
    first, second = _drawn(2, 1), _drawn(40, 2)
    assert torch.equal(sequence.extend(first)[0], again.extend(first)[0])
    with path.open("r+b") as file:
        file.truncate(8192)
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"layer-00003\.safetensors: ends at byte 8192, .* shorter") as error:
            sequence.extend(second)
        assert "\n" not in str(error.value)
    with path.open("r+b") as file:
        file.write(whole)
    assert torch.equal(sequence.extend(second)[0], again.extend(second)[0])
    assert cache.statistics.reads > 0


def test_a_broken_disk_ends_requests_with_one_error_and_the_engine_serves_others(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(files.folder, folder)
    decoder, cache = _decoder(folder, 12)
    path = folder / "layer-00003.safetensors"
    whole = path.read_bytes()
    prompts = [tuple(_drawn(20, seed)) for seed in range(4)]

    async def serve(engine: AsyncEngine, prompt: tuple[int, ...]) -> tuple[list[int], str | None]:
        stream = engine.submit(Request(prompt, 8, Sampling(temperature=0)))
        async for _ in stream:
            pass
        answer = stream.stream.answers[0]
        return answer.tokens, None if answer.error is None else str(answer.error)

    async def work() -> None:
        wanted = []
        async with AsyncEngine(Engine(files.resident, EngineOptions(64, 4))) as engine:
            wanted = [(await serve(engine, prompt))[0] for prompt in prompts]
        async with AsyncEngine(Engine(decoder, EngineOptions(64, 4))) as engine:
            assert await serve(engine, prompts[0]) == (wanted[0], None)  # every expert cold at first, none an error
            with path.open("r+b") as file:
                file.truncate(8192)
            broken = await asyncio.gather(*(serve(engine, prompt) for prompt in prompts[1:3]))
            for tokens, error in broken:
                assert tokens == []
                assert error is not None
                assert error.startswith(f"{path}: ends at byte 8192")
                assert "\n" not in error
            with path.open("r+b") as file:
                file.write(whole)
            found = await asyncio.gather(*(serve(engine, prompt) for prompt in prompts))
            assert found == [(tokens, None) for tokens in wanted]

    asyncio.run(asyncio.wait_for(work(), 60))
    assert cache.statistics.misses > 0


@torch.inference_mode()
def test_seeds_fill_empty_slots_in_order_and_change_no_bit(files: Files) -> None:
    decoder, cache = _decoder(files.folder, 6, ahead=False)
    # of 40 experts, 8 were used: those of the second and third layer most
    uses = [[0] * 10 for _ in range(4)]
    uses[0][4], uses[0][5] = 1, 2
    uses[1][:3] = [9, 8, 7]
    uses[2][7:] = [9, 9, 5]
    cache.seed([LayerUses(10, layer) for layer in uses])
    end = time.monotonic() + 20
    while cache.statistics.reads < 6 and time.monotonic() < end:
        time.sleep(0.01)
    assert cache.statistics.reads == 6
    sequence, again = CachedSequence(runner_of(decoder)), CachedSequence(runner_of(files.resident))
    tokens, before = _drawn(1, 3), cache.statistics
    run = _Run(files.resident, 1)
    _, routing = run.step([(0, tokens)])
    assert torch.equal(sequence.extend(tokens)[0], again.extend(tokens)[0])
    done = cache.statistics - before
    asked = _asked([routing])
    assert done.hits + done.misses == sum(len(experts) for _, experts in asked)
    counted = cache.uses
    assert [layer.steps for layer in counted] == [1] * 4
    for layer, (_, experts) in zip(counted, asked, strict=True):
        assert [expert for expert, count in enumerate(layer.uses) if count] == experts


@torch.inference_mode()
def test_bytes_are_read_from_the_disk_itself(files: Files) -> None:
    """The process's own counter; file systems that have no direct reads do not count here."""
    decoder, cache = _decoder(files.folder, LEAST)
    if cache.indirect:
        assert str(files.folder) in cache.indirect
        pytest.skip(cache.indirect)
    sequence = CachedSequence(runner_of(decoder))
    before = _read_bytes()
    sequence.extend(_drawn(30, 1))
    sequence.extend(_drawn(1, 2))
    assert _read_bytes() - before == cache.statistics.bytes_read > 0


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
