"""What a model computes in float32, to hold a packed one against its source."""

from __future__ import annotations

from pathlib import Path

import torch

from tenth.model.batch import Batch
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

TOKENS = torch.tensor([5, 17, 250, 3, 99, 41, 7])


def read(path: Path) -> Decoder:
    with open_checkpoint(path) as checkpoint:
        return load_decoder(checkpoint, dtype=torch.float32)


@torch.inference_mode()
def logits(path: Path) -> torch.Tensor:
    out = read(path)(Batch.of([TOKENS])).logits_NV
    assert out is not None
    return out
