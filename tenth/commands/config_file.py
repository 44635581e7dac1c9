"""`--config`: a command's options in a TOML file, by their own names; the command line and the environment go first."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import unwrap
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from tenth.errors import RequestError, TenthError

T = TypeVar("T")
_LARGEST = 1 << 20  # bytes
# what TOML may say where an option is of a type, and how that is said; paths are texts
_TYPES = {bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number")}
_TEXT = ((str,), "a text")


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """An eager option's callback: what the file says is the default of the options that come after.

    RequestError that names file and key for a name that is no option's, or a value that the option does not take.
    """
    if path is None or ctx.resilient_parsing:
        return path
    assert ctx.command.callback is not None
    hints = get_type_hints(unwrap(ctx.command.callback))
    options = _options(ctx)
    found: dict[str, Any] = {}
    for key, value in _table(path).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            near = get_close_matches(key.replace("_", "-"), options, 1)
            raise RequestError(f"{path}: no option is named {key!r:.60} ({_hint(near, options)})")
        if option.name in found:
            raise RequestError(f"{path}: {key} is there twice, in two spellings")
        found[option.name] = _typed(f"{path}: {key}", value, hints[option.name], secret=bool(option.envvar))
        try:  # as the command does later, when nobody knows where a value comes from
            option.process_value(ctx, found[option.name])
        except (TenthError, typer.BadParameter) as error:
            raise RequestError(f"{path}: {key}: {getattr(error, 'message', error)}") from None
    ctx.default_map = found
    return path


def judged(check: Callable[[T], object]) -> Callable[[T | None], T | None]:
    """An option's callback that raises what `check` raises of its value: `read_config` then names file and key."""

    def callback(value: T | None) -> T | None:
        if value is not None:
            check(value)
        return value

    return callback


def _options(ctx: typer.Context) -> dict[str, Any]:
    """What each name stands for, the option's second one (`kv-cache-dtype`) too."""
    return {name.lstrip("-"): one for one in ctx.command.params if one.name != "config" for name in one.opts}


def _hint(near: list[str], known: Iterable[str]) -> str:
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def _table(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise RequestError(f"{path}: is larger than {_LARGEST:,} bytes, it is no file of options")
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, too many digits, too deep
        raise RequestError(f"{path}: is no TOML: {error}") from None


def _typed(where: str, value: object, hint: Any, *, secret: bool) -> object:
    """A value of the option's type, of which a list is taken where the option may be given several times."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    several = get_origin(kinds[0]) is list
    types, words = _TYPES.get(get_args(kinds[0])[0] if several else kinds[0], _TEXT)
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, types) or (isinstance(one, bool) and bool not in types):
            wrong = "" if secret else f" is {one!r:.60}, it"
            right = f"{words}, or a list of such" if several else words
            raise RequestError(f"{where}{wrong} must be {right}")
    return values if several else value
