"""Passages of Python's own documentation and code: repeatable, of both kinds, never empty."""

from __future__ import annotations

import ast
from itertools import islice

import pytest

from tenth.data.standard_library import documents


def _first(count: int, seed: int = 0, characters: int = 2000) -> list[str]:
    return list(islice(documents(seed, characters), count))


def test_equal_seeds_give_equal_passages_and_others_do_not() -> None:
    assert _first(20, seed=3) == _first(20, seed=3)
    assert len(set(_first(20, seed=3) + _first(20, seed=4))) > 30
    assert _first(20, seed=3)[:5] == _first(5, seed=3)


def test_passages_have_their_length_and_are_never_blank() -> None:
    for characters in (1, 50, 2000):
        passages = _first(100, seed=1, characters=characters)
        assert all(passage.strip() for passage in passages)
        assert all(len(passage) <= characters for passage in passages)
    # shorter ones are whole sources: topics of 500 characters and more
    assert all(len(passage) > 500 for passage in _first(100, seed=1))
    assert sum(len(passage) == 2000 for passage in _first(100, seed=1)) > 60


def _is_code(passage: str) -> bool:
    """Whether its whole lines, or most of them, look like statements rather than sentences."""
    lines = [line.strip() for line in passage.splitlines()[1:-1] if line.strip()]
    marks = ("def ", "return", "self.", "import ", "if ", "for ", "class ", "else:", "elif ", "raise ", "assert", "#")
    hits = [line.startswith(marks) or " = " in line or line.endswith((":", ")", ",")) for line in lines]
    return sum(hits) > len(lines) / 3


def test_prose_and_code_come_by_turns() -> None:
    passages = _first(60, seed=5)
    code = [_is_code(passage) for passage in passages]
    assert sum(code[1::2]) >= 24  # of 30; the rest are docstrings and tables
    assert sum(code[0::2]) <= 15


def test_whole_sources_of_the_second_kind_are_python() -> None:
    for passage in _first(8, seed=2, characters=10**7)[1::2]:
        ast.parse(passage)


def test_the_caller_decides_how_much() -> None:
    endless = documents(0)
    assert len({next(endless) for _ in range(300)}) > 200  # short topics come again
    with pytest.raises(ValueError, match="characters is 0"):
        next(documents(0, 0))
