"""Sources of a recipe that do not fit: tokens of another vocabulary, keys that nothing reads, names that are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tenth.errors import RequestError
from tenth.train.recipe_reader import read_recipe
from tenth.weights.tokenizer import Tokenizer
from tests.data.token_files import write_tokens
from tests.train.tiny_run import raw_recipe, recipe_of, run, trainer_of

TOKENS = [[1, 2, 3, 4, 5, 6, 7, 8]] * 40


def _sections(path: Path, held_out: bool, **keys: Any) -> dict[str, Any]:
    source = [{"path": str(path), **keys}]
    return {"evaluation": {"source": source}} if held_out else {"source": source}


@pytest.mark.parametrize("held_out", [False, True], ids=["learned", "held out"])
def test_tokens_of_another_tokenizer(held_out: bool, tmp_path: Path) -> None:
    sections = _sections(tmp_path / "x.tokens", held_out)
    recipe = recipe_of(tmp_path, **sections)
    own = Tokenizer.from_folder(tmp_path / "tokenizer").fingerprint
    for fingerprint in (own, None):
        write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=260, tokenizer=fingerprint)
        trainer_of(recipe)
    write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=260, tokenizer="another")
    with pytest.raises(RequestError, match=r"x\.tokens: was made with another tokenizer than the model's"):
        trainer_of(recipe)
    write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=261)
    with pytest.raises(RequestError, match=r"x\.tokens: has a vocabulary of 261, the model's is 260"):
        trainer_of(recipe)


@pytest.mark.parametrize("held_out", [False, True], ids=["learned", "held out"])
@pytest.mark.parametrize("key", ["text_key", "domain_key", "domain"])
def test_keys_that_say_how_to_read_text(key: str, held_out: bool, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=260)
    recipe = recipe_of(tmp_path, **_sections(path, held_out, **{key: "kind"}))
    with pytest.raises(RequestError, match=f"source 'x': {key} is 'kind', which counts only where text is read"):
        trainer_of(recipe)


def test_the_name_of_held_out_tokens(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=260)
    trainer_of(recipe_of(tmp_path, **_sections(path, False, name="mine")))
    with pytest.raises(RequestError, match="source 'mine': name is 'mine', which counts only where text is read"):
        trainer_of(recipe_of(tmp_path, **_sections(path, True, name="mine")))


def test_held_out_sources_of_one_name(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    for name in ("code", "prose"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "held.jsonl").write_text('{"text": "some words"}')
    sources = [{"path": str(tmp_path / name / "held.jsonl")} for name in ("code", "prose")]

    def names(sources: list[dict[str, str]]) -> list[str]:
        recipe = recipe_of(tmp_path, evaluation={"source": sources}, source=[{"path": str(tmp_path / "prose.jsonl")}])
        return trainer_of(recipe)[0].corpus.held_out(32)[1]

    with pytest.raises(RequestError, match="two sources of held-out text are called 'held': give each a name of its"):
        names(sources)
    assert names([sources[0], {**sources[1], "name": "prose"}]) == ["held", "prose"]
    assert names([{**source, "domain": "both"} for source in sources]) == ["both"]


def test_a_model_without_a_tokenizer_goes_on_with_tokens(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x.tokens", TOKENS, vocab_size=260)
    source = [{"path": str(path)}]
    sections: dict[str, Any] = {"source": source, "evaluation": {"source": source}}
    run(recipe_of(tmp_path, **sections, model={"tokenizer": ""}))
    raw = raw_recipe(tmp_path, **sections, run={"out": str(tmp_path / "more")})
    raw["model"] = {"from": str(tmp_path / "run" / "model")}
    assert run(read_recipe(raw, "more"))[0].ended
    raw["source"] = [{"path": str(tmp_path / "prose.jsonl")}]
    raw["run"]["out"] = str(tmp_path / "text")
    with pytest.raises(RequestError, match=r"source 'prose': is text, which needs a tokenizer: set model\.tokenizer"):
        run(read_recipe(raw, "text"))
