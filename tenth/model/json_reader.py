"""JSON from strangers: a small file read, and typed look-ups in it, with errors that name file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenth.errors import ConfigError

_LARGEST = 1e30  # no figure of a config comes near; integers of any length arrive from JSON
_SIZE_LIMIT = 16 << 20  # bytes; published config files are a few kilobytes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; ConfigError where it is not one."""
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise ConfigError(f"{path}: is larger than {_SIZE_LIMIT >> 20} MB, which no config is")
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON: {str(error)[:100]}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return raw


class JsonReader:
    """Typed look-ups, which note the keys that were asked for in `seen`; `null` counts as absent."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where, self.seen = raw, where, set[str]()

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def _value(self, key: str, default: object) -> Any:
        self.seen.add(key)
        value = self.raw.get(key)
        if value is None and default is None:
            raise ConfigError(f"{self.where}: {key} is missing")
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, most: int = 1 << 24) -> int:
        """A whole number from 0 to `most`; without a default the key is required."""
        value = self._value(key, default)
        if type(value) is not int or not 0 <= value <= most:
            raise ConfigError(f"{self.where}: {key} is {str(value)[:40]!r}, it must be a whole number up to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            raise ConfigError(f"{self.where}: {key} is {str(value)[:40]!r}, it must be a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {str(value)[:40]!r}, it must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {key} is {str(value)[:40]!r}, it must be a string")
        return value

    def indices(self, key: str) -> frozenset[int]:
        """A list of whole numbers, as a set."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(type(i) is int for i in value):
            raise ConfigError(f"{self.where}: {key} must be a list of layer numbers")
        return frozenset(value)

    def section(self, key: str) -> Mapping[str, Any]:
        """A nested object; empty where absent."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {key} must be an object")
        return value

    def expect(self, key: str, value: object) -> None:
        """A key that may be present but must then say what the class does anyway."""
        self.seen.add(key)
        if self.raw.get(key) not in (None, value):
            raise ConfigError(f"{self.where}: {key} is {self.raw[key]!r}, only {value!r} is supported here")
