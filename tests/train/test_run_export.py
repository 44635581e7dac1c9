"""What a run exports is that of its last step, as the recipe asks for it, whatever came between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tenth.train import training_run
from tenth.weights.checkpoint import open_checkpoint
from tests.train.tiny_run import STAGE, recipe_of, run

SHORT, LONGER = [{**STAGE, "steps": 2}], [{**STAGE, "steps": 3}]


def _model(folder: Path) -> bytes:
    return (folder / "run" / "model" / "model.safetensors").read_bytes()


def _kill(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_model_of_an_earlier_step_is_not_taken_for_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe_of(tmp_path, stage=SHORT))
    before = _model(tmp_path)
    monkeypatch.setattr(training_run, "export", _kill)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(tmp_path, stage=LONGER))
    monkeypatch.undo()
    assert _model(tmp_path) == before
    outcome, _ = run(recipe_of(tmp_path, stage=LONGER))
    assert (outcome.first_step, outcome.step) == (3, 3)
    assert _model(tmp_path) != before
    stamp = json.loads((tmp_path / "run" / "exported.json").read_text())
    assert stamp == {"step": 3, "export_dtype": "bfloat16", "packed_bits": 0}


def test_an_export_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage=SHORT, run={"packed_bits": 8})
    run(recipe)
    folder = tmp_path / "run"
    before = (folder / "model").stat().st_ino, (folder / "packed").stat().st_ino
    run(recipe)
    assert ((folder / "model").stat().st_ino, (folder / "packed").stat().st_ino) == before
    for path in (folder / "packed").iterdir():
        path.unlink()
    (folder / "packed").rmdir()
    run(recipe)
    with open_checkpoint(folder / "packed") as checkpoint:
        assert checkpoint.packed is not None


def test_another_type_is_written_anew(tmp_path: Path) -> None:
    run(recipe_of(tmp_path, stage=SHORT))
    run(recipe_of(tmp_path, stage=SHORT, run={"export_dtype": "float32", "packed_bits": 8}))
    folder = tmp_path / "run"
    with open_checkpoint(folder / "model") as checkpoint:
        assert checkpoint.source.read("model.embed_tokens.weight").dtype == torch.float32
    assert (folder / "packed").is_dir()
    run(recipe_of(tmp_path, stage=LONGER))
    assert not (folder / "packed").exists()  # it would be of another step than the model beside it


def test_what_kills_left_goes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage=SHORT)
    run(recipe)
    folder = tmp_path / "run"
    for name in (".model-0123", ".packed-0123", ".tenth-0123"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "data" / ".0123.tokens.abcd").write_bytes(b"half")
    run(recipe)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert {path.suffix for path in (folder / "data").iterdir()} == {".tokens"}
