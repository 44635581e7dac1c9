"""How a model's makers want it sampled: `generation_config.json`, as frozen data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenth.errors import ConfigError
from tenth.model.json_reader import read_json

_LARGEST = 1 << 53  # beyond it JSON's numbers are no longer exact; NaN is not within


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling values that a model ships with (None: not said), and the ids that end its text."""

    end_ids: frozenset[int] = frozenset()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """Read `generation_config.json` and the end ids of `config.json`, both optional."""
        config, generation = _object(folder / "config.json"), _object(folder / "generation_config.json")
        greedy = generation.get("do_sample") is False
        where = str(folder / "generation_config.json")
        return cls(
            end_ids=_ids(config, str(folder / "config.json")) | _ids(generation, where),
            temperature=0.0 if greedy else _number(generation, "temperature", where, 0.0, 100.0),
            top_k=_integer(generation, "top_k", where, 0, 1 << 24),
            top_p=_number(generation, "top_p", where, 1e-9, 1.0),
            min_p=_number(generation, "min_p", where, 0.0, 1.0),
            repetition_penalty=_number(generation, "repetition_penalty", where, 1e-9, 100.0),
        )

    def with_ends(self, end_ids: frozenset[int]) -> GenerationDefaults:
        """The same with more ids that end a text."""
        return replace(self, end_ids=self.end_ids | end_ids)

    def to_json(self) -> str:
        """The same as a `generation_config.json`."""
        raw: dict[str, Any] = {"eos_token_id": sorted(self.end_ids)} if self.end_ids else {}
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        raw |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if raw.get("temperature") == 0.0:
            del raw["temperature"]
            raw["do_sample"] = False
        elif "temperature" in raw:
            raw["do_sample"] = True
        return json.dumps(raw, indent=2) + "\n"


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _ids(raw: dict[str, Any], where: str) -> frozenset[int]:
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ConfigError(f"{where}: eos_token_id is {str(value)[:40]!r}, it must be an id or a list of ids")
    return frozenset(ids)


def _number(raw: dict[str, Any], key: str, where: str, low: float, high: float) -> float | None:
    """A number, or None where it is not said or lies outside: some programs write top_k -1 for "all"."""
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise ConfigError(f"{where}: {key} is {str(value)[:40]!r}, it must be a number")
    return float(value) if low <= value <= high else None


def _integer(raw: dict[str, Any], key: str, where: str, low: int, high: int) -> int | None:
    value = _number(raw, key, where, low, high)
    if value is not None and value != int(value):
        raise ConfigError(f"{where}: {key} is {value}, it must be a whole number")
    return None if value is None else int(value)
