"""Bodies that are no JSON, or more than anybody needs: each a clear 400, none a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.serve.json_body import DEEPEST, read_json
from tenth.serve.problems import HttpProblem


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object, not a list"),
        (b"7", "not a number"),
        (b'"text"', "not a text"),
        (b"null", "not null"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested more than 100 deep"),
        (b'{"a": "\xff"}', "not UTF-8, at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": ["\\ud800"]}', "half a surrogate pair, U+D800"),
        (b'{"\\uDC00": 1}', "half a surrogate pair, U+DC00"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"{'a': 1}", "not JSON"),
    ],
)
def test_bodies_that_are_refused(raw: bytes, words: str) -> None:
    with pytest.raises(HttpProblem) as refused:
        read_json(raw)
    assert refused.value.status == 400
    assert words in refused.value.message


def test_pairs_of_surrogates_are_whole_characters() -> None:
    assert read_json(b'{"a": "\\ud83c\\udf89"}') == {"a": "🎉"}


def test_depth_that_is_allowed() -> None:
    depth = DEEPEST - 1
    assert read_json(b'{"a":' * depth + b"1" + b"}" * depth)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_what_is_an_object_comes_as_it_is(value: Any) -> None:
    raw = json.dumps({"value": value}, ensure_ascii=True).encode()
    assert read_json(raw) == {"value": value}


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        found = read_json(raw)
    except HttpProblem:
        return
    assert isinstance(found, dict)
