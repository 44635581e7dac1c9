"""A dense checkpoint upcycled from end to end: read, calibrated on text, rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Literal

import torch

from tenth.data.standard_library import documents
from tenth.errors import RequestError
from tenth.model.decoder import Decoder
from tenth.train.upcycle import UpcycleOptions, upcycle
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.load import Progress, load_decoder
from tenth.weights.tokenizer import Tokenizer

PASSAGES = 24
"""Passages of Python's library that routers are fitted to where no text is given, about 11,000 tokens: enough for even
loads on text that was not seen."""


def upcycle_checkpoint(
    checkpoint: Checkpoint,
    options: UpcycleOptions,
    texts: list[str] | None,
    dtype: torch.dtype | Literal["auto"],
    report: Callable[[str], Progress],
) -> Decoder:
    """Load a dense model and upcycle it; routers are fitted to `texts` (default: passages of Python's own library)."""
    tokenizer = checkpoint.tokenizer()
    dense = load_decoder(checkpoint, dtype=dtype, progress=report("reading the dense model"))
    passages = texts or list(islice(documents(options.seed), PASSAGES))
    return upcycle(
        dense, calibration_tokens(tokenizer, passages), options, report("fitting routers, splitting experts")
    )


def calibration_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, in pieces of at most 1,024; RequestError where there are none."""
    documents_ = [tokenizer.encode(text) for text in texts]
    pieces = [ids[at : at + 1024] for ids in documents_ for at in range(0, len(ids), 1024)]
    if not pieces:
        raise RequestError("the texts to calibrate with are empty")
    return pieces
