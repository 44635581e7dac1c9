"""A learned vocabulary: all text survives, and transformers reads the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.data.document import Document
from tenth.data.standard_library import documents
from tenth.data.train_tokenizer import END, train_tokenizer
from tenth.errors import FileFormatError, RequestError, TextError
from tenth.weights.tokenizer import Tokenizer


def corpus(count: int = 60) -> Iterator[Document]:
    stream = documents(0)
    return (Document(next(stream), "x") for _ in range(count))


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return train_tokenizer(corpus(), 600)


def test_it_has_the_tokens_asked_for(learned: Tokenizer) -> None:
    assert learned.vocabulary == 600
    assert learned.unknown_ids(600) == []
    assert learned.token_id(END) == 0
    assert learned.end_ids == learned.special_ids == {0}
    assert learned.missing_bytes == b""
    text = next(documents(1))
    assert len(learned.encode(text)) < 0.6 * len(text)
    assert 0 not in learned.encode(f"a text about {END}")
    assert len(learned.encode("123456")) == 6


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_is_lost(text: str, learned: Tokenizer) -> None:
    assert learned.decode(learned.encode(text), skip_specials=False) == text


def test_transformers_reads_it(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (END, 0, 600)
    for text in (next(documents(2)), " x\n\n  y\t☃ 1234", ""):
        assert theirs.encode(text) == learned.encode(text) == again.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert again.fingerprint == learned.fingerprint
    assert again.rules_fingerprint == learned.rules_fingerprint


def test_the_same_text_gives_the_same_tokens(learned: Tokenizer) -> None:
    assert train_tokenizer(corpus(), 600).rules_fingerprint == learned.rules_fingerprint
    assert train_tokenizer(corpus(50), 600).fingerprint != learned.fingerprint


def test_what_cannot_be_learned() -> None:
    for size in (0, 256, 1 << 21):
        with pytest.raises(RequestError, match=f"the vocabulary is {size}, it must be 257"):
            train_tokenizer(corpus(1), size)
    with pytest.raises(TextError, match="pieces for 259 tokens only, 300 were asked for"):
        train_tokenizer([Document("ab ab ab", "x")], 300)
    with pytest.raises(TextError, match="pieces for 257 tokens only"):
        train_tokenizer([], 300)

    def broken() -> Iterator[Document]:
        yield Document("text", "x")
        raise FileFormatError("file.jsonl:2: is not JSON")

    with pytest.raises(FileFormatError, match=r"file\.jsonl:2"):
        train_tokenizer(broken(), 300)
