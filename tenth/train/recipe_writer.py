"""A recipe as TOML, and what tells two recipes apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import key_of, types_of


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, every field stated: reading it gives the same recipe."""
    return "\n".join(_lines(recipe, "")).strip() + "\n"


def _lines(part: Any, section: str) -> Iterator[str]:
    later: list[tuple[str, Any]] = []
    for field in fields(part):
        value, dotted = getattr(part, field.name), f"{section}.{key_of(field)}".lstrip(".")
        if value is None:
            continue
        if is_dataclass(value) or (isinstance(value, tuple) and value and is_dataclass(value[0])):
            later.append((dotted, value))
        elif not (isinstance(value, tuple) and not value and _holds_sections(type(part), field.name)):
            yield f"{key_of(field)} = {toml_value(value)}"
    for dotted, value in later:
        for entry in value if isinstance(value, tuple) else (value,):
            yield from ("", f"[[{dotted}]]" if isinstance(value, tuple) else f"[{dotted}]")
            yield from _lines(entry, dotted)


def _holds_sections(kind: type, name: str) -> bool:
    parts = get_args(types_of(kind)[name])
    return bool(parts) and is_dataclass(parts[0])


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(str(key))} = {toml_value(part)}" for key, part in value.items()) + "}"
    return repr(value)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys in which two recipes differ so that a run of the one cannot be continued with the other."""
    return list(_differences(old, new, ""))


def _differences(old: Any, new: Any, section: str) -> Iterator[str]:
    for field in fields(old):
        if field.metadata.get("free"):
            continue
        dotted = f"{section}.{key_of(field)}".lstrip(".")
        one, other = getattr(old, field.name), getattr(new, field.name)
        if is_dataclass(one) and type(one) is type(other):
            yield from _differences(one, other, dotted)
        elif isinstance(one, tuple) and one and is_dataclass(one[0]):
            more_stages = field.name == "stage" and len(other) > len(one)
            if len(one) != len(other) and not more_stages:
                yield dotted
            for n, (a, b) in enumerate(zip(one, other, strict=False)):
                yield from _differences(a, b, f"{dotted}.{n}")
        elif one != other:
            yield dotted
