"""What `tenth verify` costs beside showing the tokens to both models: alternating, medians.

The baseline is prefill with logits at every position: chunks of 512 tokens through a cache, as prompts go, native
kernels, the logits of each chunk computed in blocks and thrown away. `verify` is the default measurement without its
greedy part, which is timed apart. The bar is 1.2 times the two prefills.

usage: python bench/verify_speed.py A B [--tokens 4000] [--context 512] [--rounds 5] [--threads 2]

where A and B are packed models, such as two of `tenth synth qwen3-30b-a3b OUT --layers 12 --seed N`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from tenth.engine.captured import runner_of
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.observe.parity import VerifyOptions, verify
from tenth.observe.parity_corpus import Corpus
from tenth.observe.parity_sides import Side, opened

BAR = 1.2
CHUNK, ROWS = 512, 48  # rows of logits at once: memory that is lent again without new pages


@torch.inference_mode()
def prefill(side: Side, ids_T: torch.Tensor) -> float:
    """Seconds of one model."""
    decoder, runner = side.decoder, runner_of(side.decoder)
    cache = KVCache(decoder.config, 1, len(ids_T), decoder.dtype, decoder.device, decoder.kernels, "bf16")
    start = time.perf_counter()
    for at in range(0, len(ids_T), CHUNK):
        part_T = ids_T[at : at + CHUNK]
        place_T = torch.arange(at, at + len(part_T))
        placement = Placement(place_T, (torch.arange(1),), (at + len(part_T),))
        batch = Batch((0, len(part_T)), place_T, tokens_T=part_T, placement=placement)
        hidden_TD = runner(batch, cache, Want(logits="none", hidden=True)).hidden_TD
        assert hidden_TD is not None
        for row in range(0, len(part_T), ROWS):
            decoder.head(hidden_TD[row : row + ROWS])
    return time.perf_counter() - start


def main() -> None:
    """Take turns, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    models = {"backend": "cpu", "threads": options.threads}
    with opened(options.a, "A", **models) as a, opened(options.b, "B", **models) as b:
        ids_T = torch.randint(a.config.vocab_size, (options.tokens,), generator=torch.Generator().manual_seed(0))
        windows = [part.tolist() for part in ids_T.split(options.context)]
        corpus = Corpus(("random",), windows, [window[:64] for window in windows[:8]], len(windows))
        alone = VerifyOptions(greedy_tokens=0)
        baseline, measured = list[float](), list[float]()
        for turn in range(options.rounds + 1):  # the first reads the weights from disk
            both = sum(prefill(side, ids_T) for side in (a, b))
            start = time.perf_counter()
            verify(a, b, corpus, alone)
            taken = time.perf_counter() - start
            print(f"{turn}: prefills {both:.2f} s, verify {taken:.2f} s", file=sys.stderr, flush=True)
            if turn:
                measured.append(taken)
                baseline.append(both)
        greedy = verify(a, b, corpus)["seconds"]["answers"]
    ratios = [one / other for one, other in zip(measured, baseline, strict=True)]
    found = {
        "tokens": options.tokens,
        "context": options.context,
        "threads": options.threads,
        "prefills_s": round(statistics.median(baseline), 2),
        "verify_s": round(statistics.median(measured), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "greedy_s": greedy,
    }
    print(json.dumps(found))
    if found["ratio"] > BAR:
        raise SystemExit(f"verify takes {found['ratio']} times the two prefills, the bar is {BAR}")


if __name__ == "__main__":
    main()
