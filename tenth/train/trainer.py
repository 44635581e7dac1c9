"""Training: the loop, one step of it, and what a checkpoint holds."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch, collate
from tenth.data.loader import Loader
from tenth.errors import FileFormatError, MachineError, TrainingError
from tenth.model.batch import Want
from tenth.train.balance import Balance
from tenth.train.corpus import Corpus
from tenth.train.device import moved
from tenth.train.optimizer import Optimizer
from tenth.train.recipe import Recipe, StageOptions
from tenth.train.recompute import Recompute
from tenth.train.run_checkpoint import RunCheckpoints
from tenth.train.run_log import RunLog
from tenth.train.run_setup import Learner
from tenth.train.run_watch import RunWatch, Speed
from tenth.train.schedule import Place, rate, settled

Told = Callable[[Mapping[str, Any]], None]
"""Given the record of every step and evaluation."""


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """The micro-batches of one step; `targets` and `real` count tokens that have a target, and that are no padding."""

    batches: tuple[TrainBatch, ...]
    targets: int
    real: int
    domains: tuple[str, ...]


class Trainer:
    """One run; `run` goes on from where it is to the end of the last stage."""

    def __init__(self, recipe: Recipe, folder: Path, learner: Learner, corpus: Corpus) -> None:
        self.recipe, self.decoder, self.objective, self.corpus = recipe, learner.decoder, learner.objective, corpus
        self.optimizer = Optimizer(self.decoder.named_parameters(), recipe.optimizer, learner.start)
        self.balance = Balance(self.decoder.config, recipe.balance, recipe.run.seed)
        self.checkpoints = RunCheckpoints(folder / "checkpoints", recipe.checkpoint.keep)
        self.watch = RunWatch(recipe, self.decoder, corpus)
        self.step, self.tokens, self.place = 0, 0, Place()
        self._start_rope, self._start_context = self.decoder.config.rope, self.decoder.config.context_length
        self._recompute = Recompute() if recipe.run.recompute else None
        self._loader: tuple[int, Loader] | None = None
        self._skips, self._evaluated, self._saved, self._begun = 0, -1, -1, False

    def run(self, log: RunLog, told: Told = lambda _: None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end, or until `stop()` says so behind a step; a checkpoint then holds all. Whether it ended."""
        speed = Speed.measured(self.decoder)
        self.checkpoints.prepare(self.tensors())
        if not self._begun:
            self._begin(log, told)
        while (place := settled(self.place, self.recipe.stage)) is not None and not stop():
            before = self.state()
            try:
                record = self._step(place, speed)
            except (FileFormatError, TrainingError):
                if self.step:
                    self._rescue(before, log, told)
                raise
            self._tell(record, log, told)
            if self._due(self.recipe.evaluation.every) or settled(self.place, self.recipe.stage) is None:
                self._evaluate(log, told)  # before a checkpoint of the same step, which says that it was done
            if self._due(self.recipe.checkpoint.every):
                self._save(log, told)
            if not self.checkpoints.writing:
                self._settle(log, told)  # a failure is known now, not at the next one
        if place is None:
            self._evaluate(log, told)
        self._save(log, told)
        self.checkpoints.wait()
        return place is None

    def _step(self, place: Place, speed: Speed) -> dict[str, Any]:
        """One step and its record."""
        started = time.perf_counter()
        self._enter(place)
        batch = self._fetch(self.recipe.stage[place.stage])
        record = self._learn(batch) | {"epochs": self._epochs()}
        self.step, self.place = self.step + 1, replace(place, step=place.step + 1)
        return record | speed.of(self.decoder.config, batch.batches, time.perf_counter() - started)

    @property
    def ended(self) -> bool:
        """Whether every step of the recipe was done."""
        return settled(self.place, self.recipe.stage) is None

    def _learn(self, batch: GlobalBatch) -> dict[str, Any]:
        """One step of the optimiser: gradients are summed over micro-batches, as if they were one."""
        self.balance.begin(batch.real, self.step)
        self._count(batch)
        loss, extra = 0.0, dict[str, float]()
        for micro, part in enumerate(batch.batches):
            summed, sums, routing = self.objective.loss(self.decoder, part, self._policy(micro, part), self._recompute)
            total = summed / batch.targets
            loss += float(total.detach())
            for name, value in sums.items():
                extra[name] = extra.get(name, 0.0) + value / batch.targets
            if routing is not None:
                total = total + self.balance.loss(routing, part.batch.bounds, _padding(part))
            total.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.norm()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._leave_out(batch, loss, norm)
        factor = rate(self.place.step, self.recipe.stage[self.place.stage])
        self.optimizer.step(factor, norm)
        self.tokens, self._skips = self.tokens + batch.real, 0
        record = {"kind": "step", "loss": loss, **extra, **self.optimizer.rates(factor), "grad_norm": norm}
        return record | self.balance.finish(self.decoder) | _layers(self.balance) | _samples(batch)

    def _policy(self, micro: int, part: TrainBatch) -> Any:
        return self.balance.policy(micro, _padding(part))

    @torch.no_grad()
    def _count(self, batch: GlobalBatch) -> None:
        """The counting pass of exact global balance: where tokens go, before any gradient."""
        if not self.balance.counting:
            return
        want = Want(logits="none", routing="choice")
        for micro, part in enumerate(batch.batches):
            output = self.decoder(part.batch, want=want, routing=self._policy(micro, part))
            assert output.routing is not None, "asked for"
            self.balance.count(output.routing, _padding(part))

    def _begin(self, log: RunLog, told: Told) -> None:
        torch.manual_seed(self.recipe.run.seed)
        self._enter(self.place)
        self.watch.begin()
        self._begun = True
        if self.recipe.evaluation.source:
            self._evaluate(log, told)

    def _enter(self, place: Place) -> None:
        """Turn to a stage: its data, its rotary positions."""
        if self._loader is None or self._loader[0] != place.stage:
            self._loader = place.stage, self.corpus.loader(place.stage)
        self.place = place
        done = self.recipe.stage[: place.stage + 1]
        theta = next((stage.rope_theta for stage in reversed(done) if stage.rope_theta), self._start_rope.theta)
        context = max(self._start_context, *(stage.length for stage in done))
        if (theta, context) != (self.decoder.config.rope.theta, self.decoder.config.context_length):
            self.decoder.set_rope(replace(self._start_rope, theta=theta), context)

    def _fetch(self, stage: StageOptions) -> GlobalBatch:
        assert self._loader is not None, "a stage was entered"
        loader = self._loader[1]
        batches = [collate([loader.next() for _ in range(stage.rows)]) for _ in range(stage.micro_batches)]
        targets = sum(batch.loss_tokens for batch in batches)
        real = sum(int(batch.real_T.sum()) for batch in batches)
        moved_batches = tuple(moved(batch, self.decoder.device) for batch in batches)
        return GlobalBatch(moved_batches, max(targets, 1), real, loader.domains)

    def _epochs(self) -> dict[str, float]:
        assert self._loader is not None, "a stage was entered"
        return self._loader[1].epochs()

    def _leave_out(self, batch: GlobalBatch, loss: float, norm: float) -> dict[str, Any]:
        """Weights, averages and balance stay as they were; TrainingError where the run is to stop."""
        self.optimizer.forget()
        what = self._culprit(batch, f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient is {norm}")
        self._skips += 1
        if self.recipe.run.on_nan == "stop":
            raise TrainingError(f"step {self.step + 1}: {what}; run.on_nan = 'skip' leaves such batches out")
        if self._skips > self.recipe.run.max_skips:
            raise TrainingError(f"step {self.step + 1}: {what}; {self._skips} batches in a row were left out")
        return {"kind": "skip", "what": what, "in_a_row": self._skips} | _samples(batch)

    def _culprit(self, batch: GlobalBatch, what: str) -> str:
        """The first micro-batch that is not finite by itself, in words; all of them where none is."""
        found = range(len(batch.batches))
        for micro, part in enumerate(batch.batches):
            loss, _, _ = self.objective.loss(self.decoder, part, self._policy(micro, part), self._recompute)
            loss.backward()  # type: ignore[no-untyped-call]
            finite = math.isfinite(float(loss.detach())) and math.isfinite(self.optimizer.norm())
            self.optimizer.forget()
            if not finite:
                found = range(micro, micro + 1)
                break
        parts = [batch.batches[micro] for micro in found]
        numbers = [sample for part in parts for sample in part.samples]
        named = sorted({domain for part in parts for domain in part.domains_T.tolist() if domain >= 0})
        count = len(batch.batches)
        where = f"micro-batch {found[0] + 1}" if len(found) == 1 else f"micro-batches 1 to {count}"
        domains = ", ".join(batch.domains[domain] for domain in named)
        return f"{what} in {where} of {count}, samples {numbers[0]} to {numbers[-1]} (domains: {domains})"

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _tell(self, record: dict[str, Any], log: RunLog, told: Told) -> None:
        """Give a record its place in the run, and write it where it is due."""
        stage = self.recipe.stage[min(self.place.stage, len(self.recipe.stage) - 1)].name
        record = {"kind": record["kind"], "step": self.step, "tokens": self.tokens, "stage": stage} | record
        if record["kind"] != "step" or self._due(self.recipe.log.every):
            log.write(record)
        told(record)

    def _evaluate(self, log: RunLog, told: Told) -> None:
        if self._evaluated != self.step:
            record = self.watch.evaluation(min(self.place.stage, len(self.recipe.stage) - 1))
            self._tell(record, log, told)
        self._evaluated = self.step

    def _settle(self, log: RunLog, told: Told) -> None:
        """Wait for the checkpoint that is being written; one that failed is told, or stops the run."""
        try:
            self.checkpoints.wait()
        except MachineError as error:
            if self.recipe.checkpoint.on_failure == "stop":
                raise
            self._saved = -1  # it may be the one of this step, which is then tried again at the end
            self._tell({"kind": "unsaved", "what": str(error)}, log, told)

    def _save(self, log: RunLog, told: Told, state: dict[str, Any] | None = None) -> None:
        if self._saved != self.step:
            self._settle(log, told)
            log.flush()
            self.checkpoints.save(self.step, self.tensors(), self.state() if state is None else state)
        self._saved = self.step

    def _rescue(self, before: dict[str, Any], log: RunLog, told: Told) -> None:
        """Keep what was learned until a step that failed, which changed no weights; it is done again from `before`."""
        try:
            self._save(log, told, before)
            self.checkpoints.wait()
        except MachineError as error:
            warnings.warn(str(error), stacklevel=2)  # what ends the run matters more

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint holds: filled in place, they put the run back, but for random states."""
        parameters = self.decoder.named_parameters()
        biases = {f"bias/{name}": value.data for name, value in parameters if name.endswith(".router.bias_E")}
        balance = {f"balance/{name}": value for name, value in self.balance.state_dict().items()}
        kept = {} if self.watch.probe is None else self.watch.probe.tensors()
        probe = {f"probe/{name}": value for name, value in kept.items()}
        return self.optimizer.tensors() | biases | balance | probe | _random_states(self.decoder.device)

    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint."""
        return {
            "tokens": self.tokens,
            "stage": self.place.stage,
            "stage_step": self.place.step,
            "skips": self._skips,
            "evaluated": self._evaluated,
            "optimizer_steps": self.optimizer.steps,
            "loader": None if self._loader is None else self._loader[1].state_dict(),
        }

    def restore(self) -> bool:
        """Go back to the newest whole checkpoint; whether there is one. WeightsError where it is of another model."""
        step = self.checkpoints.latest()
        if step is None:
            return False
        tensors = self.tensors()
        state = self.checkpoints.load(step, tensors)
        self.optimizer.steps = state["optimizer_steps"]
        self.optimizer.publish()
        _set_random_states(tensors)
        self.step, self.tokens, self.place = step, state["tokens"], Place(state["stage"], state["stage_step"])
        self._skips, self._evaluated, self._saved = state["skips"], state["evaluated"], step
        self._begun = True
        if state["loader"] is not None:
            self._loader = self.place.stage, self.corpus.loader(self.place.stage)
            self._loader[1].load_state_dict(state["loader"])
            self._enter(self.place)
        return True


def _padding(part: TrainBatch) -> Tensor | None:
    """Which tokens are real; None where all are, which costs nothing."""
    return None if bool(part.real_T.all()) else part.real_T


def _layers(balance: Balance) -> dict[str, Any]:
    return {"layers": balance.layers} if balance.layers else {}


def _samples(batch: GlobalBatch) -> dict[str, Any]:
    """The first sample of the step, and the one behind its last."""
    return {"samples": [batch.batches[0].samples[0], batch.batches[-1].samples[-1] + 1]}


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    return states | ({"random/cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_states(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
