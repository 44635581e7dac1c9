"""Whole runs of a tiny model: exact accumulation, learning, stages, resuming bit by bit, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tenth.data.collate import TrainBatch
from tenth.errors import FileFormatError, RequestError, TenthError, TrainingError, WeightsError
from tenth.model.decoder import Decoder, RunLayer
from tenth.routing.record import Routing
from tenth.routing.rule import RoutingPolicy
from tenth.train import training_run
from tenth.train.evaluate import evaluate
from tenth.train.objective import LanguageModelling
from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import read_recipe
from tenth.train.run_log import RunLog
from tenth.train.training_run import train
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tests.api.tiny import write_tokenizer
from tests.train.tiny_run import MOE, SHAPE, STAGE, raw_recipe, recipe_of, run, silent, trainer_of

TIMES = {"tok_s", "mfu", "seconds"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _gradients(recipe: Recipe) -> dict[str, Tensor]:
    """Those of the first step."""
    trainer, _ = trainer_of(recipe)
    found: dict[str, Tensor] = {}

    def keep(rate: float, norm: float) -> None:
        for part in trainer.optimizer.learned:
            assert part.parameter.grad is not None, part.name
            found[part.name] = part.parameter.grad.double()

    trainer.optimizer.step = keep  # type: ignore[method-assign]
    trainer._enter(trainer.place)
    trainer._learn(trainer._fetch(recipe.stage[0]))
    return found


def _apart(ones: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest relative difference of two sets of gradients, parameter by parameter."""
    return max(float((others[name] - one).norm() / (one.norm() + 1e-12)) for name, one in ones.items())


BALANCED = {"kind": "global", "counts": "exact", "weight": 0.1, "z_weight": 0.01}


@pytest.mark.parametrize(("compute", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])
def test_four_micro_batches_are_one_batch_of_four(compute: str, tolerance: float, tmp_path: Path) -> None:
    def gradients(rows: int, kind: str = "global") -> dict[str, Tensor]:
        stage = {**STAGE, "rows": rows, "batch_tokens": 256}
        balance = BALANCED if kind == "global" else {**BALANCED, "kind": kind, "counts": "buffered"}
        return _gradients(recipe_of(tmp_path, stage=[stage], balance=balance, precision={"compute": compute}))

    whole = gradients(8)
    assert _apart(whole, gradients(2)) < tolerance
    assert _apart(whole, gradients(2, "micro")) > 1e-3  # the balance of micro-batches is not that of the batch


def test_recomputing_layers_changes_no_gradient(tmp_path: Path) -> None:
    balance = {**BALANCED, "capacity": 1.0, "noise": 1.0}
    options: dict[str, Any] = {"balance": balance, "precision": {"compute": "float64"}}
    kept = _gradients(recipe_of(tmp_path, **options))
    again = _gradients(recipe_of(tmp_path, **options, run={"recompute": True}))
    assert _apart(kept, again) < 1e-12


def test_it_learns(tmp_path: Path) -> None:
    """Bytes of a few words over and over: 60 steps bring the loss from log 260 to less than half of it."""
    stage = {**STAGE, "steps": 60, "length": 64}
    recipe = recipe_of(tmp_path, stage=[stage], optimizer={"lr": 1e-2}, precision={"compute": "bfloat16"})
    outcome, told = run(recipe)
    losses = [record["loss"] for record in told if record["kind"] == "step"]
    evaluations = [record for record in told if record["kind"] == "evaluation"]
    assert outcome.ended
    assert losses[0] == pytest.approx(5.56, abs=0.05)
    assert losses[-1] < 2.6
    first, last = evaluations[0], evaluations[-1]
    assert set(last["domains"]) == {"a", "b"}
    assert last["loss"] < first["loss"] - 2.5
    assert last["low"] < last["loss"] < last["high"]
    assert first["saturation"] == 1.0
    assert last["saturation"] < 0.95
    assert 0 <= last["max_vio"] < 3
    assert [record["step"] for record in evaluations] == list(range(0, 61, 3))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimisers_learn(kind: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage=[{**STAGE, "steps": 25}], optimizer={"kind": kind, "lr": 1e-2})
    told = run(recipe)[1]
    assert told[-1]["loss"] < told[0]["loss"] - 1.5


def test_a_step_of_the_log(tmp_path: Path) -> None:
    told = run(recipe_of(tmp_path))[1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [record["kind"] for record in told]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["samples"] for line in steps] == [[4 * n, 4 * n + 4] for n in range(6)]
    assert [line["tokens"] for line in steps] == [128 * (n + 1) for n in range(6)]
    step = steps[0]
    assert step["lr"] == 3e-3
    names = "loss grad_norm tok_s mfu max_vio max_vio_global load_entropy router_entropy dead_experts drops"
    assert all(step[name] >= 0 for name in names.split())
    assert set(step["layers"]) == {"0", "1"}
    assert step["layers"]["1"]["load_entropy"] <= 1


def test_stages_have_their_own_data_length_schedule_and_positions(tmp_path: Path) -> None:
    stages = [
        {**STAGE, "name": "general", "steps": 2, "schedule": "constant", "warmup": 0},
        {**STAGE, "name": "knowledge", "steps": 2, "weights": {"prose": 1}, "lr_scale": 0.5, "schedule": "constant",
         "warmup": 0},
        {"name": "long", "steps": 1, "length": 128, "rows": 1, "rope_theta": 500_000, "schedule": "constant"},
    ]  # fmt: skip
    recipe = recipe_of(tmp_path, stage=stages)
    trainer, _ = trainer_of(recipe)
    domains = []
    fetch = trainer._fetch

    def spy(stage: Any) -> Any:
        batch = fetch(stage)
        seen = {batch.domains[d] for part in batch.batches for d in part.domains_T.tolist()}
        domains.append((stage.name, seen, len(batch.batches[0].batch), trainer.decoder.config.rope.theta))
        return batch

    trainer._fetch = spy  # type: ignore[method-assign]
    records: list[Any] = []
    (tmp_path / "log").mkdir()
    log = RunLog(tmp_path / "log", 0, tensorboard=False)
    with trainer.checkpoints:
        assert trainer.run(log, records.append)
    assert [name for name, *_ in domains] == ["general"] * 2 + ["knowledge"] * 2 + ["long"]
    assert domains[0][1] == {"code", "prose"}
    assert domains[2][1] == {"prose"}
    assert [tokens for _, _, tokens, _ in domains] == [64] * 4 + [128]
    assert [theta for *_, theta in domains] == [10_000.0] * 4 + [500_000.0]
    rates = [record["lr"] for record in records if record["kind"] == "step"]
    assert rates == [3e-3, 3e-3, 1.5e-3, 1.5e-3, 3e-3]
    with pytest.raises(RequestError, match=r"run: holds checkpoints, but recipe\.toml is missing"):
        run(recipe)
    outcome, _ = run(recipe, choice="fresh")
    with open_checkpoint(outcome.folder / "model") as checkpoint:
        assert checkpoint.config.rope.theta == 500_000.0
        assert checkpoint.config.context_length == 128
        assert checkpoint.config.model_type == "qwen3_moe"


FEATURES: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": {"compute": "bfloat16"}, "run": {"recompute": True}},
    "muon": {"optimizer": {"kind": "muon"}},
    "balance": {
        "model": {"shape": {**SHAPE, "model_type": "tenth", "moe": {**MOE, "expert_bias": True, "score": "sigmoid"}}},
        "balance": {"bias_rate": 0.01, "capacity": "load", "noise": 0.5, "counts": "exact"},
    },
    "stages": {"stage": [{**STAGE, "steps": 4}, {**STAGE, "name": "next", "steps": 3, "rope_theta": 1e5}]},
    "deltas": {"low_rank": {"rank": 2, "shared_rank": 2}, "optimizer": {"lr": 1e-2}},
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_run_in_pieces_is_the_run_in_one(name: str, tmp_path: Path) -> None:
    """Ended after two, then three more steps, and gone on with: every number and the model's bytes are the same."""
    (tmp_path / "one").mkdir()
    (tmp_path / "pieces").mkdir()
    whole, told = run(recipe_of(tmp_path / "one", **FEATURES[name]))
    recipe = recipe_of(tmp_path / "pieces", **FEATURES[name])
    parts: list[dict[str, Any]] = []
    for steps in (2, 3, 100):
        seen: list[int] = []

        def stop(seen: list[int] = seen, steps: int = steps) -> bool:
            seen.append(1)
            return len(seen) > steps

        outcome, piece = run(recipe, stop=stop)
        parts += piece
    assert outcome.ended
    assert outcome.first_step == 5
    assert [_timeless(record) for record in parts] == [_timeless(record) for record in told]
    folders = [whole.folder / "model", outcome.folder / "model"]
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
    logs = [[_timeless(json.loads(line)) for line in (folder.parent / "log.jsonl").open()] for folder in folders]
    assert logs[0] == logs[1]


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def test_lost_steps_are_done_again(tmp_path: Path) -> None:
    """The newest checkpoint is broken, as a kill cannot leave it but a disk can: the one before it goes on."""
    recipe = recipe_of(tmp_path, checkpoint={"keep": 3})
    told = run(recipe)[1]
    folder = tmp_path / "run" / "checkpoints"
    newest = sorted(folder.glob("step-*"))[-1]
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    notes: list[str] = []
    outcome, again = run(recipe, note=notes.append)
    assert outcome.first_step == 3
    assert [line for line in notes if "is broken and passed over" in line and "\n" not in line]
    assert [_timeless(r) for r in again] == [_timeless(r) for r in told if r["step"] > 3]
    log = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert log == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_a_run_that_ended_goes_on_where_the_recipe_is_longer(tmp_path: Path) -> None:
    run(recipe_of(tmp_path))
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    outcome, told = run(recipe_of(tmp_path))
    assert (outcome.first_step, outcome.step, told) == (6, 6, [])
    outcome, told = run(recipe_of(tmp_path, stage=[{**STAGE, "steps": 8}]))
    assert (outcome.first_step, outcome.step) == (6, 8)
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != model
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_folders_that_cannot_be_gone_on_with(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage=[{**STAGE, "steps": 2}])
    with pytest.raises(RequestError, match="there is no run to go on with"):
        run(recipe, choice="resume")
    run(recipe)
    other = recipe_of(tmp_path, optimizer={"lr": 1e-4}, balance={"kind": "micro"})
    with pytest.raises(RequestError, match=r"differs in optimizer\.lr, balance\.kind; go on with the same"):
        run(other)
    before = (tmp_path / "run" / "log.jsonl").read_text()
    assert before.count("\n") == 4
    (tmp_path / "run" / "mine.txt").write_text("x")
    run(other, choice="fresh")
    assert (tmp_path / "run" / "mine.txt").exists()
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[1])["lr"] == 1e-4
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RequestError, match="holds a model of this run, but its checkpoints are missing; begin anew"):
        run(other)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "mine.txt").write_text("x")
    with pytest.raises(RequestError, match="strange: exists and is no folder of a run"):
        run(replace(recipe, run=replace(recipe.run, out=str(tmp_path / "strange"))))


class _Broken(LanguageModelling):
    """From its `first` micro-batch on, `count` of them are not finite: the loss itself, or the gradient alone."""

    def __init__(self, first: int, count: int, gradient: bool) -> None:
        self.first, self.count, self.gradient = first, count, gradient
        self.bad: tuple[int, ...] = ()
        self.calls = 0
        self.samples: list[tuple[int, ...]] = []

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        loss, extra, routing = super().loss(decoder, batch, policy, run)
        if batch.samples not in self.samples:
            self.samples.append(batch.samples)
        if self.first <= self.samples.index(batch.samples) < self.first + self.count:
            weight = decoder.norm.weight
            # the root of nothing is 0, and has no slope
            loss = loss + ((weight - weight).abs().sum().sqrt() if self.gradient else float("nan"))
        return loss, extra, routing


def _with_objective(recipe: Recipe, objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = training_run.open_learner
    monkeypatch.setattr(
        training_run, "open_learner", lambda *arguments: replace(opened(*arguments), objective=objective)
    )


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(
    gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path)
    _with_objective(recipe, _Broken(9, 1, gradient), monkeypatch)
    what = "the gradient is nan" if gradient else "the loss is nan"
    where = r"in micro-batch 2 of 2, samples 18 to 19 \(domains: (code|prose|code, prose)\); run\.on_nan"
    message = f"step 5: {what} {where}"
    with pytest.raises(TrainingError, match=message):
        run(recipe)
    monkeypatch.undo()
    outcome, _ = run(recipe)  # what was learned before is there
    assert outcome.first_step == 4


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_such_a_batch_is_left_out(gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {**SHAPE, "model_type": "tenth", "moe": {**MOE, "expert_bias": True}}
    recipe = recipe_of(
        tmp_path,
        model={"shape": shape},
        balance={"bias_rate": 0.1},
        run={"on_nan": "skip"},
        stage=[{**STAGE, "schedule": "constant", "warmup": 0}],
    )
    trainer, _ = trainer_of(recipe)
    trainer.objective = _Broken(3, 1, gradient)
    states, records = [], []
    for _ in range(3):
        trainer._enter(trainer.place)
        records.append(trainer._learn(trainer._fetch(recipe.stage[0])))
        states.append({name: tensor.clone() for name, tensor in trainer.tensors().items()})
    assert [record["kind"] for record in records] == ["step", "skip", "step"]
    assert "micro-batch 2 of 2, samples 6 to 7" in records[1]["what"]
    assert records[1]["samples"] == [4, 8]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    changed = [name for name, tensor in states[1].items() if not torch.equal(tensor, states[2][name])]
    assert {"master/norm.weight", "balance/batches", "bias/layers.0.mlp.router.bias_E"} <= set(changed)
    assert trainer.optimizer.steps == 2
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.decoder.parameters())


class _Together(LanguageModelling):
    """Not finite in the first step, and finite where its micro-batches are computed again."""

    def __init__(self) -> None:
        self.recomputed: list[bool] = []

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        self.recomputed.append(run is not None)
        loss, extra, routing = super().loss(decoder, batch, policy, run)
        return loss * (float("inf") if len(self.recomputed) == 2 else 1), extra, routing


def test_the_search_for_the_culprit_recomputes_layers_and_may_find_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, objective = recipe_of(tmp_path, run={"recompute": True}), _Together()
    _with_objective(recipe, objective, monkeypatch)
    with pytest.raises(TrainingError, match=r"the loss is inf in micro-batches 1 to 2 of 2, samples 0 to 3 \(domains"):
        run(recipe)
    assert objective.recomputed == [True] * 4
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []  # nothing was learned


def test_too_many_of_them_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, run={"on_nan": "skip", "max_skips": 2})
    _with_objective(recipe, _Broken(0, 4, False), monkeypatch)
    assert run(recipe)[0].ended  # two in a row are borne
    _with_objective(recipe, _Broken(2, 6, False), monkeypatch)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan in micro-batch 1 of 2, .* 3 batches in a row"):
        run(recipe, choice="fresh")
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert kinds == ["evaluation", "step", "skip", "skip", "evaluation"]


def _empty(folder: Path) -> None:
    for path in (folder / "code").iterdir():
        path.write_text("")


BAD: list[tuple[dict[str, Any], Callable[[Path], None], type[TenthError], str]] = [
    ({}, _empty, TenthError, "there is no text in .*code: all 40 documents are empty"),
    ({}, lambda f: (f / "prose.jsonl").write_text('{"text": "a"}\n{"txt": 3}'), FileFormatError, r"prose\.jsonl:2"),
    ({}, lambda f: (f / "code").rename(f / "other"), RequestError, r"code: is neither a file"),
    ({"model": {"tokenizer": ""}}, lambda f: None, RequestError, "source 'code': is text, which needs a tokenizer"),
    ({"model": {"shape": {**SHAPE, "vocab_size": 100}}}, lambda f: None, RequestError, "the model's vocab_size is 100"),
    ({"model": {"tokenizer": "no/such"}}, lambda f: None, TenthError, r"model\.tokenizer: no/such"),
    ({"distill": {"teacher": "no/such"}}, lambda f: None, TenthError, r"distill\.teacher: no/such"),
    ({"run": {"device": "abacus"}}, lambda f: None, RequestError, "device is 'abacus'"),
    ({"balance": {"bias_rate": 0.1}}, lambda f: None, TenthError, "expert_bias"),
    ({"model": {"shape": {**SHAPE, "model_type": "qwen3"}}}, lambda f: None, TenthError, "it has experts"),
]


@pytest.mark.parametrize(("sections", "spoil", "error", "message"), BAD, ids=[message[:25] for *_, message in BAD])
def test_bad_input_begins_nothing(
    sections: dict[str, Any], spoil: Callable[[Path], None], error: type[TenthError], message: str, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, **sections)
    spoil(tmp_path)
    with pytest.raises(error, match=message) as caught:
        run(recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "recipe.toml").exists()
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_what_is_written_is_what_was_learned(tmp_path: Path) -> None:
    """Masters rounded once; a packed model beside it that answers nearly the same."""
    recipe = recipe_of(tmp_path, precision={"compute": "bfloat16"}, run={"packed_bits": 8, "export_dtype": "float32"})
    run(recipe)
    trainer, _ = trainer_of(recipe)
    assert trainer.restore()
    folder = tmp_path / "run"
    with open_checkpoint(folder / "model") as checkpoint:
        decoder = load_decoder(checkpoint)
        assert checkpoint.tokenizer().vocabulary == 259
    assert decoder.dtype == torch.float32
    written = dict(decoder.named_parameters())
    for name, master in trainer.optimizer.masters().items():
        assert torch.equal(written[name], master), name
    rows, names = trainer.corpus.held_out(32)
    with open_checkpoint(folder / "packed") as checkpoint:
        assert checkpoint.packed is not None
        packed = load_decoder(checkpoint)
    losses = [evaluate(model, rows, names)[0].loss for model in (decoder, packed)]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_going_on_from_a_model_and_healing_it_with_deltas(tmp_path: Path) -> None:
    """A model learns from itself as it was: nothing but routers and deltas moves, and the result has them merged."""
    run(recipe_of(tmp_path))
    source = str(tmp_path / "run" / "model")
    raw = raw_recipe(
        tmp_path,
        run={"out": str(tmp_path / "healed")},
        distill={"teacher": source},
        low_rank={"rank": 2},
        precision={"compute": "bfloat16"},
        optimizer={"lr": 1e-2},
    )
    raw["model"] = {"from": source}
    recipe = read_recipe(raw, "heal")
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace("<|im_start|>", "<|spam|>"))
    with pytest.raises(RequestError, match="a teacher must have the model's tokenizer, this has another"):
        trainer_of(read_recipe(raw | {"model": {"from": source, "tokenizer": str(other)}}, "heal"))
    trainer, _ = trainer_of(recipe)
    assert set(trainer.optimizer.coverage()) == {"routers", "deltas"}
    told = run(recipe)[1]
    steps = [record for record in told if record["kind"] == "step"]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert {"kl", "layer_error"} <= set(steps[0])
    decoders = []
    for folder in (source, str(tmp_path / "healed" / "model")):
        with open_checkpoint(Path(folder)) as checkpoint:
            decoders.append(load_decoder(checkpoint, dtype=torch.float32))
    changed = set()
    for (name, one), (_, other) in zip(decoders[0].named_parameters(), decoders[1].named_parameters(), strict=True):
        if not torch.equal(one, other):
            changed.add(name.split(".", 2)[-1])
    assert changed == {"mlp.router.weight_ED", "mlp.experts.w13_E2FD", "mlp.experts.w2_EDF"}


@pytest.mark.parametrize("every", [0, 3])
def test_a_token_that_breaks_stops_the_run_and_loses_nothing(every: int, tmp_path: Path) -> None:
    """A file goes bad while the run reads it; whole again, the run goes on and ends as if nothing had been."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    told = run(recipe_of(tmp_path / "whole"))[1]
    recipe = recipe_of(tmp_path / "broken", checkpoint={"every": every})
    files: dict[Path, bytes] = {}

    def spoil(record: Any) -> None:
        if record["step"] == 4 and not files:
            for path in (tmp_path / "broken" / "run" / "data").glob("*.tokens"):
                files[path] = path.read_bytes()
                with path.open("r+b") as file:
                    file.seek(4096)  # behind the header
                    file.write(b"\xff" * 2000)

    with pytest.raises(FileFormatError, match=r"\.tokens: .*65535"):
        train(recipe, report=silent, told=spoil)
    for path, content in files.items():
        path.write_bytes(content)
    outcome, rest = run(recipe)
    assert outcome.first_step == 5
    assert [_timeless(record) for record in rest] == [_timeless(record) for record in told if record["step"] > 5]


def test_the_first_evaluation_is_in_the_first_stage(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage=[{**STAGE, "steps": 1, "warmup": 0, "rope_theta": 77.0}])
    trainer, _ = trainer_of(recipe)
    seen: list[float] = []
    with trainer.checkpoints, RunLog(tmp_path / "run", None, tensorboard=False) as log:
        trainer.run(log, lambda record: seen.append(trainer.decoder.config.rope.theta))
    assert seen == [77.0] * 3


@pytest.mark.parametrize("every", [0, 3])
def test_a_run_at_its_end_is_evaluated_once(every: int, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, evaluation={"every": every})
    run(recipe)
    lines = (tmp_path / "run" / "log.jsonl").read_text()
    assert run(recipe)[1] == []
    assert (tmp_path / "run" / "log.jsonl").read_text() == lines


def test_a_run_that_was_stopped_at_once_keeps_its_first_evaluation(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert [record["kind"] for record in run(recipe, stop=lambda: True)[1]] == ["evaluation"]
    run(recipe)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert kinds == ["evaluation", *["step"] * 3, "evaluation", *["step"] * 3, "evaluation"]


def test_checkpoints_of_which_none_can_be_read(tmp_path: Path) -> None:
    """Nothing is begun anew in silence, and nothing of the run is touched."""
    recipe = recipe_of(tmp_path)
    run(recipe)
    folder = tmp_path / "run"
    for state in folder.glob("checkpoints/step-*/state.json"):
        state.write_text(state.read_text()[:-9])
    log = (folder / "log.jsonl").read_text()
    message = r"checkpoints: none of the checkpoints can be read \(those of steps 3, 6\); begin anew with --fresh"
    for choice in ("auto", "resume"):
        with pytest.raises(WeightsError, match=message):
            run(recipe, choice=choice)
    assert (folder / "log.jsonl").read_text() == log
    assert len(list(folder.glob("checkpoints/step-*"))) == 2
    assert run(recipe, choice="fresh")[0].ended


def test_the_log_says_how_often_sources_were_read(tmp_path: Path) -> None:
    steps = [record for record in run(recipe_of(tmp_path))[1] if record["kind"] == "step"]
    assert set(steps[0]["epochs"]) == {"code", "prose"}
    assert 0 < steps[0]["epochs"]["code"] < steps[5]["epochs"]["code"] < 1
