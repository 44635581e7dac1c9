"""Models and tokenizers by the names that people give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tenth.train.default_model import default_model, packed_default
from tenth.weights.bundled import bundled_gguf
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.hub import find
from tenth.weights.load import Progress
from tenth.weights.tokenizer import Tokenizer


def named_model(name: str, report: Callable[[str], Progress], *, packed: bool = False) -> Path:
    """Where a model lies: a path, a hub name, `default` (made on first use), or `default-dense`, its source.

    With `packed` the default is as the native kernels read it; other models are what they are.
    """
    if name == "default-dense":
        return bundled_gguf()
    if name == "default" and packed:
        return packed_default(report)
    return default_model(report) if name == "default" else find(name)


def named_tokenizer(name: str, report: Callable[[str], Progress]) -> Tokenizer:
    """A model's tokenizer, or that of a folder which holds nothing else."""
    if (Path(name) / "tokenizer.json").is_file():
        return Tokenizer.from_folder(Path(name))
    with open_checkpoint(named_model(name, report)) as checkpoint:
        return checkpoint.tokenizer()
