"""The share of a decode step that is spent outside the native call: Python, torch, copies in and out.

The steps are those of `tenth bench`; the caches are as cold for Python as weights that stream by leave them.

usage: python bench/step_overhead.py MODEL [--batch 1] [--steps 60] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.capture import CapturedPlan
from tenth.observe.sequences import Sequences
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

WARM_UP = 5


def measure(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of its native call."""
    with open_checkpoint(options.model) as checkpoint:
        config = checkpoint.config
        kernels = choose_kernels("cpu", packed=True, head_dim=config.head_dim, threads=options.threads)
        decoder = load_decoder(checkpoint, kernels=kernels)
    steps: list[float] = []
    native: list[float] = []
    run = CapturedPlan.run

    def timed(plan: CapturedPlan, tokens: int, logits: int, documents: int) -> None:
        start = time.perf_counter()
        run(plan, tokens, logits, documents)
        native.append(time.perf_counter() - start)

    setattr(CapturedPlan, "run", timed)  # noqa: B010  (mypy takes no assignment to a method)
    sequences = Sequences(decoder, options.batch, WARM_UP + options.steps)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(config.vocab_size, (options.batch, WARM_UP + options.steps), generator=generator)
    for at in range(WARM_UP + options.steps):
        start = time.perf_counter()
        sequences.show(tokens_BT[:, at : at + 1], at)
        steps.append(time.perf_counter() - start)
    return steps[WARM_UP:], native[WARM_UP:]


def main() -> None:
    """Measure and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int)
    steps, native = measure(parser.parse_args())
    outside = [step - call for step, call in zip(steps, native, strict=True)]
    share = statistics.median(o / s for o, s in zip(outside, steps, strict=True))
    step_ms, outside_us = statistics.median(steps) * 1e3, statistics.median(outside) * 1e6
    print(f"step {step_ms:.2f} ms, {outside_us:.0f} us outside the native call, {share:.1%} (medians of {len(steps)})")


if __name__ == "__main__":
    main()
