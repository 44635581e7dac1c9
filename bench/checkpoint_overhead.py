"""How much longer a training step takes while a checkpoint is written behind it.

A dense decoder of our own learns random tokens in float32 with AdamW: parameters and both averages are 12 bytes a
parameter. Windows alternate: while a checkpoint is written, and as long without one. A window's figure is its median
step, and with a checkpoint the copy aside too, spread over the window's steps; the ratio is taken within a pair of
windows, its interval by a bootstrap over pairs.

usage: python bench/checkpoint_overhead.py [--parameters 300e6] [--tokens 512] [--pairs 7] [--share 0.03] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tenth.model.batch import Batch
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder, initialise
from tenth.train.run_checkpoint import RunCheckpoints

LAYERS, HEAD, VOCABULARY = 12, 64, 8192


def shape(parameters: float) -> ModelConfig:
    """A dense decoder of about so many parameters."""
    width = HEAD
    while (config := _config(width)).parameters.total < parameters:
        width += HEAD
    return config


def _config(width: int) -> ModelConfig:
    heads, inner = width // HEAD, 3 * width
    return ModelConfig("llama", VOCABULARY, width, inner, LAYERS, heads, heads, HEAD, 4096, tie_word_embeddings=True)


class Training:
    """A decoder and its optimiser; `step` is one step on random tokens."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        self.decoder = initialise(Decoder(config), 0).requires_grad_()
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=1e-4, fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.tokens = tokens

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        tokens_T = torch.randint(VOCABULARY, (self.tokens,), generator=self.generator)
        logits_TV = self.decoder(Batch.of([tokens_T])).logits_NV
        assert logits_TV is not None
        functional.cross_entropy(logits_TV[:-1], tokens_T[1:]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        named = dict(self.decoder.named_parameters())
        return named | {
            f"optimizer.{name}.{part}": value
            for name, parameter in named.items()
            for part, value in self.optimizer.state[parameter].items()
        }


def while_written(training: Training, checkpoints: RunCheckpoints, number: int) -> tuple[list[float], float]:
    """Seconds of each step while checkpoint `number` is written, and of the copy before."""
    start = time.perf_counter()
    checkpoints.save(number, training.tensors(), {})
    copied = time.perf_counter() - start
    steps = [training.step()]
    while checkpoints.writing:
        steps.append(training.step())
    checkpoints.wait()
    return steps, copied


def pair(training: Training, checkpoints: RunCheckpoints, number: int, seconds: float) -> dict[str, float]:
    """A window with a checkpoint and one of `seconds` without, in turns the first."""

    def alone() -> float:
        start, steps = time.perf_counter(), [training.step()]
        while time.perf_counter() < start + seconds:
            steps.append(training.step())
        return statistics.median(steps)

    before = alone() if number % 2 else 0.0
    written, copied = while_written(training, checkpoints, number)
    without = before or alone()
    one = statistics.median(written) + copied / len(written)
    return {
        "without": without,
        "with": one,
        "ratio": one / without,
        "copy": copied,
        "steps": len(written),
        "window": sum(written) + copied,
    }


def interval(ratios: list[float]) -> tuple[float, float]:
    """The middle 95 % of the geometric mean over resampled pairs."""
    draw = random.Random(0)
    means = sorted(statistics.geometric_mean(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return means[250], means[-251]


def main() -> None:
    """Measure, print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=300e6)
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--pairs", type=int, default=7, help="of windows; at least 5")
    parser.add_argument("--share", type=float, default=0.03, help="of one core, for the writer")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; default: a temporary one")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    training = Training(shape(options.parameters), options.tokens)
    training.step()
    size = sum(tensor.nbytes for tensor in training.tensors().values())
    parameters = training.decoder.config.parameters.total
    print(f"{parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB of state", flush=True)
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        RunCheckpoints(Path(folder), 1, share=options.share) as checkpoints,
    ):
        start = time.perf_counter()
        checkpoints.prepare(training.tensors())
        print(f"memory prepared in {time.perf_counter() - start:.2f} s")
        seconds = sum(while_written(training, checkpoints, 0)[0])
        print("| pair | ms a step without | with | ratio | copy ms | s while written |\n|---|---|---|---|---|---|")
        pairs = []
        for number in range(1, options.pairs + 1):
            found = pair(training, checkpoints, number, seconds)
            pairs.append(found)
            times = " | ".join(f"{found[name] * 1e3:.0f}" for name in ("without", "with"))
            rest = f"{found['ratio']:.4f} | {found['copy'] * 1e3:.0f} | {found['window']:.1f}"
            print(f"| {number} | {times} | {rest} |", flush=True)
    ratios = [found["ratio"] for found in pairs]
    low, high = interval(ratios)
    mean = statistics.geometric_mean(ratios)
    print(f"step while one is written / without: {mean:.4f} (95 %: {low:.4f} to {high:.4f}); the bar is 1.05")
    print(
        json.dumps({"parameters": parameters, "bytes": size, "ratio": mean, "low": low, "high": high, "pairs": pairs})
    )


if __name__ == "__main__":
    main()
