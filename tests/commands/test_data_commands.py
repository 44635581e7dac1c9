"""`tenth tokenize` and `tenth tokenizer` as people meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenth.commands import app
from tenth.data.loader import Loader
from tenth.data.mixture import Source
from tenth.data.standard_library import documents
from tenth.data.token_file import TokenFile
from tenth.weights.tokenizer import Tokenizer
from tests.api.tiny import write_tokenizer
from tests.data.token_files import write_tokens


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    stream = documents(0, 500)
    records = [{"body": next(stream), "kind": ("prose", "code")[n % 2]} for n in range(60)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_from_text_to_rows(corpus: Path, tmp_path: Path) -> None:
    done = invoke("tokenizer", corpus, "-o", tmp_path / "own", "--vocab", "400", "--text-key", "body")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'own'}: 400 tokens\n"
    out = tmp_path / "new" / "x.tokens"
    options = ["--tokenizer", tmp_path / "own", "--text-key", "body", "--domain-key", "kind", "--hold-out", "0.2"]
    done = invoke("tokenize", corpus, "-o", out, *options)
    assert done.exit_code == 0, done.stderr
    file, held_out = TokenFile(out), TokenFile(out.with_name("x.tokens.held-out"))
    assert file.documents + held_out.documents == 60
    assert file.domains == ("prose", "code")
    learned = Tokenizer.from_folder(tmp_path / "own")
    assert learned.decode(file.document(0).tolist()) == json.loads(corpus.read_text().split("\n")[0])["body"]
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{out}: {len(file):,} tokens in {file.documents} documents, ")
    assert 1.2 < float(first.split(", ")[1].split()[0]) < 4
    assert second == f"{held_out.path}: {len(held_out):,} tokens in {held_out.documents} documents"
    loader = Loader([Source(out, 1.0, "x")], 128, 0, 400)
    assert loader.next().real == 128
    assert file.tokenizer == held_out.tokenizer == learned.fingerprint


def test_a_token_file_is_checked(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x.tokens", [[1, 2, 3], [4, 5]])
    done = invoke("check", path)
    assert (done.exit_code, done.stdout) == (0, f"{path}: 5 tokens in 2 documents, all as written\n")
    data = bytearray(path.read_bytes())
    data[4096 + 2] ^= 1
    path.write_bytes(data)
    done = invoke("check", path)
    assert done.exit_code == 2
    assert f"{path}: its bytes do not agree with its checksum" in done.stderr
    data[0] ^= 1
    path.write_bytes(data)
    assert "x.tokens: is no token file" in invoke("check", path).stderr
    renamed = write_tokens(tmp_path / "any.name", [[1, 2]])
    assert invoke("check", renamed).exit_code == 0


def test_a_models_tokenizer(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    options = ["--tokenizer", "default-dense", "--domain", "mine", "--format", "text", "--no-end"]
    done = invoke("tokenize", corpus, tmp_path / "empty.txt", "-o", tmp_path / "x", *options)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("\n1 documents without text were left out\n")
    file = TokenFile(tmp_path / "x")
    assert (file.documents, file.domains, file.header.end) == (1, ("mine",), None)
    assert file.vocab_size == 49152


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenize", "none.txt", "-o", "x", "--tokenizer", "."], "none.txt: is neither a file"),
        (["tokenize", "bad.jsonl", "-o", "x", "--tokenizer", "."], "bad.jsonl:2: has no key 'text'"),
        (["tokenize", "empty.jsonl", "-o", "x", "--tokenizer", "."], "there is no text in"),
        (["tokenize", "bad.jsonl", "-o", "bad.jsonl", "--tokenizer", "."], "bad.jsonl: exists"),
        (["tokenize", "bad.jsonl", "-o", "x", "--tokenizer", "none"], "none"),
        (["tokenize", "bad.jsonl", "-o", "x", "--tokenizer", ".", "--format", "csv"], "must be one of auto, text"),
        (["tokenize", "bad.jsonl", "-o", "x", "--tokenizer", ".", "--hold-out", "1"], "the share to hold out is 1.0"),
        (["tokenizer", "bad.jsonl", "-o", "x", "--vocab", "300"], "bad.jsonl:2: has no key 'text'"),
        (["tokenizer", "good.txt", "-o", "x", "--vocab", "10"], "the vocabulary is 10"),
        (["tokenizer", "good.txt", "-o", "x", "--vocab", "300"], "pieces for"),
        (["tokenizer", "none/*.txt", "-o", "x", "--vocab", "300"], "none/*.txt: is neither"),
        (["tokenizer", "good.txt", "-o", ".", "--vocab", "300"], "not an empty folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path)
    Path("bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    Path("empty.jsonl").write_text("\n")
    Path("good.txt").write_text("abc")
    before = sorted(tmp_path.iterdir())
    done = invoke(*arguments)
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tenth: ")
    assert words in last
    assert sorted(tmp_path.iterdir()) == before
