"""`tenth key`: API keys of a server: make one, list them, remove one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_Limit = Annotated[int | None, typer.Option(min=1, help="With `new`: an upper bound; none without it.")]


def command(
    action: Annotated[str, typer.Argument(metavar="new|list|rm", help="What to do.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the key; `list` needs none.")] = None,
    keys: Annotated[Path, typer.Option("--keys", "-k", help="The file of keys.")] = Path("keys.toml"),
    requests_per_minute: _Limit = None,
    tokens_per_minute: _Limit = None,
    concurrent_requests: _Limit = None,
    tokens_per_day: _Limit = None,
    tokens_per_month: _Limit = None,
    reviewer: Annotated[
        bool, typer.Option("--reviewer", help="With `new`: may see and decide the reviews of all keys.")
    ] = False,
) -> None:
    """Make, list and remove API keys. A new key is printed once; the file holds its hash.

    A running server takes changes of the file over by itself.
    """
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
    }
    given = {limit: value for limit, value in limits.items() if value is not None}
    _check(action, name, given, reviewer=reviewer)
    if action == "list":
        _list(keys)
    elif action == "new":
        _new(keys, str(name), given, reviewer=reviewer)
    else:
        _remove(keys, str(name))


def _check(action: str, name: str | None, limits: dict[str, Any], *, reviewer: bool) -> None:
    from tenth.errors import RequestError

    if action not in ("new", "list", "rm"):
        raise RequestError(f"`tenth key` does new, list and rm, not {action!r:.40}")
    if (name is None) != (action == "list"):
        raise RequestError("`tenth key list` takes no name" if name else f"`tenth key {action}` needs a name")
    if limits and action != "new":
        raise RequestError(f"`tenth key {action}` takes no limits: they are given with `new`, or written in the file")
    if reviewer and action != "new":
        raise RequestError(f"`tenth key {action}` takes no --reviewer: it is given with `new`, or written in the file")


def _list(path: Path) -> None:
    from tenth.serve.keys import read_keys

    for key in read_keys(path):
        limits = [f"{name} {value:,}" for name, value in key.limits.given.items()] or ["no limits"]
        print(f"{key.name:<24}{', '.join([*limits, *(['reviewer'] if key.reviews else [])])}")


def _new(path: Path, name: str, limits: dict[str, Any], *, reviewer: bool) -> None:
    import sys

    from tenth.serve.keys import new_key
    from tenth.serve.limits import Limits

    key = new_key(path, name, Limits.read(limits), reviews=reviewer)
    print(f"{path}: {name} is added. The key is shown this once:", file=sys.stderr)
    print(key)


def _remove(path: Path, name: str) -> None:
    from tenth.serve.keys import remove_key

    remove_key(path, name)
    print(f"{path}: {name} is removed")
