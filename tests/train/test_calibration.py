"""What routers are fitted to: as much of every corpus, up to so many tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenth.data.token_writer import TokenWriter
from tenth.errors import RequestError
from tenth.train.calibration import calibration_documents
from tests.api.tiny import tiny_tokenizer


def _token_file(path: Path, documents: list[list[int]], vocab_size: int = 259) -> Path:
    with TokenWriter(path, vocab_size) as writer:
        for ids in documents:
            writer.add(ids, "x")
        writer.finish()
    return path


def test_corpora_give_equally_until_there_are_enough_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "", "de")))
    ids = _token_file(tmp_path / "ids.tokens", [[1] * 5, [2] * 5, [3] * 5, [4] * 5])
    corpora = [str(tmp_path / "lines.jsonl"), str(ids)]
    abc, de = tokenizer.encode("abc"), tokenizer.encode("de")
    # three, then five, then two more are five each; the next turn finds the first at its end
    assert calibration_documents(corpora, tokenizer, 100, 0) == [abc, [1] * 5, de, [2] * 5, [3] * 5, [4] * 5]
    assert calibration_documents(corpora, tokenizer, 9, 0) == [abc, [1] * 5, de[:1]]


def test_long_documents_give_their_beginning(tmp_path: Path) -> None:
    ids = _token_file(tmp_path / "ids.tokens", [[1] * 5000, [2] * 10])
    documents = calibration_documents([str(ids)], tiny_tokenizer(tmp_path), 10_000, 0)
    assert [len(document) for document in documents] == [1024, 10]


def test_pythons_own_library_stands_in(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    one, same, other = (calibration_documents([], tokenizer, 3000, seed) for seed in (0, 0, 1))
    assert sum(map(len, one)) == 3000
    assert one == same != other


def test_refusals(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(RequestError, match="texts to calibrate with are empty"):
        calibration_documents([str(tmp_path / "empty.txt")], tokenizer, 100, 0)
    with pytest.raises(RequestError, match="has a vocabulary of 1000"):
        calibration_documents([str(_token_file(tmp_path / "wide", [[1]], 1000))], tokenizer, 100, 0)
