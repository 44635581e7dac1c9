"""Reading text, JSON lines and Parquet: every document once, and errors that name file and line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tenth.data.document import Document
from tenth.data.readers import TextSource, source_files
from tenth.data.tokenize import documents_of
from tenth.errors import FileFormatError, MachineError, RequestError, TenthError
from tests.data.token_files import write_tokens


def texts(path: Path | str, **options: Any) -> list[str]:
    return [document.text for document in documents_of([TextSource(str(path), **options)])]


def refused(path: Path | str, kind: type[TenthError] = FileFormatError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        texts(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parquet(path: Path, columns: dict[str, Any], rows: int = 2) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone ☃\r\ntwo\0three\n".encode())
    assert list(documents_of([TextSource(str(path))])) == [
        Document("one ☃\r\ntwo\0three\n", "a", str(path), path.stat().st_size)
    ]


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.py", "a/d/e.py", "a/.hidden/f.py", ".g.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert texts(tmp_path) == ["a/c.py", "a/d/e.py", "b.txt"]
    assert sorted(texts(tmp_path / "a/d/*.py")) == ["a/d/e.py"]
    assert set(texts(tmp_path / "**" / "*.py")) == {"a/c.py", "a/d/e.py"}
    (tmp_path / "odd[1].txt").write_text("odd")
    assert texts(tmp_path / "odd[1].txt") == ["odd"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/train.v1.jsonl.gz", "train"),
        ("/books", "books"),
        ("../src/**/*.py", "src"),
        ("*.py", "text"),
        ("./x/", "x"),
        (".hidden", ".hidden"),
        ("a/b*/c/*.txt", "a"),
    ],
)
def test_a_source_without_a_name_gets_one(path: str, name: str) -> None:
    assert TextSource(path).name == name
    assert TextSource(path).default_domain == name
    assert TextSource(path, name="n").default_domain == "n"
    assert TextSource(path, name="n", domain="d").default_domain == "d"


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records = [{"text": "a\u2028b", "kind": "web"}, {"text": "c\0", "kind": "books"}, {"text": "", "kind": "web"}]
    path.write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in records[:2]) + "\n\n  \n" + json.dumps(records[2])
    )
    found = list(documents_of([TextSource(str(path))]))
    assert [d.text for d in found] == ["a\u2028b", "c\0", ""]
    assert [d.domain for d in found] == ["x"] * 3
    assert [d.where for d in found] == [f"{path}:1", f"{path}:2", f"{path}:5"]
    assert found[-1].read == path.stat().st_size
    assert [d.domain for d in documents_of([TextSource(str(path), domain_key="kind")])] == ["web", "books", "web"]
    assert texts(path, text_key="kind") == ["web", "books", "web"]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.JSONL.GZ", "x.ndjson.gz"])
def test_compressed_lines(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n'))
    assert texts(path) == ["one", "two"]
    (tmp_path / "y.txt.gz").write_bytes(gzip.compress(b"hello\n"))
    assert texts(tmp_path / "y.txt.gz") == ["hello\n"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b'["a"]', "holds list, every line must be a JSON object"),
        (b"null", "holds NoneType"),
        (b"{}", "has no key 'text'; its keys are: none"),
        (b'{"content": "a", "id": 1}', "has no key 'text'; its keys are: content, id"),
        (b'{"text": 5}', "'text' is int, it must be a string"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": ["a"]}', "'text' is list"),
        (b'{"text": "a\\ud800b"}', "'text' has half a surrogate pair at character 1"),
        (b'{"text": "\xff"}', "is not UTF-8 text: byte 10 is 0xff"),
        (b"\0\0\0", "is not JSON"),
        ('{"text": "a"}'.encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_a_bad_line_is_named(line: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    assert refused(path).startswith(f":3: {words}")


def test_a_domain_must_be_there(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"text": "a", "kind": "k"}, {"text": "b"})
    assert refused(path, domain_key="kind").startswith(":2: has no key 'kind'")
    lines(path, {"text": "a", "kind": 3})
    assert refused(path, domain_key="kind").startswith(":1: 'kind' is int")


def test_text_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"hello\n" + b"\xc3\x28")
    assert "is not UTF-8 text: byte 6 is 0xc3" in refused(path)
    write_tokens(tmp_path / "x.tokens", [[1, 2]])
    assert "is a token file already" in refused(tmp_path / "x.tokens", RequestError)


@pytest.mark.parametrize("cut", [1, 5, 12, -1, -9])
def test_a_truncated_gzip_is_named(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:cut])
    assert ": is no whole gzip file" in refused(path)
    path.write_bytes(b"no gzip at all")
    assert ": is no whole gzip file" in refused(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "neither a file, nor a folder" in refused(tmp_path / "none.txt", RequestError)
    assert "nor matches any" in refused(tmp_path / "*.txt", RequestError)
    assert "has no files in it" in refused(tmp_path, RequestError)
    with pytest.raises(RequestError, match="empty"):
        TextSource("")
    with pytest.raises(RequestError, match="must be one of auto, text, jsonl, chat, parquet"):
        TextSource("x", format="csv")  # type: ignore[arg-type]


def test_json_is_read_as_what_it_is_said_to_be(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.json", {"text": "a"}, {"text": "b"})
    assert "say which" in refused(path, RequestError)
    assert texts(path, format="jsonl") == ["a", "b"]
    assert len(texts(path, format="text")) == 1
    assert source_files(TextSource(str(path))) == [path]


def test_parquet(tmp_path: Path) -> None:
    columns = {"text": ["a", "b\0", "", "d", "e"], "kind": ["x", "y", "x", "y", "x"], "n": [1, 2, 3, 4, 5]}
    path = parquet(tmp_path / "x.parquet", columns)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    found = list(documents_of([TextSource(str(path), domain_key="kind")]))
    assert [(d.text, d.domain) for d in found] == list(zip(columns["text"], columns["kind"], strict=True))
    assert [d.read for d in found] == sorted(d.read for d in found)
    assert 0 < found[-1].read <= path.stat().st_size
    assert [d.domain for d in documents_of([TextSource(str(path))])] == ["x"] * 5
    large = pyarrow.array(["ä"] * 3, pyarrow.large_string())
    assert texts(parquet(tmp_path / "large.parquet", {"body": large}), text_key="body") == ["ä"] * 3
    assert texts(parquet(tmp_path / "dict.parquet", {"text": large.dictionary_encode()})) == ["ä"] * 3


def test_many_rows_of_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": [str(n) for n in range(3000)]}, rows=1000)
    assert texts(path) == [str(n) for n in range(3000)]


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": ["a", None, "c"], "n": [1, 2, 3]})
    assert refused(path) == ": row 1: 'text' is null, it must be a string"
    assert refused(path, text_key="body") == ": has no column 'body'; its columns are: text, n"
    assert refused(path, domain_key="kind").startswith(": has no column 'kind'")
    assert refused(path, text_key="n") == ": row 0: 'n' is int, it must be a string"
    binary = parquet(tmp_path / "y.parquet", {"text": pyarrow.array([b"\xff"], pyarrow.binary())})
    assert refused(binary) == ": row 0: 'text' is bytes, it must be a string"
    other = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    assert "cannot be read as Parquet" in refused(parquet(tmp_path / "z.parquet", {"text": other}))


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": [f"{n} words" for n in range(500)]}, rows=100)
    data = path.read_bytes()
    for broken in (data[:-1], data[: len(data) // 2], data[:3], b"", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(broken)
        assert "cannot be read as Parquet" in refused(path)
    path.write_bytes(data[:4] + bytes([255]) * 300 + data[304:])  # the first row group's pages
    assert "cannot be read as Parquet" in refused(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MachineError, match=r"pip install 'tenth\[train\]'"):
        texts(path)
