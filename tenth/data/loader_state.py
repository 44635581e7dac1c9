"""The state of a loader, checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from tenth.errors import RequestError

_KEYS = {"index", "cursors", "waiting", "length", "seed", "vocab_size", "sources"}
_MOST = 1 << 62


def check_state(
    state: Mapping[str, Any], identity: Mapping[str, Any], files: Sequence[tuple[int, NDArray[Any]]]
) -> None:
    """RequestError where `state` is of other data than `identity`, naming the difference, or is malformed.

    `files` has the number of parts in an epoch and the bounds of each source.
    """
    if not isinstance(state, Mapping) or state.keys() != _KEYS:
        odd = sorted(map(str, {*state} ^ _KEYS)) if isinstance(state, Mapping) else [type(state).__name__]
        raise RequestError(f"the state of the data is malformed: {odd[0][:40]!r} is missing or unknown")
    for key in ("length", "seed", "vocab_size"):
        if state[key] != identity[key]:
            raise RequestError(f"the data's {key} is {identity[key]}, the state is of {str(state[key])[:40]}")
    _check_sources(state["sources"], identity["sources"])
    _check_places(state, files)


def _check_sources(found: object, expected: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise RequestError("the state of the data is malformed: its sources are no list of objects")
    names = [str(entry.get("name"))[:60] for entry in found]
    known = [str(entry["name"]) for entry in expected]
    if names != known:
        raise RequestError(f"the sources are {', '.join(known)}; the state is of {', '.join(names)}")
    for was, now in zip(found, expected, strict=True):
        if was.get("weight") != now["weight"]:
            old = str(was.get("weight"))[:40]
            raise RequestError(f"the weight of source {now['name']!r} is {now['weight']}, in the state it is {old}")
        if was.get("checksum") != now["checksum"]:
            raise RequestError(f"source {now['name']!r} has other tokens than the state was taken on")


def _check_places(state: Mapping[str, Any], files: Sequence[tuple[int, NDArray[Any]]]) -> None:
    cursors, waiting = state["cursors"], state["waiting"]
    good = _whole(state["index"], _MOST) and isinstance(cursors, list) and len(cursors) == len(files)
    good = good and all(
        isinstance(cursor, Mapping)
        and cursor.keys() == {"epoch", "place", "drawn"}
        and all(_whole(cursor[key], most) for key, most in (("epoch", _MOST), ("place", parts), ("drawn", _MOST)))
        for cursor, (parts, _) in zip(cursors, files, strict=True)
    )
    if not good or not isinstance(waiting, list) or not all(_is_place(place, files) for place in waiting):
        raise RequestError("the state of the data is malformed: its cursors or its waiting row are no places in it")


def _is_place(place: object, files: Sequence[tuple[int, NDArray[Any]]]) -> bool:
    """Whether it is the number of a source, of a document of it, and of a token of that."""
    if not isinstance(place, list) or len(place) != 3 or not _whole(place[0], len(files)):
        return False
    bounds = files[place[0]][1]
    return _whole(place[1], len(bounds) - 1) and _whole(place[2], int(bounds[place[1] + 1] - bounds[place[1]]))


def _whole(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value < most
