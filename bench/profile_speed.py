"""What a routing profile costs: passes that count, and passes that measure outputs too, beside plain prefill.

The same batches of the same tokens, in turn: plain (no record, no logits), with counts (`--no-outputs`), with outputs.

usage: python bench/profile_speed.py MODEL [--tokens 4096] [--batch 2048] [--rounds 5] [--threads N]

MODEL by `tenth synth qwen3-30b-a3b MODEL --layers 12`. Ratios are of rounds: tokens a second over the plain
passes', by the clock and by seconds of CPU, which other work on the machine disturbs less; median, least, most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tenth.kernels.choice import choose_kernels
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.observe.profiling import Part, Profiler
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

Parts = Sequence[Part]


def decoder_of(model: str, threads: int | None) -> Decoder:
    """On native kernels."""
    with open_checkpoint(Path(model)) as checkpoint:
        head_dim = checkpoint.config.head_dim
        kernels = choose_kernels("auto", packed=checkpoint.packed is not None, head_dim=head_dim, threads=threads)
        return load_decoder(checkpoint, kernels=kernels)


@torch.inference_mode()
def plain(decoder: Decoder, parts: Parts) -> None:
    """A pass that keeps nothing."""
    decoder(Batch.of([part.ids for part in parts]), want=Want(logits="none"))


def seconds(run: Callable[[Parts], None], batches: Sequence[Parts]) -> tuple[float, float]:
    """All batches, one after the other: by the clock, and of CPU."""
    begun, used = time.perf_counter(), time.process_time()
    for parts in batches:
        run(parts)
    return time.perf_counter() - begun, time.process_time() - used


def main() -> None:
    """Read the command line, measure in turn, print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    decoder = decoder_of(arguments.model, arguments.threads)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.config.vocab_size, (arguments.tokens,), generator=generator).tolist()
    windows = [Part(ids[at : at + 512], "text", at // 512 % 64) for at in range(0, len(ids), 512)]
    many = max(arguments.batch // 512, 1)
    batches = [windows[at : at + many] for at in range(0, len(windows), many)]
    ways: dict[str, Callable[[Parts], None]] = {
        "plain": lambda parts: plain(decoder, parts),
        "counts": Profiler(decoder, "model", outputs=False).show,
        "outputs": Profiler(decoder, "model").show,
    }
    for run in ways.values():
        run(batches[0])
    rounds = [{name: seconds(run, batches) for name, run in ways.items()} for _ in range(arguments.rounds)]
    found = {name: [arguments.tokens / one[name][0] for one in rounds] for name in ways}
    line: dict[str, dict[str, object]] = {
        name: {"tok_s": round(statistics.median(speeds), 1), "range": [round(min(speeds), 1), round(max(speeds), 1)]}
        for name, speeds in found.items()
    }
    for name in ("counts", "outputs"):
        for at, kind in enumerate(("ratio", "cpu_ratio")):
            ratios = sorted(one["plain"][at] / one[name][at] for one in rounds)
            line[name][kind] = [round(x, 4) for x in (statistics.median(ratios), ratios[0], ratios[-1])]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
