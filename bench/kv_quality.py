"""What int8 pages of the KV cache cost: perplexity of a model with them and with bf16 pages, on the same tokens.

Tokens of each file are shown in windows, chunk by chunk, so that all but the first chunk look at keys and values
through the cache. Both caches see the same chunk in turn; beside the perplexities stand their ratio and the KL
divergence of the predictions. The bar is a ratio of 1.005.

usage: python bench/kv_quality.py MODEL FILE.tokens... [--tokens 20000] [--context 2048] [--chunk 128] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tenth.api import resolve
from tenth.data.token_file import TokenFile
from tenth.engine.captured import runner_of
from tenth.kernels.choice import choose_kernels, describe
from tenth.kernels.contract import KVType
from tenth.model.batch import Batch, Placement
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

BAR = 1.005


@dataclass(frozen=True, slots=True)
class Found:
    """One file: perplexities with both types of pages; the loss that int8 adds, in nats, and its standard error."""

    file: str
    tokens: int
    bf16: float
    int8: float
    ratio: float
    added: float
    added_se: float
    kl: float
    same_best: float


class Reader:
    """A decoder with a cache of one page: shows it windows, chunk by chunk."""

    def __init__(self, decoder: Decoder, context: int, kv: KVType) -> None:
        self._runner = runner_of(decoder)
        self.cache = KVCache(decoder.config, 1, context, decoder.dtype, decoder.device, decoder.kernels, kv)

    def log_probabilities(self, ids_T: Tensor, start: int) -> Tensor:
        """Of what follows each of the tokens, which are at positions from `start` on: T, V."""
        end = start + len(ids_T)
        place_T = torch.arange(start, end)
        placement = Placement(place_T, (torch.arange(1),), (end,))
        batch = Batch((0, len(ids_T)), place_T, tokens_T=ids_T, placement=placement)
        logits_TV = self._runner(batch, self.cache).logits_NV
        assert logits_TV is not None
        return torch.log_softmax(logits_TV.float(), -1)


def windows(file: TokenFile, context: int, tokens: int) -> Iterator[Tensor]:
    """Pieces of `context` + 1 tokens, or a document's rest, until `tokens` of them have one before them."""
    left = tokens
    for index in range(file.documents):
        ids_T = torch.from_numpy(file.document(index).astype(np.int64))
        for start in range(0, len(ids_T) - 1, context):
            piece_T = ids_T[start : start + min(context, left) + 1]
            yield piece_T
            left -= len(piece_T) - 1
            if not left:
                return


@torch.inference_mode()
def measure(decoder: Decoder, file: TokenFile, *, tokens: int, context: int, chunk: int) -> Found:
    """Show the file's windows to both caches."""
    readers = [Reader(decoder, context, "bf16"), Reader(decoder, context, "int8")]
    parts = []
    for ids_T in windows(file, context, tokens):
        for start in range(0, len(ids_T) - 1, chunk):
            shown_T, after_T = ids_T[:-1][start : start + chunk], ids_T[1:][start : start + chunk]
            own_TV, its_TV = (reader.log_probabilities(shown_T, start) for reader in readers)
            losses = [-log_TV.gather(1, after_T[:, None])[:, 0] for log_TV in (own_TV, its_TV)]
            kl_T = (own_TV.exp() * (own_TV - its_TV)).sum(-1)
            parts.append(torch.stack((*losses, kl_T, (own_TV.argmax(-1) == its_TV.argmax(-1)).float())))
    own_N, its_N, kl_N, same_N = torch.cat(parts, 1).double()
    added_N = its_N - own_N
    return Found(
        file=file.path.name,
        tokens=len(own_N),
        bf16=float(own_N.mean().exp()),
        int8=float(its_N.mean().exp()),
        ratio=math.exp(float(added_N.mean())),
        added=float(added_N.mean()),
        added_se=float(added_N.std()) / len(added_N) ** 0.5,
        kl=float(kl_N.mean()),
        same_best=float(same_N.mean()),
    )


def main() -> None:
    """Load, measure each file, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each file")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    files = [TokenFile(path) for path in options.files]
    with open_checkpoint(resolve(options.model)) as checkpoint:
        for file in files:
            file.check_made_for(checkpoint.config.vocab_size, checkpoint.tokenizer().fingerprint)
        kernels = choose_kernels(
            options.backend,
            packed=checkpoint.packed is not None,
            head_dim=checkpoint.config.head_dim,
            threads=options.threads,
        )
        decoder = load_decoder(checkpoint, kernels=kernels)
    sizes = {"tokens": options.tokens, "context": options.context, "chunk": options.chunk}
    found = [asdict(measure(decoder, file, **sizes)) for file in files]
    table = Table(*found[0], title=f"{options.model} on {describe(kernels)}, {sizes}")
    for row in found:
        table.add_row(*(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)
    print(json.dumps({"model": options.model, "backend": describe(kernels), **sizes, "files": found}))
    if worst := [row["file"] for row in found if row["ratio"] > BAR]:
        raise SystemExit(f"perplexity rises by more than the bar of {BAR - 1:.1%} on {', '.join(worst)}")


if __name__ == "__main__":
    main()
