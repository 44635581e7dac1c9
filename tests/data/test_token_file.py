"""Token files: what was written is read; a file that is not whole or contradicts itself is refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.data.token_file import HEADER_BYTES, Header, TokenFile, is_token_file
from tenth.data.token_writer import TokenWriter
from tenth.errors import FileFormatError, MachineError, RequestError, TenthError, TextError
from tests.data.token_files import domain_of, write_tokens

DOCUMENTS = [[1, 2, 3], [4], [5, 6], [999] * 50]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "x.tokens", DOCUMENTS, domains=["prose", "code"], tokenizer="abc", end=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(path: Path, kind: type[TenthError] = FileFormatError) -> str:
    with pytest.raises(kind) as caught:
        TokenFile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    return message


def with_header(path: Path, change: dict[str, Any], drop: str | None = None) -> Path:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    fields = json.loads(data[16 : 16 + length]) | change
    fields.pop(drop, None)
    text = json.dumps(fields).encode()
    data[8:HEADER_BYTES] = (len(text).to_bytes(8, "little") + text).ljust(HEADER_BYTES - 8, b"\0")
    path.write_bytes(data)
    return path


def overwrite(path: Path, part: int, offset: int, value: bytes) -> Path:
    """Change bytes of part 0 (tokens), 1 (bounds), 2 (domains) or 3 (names)."""
    start = TokenFile(path).header.places[part][0] + offset
    data = bytearray(path.read_bytes())
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    file = TokenFile(path)
    assert (len(file), file.documents, file.vocab_size, file.tokenizer, file.header.end) == (56, 4, 1000, "abc", 0)
    assert [file.document(n).tolist() for n in range(4)] == DOCUMENTS
    assert [domain_of(file, n) for n in range(4)] == ["prose", "code", "prose", "code"]
    assert file.tokens_T.dtype == np.uint16
    assert not file.tokens_T.flags.owndata
    assert not file.tokens_T.flags.writeable
    file.verify()
    assert is_token_file(path)
    assert names(path.parent) == ["x.tokens"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32"), (1 << 31, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[0, vocab_size - 1]], vocab_size=vocab_size)
    file = TokenFile(path)
    assert str(file.tokens_T.dtype) == dtype
    assert file.document(0).tolist() == [0, vocab_size - 1]
    file.verify()


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 70000), min_size=1, max_size=9), min_size=1, max_size=40),
    names=st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True),
    vocab_size=st.sampled_from([70001, 1 << 20]),
)
def test_any_documents_come_back(
    documents: list[list[int]], names: list[str], vocab_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    write_tokens(path, documents, vocab_size=vocab_size, domains=names)
    file = TokenFile(path)
    file.verify()
    assert [file.document(n).tolist() for n in range(file.documents)] == documents
    assert [domain_of(file, n) for n in range(file.documents)] == [names[n % len(names)] for n in range(len(documents))]


def test_every_truncation_and_every_growth_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for size in [0, 1, 8, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 7, len(data) - 64, len(data) - 1]:
        path.write_bytes(data[:size])
        refused(path)
    path.write_bytes(data[:-1])
    assert "is truncated or not whole" in refused(path)
    path.write_bytes(data + b"x")
    refused(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none", RequestError)
    assert "is a folder" in refused(tmp_path, RequestError)
    (tmp_path / "text").write_text("hello " * 2000)
    assert "tenth tokenize" in refused(tmp_path / "text")
    (tmp_path / "zeros").write_bytes(bytes(9000))
    refused(tmp_path / "zeros")
    assert not is_token_file(tmp_path / "zeros")
    assert not is_token_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 1 << 40}, "is truncated or not whole"),
        ({"tokens": 57}, "documents reach from 0 to 56, not from 0 to 57"),
        ({"documents": 1 << 39}, "is truncated or not whole"),
        ({"tokens": -1}, "tokens is -1"),
        ({"tokens": 1 << 60}, "tokens is"),
        ({"documents": 0}, "documents is 0"),
        ({"tokens": 5.0}, "tokens is 5.0"),
        ({"documents": True}, "documents is True"),
        ({"names_bytes": "9"}, "names_bytes is 9"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 1 << 20}, "dtype is 'uint16', uint32 fits"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"end": 1000}, "end is 1000"),
        ({"tokenizer": 5}, "tokenizer is 5"),
        ({"checksum": None}, "checksum is None"),
        ({"extra": 1}, "'extra' is unknown"),
    ],
)
def test_a_header_that_lies_is_refused(change: dict[str, Any], words: str, path: Path) -> None:
    assert words in refused(with_header(path, change))


def test_a_broken_header_is_refused(path: Path) -> None:
    assert "'end' is missing" in refused(with_header(path, {}, drop="end"))
    data = bytearray(path.read_bytes())
    for start, value in ((8, b"\xff" * 8), (8, bytes(8)), (16, b"\xff{"), (16, b"[[[["), (16, b"5     ")):
        path.write_bytes(data[:start] + value + data[start + len(value) :])
        refused(path)


def test_bounds_and_domains_must_fit(path: Path, tmp_path: Path) -> None:
    overwrite(path, 1, 8, (0).to_bytes(8, "little"))
    assert "do not rise at document 0" in refused(path)
    for name, part, offset, value, words in (
        ("first", 1, 0, (1).to_bytes(8, "little"), "documents reach from 1 to 56"),
        ("last", 1, 32, (57).to_bytes(8, "little"), "documents reach from 0 to 57"),
        ("negative", 1, 8, (-5).to_bytes(8, "little", signed=True), "do not rise at document 0"),
        ("beyond", 1, 16, (1 << 50).to_bytes(8, "little"), "do not rise at document 2"),
        ("domain", 2, 2, (2).to_bytes(2, "little"), "domain is 2, but there are 2"),
        ("json", 3, 0, b"{", "not a JSON list"),
        ("twice", 3, 0, b'["p", "p"      ]', "not a JSON list of different strings"),
    ):
        whole = write_tokens(tmp_path / name, DOCUMENTS, domains=["prose", "code"])
        assert words in refused(overwrite(whole, part, offset, value))


def open_and_verify(path: Path) -> None:
    TokenFile(path).verify()


def test_verify_finds_any_changed_byte(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", DOCUMENTS)
    data = path.read_bytes()
    for at in range(HEADER_BYTES, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FileFormatError, match="x"):
            open_and_verify(path)
    overwrite(write_tokens(path, DOCUMENTS), 0, 7, b"\x01")
    TokenFile(path)  # no token is read to open a file


def test_verify_covers_the_header(path: Path) -> None:
    TokenFile(path).verify()
    for change in ({"vocab_size": 1001}, {"tokenizer": "abd"}, {"end": 1}, {"checksum": "0" * 32}):
        before = path.read_bytes()
        with pytest.raises(FileFormatError, match="checksum"):
            TokenFile(with_header(path, change)).verify()
        path.write_bytes(before)


def test_an_id_beyond_the_vocabulary_is_found_even_with_a_right_checksum(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[1, 2], [3, 400, 5]], vocab_size=500)
    data = path.read_bytes()
    header = Header(100, 5, 2, len(b'["general"]'), None, None)
    digest = hashlib.blake2b(data[HEADER_BYTES:], digest_size=16).digest()
    path.write_bytes(header.to_bytes(header.checksum(digest)) + data[HEADER_BYTES:])
    file = TokenFile(path)
    with pytest.raises(FileFormatError, match=r"token 3 \(in document 1\) is 400, not below the vocabulary's 100"):
        file.verify()


def test_verify_tells_how_far_it_is(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    TokenFile(path).verify(lambda done, total: seen.append((done, total)))
    assert seen == [(path.stat().st_size, path.stat().st_size)]


@pytest.mark.parametrize("ids", [[], [[1, 2]], [1.0], [-1], [1000], ["a"], np.array([[3]])])
def test_the_writer_refuses_what_is_no_document(ids: Any, tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "x", 1000) as writer:
        writer.add([1], "a")
        with pytest.raises(RequestError, match="document 1 "):
            writer.add(ids, "a")
        writer.add(np.array([999], np.uint16), "a")
        writer.finish()
    assert TokenFile(tmp_path / "x").tokens_T.tolist() == [1, 999]


def test_an_unfinished_file_never_appears(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[7, 8]])
    with pytest.raises(RequestError):
        write_tokens(path, [[1], [1000]])
    with pytest.raises(TextError, match="no document"), TokenWriter(path, 10) as writer:
        writer.finish()
    assert TokenFile(path).tokens_T.tolist() == [7, 8]
    assert names(tmp_path) == ["x"]


def test_vocabulary_end_and_domains_are_checked(tmp_path: Path) -> None:
    for vocab_size, end in ((0, None), (1 << 33, None), (10, 10), (10, -1)):
        with pytest.raises(RequestError, match="must be"):
            TokenWriter(tmp_path / "x", vocab_size, end=end)
    with TokenWriter(tmp_path / "many", 10) as writer:
        for number in range(1 << 16):
            writer.add([1], str(number))
        with pytest.raises(RequestError, match="65536 is the most"):
            writer.add([1], "one more")
    assert names(tmp_path) == []


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        TokenWriter(tmp_path / "file" / "x", 10)


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(MachineError, match="x: cannot be written: File too large"):
            write_tokens(tmp_path / "x", [[1] * 100_000] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == []


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_refused_or_read_within_the_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_tokens(tmp_path_factory.getbasetemp() / "damaged", DOCUMENTS, domains=["prose", "code"])
    raw = bytearray(path.read_bytes())
    length = 16 + int.from_bytes(raw[8:16], "little")
    places = st.one_of(st.integers(0, length - 1), st.integers(HEADER_BYTES, len(raw) - 1))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        raw[at] = value
    path.write_bytes(raw)
    with contextlib.suppress(FileFormatError):
        file = TokenFile(path)
        assert sum(len(file.document(n)) for n in range(file.documents)) == len(file) == 56
        assert {domain_of(file, n) for n in range(file.documents)} <= {*file.domains}
        file.verify()
