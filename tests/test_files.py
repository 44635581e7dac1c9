"""Where something may be written is said before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenth.errors import MachineError, RequestError, TenthError
from tenth.files import check_new_file, check_page, check_place


def test_places_that_are_free(tmp_path: Path) -> None:
    for check in (check_new_file, check_page, check_place):
        check(tmp_path / "new")
        check(tmp_path / "one" / "two" / "new")
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bad: list[tuple[Callable[[Path], None], Path, type[TenthError], str]] = [
        (check_new_file, tmp_path / "file", RequestError, "exists; choose another name"),
        (check_new_file, tmp_path, RequestError, "exists; choose another name"),
        (check_new_file, tmp_path / "file" / "new", MachineError, "file is no folder that may be written to"),
        (check_page, tmp_path, MachineError, "it is a folder"),
        (check_page, tmp_path / "file" / "deep" / "new", MachineError, "file is no folder that may be written to"),
    ]
    for check, path, kind, words in bad:
        with pytest.raises(kind, match=words):
            check(path)
    check_page(tmp_path / "file")
