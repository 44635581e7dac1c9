"""What the engine adds to a bare loop of steps, and what its prefix cache takes away.

Each of `--rounds` times, in turn: decoding of one sequence by a bare loop of steps (greedy) and by one request through
the engine; a request of 2,000 tokens, and a second one with the same beginning; and, with 16 requests, the part of a
step that is not the network's pass: scheduling, batch, draws, books.

usage: python bench/engine_costs.py MODEL [--rounds 5] [--threads N]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.kernels.choice import choose_kernels
from tenth.model.decoder import Decoder
from tenth.observe.sequences import Sequences
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

STEPS, WARM_UP, LONG, BATCH = 64, 4, 2000, 16


def ids(decoder: Decoder, count: int, seed: int) -> tuple[int, ...]:
    """Random tokens."""
    chance = random.Random(seed)
    return tuple(chance.randrange(decoder.config.vocab_size) for _ in range(count))


def bare(decoder: Decoder) -> float:
    """Tokens a second of one sequence, the likeliest each time."""
    sequences = Sequences(decoder, 1, STEPS + WARM_UP + 1)
    token_11, start = torch.tensor([[1]]), 0.0
    for at in range(STEPS + WARM_UP):
        if at == WARM_UP:
            start = time.perf_counter()
        logits_NV = sequences.show(token_11, at).logits_NV
        assert logits_NV is not None
        token_11 = logits_NV.argmax(-1, keepdim=True)
    return STEPS / (time.perf_counter() - start)


def through(engine: Engine) -> float:
    """The same for one request of the engine."""
    stream = engine.submit(Request((1,), STEPS + WARM_UP, Sampling(temperature=0)))
    while len(stream.tokens) < WARM_UP:
        engine.step()
    start = time.perf_counter()
    while not stream.finished:
        engine.step()
    return STEPS / (time.perf_counter() - start)


def first_token(engine: Engine, prompt: tuple[int, ...]) -> float:
    """Seconds to the first token."""
    start = time.perf_counter()
    stream = engine.submit(Request(prompt, 1, Sampling(temperature=0)))
    while not stream.finished:
        engine.step()
    return time.perf_counter() - start


def outside(engine: Engine, decoder: Decoder, sampling: dict[str, Any], seed: int) -> float:
    """Seconds of a step of 16 sequences beside the pass through the network: the median."""
    spent: list[float] = []
    run: Callable[..., Any] = engine._run

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return run(*arguments)
        finally:
            spent.append(time.perf_counter() - start)

    setattr(engine, "_run", timed)  # noqa: B010  (mypy takes no assignment to a method)
    streams = [
        engine.submit(Request(ids(decoder, 8, seed + n), STEPS + WARM_UP, Sampling(seed=n, **sampling)))
        for n in range(BATCH)
    ]
    found = []
    while not all(stream.finished for stream in streams):
        start, before = time.perf_counter(), len(spent)
        engine.step()
        if len(streams[-1].tokens) > WARM_UP and len(spent) > before:
            found.append(time.perf_counter() - start - spent[-1])
    setattr(engine, "_run", run)  # noqa: B010
    return statistics.median(found)


def said(name: str, values: list[float], unit: str, scale: float = 1.0) -> str:
    """Median and range."""
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{name}: {middle:.3g} {unit} ({low:.3g} to {high:.3g}, {len(values)} rounds)"


def main() -> None:
    """Measure and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with open_checkpoint(options.model) as checkpoint:
        head_dim = checkpoint.config.head_dim
        kernels = choose_kernels("cpu", packed=True, head_dim=head_dim, threads=options.threads)
        decoder = load_decoder(checkpoint, kernels=kernels)
    engine = Engine(decoder, EngineOptions(pages=256, scheduler=SchedulerOptions(wait=0)))
    loops, requests, cold, warm, greedy, drawn = [list[float]() for _ in range(6)]
    for number in range(options.rounds):
        loops.append(bare(decoder))
        requests.append(through(engine))
        prompt = ids(decoder, LONG, number)
        cold.append(first_token(engine, prompt))
        warm.append(first_token(engine, (*prompt[:-1], number)))
        greedy.append(outside(engine, decoder, {"temperature": 0}, 1000 * number))
        drawn.append(outside(engine, decoder, {"top_p": 0.9, "top_k": 50}, 1000 * number + 500))
        engine.scheduler.prefix.clear()
    print(said("bare loop", loops, "tok/s"))
    print(said("one request", requests, "tok/s"))
    print(said("one request over the bare loop", [a / b for a, b in zip(requests, loops, strict=True)], ""))
    print(said("first token of 2,000", cold, "s"))
    print(said("first token of the same beginning", warm, "s"))
    print(said("over the cold one", [a / b for a, b in zip(warm, cold, strict=True)], "%", 100))
    print(said(f"beside the network, {BATCH} greedy", greedy, "ms", 1e3))
    print(said(f"beside the network, {BATCH} drawn", drawn, "ms", 1e3))


if __name__ == "__main__":
    main()
