"""What is looked at to say whether a mixture of experts is healthy: loads, experts, and what changed since.

E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.observe.corpora import Progress
from tenth.observe.health_experts import LayerExperts, measure_experts
from tenth.observe.health_inputs import LayerInputs, SharedInputs
from tenth.observe.health_loads import LayerLoads, layer_loads
from tenth.observe.profiling import Part, Profiler, batches
from tenth.routing.counts import Floats
from tenth.routing.measures import saturation
from tenth.routing.profile import ProfiledModel, RoutingProfile, check_same_shape
from tenth.routing.record import Routing
from tenth.routing.super_experts import super_experts

FEWEST_CHOICES = 16
"""Assignments that the mean expert must have before anything is said of loads."""
AT_ONCE = 2048
"""Tokens of a forward pass."""
COMPARED = 2048
"""Tokens whose choices are compared with another model's."""
_MASSIVE, _MASSIVE_TIMES = 100.0, 1000.0  # Sun et al., arXiv 2402.17762: magnitude, and over the median magnitude


@dataclass(frozen=True, slots=True)
class Examined:
    """What was measured of a model, by the index of its sparse layers.

    `loads` is None for a layer without a single finite gate, `experts` for one whose inputs are no numbers. `massive`
    are layers behind which the stream has massive activations, `super_experts` experts (layer, expert) that may have
    made them. `saturation` is the agreement with another model's routers on the same tokens, where one was asked.
    """

    profile: RoutingProfile
    loads: Mapping[int, LayerLoads | None]
    experts: Mapping[int, LayerExperts | None]
    massive: tuple[int, ...]
    super_experts: tuple[tuple[int, int], ...]
    reference: RoutingProfile | None = None
    saturation: Mapping[int, float] = field(default_factory=dict)


def examine(
    decoder: Decoder,
    name: str,
    parts: Sequence[Part],
    *,
    profile: RoutingProfile | None = None,
    weights: bool = True,
    progress: Progress | None = None,
) -> Examined:
    """Show a decoder windows of text and compare its experts on some of their tokens.

    Loads are those of `profile` where one is given, else of the text. `weights`: hidden units are compared too.
    RequestError for a dense model, a profile of another one, and text that is too little.
    """
    profiler = Profiler(decoder, name)
    if profile is not None:
        check_profile(profile, profiler.profile.model)
    tokens = sum(len(part.ids) for part in parts)
    check_enough(profiler.profile.model, tokens if profile is None else profile.counts.tokens)
    inputs = SharedInputs(decoder, tokens)
    steps, done = len(parts) + len(inputs.layers), 0
    with inputs.watching():
        for batch in batches(parts, AT_ONCE):
            profiler.show(batch)
            done += len(batch)
            if progress is not None:
                progress(done, steps)
    judged = profiler.profile if profile is None else profile
    experts = dict[int, LayerExperts | None]()
    for index, layer in inputs.layers.items():
        experts[index] = measure_experts(decoder, index, layer, weights=weights)
        done += 1
        if progress is not None:
            progress(done, steps)
    massive = tuple(index for index, layer in inputs.layers.items() if _is_massive(layer))
    loads = {index: _loads(judged, at) for at, index in enumerate(judged.model.layers)}
    return Examined(judged, loads, experts, massive, loudest(judged, experts, massive))


def check_profile(profile: RoutingProfile, model: ProfiledModel) -> None:
    """RequestError unless a profile is of this model's weights."""
    check_same_shape(profile.model, model)
    if profile.model.version != model.version:
        raise RequestError(
            f"the profile is of other weights, {profile.model.name} {profile.model.version[:12]}, than {model.name} "
            f"{model.version[:12]}; to see what changed between them, hold this model against it"
        )


def check_enough(model: ProfiledModel, tokens: int) -> None:
    """RequestError where the mean expert would have less than `FEWEST_CHOICES` assignments."""
    least = math.ceil(FEWEST_CHOICES * model.experts / model.top_k)
    if tokens < least:
        raise RequestError(
            f"the text has {tokens:,} token{'s' * (tokens != 1)}, which is too little to judge {model.experts} experts "
            f"by: give at least {least:,}, so that the mean expert is chosen {FEWEST_CHOICES} times"
        )


@torch.inference_mode()
def choices(decoder: Decoder, parts: Sequence[Part]) -> Routing:
    """Which experts the first tokens of some windows go to, up to `COMPARED`."""
    found, tokens = list[Routing](), 0
    for batch in batches(parts, AT_ONCE):
        if tokens >= COMPARED:
            break
        shown = Batch.of([part.ids for part in batch], device=decoder.device)
        output = decoder(shown, want=Want(logits="none", routing="choice"))
        found.append(output.routing.detach())
        tokens += len(shown)
    return Routing.join(found)


def with_reference(
    examined: Examined, reference: RoutingProfile, own: Routing | None = None, other: Routing | None = None
) -> Examined:
    """The same, to be held against another model's profile, and against its choices where there are those."""
    check_same_shape(examined.profile.model, reference.model)
    same = {} if own is None or other is None else saturation(own, other)
    return replace(examined, reference=reference, saturation=same)


def loudest(
    profile: RoutingProfile, experts: Mapping[int, LayerExperts | None], massive: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The super experts (layer, expert): those of `super_experts`, in layers with massive activations.

    Largest outputs are those for tokens that chose the expert, where the profile has them; else for shared tokens.
    """
    layers = profile.model.layers
    if profile.outputs is not None:
        peaks_LE: Floats = profile.outputs.peaks_LE.astype(np.float64)
    else:
        peaks_LE = np.full((len(layers), profile.model.experts), np.nan)
        for row, index in enumerate(layers):
            if (found := experts[index]) is not None:
                peaks_LE[row] = found.peaks_E.numpy()
    rows = [row for row, index in enumerate(layers) if index in massive]
    return tuple(sorted((layers[row], expert) for row, expert in super_experts(peaks_LE, rows)))


def _is_massive(layer: LayerInputs) -> bool:
    return math.isfinite(layer.largest) and layer.largest > max(_MASSIVE, _MASSIVE_TIMES * layer.median)


def _loads(profile: RoutingProfile, at: int) -> LayerLoads | None:
    return layer_loads(profile, at) if profile.counts.counts_LE[at].any() else None
