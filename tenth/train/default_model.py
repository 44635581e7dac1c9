"""The default model: the bundled dense one, carved and healed as a small file in this package says; in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from tenth.errors import MachineError, WeightsError
from tenth.quantize.take_over import pack_checkpoint
from tenth.train.artefact import assemble
from tenth.train.artefact_file import open_artefact
from tenth.weights.bundled import bundled_gguf, cache_home
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import Progress
from tenth.weights.save import save_model

ARTEFACT = Path(__file__).with_name("artefacts") / "default.safetensors"
"""Made by the recipe `heal-default`; docs/carve.md says how."""

# what the makers of SmolLM2-Instruct sample with
_GENERATION = GenerationDefaults(temperature=0.2, top_p=0.9)


def default_model(report: Callable[[str], Progress]) -> Path:
    """The folder of the sparse default; put together on the first call.

    `report` is told what is being done and returns where its progress goes.
    """
    source = bundled_gguf()
    folder = cache_home() / f"default-{_fingerprint(source)}"
    if not (folder / "config.json").exists():
        with open_checkpoint(source) as checkpoint:
            sparse = assemble(checkpoint, open_artefact(ARTEFACT), report("putting the default model together"))
            tokenizer = checkpoint.tokenizer()
        generation = GenerationDefaults(tokenizer.end_ids, _GENERATION.temperature, top_p=_GENERATION.top_p)
        try:
            save_model(sparse, folder, tokenizer=tokenizer, generation=generation, progress=report("writing the model"))
        except (WeightsError, MachineError):
            if not (folder / "config.json").exists():  # unless another process has finished it meanwhile
                raise
    return folder


def packed_default(report: Callable[[str], Progress]) -> Path:
    """The same weights as the native kernels read them, beside it: several times as fast, but not to be trained."""
    folder = default_model(report)
    packed = folder / "packed"
    if not (packed / "config.json").exists():
        with open_checkpoint(folder) as checkpoint:
            try:
                pack_checkpoint(checkpoint, packed, progress=report("packing the default model"))
            except (WeightsError, MachineError):
                if not (packed / "config.json").exists():
                    raise
    return packed


def _fingerprint(source: Path) -> str:
    """Names what the result depends on: the source and the artefact."""
    digest = hashlib.sha256(f"{source.name} {source.stat().st_size} ".encode())
    digest.update(ARTEFACT.read_bytes())
    return digest.hexdigest()[:12]
