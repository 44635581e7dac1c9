"""Which stage a step belongs to, and how high the learning rate is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tenth.train.recipe import StageOptions


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is: a stage, and the steps done in it."""

    stage: int = 0
    step: int = 0


def settled(place: Place, stages: Sequence[StageOptions]) -> Place | None:
    """The place whose step comes next: stages that are done lie behind it. None at the end."""
    while place.stage < len(stages):
        if place.step < stages[place.stage].total_steps:
            return place
        place = Place(place.stage + 1)
    return None


def rate(step: int, stage: StageOptions) -> float:
    """The learning rate of a stage's step (from 0) over the optimiser's highest.

    Warm-up rises linearly and reaches the top with its last step. What follows falls from 1 to `final`, which the
    stage's last step has: along half a cosine wave, a line, or a line over the last `decay` of the steps (`wsd`,
    arXiv 2404.06395).
    """
    return stage.lr_scale * (_rise(step, stage) if step < stage.warmup else _fall(step, stage))


def _rise(step: int, stage: StageOptions) -> float:
    return (step + 1) / stage.warmup


def _fall(step: int, stage: StageOptions) -> float:
    steps = stage.total_steps
    start = max(stage.warmup, steps - max(round(stage.decay * steps), 1)) if stage.schedule == "wsd" else stage.warmup
    done = min(max((step - start + 1) / (steps - start), 0.0), 1.0)
    match stage.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return stage.final + (1 - stage.final) * (1 + math.cos(math.pi * done)) / 2
    return 1 - (1 - stage.final) * done
