"""Long prompts in chunks: what the plain decoder gives, in memory that does not grow with their length."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.sequence import CachedSequence
from tenth.kernels.choice import choose_kernels
from tenth.kernels.packed import PackedFormat
from tenth.model.config import ModelConfig, RopeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import with_layers, write_synthetic

GREEDY = Sampling(temperature=0)
LONG = 32_768


def _yarn(trained: int, factor: int) -> ModelConfig:
    """The tiny model's first two layers, with positions stretched from what it was trained on."""
    rope = RopeConfig(kind="yarn", factor=float(factor), original_context=trained)
    return replace(with_layers(preset("tiny-moe"), 2), rope=rope, context_length=trained * factor)


def _drawn(count: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(3)).tolist())


def _compare(prompt: tuple[int, ...], config: ModelConfig, chunk: int) -> None:
    """The likeliest first tokens and their log-probabilities: by the engine in chunks and pages, and by the decoder."""
    decoder = initialise(Decoder(config), seed=1, std=0.2).requires_grad_(False)
    scheduler = SchedulerOptions(tokens=chunk, wait=0)
    engine = Engine(decoder, EngineOptions(len(prompt) // 32 + 2, 32, scheduler))
    stream = engine.submit(Request(prompt, 1, GREEDY, logprobs=8))
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert steps == -(-len(prompt) // chunk)
    logits_V, _ = CachedSequence(decoder).extend(prompt)
    best = torch.log_softmax(logits_V.double(), -1).topk(8)
    (drawn,) = stream.answers[0].drawn
    assert drawn.token == int(best.indices[0])
    assert [token for token, _ in drawn.top] == best.indices.tolist()
    assert [value for _, value in drawn.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_yarn_behind_the_trained_context_in_chunks() -> None:
    _compare(_drawn(1100), _yarn(256, 8), 300)


@pytest.mark.slow
def test_yarn_at_32k_in_chunks() -> None:
    _compare(_drawn(LONG - 8), _yarn(8192, 4), 2048)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    config = replace(_yarn(8192, 4), head_dim=32)
    write_synthetic(folder, config, PackedFormat.parse("int4-g16-s4"), seed=1)
    return folder


_PEAK = """
import sys
from pathlib import Path
from tests.engine.test_long_contexts import engine_of, Request, GREEDY, LONG
engine = engine_of(Path(sys.argv[1]), LONG)
for pool in [*engine._cache.pools(0), *engine._cache.pools(1)]:
    pool.zero_()
for length in (300, int(sys.argv[2])):
    engine.submit(Request(tuple(n % 500 for n in range(length)), 1, GREEDY))
    while engine.busy:
        engine.step()
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # no parent's, as ru_maxrss may be
"""


def engine_of(folder: Path, tokens: int) -> Engine:
    """With room for so many tokens."""
    with open_checkpoint(folder) as checkpoint:
        decoder = load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=32))
    return Engine(decoder, EngineOptions(tokens // 32 + 2, 32, SchedulerOptions(wait=0)))


@pytest.mark.slow
def test_peak_memory_of_a_prompt_does_not_grow_with_its_length(packed: Path) -> None:
    """All pages are touched before; a process of its own for each length, as a peak never goes down.

    A chunk's scores for all earlier tokens would be 268 MB a head at the end of the long one. What is left are lists of
    token ids, tables of pages and scratch of attention, some 600 bytes a token: 17 MB.
    """
    peaks = []
    for length in (4096, LONG - 8):
        command = [sys.executable, "-c", _PEAK, str(packed), str(length)]
        root = Path(__file__).parents[2]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        peaks.append(int(said.stdout) << 10)
    assert peaks[1] - peaks[0] < 26 << 20, peaks


@pytest.mark.slow
def test_memory_of_a_rolling_stream_stays_flat_over_100_000_tokens(packed: Path) -> None:
    """What grows is the stream itself: its tokens and what was drawn, some 150 bytes each."""
    engine = engine_of(packed, 1024)
    stream = engine.submit(Request((1, 2, 3), 100_000, GREEDY, rolling=512))
    resident: list[int] = []
    while engine.busy:
        engine.step()
        if len(stream.answers[0].drawn) % 20_000 == 0:
            gc.collect()
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            assert len(engine.scheduler.running[:1]) == 0 or len(engine.scheduler.running[0].pages) <= 17
    assert len(stream.tokens) == 100_000
    assert resident[-1] - resident[0] < 80_000 * 250, resident
