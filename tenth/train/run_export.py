"""A run's model as a folder: masters rounded once, to the type that is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from tenth.errors import MachineError
from tenth.kernels.reference import wide
from tenth.model.decoder import Decoder
from tenth.quantize.nearest import quantize
from tenth.quantize.policy import Policy
from tenth.train.low_rank import LowRankOptions, attach, merge
from tenth.train.recipe import Recipe
from tenth.train.run_setup import DTYPES, Learner
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import Progress
from tenth.weights.save import save_model

MODEL_NAME, PACKED_NAME, STAMP_NAME = "model", "packed", "exported.json"


def export(
    learner: Learner,
    masters: Mapping[str, Tensor],
    folder: Path,
    recipe: Recipe,
    step: int,
    report: Callable[[str], Progress],
) -> None:
    """Write `folder`/model, and `folder`/packed where it is asked for; whole, they replace those that are there.

    What they are is written last, so that an export that was killed is not taken for one.
    """
    forget_export(folder)
    decoder = learned_decoder(learner, masters, recipe.low_rank, DTYPES[recipe.run.export_dtype])
    place = folder / f".{MODEL_NAME}-{uuid4().hex}"
    save_model(
        decoder,
        place,
        tokenizer=learner.tokenizer,
        generation=learner.generation,
        progress=report("writing the model"),
    )
    _replace(place, folder / MODEL_NAME)
    if recipe.run.packed_bits:
        place = folder / f".{PACKED_NAME}-{uuid4().hex}"
        with open_checkpoint(folder / MODEL_NAME) as checkpoint:
            quantize(checkpoint, place, Policy(recipe.run.packed_bits), report("quantising"))
        _replace(place, folder / PACKED_NAME)
    elif (folder / PACKED_NAME).exists():  # of another model than the one beside it
        shutil.rmtree(folder / PACKED_NAME)
    _write_stamp(folder, _stamp(recipe, step))


def is_exported(folder: Path, recipe: Recipe, step: int) -> bool:
    """Whether what an export of this step would write is there, whole."""
    names = [MODEL_NAME, *([PACKED_NAME] if recipe.run.packed_bits else [])]
    try:
        found = json.loads((folder / STAMP_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return found == _stamp(recipe, step) and all((folder / name).is_dir() for name in names)


def forget_export(folder: Path) -> None:
    """From now on what was exported, if anything, is not known to be that of the run."""
    (folder / STAMP_NAME).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what exports that were killed left; only for one who knows that none is at work."""
    for name in (f".{MODEL_NAME}-*", f".{PACKED_NAME}-*", ".tenth-*"):
        for left in folder.glob(name):
            shutil.rmtree(left, ignore_errors=True)


def _stamp(recipe: Recipe, step: int) -> dict[str, object]:
    return {"step": step, "export_dtype": recipe.run.export_dtype, "packed_bits": recipe.run.packed_bits}


def _write_stamp(folder: Path, stamp: Mapping[str, object]) -> None:
    place = folder / f".{STAMP_NAME}.partial"
    try:
        place.write_text(json.dumps(stamp) + "\n")
        place.replace(folder / STAMP_NAME)
    except OSError as error:
        raise MachineError(f"{folder / STAMP_NAME}: cannot be written: {error.strerror}") from None


@torch.no_grad()
def learned_decoder(
    learner: Learner, masters: Mapping[str, Tensor], low_rank: LowRankOptions | None, dtype: torch.dtype
) -> Decoder:
    """What was learned, on the CPU: masters, and starting values of what is frozen; deltas merged; rounded once."""
    config, own = learner.decoder.config, dict(learner.decoder.named_parameters())
    whole = Decoder(config, dtype=wide(learner.decoder.dtype))
    for name, parameter in whole.named_parameters():
        if name in learner.start:
            parameter.copy_(learner.start[name])
    if low_rank is not None:
        attach(whole, low_rank)
    for name, parameter in whole.named_parameters():
        if name in masters or own[name].dtype == parameter.dtype:
            parameter.copy_(masters.get(name, own[name]))
    if low_rank is not None:
        merge(whole)
    if dtype == whole.dtype:
        return whole.requires_grad_(False)
    rounded, values = Decoder(config, dtype=dtype), dict(whole.named_parameters())
    for name, parameter in rounded.named_parameters():
        parameter.copy_(values[name])
    return rounded.requires_grad_(False)


def _replace(new: Path, old: Path) -> None:
    """Put a whole folder where another may be."""
    aside = old.with_name(f".{old.name}-{uuid4().hex}")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
