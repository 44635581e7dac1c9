"""The default model: the bundled dense one, upcycled once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from tenth import __version__
from tenth.data.standard_library import documents
from tenth.errors import RequestError
from tenth.model.decoder import Decoder
from tenth.train.upcycle import UpcycleOptions, upcycle
from tenth.weights.bundled import bundled_gguf
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import Progress, load_decoder
from tenth.weights.save import save_model
from tenth.weights.tokenizer import Tokenizer

_CALIBRATION = 24  # passages, about 11,000 tokens: enough for even loads on text that was not seen
_OPTIONS = UpcycleOptions()
# what the makers of SmolLM2-Instruct sample with
_GENERATION = GenerationDefaults(temperature=0.2, top_p=0.9)


def default_model(report: Callable[[str], Progress]) -> Path:
    """The folder of the upcycled default; made on the first call, which takes half a minute.

    `report` is told what is being done and returns where its progress goes.
    """
    source = bundled_gguf()
    folder = cache_home() / f"default-{_fingerprint(source)}"
    if not (folder / "config.json").exists():
        with open_checkpoint(source) as checkpoint:
            sparse = upcycle_checkpoint(checkpoint, _OPTIONS, None, torch.bfloat16, report)
            tokenizer = checkpoint.tokenizer()
        generation = GenerationDefaults(tokenizer.end_ids, _GENERATION.temperature, top_p=_GENERATION.top_p)
        save_model(sparse, folder, tokenizer=tokenizer, generation=generation, progress=report("writing the model"))
    return folder


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
    passages = texts or list(islice(documents(options.seed), _CALIBRATION))
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


def cache_home() -> Path:
    """Where models that were made here are kept, beside those of the hub: `$HF_HOME/tenth`."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "tenth"


def _fingerprint(source: Path) -> str:
    """Names what the result depends on: the source, the options, this program's version."""
    parts = (source.name, source.stat().st_size, astuple(_OPTIONS), _CALIBRATION, __version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
