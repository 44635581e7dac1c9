"""A tiny dense model with real-looking statistics, and texts for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset

CONFIG = replace(preset("tiny-moe"), model_type="qwen3", moe=None, sparse_layers=())


def tiny_dense(dtype: torch.dtype = torch.float64, **changes: object) -> Decoder:
    """Three layers of width 64, feed-forward width 96."""
    return initialise(Decoder(replace(CONFIG, **changes), dtype=dtype), seed=3, std=0.2).requires_grad_(False)


@cache
def texts(count: int, seed: int, length: int = 64) -> list[list[int]]:
    """Documents of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 512, (length,), generator=generator).tolist() for _ in range(count)]
