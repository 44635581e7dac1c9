"""What `tenth verify` costs beside showing the tokens to both models: alternating, medians.

The baseline is prefill with logits at every position: chunks of 512 tokens through a cache, as prompts go, native
kernels, the logits of each chunk computed in blocks and thrown away. `verify` is the default measurement without its
greedy part, which is timed apart. The bar is 1.2 times the two prefills. Beside the clock stands the time of all cores,
which says more on a machine that others use too (then with one thread: threads that wait for each other take time).

usage: python bench/verify_speed.py A B [--tokens 4000] [--context 512] [--rounds 5] [--threads 2]

where A and B are packed models, such as two of `tenth synth qwen3-30b-a3b OUT --layers 12 --seed N`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tenth.engine.captured import runner_of
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.observe.parity import VerifyOptions, verify
from tenth.observe.parity_corpus import Corpus
from tenth.observe.parity_sides import Side, opened

BAR = 1.2
Taken = tuple[float, float]

CHUNK, ROWS = 512, 48  # rows of logits at once: memory that is lent again without new pages


@torch.inference_mode()
def prefill(side: Side, ids_T: torch.Tensor) -> None:
    """Show the tokens to one model."""
    decoder, runner = side.decoder, runner_of(side.decoder)
    cache = KVCache(decoder.config, 1, len(ids_T), decoder.dtype, decoder.device, decoder.kernels, "bf16")
    for at in range(0, len(ids_T), CHUNK):
        part_T = ids_T[at : at + CHUNK]
        place_T = torch.arange(at, at + len(part_T))
        placement = Placement(place_T, (torch.arange(1),), (at + len(part_T),))
        batch = Batch((0, len(part_T)), place_T, tokens_T=part_T, placement=placement)
        hidden_TD = runner(batch, cache, Want(logits="none", hidden=True)).hidden_TD
        assert hidden_TD is not None
        for row in range(0, len(part_T), ROWS):
            decoder.head(hidden_TD[row : row + ROWS])


def taken(work: Callable[[], object]) -> Taken:
    """Seconds on the clock, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(baseline: Sequence[Taken], measured: Sequence[Taken]) -> dict[str, object]:
    """Medians, and the median of the rounds' ratios: by the clock, and by the time of the cores."""
    found: dict[str, object] = {}
    for n, name in enumerate(("", "cpu_")):
        ratios = [one[n] / other[n] for one, other in zip(measured, baseline, strict=True)]
        found[f"{name}prefills_s"] = round(statistics.median(one[n] for one in baseline), 2)
        found[f"{name}verify_s"] = round(statistics.median(one[n] for one in measured), 2)
        found[f"{name}ratio"] = round(statistics.median(ratios), 3)
        found[f"{name}ratios"] = [round(ratio, 3) for ratio in ratios]
    return found


def main() -> None:
    """Take turns, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    for name, number in (("tokens", 4000), ("context", 512), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    models = {"backend": "cpu", "threads": options.threads}
    with opened(options.a, "A", **models) as a, opened(options.b, "B", **models) as b:
        ids_T = torch.randint(a.config.vocab_size, (options.tokens,), generator=torch.Generator().manual_seed(0))
        windows = [part.tolist() for part in ids_T.split(options.context)]
        corpus = Corpus(("random",), windows, [window[:64] for window in windows[:8]], len(windows))
        alone = VerifyOptions(greedy_tokens=0)
        for side in (a, b):  # reads the weights from disk
            prefill(side, ids_T[:CHUNK])
        baseline, measured = list[Taken](), list[Taken]()
        for turn in range(options.rounds):
            baseline.append(taken(lambda: [prefill(side, ids_T) for side in (a, b)]))
            measured.append(taken(lambda: verify(a, b, corpus, alone)))
            print(f"{turn}: prefills {baseline[-1]}, verify {measured[-1]}", file=sys.stderr, flush=True)
        greedy = verify(a, b, corpus)["seconds"]["answers"]
    sizes = {"tokens": options.tokens, "context": options.context, "threads": options.threads}
    found = sizes | summary(baseline, measured) | {"greedy_s": greedy}
    print(json.dumps(found))
    if statistics.median(one[0] / other[0] for one, other in zip(measured, baseline, strict=True)) > BAR:
        raise SystemExit(f"verify takes {found['ratio']} times the two prefills, the bar is {BAR}")


if __name__ == "__main__":
    main()
