"""Recipes: what they say is read, what they may not say is refused by name, and all of it is explained."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from tenth.errors import RequestError
from tenth.train.recipe import Recipe, StageOptions, stage_weights
from tenth.train.recipe_explain import explain
from tenth.train.recipe_reader import (
    bundled_recipes,
    key_of,
    load_recipe,
    read_recipe,
    types_of,
)
from tenth.train.recipe_writer import differences, recipe_text
from tests.train.tiny_run import MOE, SHAPE, STAGE, raw_recipe, recipe_of


def _read(tmp_path: Path, **sections: Any) -> Recipe:
    return read_recipe(raw_recipe(tmp_path, **sections), "r.toml")


def test_a_recipe_is_what_it_says_and_defaults_elsewhere(tmp_path: Path) -> None:
    recipe = _read(tmp_path, balance={"capacity": "load"}, optimizer={"betas": [0.8, 0.9], "lr": 1})
    assert recipe.model.shape is not None
    assert recipe.model.shape.sparse_layers == (0, 1)  # there are experts, and no word on where
    assert recipe.optimizer.lr == 1.0
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.optimizer.weight_decay == 0.1
    assert recipe.balance.capacity == "load"
    assert recipe.source[0].path == (str(tmp_path / "code"),)
    assert recipe.distill is None
    assert recipe.stage[0].micro_batches == 2
    assert recipe.total_steps == 6


def test_text_and_back(tmp_path: Path) -> None:
    recipe = _read(
        tmp_path,
        stage=[
            STAGE,
            {**STAGE, "name": 'län"g', "weights": {"code": 2, "prose": 0, "\U0001f600\x7f": 1}, "rope_theta": 1e6},
        ],
        source=[{"path": "code"}, {"path": "prose"}, {"path": "x", "name": "\U0001f600\x7f"}],
        distill={"kl_weight": 0.5},
    )
    text = recipe_text(recipe)
    assert read_recipe(tomllib.loads(text), "again") == recipe
    assert "from = " in text
    assert "start = " not in text


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"lrr": 1}}, r"r\.toml: \[optimizer\] has no key 'lrr'; did you mean 'lr'\? known: kind, lr, "),
    ({"optimiser": {"lr": 1}}, r"r\.toml: there is no section 'optimiser'; did you mean 'optimizer'\? known: model, "),
    ({"optimizer": {"lr": "fast"}}, r"optimizer\.lr is 'fast', it must be a number above 0 \(highest learning rate\)"),
    ({"optimizer": {"lr": 0}}, r"optimizer\.lr is 0, it must be a number above 0"),
    ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr is nan, it must be a number above 0"),
    ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas is \[0\.9\], it must be a list of numbers"),
    ({"optimizer": {"decay_embeddings": 1}}, r"optimizer\.decay_embeddings is 1, it must be true or false"),
    ({"optimizer": 3}, r"optimizer must be a section"),
    ({"run": {"on_nan": "ignore"}}, r"run\.on_nan is 'ignore', it must be one of stop, skip"),
    ({"run": {"seed": True}}, r"run\.seed is True, it must be a whole number of at least 0"),
    ({"source": []}, r"the recipe has no \[\[source\]\]"),
    ({"source": {"path": "a"}}, r"source must be an array of sections, written \[\[source\]\]"),
    ({"source": [{"weight": 1}]}, r"source\.0\.path is missing, it must be a list of texts"),
    ({"source": [{"path": ""}]}, r"\[source\.0\] path is empty"),
    ({"source": [{"path": "x/a.txt"}, {"path": "y/a.txt"}]}, r"two sources are called 'a'"),
    ({"stage": [{**STAGE, "tokens": 5}]}, r"\[stage\.0\] stage 'main' needs either `tokens` or `steps`"),
    ({"stage": [{**STAGE, "batch_tokens": 100}]}, r"batch_tokens is 100, it must be a multiple of length x rows = 64"),
    ({"stage": [{**STAGE, "warmup": 6}]}, r"warmup is 6 steps, it must be below the stage's 6"),
    ({"stage": [{**STAGE, "weights": {"news": 1}}]}, r"names the source 'news', there are: code, prose"),
    ({"stage": [{**STAGE, "weights": {"code": 0}}]}, r"no source has a weight above 0"),
    ({"model": {"from": "default-dense"}}, r"\[model\] model needs either `from`"),
    ({"model": {"shape": {**SHAPE, "head_dim": 7}}}, r"\[model\.shape\] head_dim 7 is odd"),
    (
        {"model": {"shape": {**SHAPE, "moe": {**MOE, "topk": 1}}}},
        r"\[model\.shape\.moe\] has no key 'topk'; did you mean 'top_k'",
    ),
    ({"balance": {"kind": "locally"}}, r"balance\.kind is 'locally', it must be one of none, micro, document, global"),
    ({"balance": {"capacity": "high"}}, r"balance\.capacity is 'high', it must be a number or one of load"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, r"betas is \[0\.9, 1\.0\], it must be .* of at least 0 and below 1 "),
    (
        {"optimizer": {"betas": [1, 0.9]}},
        r"betas is \[1, 0\.9\], it must be .* and below 1",
    ),
    ({"optimizer": {"kind": "muon", "muon_momentum": 1.0}}, r"optimizer\.muon_momentum is 1\.0, it must be a number"),
    ({"optimizer": {"muon_lr": 0.1}}, r"r\.toml: \[optimizer\] muon_lr is 0\.1, which counts only with kind = 'muon'"),
    ({"optimizer": {"muon_scale": "original"}}, r"\[optimizer\] muon_scale is 'original', which counts only with kind"),
    (
        {"stage": [STAGE, {**STAGE, "schedule": "constant", "final": 0.5}]},
        r"\[stage\.1\] final is 0\.5, which counts only with a schedule that falls: leave it out",
    ),
    ({"stage": [{**STAGE, "decay": 0.5}]}, r"\[stage\.0\] decay is 0\.5, which counts only with schedule = 'wsd'"),
    (
        {"model": {"shape": None, "from": "default-dense", "init_std": 0.1}},
        r"\[model\] init_std is 0\.1, which counts only where \[model\.shape\] starts from scratch: leave it out",
    ),
    ({"balance": {"weight": -1.0}}, r"\[balance\] balance weight is -1\.0"),
]


@pytest.mark.parametrize(("sections", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_is_wrong_is_named(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    raw = raw_recipe(tmp_path, **sections)
    raw["model"] = {key: value for key, value in raw["model"].items() if value is not None}
    with pytest.raises(RequestError, match=message) as caught:
        read_recipe(raw, "r.toml")
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    path = tmp_path / "r.toml"
    path.write_text(recipe_text(recipe))
    assert load_recipe(str(path)) == recipe
    path.write_text("[model\n")
    with pytest.raises(RequestError, match=r"r\.toml: is not TOML: .*line 1"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match=r"is not UTF-8 text \(byte 0\)"):
        load_recipe(str(path))
    with pytest.raises(RequestError, match="nowhere: is no file, and no recipe of that name ships"):
        load_recipe("nowhere")


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe_text(recipe_of(tmp_path)))
    settings = [
        "optimizer.lr=2e-3",
        "stage.0.steps = 9",
        "run.out=runs/other",
        "distill.teacher=me",
        "run.recompute=true",
    ]
    recipe = load_recipe(str(path), settings)
    assert (recipe.optimizer.lr, recipe.stage[0].steps, recipe.run.out) == (2e-3, 9, "runs/other")
    assert recipe.distill is not None
    assert recipe.distill.teacher == "me"
    assert recipe.run.recompute
    for setting, message in (
        ("optimizer", "is no setting, it must be section.key=value"),
        ("optimizer.lrr=1", "has no key 'lrr'"),
        ("stage.steps=1", "name a key of one entry, as stage.0.steps"),
        ("stage.7.steps=1", "stage has 1 entries, '7' is not a number from 0 to 0"),
        ("optimizer.lr.x=1", "optimizer.lr is a value, not a section"),
    ):
        with pytest.raises(RequestError, match=message):
            load_recipe(str(path), [setting])


def test_what_may_differ_when_a_run_goes_on(tmp_path: Path) -> None:
    one = _read(tmp_path)
    same = _read(
        tmp_path, stage=[{**STAGE, "steps": 60}], checkpoint={"every": 1}, log={"every": 5}, evaluation={"tokens": 99}
    )
    assert differences(one, same) == []
    more = _read(tmp_path, stage=[STAGE, {**STAGE, "name": "next"}])
    assert differences(one, more) == []
    assert differences(more, one) == ["stage"]
    other = _read(tmp_path, optimizer={"lr": 1}, stage=[{**STAGE, "length": 64}], balance={"kind": "micro"})
    assert differences(one, other) == ["stage.0.length", "optimizer.lr", "balance.kind"]
    assert differences(one, _read(tmp_path, distill={})) == ["distill"]
    assert differences(one, _read(tmp_path, model={"shape": {**SHAPE, "rms_norm_eps": 1e-5}})) == [
        "model.shape.rms_norm_eps"
    ]


def test_weights_of_a_stage(tmp_path: Path) -> None:
    recipe = _read(tmp_path, stage=[STAGE, {**STAGE, "weights": {"prose": 3}}])
    assert stage_weights(recipe.stage[0], recipe.source) == {"code": 1.0, "prose": 0.5}
    assert stage_weights(recipe.stage[1], recipe.source) == {"prose": 3.0}


def test_tokens_are_rounded_up_to_steps() -> None:
    assert StageOptions(tokens=1000, length=32, rows=2, batch_tokens=128).total_steps == 8
    assert StageOptions(tokens=1024, length=32, rows=2, batch_tokens=128).total_steps == 8


def _keys(kind: type, section: str = "") -> set[str]:
    """Every key of a recipe with its section, found apart from what is tested."""
    found: set[str] = set()
    types = types_of(kind)
    for field in fields(kind):
        inner = [part for part in (types[field.name], *get_args(types[field.name])) if is_dataclass(part)]
        dotted = f"{section}.{key_of(field)}".lstrip(".")
        found |= _keys(inner[0], dotted) if inner else {dotted}
    return found


def test_every_field_is_explained() -> None:
    listed = {}
    for section, meaning, rows in explain():
        assert meaning
        for key, kind, default, text in rows:
            assert kind
            assert default
            assert len(text) > 3, (section, key)
            listed[f"{section.strip('[]')}.{key}"] = default
    assert set(listed) == _keys(Recipe)
    assert len(listed) > 90
    assert listed["optimizer.lr"] == "0.001"
    assert listed["run.out"] == "required"
    assert listed["model.from"] == '""'


@pytest.mark.parametrize("name", bundled_recipes())
def test_recipes_that_ship_can_be_read(name: str) -> None:
    assert load_recipe(name).total_steps > 0


def test_the_recipe_in_the_docs_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    recipe = read_recipe(tomllib.loads(blocks[0]), "docs/train.md")
    assert [stage.micro_batches for stage in recipe.stage] == [8, 8, 2]
    assert stage_weights(recipe.stage[1], recipe.source) == {"prose": 1.0}
