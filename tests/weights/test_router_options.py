"""Sigmoid routers with biases, groups and a scale through every form of file: their bits, and who refuses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tenth.commands import app
from tenth.errors import ConfigError, TensorError
from tenth.kernels.packed import PackedFormat
from tenth.model.batch import Batch, Want
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.huggingface import config_from_huggingface
from tenth.model.huggingface_export import config_to_huggingface, exportable_as
from tenth.model.preset import preset
from tenth.quantize.nearest import quantize
from tenth.quantize.policy import Policy
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.packed_index import parts_of
from tenth.weights.save import save_model
from tenth.weights.synthetic import write_synthetic
from tests.api.tiny import write_tokenizer
from tests.weights.packed_models import write_dense

MOE = MoeConfig(8, 3, 32, score="sigmoid", expert_bias=True, num_groups=4, top_groups=2, routed_scale=2.5)
CONFIG = replace(preset("tiny-moe"), model_type="tenth", moe=MOE)
BIAS = "layers.{}.mlp.router.bias_E"


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    decoder = initialise(Decoder(CONFIG, dtype=torch.bfloat16), seed=1, std=0.2).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for layer in CONFIG.sparse_layers:
        decoder.get_parameter(BIAS.format(layer)).normal_(0, 0.3, generator=generator)
    return decoder


def _read(folder: Path) -> Decoder:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == CONFIG
        return load_decoder(checkpoint)


def _same_biases(one: Decoder, other: Decoder) -> None:
    for layer in CONFIG.sparse_layers:
        biases = [model.get_parameter(BIAS.format(layer)) for model in (one, other)]
        assert biases[0].dtype == biases[1].dtype == torch.float32
        assert biases[0].any()
        assert torch.equal(*biases)


def test_a_folder_keeps_all_bits(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    stored = tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert (stored.dtype, stored.shape) == (torch.float32, (8,))
    again = _read(tmp_path / "saved")
    for (name, one), (_, other) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    _same_biases(decoder, again)


def test_packing_keeps_the_biases(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path / "saved")
    write_tokenizer(tmp_path / "saved")
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        quantize(checkpoint, tmp_path / "packed", Policy(8))
    _same_biases(decoder, _read(tmp_path / "packed"))


def test_packed_floats_compute_the_same(decoder: Decoder, tmp_path: Path) -> None:
    wide = Decoder(CONFIG).requires_grad_(False)
    for own, source in zip(wide.parameters(), decoder.parameters(), strict=True):
        own.copy_(source)
    write_dense(tmp_path / "packed", wide)
    batch, want = Batch.of([torch.arange(30)]), Want(routing="full")
    one, other = wide(batch, want=want), _read(tmp_path / "packed")(batch, want=want)
    torch.testing.assert_close(one.logits_NV, other.logits_NV, atol=1e-5, rtol=1e-5)
    for index, layer in one.routing.layers.items():
        assert torch.equal(layer.experts_TK, other.routing.layers[index].experts_TK)


def test_a_synthetic_model_has_biases_of_zero(tmp_path: Path) -> None:
    assert "layers.2.mlp.router.bias" in parts_of(CONFIG)
    write_synthetic(tmp_path / "synth", CONFIG, PackedFormat.parse("int4-g16-s4"))
    for layer in CONFIG.sparse_layers:
        assert not _read(tmp_path / "synth").get_parameter(BIAS.format(layer)).any()


def test_a_folder_without_its_biases_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    plain = replace(CONFIG, moe=replace(MOE, expert_bias=False))
    save_model(initialise(Decoder(plain), seed=1), tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config_to_huggingface(CONFIG)))
    with (
        pytest.raises(TensorError, match=r"gate\.e_score_correction_bias' is missing, the config asks for it"),
        open_checkpoint(tmp_path / "saved") as checkpoint,
    ):
        load_decoder(checkpoint)


def test_the_config_says_all_of_it() -> None:
    raw = json.loads(json.dumps(config_to_huggingface(CONFIG)))
    assert raw["moe"]["score"] == "sigmoid"
    assert config_from_huggingface(raw, "config.json") == (CONFIG, ())
    before = {**raw, "moe": {key: raw["moe"][key] for key in ("num_experts", "top_k", "intermediate_size")}}
    assert config_from_huggingface(before, "config.json")[0].moe == MoeConfig(8, 3, 32)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("score", 3, "score is 3, it must be Score"),
        ("score", "relu", "moe score 'relu' is not supported"),
        ("expert_bias", 1, "expert_bias is 1, it must be bool"),
        ("num_groups", 2.0, "num_groups is 2.0, it must be int"),
        ("routed_scale", "2", "routed_scale is '2', it must be float"),
        ("bias", True, "unknown key 'bias'"),
    ],
)
def test_config_files_that_are_wrong(key: str, value: object, words: str) -> None:
    raw = config_to_huggingface(CONFIG)
    with pytest.raises(ConfigError, match=rf"^config.json: .*{words}"):
        config_from_huggingface({**raw, "moe": {**raw["moe"], key: value}}, "config.json")


PLAIN = MoeConfig(8, 3, 32)


@pytest.mark.parametrize(
    ("moe", "words"),
    [
        (replace(PLAIN, score="sigmoid"), "its router's scores are sigmoid, there a softmax"),
        (replace(PLAIN, expert_bias=True), "its router has a bias for the choice of experts"),
        (replace(PLAIN, num_groups=4, top_groups=2), "its experts are chosen from 2 of 4 groups"),
        (replace(PLAIN, routed_scale=2.5), "its gates are multiplied by 2.5"),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe"])
def test_exports_that_would_compute_something_else(moe: MoeConfig, words: str, model_type: str) -> None:
    shared = {"shared_intermediate_size": 8, "shared_gate": True} if model_type == "qwen2_moe" else {}
    plain = replace(CONFIG, moe=replace(PLAIN, **shared), qk_norm=model_type == "qwen3_moe")
    assert exportable_as(plain, model_type).model_type == model_type
    with pytest.raises(ConfigError) as refusal:
        exportable_as(replace(plain, moe=replace(moe, **shared)), model_type)
    assert str(refusal.value) == (
        f"as '{model_type}' this model would compute something else: {words}; use model_type 'tenth'"
    )


def test_all_groups_are_no_groups() -> None:
    moe = replace(PLAIN, num_groups=4, top_groups=4)
    assert exportable_as(replace(CONFIG, moe=moe), "qwen3_moe").model_type == "qwen3_moe"


def test_the_command_line_refuses_and_shows(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path / "saved")
    write_tokenizer(tmp_path / "saved")
    refused = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--as", "qwen3_moe"])
    assert refused.exit_code == 2
    assert "its router's scores are sigmoid, there a softmax" in refused.stderr
    assert not (tmp_path / "out").exists()
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "saved")])
    assert shown.exit_code == 0
    assert "router       sigmoid, biases, from 2 of 4 groups, gates times 2.5" in shown.stdout
