"""`tenth profiles`: look into routing profiles, add them up, take one from another, compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from tenth.commands import options as o
from tenth.errors import RequestError
from tenth.files import check_new_file

Action = Literal["show", "add", "subtract", "compare"]
_FILES = {"show": (1, 1), "add": (2, None), "subtract": (2, 2), "compare": (2, 2)}


def command(
    action: Annotated[str, typer.Argument(help="show, add, subtract (the second from the first), or compare.")],
    files: Annotated[list[Path], typer.Argument(metavar="P", help="Routing profiles.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Of add and subtract: the file to write; must not exist.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Show a routing profile, add profiles of one model, take one that is part of another away, or compare two.

    Two profiles are compared by how far the experts' work has moved, layer by layer, beside what chance would show.
    """
    from tenth.observe.profile_text import compared, shown, summary
    from tenth.routing.profile_file import read_profile, write_profile

    act, place = _checked(action, files, out)
    profiles = [read_profile(path) for path in files]
    if act == "show":
        print(shown(profiles[0], json=json))
    elif act == "compare":
        print(compared(*profiles, json=json))
    else:
        result = profiles[0]
        for other in profiles[1:]:
            result = result + other if act == "add" else result - other
        assert place is not None
        write_profile(result, place)
        print(f"{place}: {summary(result)}")


def _checked(action: str, files: list[Path], out: Path | None) -> tuple[Action, Path | None]:
    if action not in _FILES:
        raise RequestError(f"{action!r:.40} is none of {', '.join(_FILES)}")
    least, most = _FILES[action]
    if len(files) < least or (most is not None and len(files) > most):
        raise RequestError(
            f"{action} takes {least}{' or more' if most is None else ''} profiles, {len(files)} are named"
        )
    writes = action in ("add", "subtract")
    if writes and out is None:
        raise RequestError(f"{action} needs --out, the file to write")
    if not writes and out is not None:
        raise RequestError(f"{action} writes no file: --out does nothing")
    if out is not None:
        check_new_file(out)
    return cast(Action, action), out
