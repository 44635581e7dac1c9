"""The configurations that ship with the package, as data files under `presets/`."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources

from tenth.errors import ConfigError
from tenth.model.config import ModelConfig
from tenth.model.huggingface import config_from_huggingface


@lru_cache(maxsize=1)
def preset_names() -> tuple[str, ...]:
    """The configurations that ship with the package, by name."""
    folder = resources.files("tenth.model") / "presets"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def preset(name: str) -> ModelConfig:
    """A shipped configuration, such as `qwen3-30b-a3b`."""
    if name not in preset_names():
        raise ConfigError(f"no preset is named {name!r} (there are: {', '.join(preset_names())})")
    text = (resources.files("tenth.model") / "presets" / f"{name}.json").read_text()
    return config_from_huggingface(json.loads(text), f"preset {name}")[0]
