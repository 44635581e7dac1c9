"""The verdict: a healthy model has no alarm, what is planted in one layer raises the right one there, and no other."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tenth.errors import RequestError
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.observe.health import Examined, choices, examine, loudest, with_reference
from tenth.observe.health_experts import measure_experts
from tenth.observe.health_inputs import LayerInputs, SharedInputs
from tenth.observe.health_report import layer_lines, record_of, told
from tenth.observe.health_verdict import Health, judge
from tenth.observe.health_words import numbered
from tenth.observe.profiling import Part, Profiler
from tests.observe.health_models import EXPERTS, copy_expert, favour, healthy_decoder, sparse, stacked, text


def judged(decoder: Decoder, tokens: int = 2048) -> tuple[Examined, Health]:
    examined = examine(decoder, "model", text(tokens))
    return examined, judge(examined)


def alarms(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {finding.kind: finding.layers for finding in judged(decoder)[1].findings if finding.alarm}


@pytest.mark.parametrize("seed", range(4))
def test_a_healthy_model(seed: int) -> None:
    examined, health = judged(healthy_decoder(seed))
    assert (health.healthy, health.findings) == (True, ())
    assert told(examined, health) == ["model: healthy (2 layers of 8 experts, 2 a token; 2,048 tokens)"]


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_copies(layer: int, shuffled: bool) -> None:
    decoder = healthy_decoder()
    copy_expert(decoder, layer, 2, 5, shuffled=shuffled)
    _, health = judged(decoder)
    assert {f.kind: f.layers for f in health.findings} == {"copies": (layer,)}
    assert health.findings[0].words == (
        f"layer {layer}: 2 of 8 experts have a double (2, 5); 2 and 5 have 100% of their units in common, "
        "CKA of outputs 1.00"
    )


def test_copies_by_outputs_alone() -> None:
    """Units of another size in all parts but the same function would be told by their answers."""
    decoder = healthy_decoder()
    copy_expert(decoder, 1, 0, 7)
    mlp, inputs = sparse(decoder, 1), SharedInputs(decoder, 2048)
    with inputs.watching():
        choices(decoder, text())
    found = measure_experts(decoder, 1, inputs.layers[1], weights=False)
    assert found is not None
    assert found.units_EE is None
    assert found.unbiased_EE is not None
    assert float(found.unbiased_EE[0, 7]) == pytest.approx(1, abs=1e-9)
    assert mlp.experts.num_experts == EXPERTS


def test_near_copies() -> None:
    decoder = healthy_decoder()
    for part in stacked(decoder, 2):
        part[3] = 0.5 * part[3] + 0.5 * part[6]
    assert alarms(decoder) == {"copies": (2,)}


def test_dead_experts() -> None:
    decoder = healthy_decoder()
    favour(decoder, 1, (0, 4), -100)
    examined, health = judged(decoder)
    assert alarms(decoder) == {"dead": (1,)}
    assert health.findings[0].words == "layer 1: 2 of 8 experts get next to no work (0, 4)"
    assert examined.loads[1] is not None
    assert examined.loads[1].dead == (0, 4)


def test_one_expert_for_all() -> None:
    decoder = healthy_decoder()
    favour(decoder, 2, (3,), 100)
    _, health = judged(decoder)
    assert health.alarms == {"concentrated"}
    assert health.findings[0].words == "layer 2: expert 3 is chosen by 100% of the tokens, fair is 25%"


def test_all_tokens_to_the_same_experts() -> None:
    decoder = healthy_decoder()
    sparse(decoder, 1).router.weight_ED.zero_()  # ties go to the lowest ids
    found = {f.kind: f.layers for f in judged(decoder)[1].findings}
    assert found["dead"] == found["concentrated"] == found["undecided"] == (1,)
    assert set(found) == {"dead", "concentrated", "undecided"}


def test_a_router_that_gives_all_weight_to_one() -> None:
    decoder = healthy_decoder()
    sparse(decoder, 2).router.weight_ED.mul_(1e4)
    assert alarms(decoder) == {"certain": (2,)}


def test_silent_experts() -> None:
    decoder = healthy_decoder()
    stacked(decoder, 1)[1][6].zero_()
    assert alarms(decoder) == {"silent": (1,)}


def test_weights_that_are_no_numbers() -> None:
    decoder = healthy_decoder()
    stacked(decoder, 1)[0][3, 0, 0] = math.nan
    examined, health = judged(decoder)
    assert "broken" in health.alarms
    assert health.findings[0].words.startswith("layer 1: experts 3 answer with what is no number; layers behind it (2)")
    json.dumps(record_of(examined, health), allow_nan=False)
    assert layer_lines(examined, health)


def test_a_layer_that_is_no_number() -> None:
    decoder = healthy_decoder()
    decoder.blocks()[2].mlp_norm.weight.fill_(math.nan)
    examined, health = judged(decoder)
    assert health.alarms == {"broken"}
    assert health.findings[0].words == (
        "layer 2: all that comes to its experts is no number: something before them is broken"
    )
    assert examined.loads[2] is None
    router = healthy_decoder()
    sparse(router, 2).router.weight_ED.fill_(math.nan)
    _, health = judged(router)
    assert health.findings[0].words == "layer 2: gates of 2,048 tokens are no numbers"


def test_against_another_state_of_the_model() -> None:
    decoder, before = healthy_decoder(), healthy_decoder()
    rows_ED = sparse(decoder, 2).router.weight_ED
    rows_ED.copy_(rows_ED.roll(3, 0))  # as even as before, but each expert has another's tokens
    parts = text()
    reference = Profiler(before, "before")
    reference.show(parts)
    examined = examine(decoder, "model", parts)
    same = with_reference(examined, reference.profile, choices(decoder, parts), choices(before, parts))
    health = judge(same)
    assert health.drift[1].saturation == 1
    assert health.drift[1].divergence == 0
    assert health.drift[2].saturation is not None
    assert health.drift[2].saturation < 0.6
    assert {f.kind: f.layers for f in health.findings if f.alarm}["choice drift"] == (2,)
    without = judge(with_reference(examined, reference.profile))
    assert without.drift[2].saturation is None
    other = Profiler(healthy_decoder(experts=4), "other")
    with pytest.raises(RequestError, match="8 experts, other 4"):
        with_reference(examined, other.profile)


def test_experts_that_lost_their_work_since() -> None:
    decoder, parts = healthy_decoder(), text()
    reference = Profiler(healthy_decoder(), "before")
    reference.show(parts)
    favour(decoder, 2, (1, 5), -100)
    health = judge(with_reference(examine(decoder, "model", parts), reference.profile))
    assert health.drift[2].newly_dead == (1, 5)
    assert health.drift[2].load_entropy < -0.1
    assert "load drift" in health.alarms


def test_loads_of_other_text_are_no_alarm() -> None:
    before = healthy_decoder()
    favour(before, 2, (1, 5), -100)
    reference = Profiler(before, "before")
    reference.show(text(1024, seed=3))
    health = judge(with_reference(examine(healthy_decoder(), "model", text()), reference.profile))
    assert {finding.kind: finding.alarm for finding in health.findings} == {"load drift": False, "other text": False}
    assert health.healthy


def test_numbers_as_ranges() -> None:
    assert numbered([4]) == "4"
    assert numbered([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert numbered(range(0, 40, 2), most=2) == "0, 2 and 18 more"


def test_a_profile_of_other_text() -> None:
    decoder = healthy_decoder()
    favour(decoder, 1, (0, 4), -100)
    profiler = Profiler(decoder, "there")
    profiler.show(text(seed=5))
    examined = examine(decoder, "here", text(512), profile=profiler.profile)
    assert examined.profile.counts.tokens == 2048
    assert judge(examined).alarms == {"dead"}
    with pytest.raises(RequestError, match="the profile is of other weights, there"):
        examine(healthy_decoder(1), "here", text(512), profile=profiler.profile)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(RequestError, match=r"the text has 1 token, which is too little .* give at least 64"):
        examine(healthy_decoder(), "model", [Part([5], "code")])
    with pytest.raises(RequestError, match="has no experts"):
        examine(initialise(Decoder(replace(preset("tiny-moe"), moe=None, sparse_layers=())), 0), "model", text(64))


def test_super_experts() -> None:
    decoder = healthy_decoder(experts=32)
    stacked(decoder, 1)[1][9, 0].mul_(1e5)  # one channel, as in models that were trained
    examined, health = judged(decoder)
    assert examined.super_experts == ((1, 9),)
    assert 1 in examined.massive
    note = next(f for f in health.findings if f.kind == "super experts")
    assert (note.alarm, note.words) == (False, "L1E9")
    peaks = replace(examined.profile)
    peaks.outputs = None  # a profile without outputs: those of the shared tokens stand for them
    assert (1, 9) in loudest(peaks, examined.experts, examined.massive)
    assert loudest(peaks, {**examined.experts, 2: None}, examined.massive) == ((1, 9),)
    assert loudest(examined.profile, examined.experts, ()) == ()


def test_shared_inputs_are_those_of_the_layer() -> None:
    decoder, parts = healthy_decoder(), text(256)
    seen = dict[int, list[torch.Tensor]]()
    for index in decoder.config.sparse_layers:
        keep = seen.setdefault(index, [])
        decoder.blocks()[index].mlp.register_forward_pre_hook(lambda _, given, keep=keep: keep.append(given[0].clone()))
    inputs = SharedInputs(decoder, 256, 16)
    with inputs.watching():
        choices(decoder, parts[:1])
        choices(decoder, parts[1:])
    at_N = np.linspace(0, 255, 16).round().astype(int)
    for index, layer in inputs.layers.items():
        assert torch.equal(layer.x_ND, torch.cat(seen[index])[at_N])
        assert layer.largest > layer.median > 0
    choices(decoder, parts)  # nothing is looked at any more
    assert all(len(layer.x_ND) == 16 for layer in inputs.layers.values())


def test_too_few_shared_tokens_are_not_compared() -> None:
    decoder = healthy_decoder()
    found = measure_experts(decoder, 1, LayerInputs([torch.randn(5, 64)]))
    assert found is not None
    assert (found.cka_EE, found.units_EE) == (None, None)
    assert measure_experts(decoder, 1, LayerInputs([torch.full((5, 64), math.nan)])) is None
