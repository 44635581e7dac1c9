"""One training run of ours on a step's model and batch: the other half of `train_step.py`, which starts it.

The steps are the trainer's own, timed by it: the loader's rows, forward, balance, backward, clipping, update. Only
checkpoints are left out. With `--alternate` every second step goes without the measures of balance, for their cost.

usage: python bench/train_step_tenth.py FOLDER --dtype bfloat16 --steps 5 [--alternate statistics]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch
from tenth.model.batch import Want
from tenth.model.decoder import Decoder, RunLayer
from tenth.routing.record import Routing
from tenth.routing.rule import RoutingPolicy
from tenth.train.balance import Balance
from tenth.train.corpus import Corpus
from tenth.train.cross_entropy import cross_entropy_sum
from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import read_recipe
from tenth.train.run_log import RunLog
from tenth.train.run_setup import open_learner
from tenth.train.trainer import Trainer


class NoCheckpoints:
    """In the place of a run's checkpoints: keeps nothing."""

    writing = False

    def prepare(self, tensors: Mapping[str, Tensor]) -> None: ...
    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None: ...
    def wait(self) -> None: ...


class NoBalance(Balance):
    """In the place of a run's balance: no loss, no counts, no measures."""

    def finish(self, decoder: Decoder) -> dict[str, float]:
        return {}


class PlainObjective:
    """The loss alone, without a record of routing."""

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        output = decoder(batch.batch, want=Want(logits="none", hidden=True), routing=policy, run=run)
        return cross_entropy_sum(output.hidden_TD, decoder.head.weight.dense(), batch.targets_T), {}, None


def recipe_of(options: argparse.Namespace, out: Path) -> Recipe:
    """The step as a recipe: one micro-batch, which is the whole token file; weights are drawn as they were there."""
    kind = "none" if options.alternate == "statistics" else "micro"
    raw = {
        "model": {"shape": json.loads((options.folder / "shape.json").read_text())},
        "run": {"out": str(out), "threads": options.threads, "seed": options.seed},
        "source": [{"path": str(options.folder / "batch.tokens")}],
        "stage": [{"steps": options.steps, "length": options.length, "rows": options.rows, "schedule": "constant"}],
        "optimizer": {"lr": options.rate, "weight_decay": options.decay, "clip": options.clip},
        "balance": {"kind": kind, "weight": options.balance},
        "precision": {"compute": options.dtype},
        "checkpoint": {"every": 0},
        "log": {"tensorboard": False},
    }
    return read_recipe(raw, "the step")


class Taken:
    """What the trainer tells of its steps; turns the measures of balance off and on between them where asked to."""

    def __init__(self, trainer: Trainer, alternate: bool) -> None:
        self.records: list[dict[str, Any]] = []
        self.measured: list[bool] = []
        self.processor: list[float] = []
        self._trainer, self._alternate, self._used = trainer, alternate, time.process_time()
        self._with = trainer.objective, trainer.balance
        self._without = PlainObjective(), NoBalance(trainer.decoder.config, trainer.recipe.balance)

    def tell(self, record: Mapping[str, Any]) -> None:
        """Keep a step's record, and set the next one."""
        if record["kind"] != "step":
            return
        used = time.process_time()
        self.records.append(dict(record))
        self.processor.append(used - self._used)
        self.measured.append(self._trainer.balance is self._with[1])
        # pairs in changing order: on off, off on, ...
        on = not self._alternate or len(self.records) % 4 in (0, 3)
        self._trainer.objective, self._trainer.balance = self._with if on else self._without
        self._used = time.process_time()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train; seconds, losses and more of each step."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = recipe_of(options, folder)
        learner = open_learner(recipe, lambda _: lambda done, total: None)
        corpus = Corpus(recipe, folder, None, learner.decoder.config.vocab_size, lambda _: lambda done, total: None)
        trainer = Trainer(recipe, folder, learner, corpus)
        trainer.checkpoints = NoCheckpoints()  # type: ignore[assignment]
        taken, log = Taken(trainer, options.alternate is not None), RunLog(folder, 0, tensorboard=False)
        if options.profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                trainer.run(log, taken.tell)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=options.profile))
        else:
            trainer.run(log, taken.tell)
        log.close()
    names = ("seconds", "mfu", "tok_s")
    return {
        **{name: [record[name] for record in taken.records] for name in names},
        "losses": [record["loss"] for record in taken.records],
        "processor_seconds": taken.processor,
        "measured": taken.measured,
        "tokens": options.rows * options.length,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with shape.json and batch.tokens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--balance", type=float, default=1e-3, help="weight of the balance loss")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--alternate", choices=("statistics", "loss"), help="every second step without; loss: with it")
    parser.add_argument("--profile", type=int, default=0, help="print so many lines of a profile too")
    return parser.parse_args()


def main() -> None:
    """Train and print a line of JSON."""
    print(json.dumps(run(parsed())))


if __name__ == "__main__":
    main()
