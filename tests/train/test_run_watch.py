"""What watches a run: its speed by hand, and the documents whose routing at the start is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tenth.data.collate import TrainBatch, collate
from tenth.data.loader import samples
from tenth.errors import RequestError
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.preset import preset
from tenth.observe.profiling import Part, Profiler
from tenth.routing.profile import ProfiledModel, RoutingProfile
from tenth.routing.profile_file import write_profile
from tenth.train.low_rank import LowRankOptions, attach
from tenth.train.recipe import EvaluationOptions, Recipe
from tenth.train.run_watch import Probe, Speed, forward_flops, frozen_flops
from tests.data.token_files import numbered, write_tokens
from tests.train.tiny_run import recipe_of, run, trainer_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- speed


def _config(**moe: Any) -> ModelConfig:
    config = preset("tiny-moe")
    assert config.moe is not None
    return replace(config, model_type="tenth", num_layers=2, sparse_layers=(1,), moe=replace(config.moe, **moe))


def _batch(folder: Path, *lengths: int) -> TrainBatch:
    return collate(samples(write_tokens(folder / "x", numbered(lengths)), sum(lengths)))


def test_operations_of_a_pass_count_what_attention_sees() -> None:
    config = _config()
    whole, halves = forward_flops(config, (0, 64)), forward_flops(config, (0, 32, 64))
    each = 4 * config.num_layers * config.num_heads * config.head_dim  # of a token that is seen
    assert whole - halves == each * 32 * 32
    assert halves == 64 * config.flops_per_token(0) + each * 2 * (32 * 33 // 2)


def test_speed_by_hand(tmp_path: Path) -> None:
    """Two micro-batches of 30 tokens in half a second, on a machine of a million operations a second."""
    config, batch = _config(), _batch(tmp_path, 10, 20)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * 2 * (55 + 210)
    matrices = 60 * config.flops_per_token(0)
    found = Speed(1e6, 0).of(config, [batch, batch], 0.5)
    assert found == {
        "tok_s": 120.0,
        "mfu": pytest.approx(3 * (attention + matrices) / 0.5 / 1e6),
        "seconds": 0.5,
    }
    frozen = Speed(1e6, config.flops_per_token(0)).of(config, [batch, batch], 0.5)
    assert frozen["mfu"] == pytest.approx((3 * attention + 2 * matrices) / 0.5 / 1e6)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_frozen_has_no_gradient(tied: bool) -> None:
    config = replace(_config(shared_intermediate_size=16), tie_word_embeddings=tied)
    decoder = Decoder(config)
    assert frozen_flops(decoder) == 0
    assert frozen_flops(decoder.requires_grad_(False)) == config.flops_per_token(0)
    count = config.parameters
    # the sum of a matrix and its delta has a gradient as large as it; routers learn
    attach(decoder, LowRankOptions(rank=2, shared_rank=2))
    assert frozen_flops(decoder) == 2 * (count.attention + config.vocab_size * config.hidden_size)
    experts = attach(Decoder(config), LowRankOptions(rank=2, shared_rank=0))
    routed = 2 * 3 * config.hidden_size * config.moe.intermediate_size if config.moe else 0
    assert frozen_flops(experts) - frozen_flops(decoder) == 2 * (count.active_mlp - routed)


# ---- the probe


def _kept(recipe: Recipe) -> dict[str, list[int]]:
    trainer, _ = trainer_of(recipe)
    assert trainer.restore()
    assert trainer.watch.probe is not None
    return {name: tensor.flatten().tolist() for name, tensor in trainer.watch.probe.tensors().items()}


def _saturations(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "run" / "log.jsonl").open()]
    return [record["saturation"] for record in records if record["kind"] == "evaluation"]


@pytest.mark.parametrize("later", [[], ["other"]], ids=["none", "another"])
def test_other_held_out_text_does_not_change_the_probe(later: list[str], tmp_path: Path) -> None:
    for name in ("same", "changed"):
        (tmp_path / name).mkdir()
        recipe = recipe_of(tmp_path / name)
        run(recipe, stop=iter([False, False, True]).__next__)
    kept = _kept(recipe)
    run(recipe_of(tmp_path / "same"))
    (tmp_path / "changed" / "other.jsonl").write_text('{"text": "entirely other text"}')
    sources = [{"path": str(tmp_path / "changed" / f"{name}.jsonl")} for name in later]
    recipe = recipe_of(tmp_path / "changed", evaluation={"source": sources})
    run(recipe)
    assert _kept(recipe) == kept
    assert _saturations(tmp_path / "changed") == _saturations(tmp_path / "same")


def _profile(recipe: Recipe, path: Path) -> str:
    profiler = Profiler(trainer_of(recipe)[0].decoder, "model", outputs=False)
    profiler.show([Part([number % 5, 1, 2], "text", number) for number in range(9)])
    write_profile(profiler.profile, path)
    return str(path)


def test_experts_work_is_held_against_a_profile(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    sources = [{"path": str(write_tokens(tmp_path / "x.tokens", [[1, 2, 3] * 200] * 9, vocab_size=9))}]
    profile = _profile(recipe, tmp_path / "p.profile")
    run(recipe_of(tmp_path, evaluation={"source": sources, "profile": profile}))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    drifts = [record["drift"] for record in records if record["kind"] == "evaluation"]
    assert drifts
    assert all(0 <= drift <= 1 for drift in drifts)
    with pytest.raises(RequestError, match=r"it needs \[\[evaluation.source\]\]"):
        EvaluationOptions(profile=profile)
    write_profile(RoutingProfile.empty(ProfiledModel("other", "x", (0,), 3, 1)), tmp_path / "other.profile")
    with pytest.raises(RequestError, match="its layers or experts are not this model's"):
        trainer_of(recipe_of(tmp_path, evaluation={"source": sources, "profile": str(tmp_path / "other.profile")}))


def test_the_probe_has_text_of_every_source_and_no_padding(tmp_path: Path) -> None:
    paths = [write_tokens(tmp_path / f"{n}.tokens", [[n] * 40] * 9, vocab_size=9) for n in (1, 2)]
    paths.append(write_tokens(tmp_path / "3.tokens", [[3] * 5], vocab_size=9))
    recipe = recipe_of(tmp_path, evaluation={"source": [{"path": str(path)} for path in paths]})
    trainer, _ = trainer_of(recipe)
    rows = trainer.corpus.probe(64, 32)
    probe = trainer.watch.probe
    assert isinstance(probe, Probe)
    probe.begin(rows)
    tokens_T, bounds = probe.tensors()["tokens"], probe.tensors()["bounds"]
    assert int(bounds.max()) == 21 + 21 + 5
    assert torch.bincount(tokens_T[:47]).tolist() == [0, 21, 21, 5]
    assert probe.saturation() == {0: 1.0, 1: 1.0}
    for name, ids_TK in probe.tensors().items():
        if name.isdigit():
            ids_TK[:47] = torch.where(ids_TK[:47] < 2, ids_TK[:47] + 2, ids_TK[:47] - 2)
            ids_TK[40:47] = torch.tensor([0, 1])
    assert all(0 <= share < 1 for share in probe.saturation().values())


@pytest.mark.parametrize("sources", [1, 2, 3, 5, 40])
def test_the_probe_has_room(sources: int, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x.tokens", [[1] * 100] * 9, vocab_size=9)
    recipe = recipe_of(tmp_path, evaluation={"source": [{"path": str(path)}] * sources})
    rows = trainer_of(recipe)[0].corpus.probe(64, 32)
    assert 55 <= sum(len(row.tokens_T) for row in rows) <= 64
    assert max(len(row.tokens_T) for row in rows) <= 32
