"""What it costs an engine at work to have its routers watched: blocks of steps with and without, in turn.

One engine decodes `--batch` sequences. Blocks of `--steps` steps follow each other as with, without, without, with, and
so on, so that what drifts falls on both; sums are made within the blocks that are watched, as a server makes them. The
figure is the time of watched blocks over the others', pair by pair, with the 95 % interval of the mean.

usage: python bench/watch_cost.py MODEL [--batch 16] [--pairs 40] [--steps 32] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from engine_costs import ids

from tenth.engine.captured import Runner
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.watched import WatchedRunner
from tenth.kernels.choice import choose_kernels
from tenth.observe.profiling import profiled_model
from tenth.routing.window import RoutingWindow
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

PROMPT, PAGE = 32, 32


def begin(options: argparse.Namespace) -> tuple[Engine, RoutingWindow]:
    """An engine in the middle of its answers, and what may watch it."""
    with open_checkpoint(options.model) as checkpoint:
        head_dim = checkpoint.config.head_dim
        kernels = choose_kernels("cpu", packed=True, head_dim=head_dim, threads=options.threads)
        decoder = load_decoder(checkpoint, kernels=kernels)
    length = 2 * (options.pairs + 1) * options.steps + 2 * options.batch
    engine = Engine(decoder, EngineOptions(pages=options.batch * (-(-(PROMPT + length) // PAGE) + 1), page_size=PAGE))
    streams = [
        engine.submit(Request(ids(decoder, PROMPT, number), length, Sampling(temperature=0)))
        for number in range(options.batch)
    ]
    while not all(stream.tokens for stream in streams):
        engine.step()
    return engine, RoutingWindow(profiled_model(decoder, "watched"))


def block(engine: Engine, runner: Runner, steps: int) -> tuple[float, float]:
    """Seconds of so many steps: by the clock, and of all threads' work."""
    engine._runner = runner
    clock, work = time.perf_counter(), time.process_time()
    for _ in range(steps):
        engine.step()
    return time.perf_counter() - clock, time.process_time() - work


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=32, help="of a block")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    engine, window = begin(options)
    runners = (engine._runner, WatchedRunner(engine._runner, window))
    for runner in runners:
        block(engine, runner, options.steps)
    pairs = []
    for number in range(options.pairs):
        order = (0, 1) if number % 2 else (1, 0)
        taken = dict(zip(order, [block(engine, runners[which], options.steps) for which in order], strict=True))
        pairs.append((taken[1], taken[0]))
    each = statistics.median(without[0] for _, without in pairs) / options.steps
    print(f"{each * 1e3:.2f} ms a step of {options.batch} tokens, {options.pairs} pairs of {options.steps} steps")
    for at, name in enumerate(("clock", "CPU")):
        ratios = [watched[at] / without[at] for watched, without in pairs]
        half = 1.96 * statistics.stdev(ratios) / len(ratios) ** 0.5
        middle = statistics.median(ratios)
        print(f"{name}: watched over not {statistics.mean(ratios):.4f} +- {half:.4f} (median {middle:.4f})")


if __name__ == "__main__":
    main()
