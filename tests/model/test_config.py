"""What a config computes, reads, refuses and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tenth.errors import ConfigError
from tenth.kernels.weight import DenseExpertTable
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.huggingface import FAMILIES, config_from_huggingface
from tenth.model.huggingface_export import config_to_huggingface, exportable_as
from tenth.model.json_reader import read_json
from tenth.model.preset import preset, preset_names
from tests.model.configs import raw_configs


def test_qwen3_30b_a3b_figures() -> None:
    config = preset("qwen3-30b-a3b")
    assert config.parameters.total == 30_532_122_624
    assert config.parameters.active == 3_353_032_704
    assert config.kv_bytes_per_token() == 98_304
    # 8 experts, attention, router and head: two operations for each parameter at work, the embedding aside
    assert config.flops_per_token() == 2 * (3_353_032_704 - 311_164_928 - 210_944)
    assert config.flops_per_token(1000) - config.flops_per_token() == 48 * 4 * 32 * 128 * 1000


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.030), ("qwen3-0.6b", 0.596), ("qwen1.5-moe-a2.7b", 14.316), ("qwen3-235b-a22b", 235.094)],
)
def test_published_sizes(name: str, billions: float) -> None:
    assert preset(name).parameters.total / 1e9 == pytest.approx(billions, abs=5e-4)


@given(raw=raw_configs())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parameters_equal_the_built_model(raw: dict[str, Any]) -> None:
    config, _ = config_from_huggingface(raw, "raw")
    decoder = Decoder(config, device="meta")
    assert config.parameters.total == sum(p.numel() for p in decoder.parameters())
    idle = sum(
        (t.num_experts - config.moe.top_k) * 3 * t.hidden_size * t.intermediate_size
        for t in decoder.modules()
        if isinstance(t, DenseExpertTable) and config.moe
    )
    assert config.parameters.active == config.parameters.total - idle


@given(raw=raw_configs())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_written_configs_read_back(raw: dict[str, Any]) -> None:
    config, _ = config_from_huggingface(raw, "raw")
    for model_type in (config.model_type, "tenth"):
        there = exportable_as(config, model_type)
        written = json.loads(json.dumps(config_to_huggingface(there)))
        assert config_from_huggingface(written, "written") == (there, ())


def test_every_preset_is_read_without_a_rest() -> None:
    for name in preset_names():
        config = preset(name)
        assert config.parameters.total >= config.parameters.active > 0
        raw = config_to_huggingface(config)
        assert config_from_huggingface(raw, name) == (config, ())


def test_official_extra_keys_do_not_matter() -> None:
    raw = _qwen3_moe() | {  # as the published Coder checkpoints have them
        "architectures": ["Qwen3MoeForCausalLM"],
        "qkv_bias": False,
        "use_qk_norm": True,
        "shared_expert_intermediate_size": 0,
        "max_window_layers": 28,
        "use_sliding_window": False,
        "sliding_window": None,
        "router_aux_loss_coef": 0.0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "unsloth_fixed": True,
        "a_new_key": 3,
    }
    config, ignored = config_from_huggingface(raw, "x")
    assert ignored == ("a_new_key",)
    assert config == config_from_huggingface(_qwen3_moe(), "x")[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("quantization_config", {"quant_method": "gptq"}),
        ("partial_rotary_factor", 0.5),
        ("final_logit_softcapping", 30.0),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("scoring_func", "sigmoid"),
        ("shared_expert_intermediate_size", 64),
        ("qkv_bias", True),
        ("use_qk_norm", False),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "alpha": 3}),
        ("rope_scaling", {"full_attention": {"rope_type": "yarn", "factor": 2.0}}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("rope_theta", 10**400),
        ("rope_theta", 1),
        ("layer_types", [{}]),
        ("is_causal", False),
        ("hidden_size", 1 << 40),
        ("model_type", "gemma3"),
        ("hidden_size", "64"),
        ("hidden_size", None),
        ("hidden_size", -1),
        ("hidden_size", True),
        ("num_hidden_layers", 10**12),
        ("num_experts_per_tok", 9),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("mlp_only_layers", [1.5]),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_refused_by_name(key: str, value: object) -> None:
    # as saved by transformers 5, with the older key added by hand
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}} if key == "rope_parameters" else {}
    with pytest.raises(ConfigError) as caught:
        config_from_huggingface(_qwen3_moe() | scaled | {key: value}, "folder/config.json")
    message = str(caught.value)
    assert message.startswith("folder/config.json")
    assert "\n" not in message
    renamed = {"num_experts_per_tok": "top_k", "num_key_value_heads": "num_kv_heads", "quantization_config": "gptq"}
    assert renamed.get(key, key).split("_")[0] in message


def test_neutral_keys_are_accepted() -> None:
    plain = config_from_huggingface(_qwen3_moe(), "x")[0]
    windows = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    assert config_from_huggingface(_qwen3_moe() | windows, "x")[0] == plain
    with pytest.raises(ConfigError, match="use_sliding_window"):
        config_from_huggingface(_qwen3_moe() | windows | {"max_window_layers": 2}, "x")
    chunks = {"dual_chunk_attention_config": {"chunk_size": 400, "local_size": 100}}
    assert config_from_huggingface(_qwen3_moe() | chunks, "x")[0] == replace(plain, context_length=300)


def test_own_config_knows_all_its_keys() -> None:
    raw = json.loads(json.dumps(config_to_huggingface(exportable_as(preset("tiny-moe"), "tenth"))))
    with pytest.raises(ConfigError, match="unknown key 'wheels'"):
        config_from_huggingface(raw | {"wheels": 4}, "c")
    with pytest.raises(ConfigError, match="moe: unknown key 'wheels'"):
        config_from_huggingface(raw | {"moe": raw["moe"] | {"wheels": 4}}, "c")
    for kind in ("dynamic", 5):
        with pytest.raises(ConfigError, match="kind"):
            config_from_huggingface(raw | {"rope": raw["rope"] | {"kind": kind}}, "c")
    with pytest.raises(ConfigError, match="no model has"):
        config_from_huggingface(raw | {"hidden_size": 10**400}, "c")
    with pytest.raises(ConfigError, match="must be int"):
        config_from_huggingface(raw | {"num_layers": "3"}, "c")
    with pytest.raises(ConfigError, match="missing"):
        config_from_huggingface({k: v for k, v in raw.items() if k != "num_layers"}, "c")


def test_export_refuses_other_mathematics() -> None:
    llama_moe = replace(preset("tiny-moe"), qk_norm=False, model_type="tenth")
    for model_type in FAMILIES:
        with pytest.raises(ConfigError, match="would compute something else"):
            exportable_as(llama_moe, model_type)
    assert exportable_as(preset("tiny-moe"), "qwen3_moe").model_type == "qwen3_moe"
    with pytest.raises(ConfigError, match="qwen9"):
        exportable_as(llama_moe, "qwen9")


@pytest.mark.parametrize(
    "change", [{"num_heads": 5}, {"sparse_layers": (2, 1)}, {"sparse_layers": (9,)}, {"moe": None}]
)
def test_impossible_shapes(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(preset("tiny-moe"), **change)


def test_json_files_from_strangers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b"", b"[1]", b"{", b"\xff\xfe", b'{"a": ' * 100_000):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="larger than"):
        read_json(path)


def _qwen3_moe() -> dict[str, Any]:
    return config_to_huggingface(preset("tiny-moe"))


def test_tied_head_counts_once() -> None:
    config = preset("tiny-moe")
    tied = replace(config, tie_word_embeddings=True)
    assert isinstance(tied, ModelConfig)
    assert config.parameters.total - tied.parameters.total == 512 * 64
