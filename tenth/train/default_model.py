"""The default model: the bundled dense one, upcycled once and kept in the user's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch

from tenth import __version__
from tenth.errors import MachineError, WeightsError
from tenth.train.upcycle import UpcycleOptions
from tenth.train.upcycle_checkpoint import PASSAGES, upcycle_checkpoint
from tenth.weights.bundled import bundled_gguf, cache_home
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import Progress
from tenth.weights.save import save_model

_OPTIONS = UpcycleOptions()
# what the makers of SmolLM2-Instruct sample with
_GENERATION = GenerationDefaults(temperature=0.2, top_p=0.9)


def default_model(report: Callable[[str], Progress]) -> Path:
    """The folder of the upcycled default; made on the first call.

    `report` is told what is being done and returns where its progress goes.
    """
    source = bundled_gguf()
    folder = cache_home() / f"default-{_fingerprint(source)}"
    if not (folder / "config.json").exists():
        with open_checkpoint(source) as checkpoint:
            sparse = upcycle_checkpoint(checkpoint, _OPTIONS, None, torch.bfloat16, report)
            tokenizer = checkpoint.tokenizer()
        generation = GenerationDefaults(tokenizer.end_ids, _GENERATION.temperature, top_p=_GENERATION.top_p)
        try:
            save_model(sparse, folder, tokenizer=tokenizer, generation=generation, progress=report("writing the model"))
        except (WeightsError, MachineError):
            if not (folder / "config.json").exists():  # unless another process has finished it meanwhile
                raise
    return folder


def _fingerprint(source: Path) -> str:
    """Names what the result depends on: the source, the options, this program's version."""
    parts = (source.name, source.stat().st_size, astuple(_OPTIONS), PASSAGES, __version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
