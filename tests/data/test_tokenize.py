"""Text becomes tokens once, whole, split by content; and is found again."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.data import tokenize as module
from tenth.data.document import Document
from tenth.data.readers import TextSource
from tenth.data.token_file import TokenFile
from tenth.data.tokenize import (
    TokenizeOptions,
    cache_key,
    end_of_text,
    held_out_path,
    is_held_out,
    pieces,
    tokenize,
    tokenize_cached,
)
from tenth.data.train_tokenizer import train_tokenizer
from tenth.errors import FileFormatError, MachineError, RequestError, TextError, TokenizerError
from tenth.weights.bundled import bundled_gguf
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.tokenizer import Tokenizer
from tests.api.tiny import tiny_tokenizer
from tests.data.token_files import domain_of


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Tokenizer:
    with open_checkpoint(bundled_gguf()) as checkpoint:
        return checkpoint.tokenizer()


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def jsonl(path: Path, texts: list[str], kinds: tuple[str, ...] = ("web", "books")) -> TextSource:
    lines = [json.dumps({"text": text, "kind": kinds[n % len(kinds)]}) + "\n" for n, text in enumerate(texts)]
    path.write_text("".join(lines))
    return TextSource(str(path), domain_key="kind")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_documents_become_tokens(smollm2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x", "Hello <|im_end|> wörld ☃", "a\0b", "   ", "12 + 34\n" * 30, ""]
    sources = [jsonl(tmp_path / "x.jsonl", texts), TextSource(str(tmp_path / "y.txt"), domain="prose")]
    (tmp_path / "y.txt").write_text("One text.")
    tally = tokenize(sources, smollm2_tokenizer, tmp_path / "out")
    file = TokenFile(tmp_path / "out")
    file.verify()
    kept = [text for text in [*texts, "One text."] if text.strip()]
    end = smollm2_tokenizer.token_id("<|endoftext|>")
    expected = [[*smollm2_tokenizer.encode(text), end] for text in kept]
    assert [file.document(n).tolist() for n in range(file.documents)] == expected
    assert [domain_of(file, n) for n in range(file.documents)] == ["web", "books", "web", "web", "prose"]
    assert smollm2_tokenizer.token_id("<|im_end|>") not in expected[1]  # text about control tokens is text
    assert (tally.documents, tally.tokens, tally.empty) == (5, len(file), 2)
    assert tally.text_bytes == sum(len(text.encode()) for text in kept)
    assert (file.header.end, file.tokenizer) == (end, smollm2_tokenizer.fingerprint)
    assert file.vocab_size == smollm2_tokenizer.vocabulary


def test_without_ends(bytewise: Tokenizer, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["ab", "c"])
    tokenize([source], bytewise, tmp_path / "out", TokenizeOptions(end=False))
    file = TokenFile(tmp_path / "out")
    assert [len(file.document(n)) for n in range(2)] == [2, 1]
    assert file.header.end is None


def test_which_token_ends_a_text(smollm2_tokenizer: Tokenizer, bytewise: Tokenizer, tmp_path: Path) -> None:
    assert smollm2_tokenizer.special_tokens["eos_token"] == "<|im_end|>"  # of a turn, not of a text
    assert end_of_text(smollm2_tokenizer) == smollm2_tokenizer.token_id("<|endoftext|>")
    assert end_of_text(bytewise) == 256
    bytewise.save(tmp_path)
    for name, text in (("</s>", '"</s>"'), (None, "null")):
        document = json.loads((tmp_path / "tokenizer.json").read_text())
        document["added_tokens"] = [] if name is None else [document["added_tokens"][0] | {"content": name}]
        document["model"]["vocab"] = {t: n for t, n in document["model"]["vocab"].items() if n < 256}
        folder = tmp_path / str(name).strip("</>")
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(document))
        (folder / "tokenizer_config.json").write_text(f'{{"eos_token": {text}}}')
        assert end_of_text(Tokenizer.from_folder(folder)) == (None if name is None else 256)
    source = jsonl(tmp_path / "x.jsonl", ["ab"])
    with pytest.raises(TokenizerError, match="no token that ends a text"):
        tokenize([source], Tokenizer.from_folder(tmp_path / "None"), tmp_path / "out")


def test_many_batches_keep_the_order(bytewise: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 500)
    monkeypatch.setattr(module, "_LONGEST", 60)
    texts = [f"{n} " * (1 + n % 40) for n in range(300)]
    tokenize([jsonl(tmp_path / "x.jsonl", texts)], bytewise, tmp_path / "out")
    file = TokenFile(tmp_path / "out")
    assert [bytewise.decode(file.document(n).tolist()) for n in range(300)] == texts


def test_progress_reaches_its_end(bytewise: Tokenizer, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 1000)
    seen: list[tuple[int, int]] = []
    sources = [TextSource(str(tmp_path / "*.txt")), jsonl(tmp_path / "x.jsonl", ["word " * 9] * 500)]
    tokenize(sources, bytewise, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len(seen) == 502
    assert seen[-1][0] == seen[-1][1] == sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n\t☃.", max_size=200), most=st.integers(2, 50))
def test_pieces_are_the_text(text: str, most: int) -> None:
    cut = list(pieces(text, most))
    assert "".join(cut) == text
    assert all(len(piece) <= most for piece in cut)
    assert all(len(piece) >= most // 2 for piece in cut[:-1])


def test_a_huge_document_has_the_tokens_it_would_have_whole(smollm2_tokenizer: Tokenizer) -> None:
    """Cuts lie where a token ends anyway: code, indented lines, blank lines, prose without lines."""
    code = Path(module.__file__).read_text()
    prose = " ".join(code.split())
    for text in (code, prose, "\n\n".join(code.split("\n")), code.replace("\n", "\r\n")):
        cut = list(pieces(text, 300))
        assert len(cut) > 20
        ids = [
            token for n, piece in enumerate(cut) for token in smollm2_tokenizer.encode_batch([piece], after=n > 0)[0]
        ]
        assert ids == smollm2_tokenizer.encode(text)


def test_a_document_of_megabytes(bytewise: Tokenizer, tmp_path: Path) -> None:
    text = ("x" * 997 + "\n") * 2500
    (tmp_path / "x.txt").write_text(text)
    tokenize([TextSource(str(tmp_path / "x.txt"))], bytewise, tmp_path / "out")
    file = TokenFile(tmp_path / "out")
    assert (len(file), file.documents) == (len(text) + 1, 1)
    assert set(np.unique(file.tokens_T).tolist()) == {bytewise.encode("x")[0], bytewise.encode("\n")[0], 256}


def test_held_out_documents_are_chosen_by_content(bytewise: Tokenizer, tmp_path: Path) -> None:
    texts = [f"text {n % 700}" for n in range(1000)]  # 300 of them twice
    options = TokenizeOptions(hold_out=0.1)
    tally = tokenize([jsonl(tmp_path / "x.jsonl", texts)], bytewise, tmp_path / "out", options)
    both = []
    for path in (tmp_path / "out", held_out_path(tmp_path / "out")):
        file = TokenFile(path)
        both.append([bytewise.decode(file.document(n).tolist()) for n in range(file.documents)])
    learned, held_out = both
    assert sorted(learned + held_out) == sorted(texts)
    assert not {*learned} & {*held_out}
    assert {*held_out} == {text for text in texts if is_held_out(text, 0.1)}
    assert 60 < len(held_out) < 140
    assert (tally.documents, tally.held_out_documents) == (len(learned), len(held_out))
    assert tally.held_out_tokens == len(TokenFile(held_out_path(tmp_path / "out")))
    assert {text for text in texts if is_held_out(text, 0.05)} < {*held_out}  # a smaller share is a part of a larger


def test_shares_to_hold_out() -> None:
    texts = [str(n) for n in range(20_000)]
    assert abs(sum(is_held_out(text, 0.25) for text in texts) - 5000) < 4 * 62
    assert not any(is_held_out(text, 0.0) for text in texts)
    for share in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(RequestError, match="the share to hold out is"):
            TokenizeOptions(hold_out=share)


@pytest.mark.parametrize("content", ["", "\n\n\n", "  \n \t"])
def test_no_text_is_an_error(content: str, bytewise: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(TextError, match=r"there is no text in .*x\.txt: all 1 documents are empty"):
        tokenize([TextSource(str(tmp_path / "x.txt"))], bytewise, tmp_path / "out")
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(TextError, match=r"there is no text in .*x\.jsonl"):
        tokenize([TextSource(str(tmp_path / "x.jsonl"))], bytewise, tmp_path / "out")
    assert files(tmp_path) == ["x.jsonl", "x.txt"]


def test_nothing_held_out_is_an_error(bytewise: Tokenizer, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["one", "two", "three"])
    for share, name in ((1e-6, "out.held-out"), (1 - 1e-9, "out")):
        with pytest.raises(TextError, match=f"{name}: there is no document for it"):
            tokenize([source], bytewise, tmp_path / "out", TokenizeOptions(hold_out=share))
    assert files(tmp_path) == ["x.jsonl"]


def test_nothing_is_left_of_a_failure_and_nothing_is_replaced(bytewise: Tokenizer, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["one"] * 100)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(FileFormatError, match=r"x\.jsonl:101: is not JSON"):
        tokenize([source], bytewise, tmp_path / "out")
    assert files(tmp_path) == ["x.jsonl"]
    for name in ("out", "out.held-out"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(RequestError, match=f"{name}: exists"):
            tokenize([source], bytewise, tmp_path / "out", TokenizeOptions(hold_out=0.5))
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_both_files_or_none(bytewise: Tokenizer, tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "x.jsonl", [f"text {n}" for n in range(50)]), tmp_path / "out"

    def in_the_way(done: int, total: int) -> None:
        held_out_path(out).mkdir(exist_ok=True)

    with pytest.raises(MachineError, match=r"out\.held-out: cannot be written"):
        tokenize([source], bytewise, out, TokenizeOptions(hold_out=0.3), in_the_way)
    assert files(tmp_path) == ["out.held-out", "x.jsonl"]


def test_the_cache_is_found_again_while_nothing_changes(bytewise: Tokenizer, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", [f"text {n}" for n in range(50)])
    cache = tmp_path / "cache"
    path = tokenize_cached([source], bytewise, cache)
    stamp = path.stat().st_mtime_ns
    assert tokenize_cached([source], bytewise, cache) == path
    assert path.stat().st_mtime_ns == stamp
    assert files(cache) == [path.name]
    path.write_bytes(path.read_bytes()[:-1])
    assert tokenize_cached([source], bytewise, cache) == path
    TokenFile(path).verify()


def test_the_cache_key_names_all_that_decides(
    bytewise: Tokenizer, smollm2_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "x.jsonl", ["one", "two"])
    keys = [cache_key([source], bytewise), cache_key([source], smollm2_tokenizer)]
    keys += [cache_key([replace(source, text_key="kind")], bytewise)]
    keys += [cache_key([replace(source, domain_key=None, domain="d")], bytewise)]
    keys += [cache_key([source, source], bytewise)]
    os.utime(tmp_path / "x.jsonl", ns=(1, 1))
    keys += [cache_key([source], bytewise)]
    jsonl(tmp_path / "x.jsonl", ["one", "two", "three"])
    os.utime(tmp_path / "x.jsonl", ns=(1, 1))
    keys += [cache_key([source], bytewise)]
    assert len({*keys}) == len(keys)
    assert cache_key([source], bytewise) == keys[-1]


def test_a_learned_tokenizer_serves(tmp_path: Path) -> None:
    learned = train_tokenizer([Document("a b a b " * 100 + "abc abd " * 50, "x")], 262)
    source = jsonl(tmp_path / "x.jsonl", ["a b abc", "☃"])
    tokenize([source], learned, tmp_path / "out")
    file = TokenFile(tmp_path / "out")
    assert [learned.decode(file.document(n).tolist()) for n in range(2)] == ["a b abc", "☃"]
    assert file.document(1)[-1] == 0
