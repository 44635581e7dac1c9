"""From a TOML file to a `Recipe`: every key known, every value of its type and within its limits."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tenth.errors import RequestError, TenthError
from tenth.model.config import ModelConfig
from tenth.train.recipe import Recipe

T = TypeVar("T")
_SIZE_LIMIT = 1 << 20  # bytes; recipes are a few kilobytes


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its path or by the name of one that ships; `overrides` are texts `section.key=value`.

    RequestError names the file, the key and its section, and what would be right.
    """
    text, where = _recipe_text(name)
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestError(f"{where}: is not TOML: {str(error)[:120]}") from None
    for override in overrides:
        _override(raw, override)
    return read_recipe(raw, where)


def read_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from parsed TOML; `where` names the file in errors."""
    return _table(Recipe, raw, where, "")


def bundled_recipes() -> tuple[str, ...]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("tenth.train") / "recipes"
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def key_of(field: Field[Any]) -> str:
    """The name of a field in the file."""
    return field.metadata.get("key") or field.name


def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def describe(kind: Any, limits: Mapping[str, float | None] | None = None) -> str:
    """A type and its limits in words: `a number above 0`."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe(part, limits) for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(kind))
    if is_dataclass(kind):
        return "a section"
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        return "sections" if is_dataclass(part) else f"a list of {_PLURALS[part]}{_limits(limits)}"
    if get_origin(kind) is dict:
        return f"a table of {_PLURALS[get_args(kind)[1]]} by name"
    return _NAMES[kind] + _limits(limits)


_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def _limits(limits: Mapping[str, float | None] | None) -> str:
    words = {"above": "above", "least": "of at least", "most": "of at most", "below": "below"}
    known = [f"{word} {limits[key]}" for key, word in words.items() if limits and limits.get(key) is not None]
    return " " + " and ".join(known) if known else ""


def _recipe_text(name: str) -> tuple[str, str]:
    path = Path(name)
    if name in bundled_recipes() and not path.exists():
        return (resources.files("tenth.train") / "recipes" / f"{name}.toml").read_text(), f"recipe {name}"
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise RequestError(f"{path}: is larger than {_SIZE_LIMIT >> 20} MB, which no recipe is")
        return path.read_text(encoding="utf-8"), str(path)
    except FileNotFoundError:
        known = ", ".join(bundled_recipes()) or "none"
        raise RequestError(f"{name}: is no file, and no recipe of that name ships (there are: {known})") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def _override(raw: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into parsed TOML; entries of arrays go by their number, from 0."""
    dotted, equals, text = override.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise RequestError(f"{override!r:.60} is no setting, it must be section.key=value, as optimizer.lr=1e-3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place: Any = raw
    for depth, key in enumerate(keys[:-1]):
        before = ".".join(keys[:depth])
        place = _entry(place, key, before) if isinstance(place, list) else place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise RequestError(f"{override!r:.60}: {'.'.join(keys[: depth + 1])} is a value, not a section")
    if isinstance(place, list):
        raise RequestError(f"{override!r:.60}: name a key of one entry, as {'.'.join(keys[:-1])}.0.{keys[-1]}")
    place[keys[-1]] = value


def _entry(entries: list[Any], key: str, where: str) -> Any:
    if not key.isdigit() or int(key) >= len(entries):
        raise RequestError(f"{where} has {len(entries)} entries, {key!r} is not a number from 0 to {len(entries) - 1}")
    return entries[int(key)]


def _table(kind: type[T], raw: Any, where: str, section: str) -> T:
    assert is_dataclass(kind)
    if not isinstance(raw, Mapping):
        raise RequestError(f"{where}: {section} must be a section with keys of its own")
    if kind is ModelConfig:
        raw = _completed_shape(raw)
    known = {key_of(field): field for field in fields(kind)}
    for key in raw:
        if key not in known:
            raise RequestError(f"{where}: {_unknown(key, section, list(known))}")
    types = types_of(kind)
    given = {}
    for key, field in known.items():
        dotted = f"{section}.{key}" if section else key
        if key in raw:
            given[field.name] = _value(types[field.name], raw[key], where, dotted, field)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise RequestError(f"{where}: {_missing(dotted, field, types[field.name])}")
    try:
        return kind(**given)
    except TenthError as error:
        raise RequestError(f"{where}: {f'[{section}] ' if section else ''}{error}") from None


def _completed_shape(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """With experts and no word on which layers have them, all do."""
    layers = raw.get("num_layers")
    if "moe" in raw and "sparse_layers" not in raw and type(layers) is int and 0 < layers < 10_000:
        return {**raw, "sparse_layers": list(range(layers))}
    return raw


def _unknown(key: str, section: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    place = f"[{section}] has no key" if section else "there is no section"
    return f"{place} {key!r}; {hint}known: {', '.join(known)}"


def _missing(dotted: str, field: Field[Any], kind: Any) -> str:
    return f"{dotted} is missing, it must be {describe(kind, field.metadata.get('limits'))}{_meaning(field)}"


def _meaning(field: Field[Any]) -> str:
    return f" ({field.metadata['help']})" if "help" in field.metadata else ""


def _value(kind: Any, raw: Any, where: str, dotted: str, field: Field[Any]) -> Any:
    """A value of a field, converted; RequestError where it is of another type or beyond its limits."""
    if get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            if is_dataclass(part) and isinstance(part, type):
                return _table(part, raw, where, dotted)
    elif is_dataclass(kind) and isinstance(kind, type):
        return _table(kind, raw, where, dotted)
    elif get_origin(kind) is tuple and is_dataclass(get_args(kind)[0]):
        if not isinstance(raw, list):
            raise RequestError(f"{where}: {dotted} must be an array of sections, written [[{dotted}]]")
        return tuple(_table(get_args(kind)[0], part, where, f"{dotted}.{n}") for n, part in enumerate(raw))
    limits = field.metadata.get("limits")
    try:
        return _convert(kind, raw, limits)
    except ValueError:
        shown = f"{raw!r:.60}"
        raise RequestError(
            f"{where}: {dotted} is {shown}, it must be {describe(kind, limits)}{_meaning(field)}"
        ) from None


def _convert(kind: Any, raw: Any, limits: Mapping[str, float | None] | None) -> Any:
    """The value as `kind`; ValueError where it is not one."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return _convert(part, raw, limits)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        return _one_of(parts, raw)
    if origin is tuple:
        many = raw if isinstance(raw, list | tuple) else [raw]
        if parts[-1] is not Ellipsis and len(many) != len(parts):
            raise ValueError
        return tuple(_convert(parts[0], part, limits) for part in many)
    if origin is dict:
        if not isinstance(raw, Mapping):
            raise ValueError
        return {str(key): _convert(parts[1], part, limits) for key, part in raw.items()}
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not kind or (kind in (int, float) and not _within(raw, limits)):
        raise ValueError
    return raw


def _one_of(values: tuple[Any, ...], raw: Any) -> Any:
    for value in values:
        if type(value) is type(raw) and value == raw:
            return value
    raise ValueError


def _within(value: float, limits: Mapping[str, float | None] | None) -> bool:
    if not math.isfinite(value):
        return False
    least, most, above, below = ((limits or {}).get(key) for key in ("least", "most", "above", "below"))
    closed = (least is None or value >= least) and (most is None or value <= most)
    return closed and (above is None or value > above) and (below is None or value < below)
