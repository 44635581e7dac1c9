"""A training run from recipe to folder: begun, continued or refused, and its model at the end."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tenth.data.token_writer import sweep as sweep_tokens
from tenth.errors import MachineError, RequestError, WeightsError
from tenth.kernels.cpu.machine import usable_threads
from tenth.train.corpus import Corpus
from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import load_recipe
from tenth.train.recipe_writer import differences, recipe_text
from tenth.train.run_checkpoint import RunCheckpoints
from tenth.train.run_export import MODEL_NAME, PACKED_NAME, STAMP_NAME, export, forget_export, is_exported, sweep
from tenth.train.run_log import LOG_NAME, RunLog
from tenth.train.run_setup import open_learner
from tenth.train.trainer import Told, Trainer
from tenth.weights.load import Progress

RECIPE_NAME = "recipe.toml"
_CHECKPOINTS, _DATA = "checkpoints", "data"
_OURS = ("tensorboard", STAMP_NAME, MODEL_NAME, PACKED_NAME, LOG_NAME, RECIPE_NAME)

Choice = Literal["auto", "resume", "fresh"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went: its folder, the step it began with and the one it got to, and whether that is the end."""

    folder: Path
    first_step: int
    step: int
    tokens: int
    ended: bool


def train(
    recipe: Recipe,
    *,
    choice: Choice = "auto",
    report: Callable[[str], Progress],
    told: Told = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Carry out a recipe in its folder, going on where an earlier run of the same recipe got to.

    `fresh` begins anew and removes that earlier run, `resume` refuses to begin. `stop` is asked behind every step.
    RequestError where the folder holds a run of another recipe, naming the keys that differ; MachineError where the
    disk refuses; TrainingError where a loss is not finite and the recipe says to stop; WeightsError where there are
    checkpoints and none can be read.
    """
    folder = Path(recipe.run.out)
    _check_folder(folder, recipe, choice)
    torch.set_num_threads(usable_threads(recipe.run.threads or None))
    learner = open_learner(recipe, report)
    vocab_size = learner.decoder.config.vocab_size
    corpus = Corpus(recipe, folder / _DATA, learner.tokenizer, vocab_size, report)
    trainer = Trainer(recipe, folder, learner, corpus)
    with trainer.checkpoints:
        trainer.checkpoints.take()  # before anything of a run that is at work is touched
        if choice == "fresh":
            _remove(folder)
        sweep(folder)
        sweep_tokens(folder / _DATA)
        restored = _restored(trainer, note)
        _write_recipe(folder, recipe)
        note(_beginning(trainer))
        first = trainer.step
        exported = is_exported(folder, recipe, first)
        if not exported:
            forget_export(folder)
        refused: MachineError | None = None
        with RunLog(folder, first if restored else None, tensorboard=recipe.log.tensorboard) as log:
            try:
                ended = trainer.run(log, told, stop)
            except MachineError as error:  # a disk with no room for the last checkpoint may have some for the model
                refused, ended = error, trainer.ended
        if ended and not (exported and trainer.step == first):
            try:
                export(learner, trainer.optimizer.masters(), folder, recipe, trainer.step, report)
            except (MachineError, WeightsError):
                if refused is None:
                    raise
        if refused is not None:
            raise refused
    return Outcome(folder, first, trainer.step, trainer.tokens, ended)


def _restored(trainer: Trainer, note: Callable[[str], None]) -> bool:
    """Whether the run goes on; it does not begin anew over checkpoints that somebody may still want to save."""
    with warnings.catch_warnings(record=True) as broken:
        warnings.simplefilter("always")
        restored = trainer.restore()
    for warning in broken:
        note(str(warning.message))
    if restored:
        return True
    if steps := trainer.checkpoints.steps():
        raise WeightsError(
            f"{trainer.checkpoints.folder}: none of the checkpoints can be read (those of steps "
            f"{', '.join(map(str, steps))}); begin anew with --fresh"
        )
    return False


def _beginning(trainer: Trainer) -> str:
    groups = ", ".join(
        f"{name} {numbers:,} in {count}" for name, (count, numbers) in trainer.optimizer.coverage().items()
    )
    start = f"going on behind step {trainer.step}" if trainer.step else "from the start"
    return f"{start}; learning: {groups}"


def _check_folder(folder: Path, recipe: Recipe, choice: Choice) -> None:
    """Refuse what cannot be begun or continued, before anything is read or written."""
    known, learned = folder / RECIPE_NAME, RunCheckpoints(folder / _CHECKPOINTS, 1).steps()
    if learned and choice != "fresh":
        if not known.exists():
            raise RequestError(f"{folder}: holds checkpoints, but {RECIPE_NAME} is missing; begin anew with --fresh")
        keys = differences(load_recipe(str(known)), recipe)
        if keys:
            raise RequestError(
                f"{folder}: holds a run of another recipe, it differs in {', '.join(keys)}; "
                "go on with the same, choose another run.out, or begin anew with --fresh"
            )
    elif choice == "resume":
        raise RequestError(f"{folder}: there is no run to go on with")
    elif choice != "fresh" and (folder / MODEL_NAME).exists() and known.exists():
        raise RequestError(
            f"{folder}: holds a model of this run, but its checkpoints are missing; begin anew with --fresh"
        )
    elif not learned and not known.exists() and folder.exists() and (not folder.is_dir() or _strangers(folder)):
        raise RequestError(f"{folder}: exists and is no folder of a run; choose another run.out or remove it first")


def _strangers(folder: Path) -> bool:
    return any(path.name != _DATA for path in folder.iterdir())


def _remove(folder: Path) -> None:
    """Remove what a run wrote, and nothing else: first what it could be continued from."""
    for path in (*(folder / _CHECKPOINTS).glob("step-*"), *(folder / name for name in _OURS)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f".{RECIPE_NAME}.partial"
        place.write_text(recipe_text(recipe), encoding="utf-8")
        place.replace(folder / RECIPE_NAME)
    except OSError as error:
        raise MachineError(f"{folder}: cannot be written: {error.strerror}") from None
