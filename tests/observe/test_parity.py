"""Parity by layer against plain passes, and what is said of copies, damage and noise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.observe.parity import VerifyOptions, passed, verify
from tenth.observe.parity_sides import opened
from tenth.routing.measures import saturation
from tests.observe.parity_models import (
    CONFIG,
    LAYERS,
    compared,
    corpus,
    decoder_of,
    negate,
    noise,
    quantised,
    sides,
    windows,
    write,
)
from tests.weights.models import raw_config, write_folder, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parity") / "a")


@pytest.fixture(scope="module")
def int8(model: Path) -> Path:
    return quantised(model, model.with_name("int8"), 8)


@pytest.fixture(scope="module")
def int4(model: Path) -> Path:
    return quantised(model, model.with_name("int4"), 4)


# ---- equal models


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["a", "int4"])
def test_a_model_is_identical_to_itself(model: Path, int4: Path, name: str, backend: str) -> None:
    path = model.with_name(name)
    found = compared(path, path, share=0.2, greedy=12, backend=backend)
    assert found["kl"]["max"] == 0
    assert (found["kl"]["mean"], found["kl"]["low"], found["kl"]["high"]) == (0, 0, 0)
    assert found["top1"] == found["routing"]["min"] == found["greedy"]["agreement"] == 1
    assert found["perplexity"]["ratio"] == 1
    assert found["replayed"]["kl_mean"] == 0
    assert found["verdict"]["kind"] == "identical"
    assert max(layer["error"] for layer in found["layers"]) <= (0 if name == "a" else 1e-7)  # packed sums are grouped
    assert passed(found)


# ---- the figures, by a slow count of their own


def _plain(decoder: Decoder, routing: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (float64) of all positions with a next token, and that token."""
    out, after = [], []
    for ids in windows():
        logits = decoder(Batch.of([ids])).logits_NV
        assert logits is not None
        out.append(logits[:-1].double().log_softmax(-1))
        after.append(torch.tensor(ids[1:]))
    return torch.cat(out), torch.cat(after)


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_layer_by_layer_is_the_plain_pass(model: Path, tmp_path: Path, share: float) -> None:
    change = noise(0.05)
    found = compared(model, write(tmp_path / "b", change), share=share)
    a, b = decoder_of(), decoder_of(change=change)
    (p, after), (q, _) = _plain(a), _plain(b)
    kl = (p.exp() * (p - q)).sum(-1)
    assert found["positions"] == len(kl) == 6 * 63
    assert found["kl"]["mean"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["kl"]["p99"] == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert found["kl"]["max"] == pytest.approx(float(kl.max()), rel=1e-3)
    assert found["top1"] == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    losses = [float(-x.gather(1, after[:, None]).mean()) for x in (p, q)]
    assert found["perplexity"]["a"] == pytest.approx(math.exp(losses[0]), rel=1e-5)
    assert found["perplexity"]["b"] == pytest.approx(math.exp(losses[1]), rel=1e-5)
    batch, want = Batch.of(windows()), Want(logits="none", routing="choice")
    routed = [one(batch, want=want).routing for one in (a, b)]
    agreed = saturation(*routed)
    assert {layer["layer"]: layer["agreement"] for layer in found["routing"]["layers"]} == pytest.approx(agreed)
    assert found["kl"]["low"] < found["kl"]["mean"] < found["kl"]["high"]


@torch.no_grad()
def test_replay_is_the_decoders_replay(model: Path, tmp_path: Path) -> None:
    change = noise(0.1)
    found = compared(model, write(tmp_path / "b", change))
    a, b = decoder_of(), decoder_of(change=change)
    batch = Batch.of(windows())
    own = a(batch, want=Want(routing="choice"))
    other = b(batch, routing=own.routing)
    p, q = (out.logits_NV.double().log_softmax(-1) for out in (own, other))
    inner = torch.ones(len(batch), dtype=torch.bool)
    inner[batch.last_T] = False
    kl = (p.exp() * (p - q)).sum(-1)[inner]
    assert found["replayed"]["kl_mean"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["replayed"]["plain_kl_mean"] == pytest.approx(found["kl"]["mean"])
    assert found["replayed"]["kl_mean"] < found["kl"]["mean"]


@torch.no_grad()
def test_a_layers_error_is_that_of_its_own_output(model: Path, tmp_path: Path) -> None:
    """With only attention changed the error is ||layer_B(x) - layer_A(x)|| / ||layer_A(x) - x||, but for the rest."""
    found = compared(model, write(tmp_path / "b", negate("layers.2.attention.o.weight.values_OI")))
    a = decoder_of()
    states: list[torch.Tensor] = []

    def note(index: int, layer: object, x_TD: torch.Tensor, replay: object) -> object:
        states.append(x_TD)
        return layer(x_TD, replay)  # type: ignore[operator]

    a(Batch.of(windows()), run=note)
    attended = a.blocks()[2].attention(
        a.blocks()[2].attention_norm(states[2]), Batch.of(windows()), a.cos_sin(Batch.of(windows())), None
    )
    expected = 2 * attended.norm() / (states[3] - states[2]).norm()
    assert found["layers"][2]["error"] == pytest.approx(float(expected), rel=1e-3)
    assert found["layers"][2]["parts"]["attention"] == pytest.approx(2.0, rel=1e-4)
    assert found["layers"][3]["error"] < 1e-5


# ---- copies


def test_fewer_bits_are_farther(model: Path, int8: Path, int4: Path) -> None:
    eight, four = compared(model, int8, greedy=12), compared(model, int4, greedy=12)
    assert 0 < eight["kl"]["mean"] < four["kl"]["mean"] / 4
    assert eight["top1"] > four["top1"]
    assert eight["routing"]["mean"] > four["routing"]["mean"]
    for mine, others in zip(eight["layers"], four["layers"], strict=True):
        assert 0 < mine["error"] < others["error"] / 4
    assert eight["verdict"]["kind"] in ("compressed", "rounding")
    assert four["verdict"]["kind"] == "compressed"
    assert four["b"]["bits_per_weight"] < eight["b"]["bits_per_weight"] < eight["a"]["bits_per_weight"] == 32


def test_precisions_and_formats_of_one_model(model: Path, int8: Path) -> None:
    with opened(model, "a", dtype=torch.bfloat16) as a, opened(int8, "b") as b:
        found = verify(a, b, corpus(), VerifyOptions(1.0, 8, 8))
    assert (found["a"]["dtype"], found["b"]["dtype"]) == ("bfloat16", "float32")
    assert found["verdict"]["kind"] in ("compressed", "rounding")
    assert max(layer["error"] for layer in found["layers"]) < 0.05
    with opened(model, "a") as a, opened(model, "b", dtype=torch.bfloat16) as b:
        found = verify(a, b, corpus(), VerifyOptions(1.0, 8, 8))
    assert found["verdict"]["kind"] in ("rounding", "retrained")
    with opened(model, "a", dtype=torch.float64) as a, opened(model, "b", dtype=torch.float32) as b:
        found = verify(a, b, corpus(), VerifyOptions(1.0, 8, 8))
    assert 0 < found["kl"]["mean"] < 1e-7
    assert found["verdict"]["kind"] == "rounding"


def test_a_gguf_beside_its_folder(tmp_path: Path) -> None:
    raw = raw_config("qwen3_moe")
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), "F32", tokenizer=True)
    found = compared(tmp_path / "theirs", tmp_path / "model.gguf")
    assert (found["a"]["format"], found["b"]["format"]) == ("safetensors", "gguf")
    assert found["verdict"]["kind"] == "identical"


def test_int4_beside_int8_by_native_kernels(int8: Path, int4: Path) -> None:
    found = compared(int8, int4)
    assert found["verdict"]["kind"] == "compressed"
    assert found["a"]["format"] == found["b"]["format"] == "packed"


@pytest.mark.parametrize("share", [0.002, 0.02, 0.1])
def test_noise_everywhere_is_no_damage(model: Path, tmp_path: Path, share: float) -> None:
    found = compared(model, write(tmp_path / "b", noise(share)), share=0.2)
    assert found["verdict"]["kind"] in ("retrained", "rounding")
    assert found["verdict"]["damaged"] == []


def test_other_weights_are_another_model(model: Path, tmp_path: Path) -> None:
    def redraw(decoder: Decoder) -> None:
        from tenth.model.decoder import initialise

        initialise(decoder, 7, std=0.08)

    found = compared(model, write(tmp_path / "b", redraw))
    assert found["verdict"]["kind"] == "different"
    assert found["routing"]["mean"] < 0.5


# ---- damage


def _flip_router(decoder: Decoder, layer: int) -> None:
    router = decoder.get_parameter(f"layers.{layer}.mlp.router.weight_ED")
    router.copy_(router.flip(0).clone())


@pytest.mark.parametrize("layer", [1, 3, LAYERS - 1])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("attention_norm", "attention_norm.weight"),
        ("attention", "attention.q.weight.values_OI"),
        ("attention", "attention.v.weight.values_OI"),
        ("mlp_norm", "mlp_norm.weight"),
        ("experts", "mlp.experts.w2_EDF"),
        ("router", ""),
    ],
)
def test_one_flipped_tensor_is_located(model: Path, tmp_path: Path, layer: int, part: str, name: str) -> None:
    def change(decoder: Decoder) -> None:
        if name:
            decoder.get_parameter(f"layers.{layer}.{name}").neg_()
        else:
            _flip_router(decoder, layer)

    found = compared(model, write(tmp_path / "b", change), share=0.3)
    assert found["verdict"]["kind"] == "damaged"
    assert [(one["layer"], one["part"]) for one in found["verdict"]["damaged"]] == [(layer, part)]
    assert f"layer {layer}, {part}" in found["verdict"]["text"]


def test_damage_is_found_in_a_copy_of_4_bits(model: Path, tmp_path: Path) -> None:
    damaged = write(tmp_path / "damaged", negate("layers.4.attention.v.weight.values_OI"))
    found = compared(model, quantised(damaged, tmp_path / "int4", 4))
    assert [(one["layer"], one["part"]) for one in found["verdict"]["damaged"]] == [(4, "attention")]


def test_one_flipped_expert_is_named(model: Path, tmp_path: Path) -> None:
    def change(decoder: Decoder) -> None:
        decoder.get_parameter("layers.3.mlp.experts.w2_EDF")[5].neg_()

    found = compared(model, write(tmp_path / "b", change))
    (damage,) = found["verdict"]["damaged"]
    assert (damage["layer"], damage["part"], damage["expert"]) == (3, "experts", 5)


def test_a_super_experts_rounding_is_no_damage(model: Path, tmp_path: Path) -> None:
    def louder(decoder: Decoder) -> None:
        decoder.get_parameter("layers.3.mlp.experts.w2_EDF")[2] *= 300

    loud = write(tmp_path / "loud", louder)
    found = compared(loud, quantised(loud, tmp_path / "int4", 4))
    assert found["verdict"]["kind"] == "compressed"


@pytest.mark.parametrize(("name", "part"), [("embedding.values_OI", "embedding"), ("head.weight.values_OI", "head")])
def test_damaged_ends_are_located(model: Path, tmp_path: Path, name: str, part: str) -> None:
    untied = replace(CONFIG, tie_word_embeddings=False)
    one = write(tmp_path / "a", None, untied)
    found = compared(one, write(tmp_path / "b", negate(name), untied))
    assert [(damage["layer"], damage["part"]) for damage in found["verdict"]["damaged"]] == [(None, part)]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layers.2.attention.v.weight.values_OI", r"layer 2 \(attention\) of B"),
        ("layers.4.mlp.experts.w2_EDF", r"layer 4 \(experts\) of B"),
        ("layers.1.mlp.router.weight_ED", r"layer 1 \(router\) of B"),
        ("embedding.values_OI", r"the embedding of B"),
        ("norm.weight", r"the head of B"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(model: Path, tmp_path: Path, name: str, place: str, value: float) -> None:
    import re

    def change(decoder: Decoder) -> None:
        decoder.get_parameter(name).view(-1)[::7] = value

    found = compared(model, write(tmp_path / "b", change), greedy=4)
    assert found["verdict"]["kind"] == "not_finite"
    assert re.search(place, found["verdict"]["text"])
    assert not passed(found)


# ---- routing error apart from expert error


def test_a_router_that_only_chooses_otherwise_is_replayed_away(tmp_path: Path) -> None:
    """A bias is for the choice alone: with A's choice B computes what A does."""
    assert CONFIG.moe is not None
    config = replace(CONFIG, model_type="tenth", moe=replace(CONFIG.moe, expert_bias=True))

    def change(decoder: Decoder) -> None:
        decoder.get_parameter("layers.3.mlp.router.bias_E").copy_(torch.linspace(-2, 2, CONFIG.moe.num_experts))

    a, b = write(tmp_path / "a", None, config), write(tmp_path / "b", change, config)
    found = compared(a, b)
    assert found["kl"]["mean"] > 1e-4
    assert found["replayed"]["kl_mean"] < 1e-9
    assert found["routing"]["min_layer"] == 3
    assert [(one["layer"], one["part"]) for one in found["verdict"]["damaged"]] == [(3, "router")]


# ---- unlike shapes


def test_dense_beside_sparse(model: Path, tmp_path: Path) -> None:
    dense = replace(CONFIG, model_type="qwen3", moe=None, sparse_layers=())
    found = compared(model, write(tmp_path / "dense", None, dense), greedy=4)
    assert found["routing"] is None
    assert found["replayed"] is None
    assert found["notes"][0] == "B is dense: no routing is compared"
    assert found["kl"]["mean"] > 0
    assert [layer["layer"] for layer in found["layers"]] == [0]  # the one that is dense in both


@pytest.mark.parametrize("change", [{"num_layers": 4, "sparse_layers": (1, 2, 3)}, {"hidden_size": 32}])
def test_networks_of_other_shapes(model: Path, tmp_path: Path, change: dict[str, object]) -> None:
    found = compared(model, write(tmp_path / "b", None, replace(CONFIG, **change)))
    assert found["layers"] == []
    assert found["verdict"]["kind"] == "different"
    assert "layers or widths differ: no layer of one can take the other's input" in found["notes"]


def test_another_number_of_experts_at_work(model: Path, tmp_path: Path) -> None:
    assert CONFIG.moe is not None
    found = compared(model, write(tmp_path / "b", None, replace(CONFIG, moe=replace(CONFIG.moe, top_k=1))))
    assert found["routing"] is None
    assert "experts, how many work, or layers with routers differ: routing cannot be compared" in found["notes"]


def test_a_larger_vocabulary_without_tokens_is_cut(model: Path, tmp_path: Path) -> None:
    found = compared(model, write(tmp_path / "b", None, replace(CONFIG, vocab_size=640)))
    assert found["kl"]["mean"] > 0


def test_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(
        text.replace('"A":', '"@@":').replace('"a":', '"A":').replace('"@@":', '"a":')
    )
    with sides(model, other) as (a, b), pytest.raises(RequestError, match=r"token \d+ is 'A' in A and 'a' in B"):
        verify(a, b, corpus(), VerifyOptions())
