"""The metadata of a GGUF file to our config, by way of the keys that Hugging Face would have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenth.errors import ConfigError
from tenth.model.config import ModelConfig, RopeConfig
from tenth.model.huggingface import config_from_huggingface
from tenth.model.json_reader import JsonReader
from tenth.model.rope import inverse_frequencies

_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
}

# our Hugging Face key, GGUF's key behind the architecture's prefix
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}

# Keys that change the mathematics, with the values under which they do not; the last one is named in the error.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "rope.dimension_sections": ((),),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
# Keys that are read, judged, or said by the tensors.
_READ = frozenset(
    {*_KEYS.values(), *_NEUTRAL, "rope.dimension_count", "attention.value_length", "expert_weights_norm", "vocab_size"}
    | {"expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count", "rope.scale_linear"}
    | {f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "finetuned")}
    | {f"rope.scaling.{key}" for key in ("yarn_beta_fast", "yarn_beta_slow")}
)

# The router of each sparse architecture, which GGUF leaves to the program that reads it.
_NORM_TOPK = {"qwen3moe": True, "qwen2moe": False}


def config_from_gguf(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rope_factors: Tensor | None, where: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Read a GGUF file's metadata; returns the config and the architecture's keys that were ignored.

    `shapes` are those of the file's tensors, in torch's order: the vocabulary, ties and biases follow from them.
    `rope_factors` is the tensor `rope_freqs.weight` where there is one: the divisor of each pair's frequency.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"{where}: architecture {str(architecture)[:60]!r} is not supported (supported: {known})")
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    raw = {ours: own[key] for ours, key in _KEYS.items() if key in own} | _from_shapes(shapes)
    raw |= {
        "model_type": _ARCHITECTURES[architecture],
        "norm_topk_prob": own.get("expert_weights_norm", _NORM_TOPK.get(architecture, False)),
    }
    if architecture in ("llama", "qwen3", "qwen3moe"):
        raw["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if "rms_norm_eps" not in raw:
        raise ConfigError(f"{where}: {prefix}{_KEYS['rms_norm_eps']} is missing")
    _refuse_unsupported(own, raw, architecture, where)
    raw["rope_scaling"] = _rope_scaling(own, raw, rope_factors, where)
    config, _ = config_from_huggingface(raw, where)
    return config, tuple(sorted(prefix + key for key in set(own) - _READ))


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the tensors say more surely than the keys: vocabulary, tied head, widths of the experts."""

    said: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in shapes}
    for ending, key, axis in (
        ("token_embd.weight", "vocab_size", 0),
        ("ffn_gate_exps.weight", "moe_intermediate_size", 1),
        ("ffn_gate_shexp.weight", "shared_expert_intermediate_size", 0),
    ):
        sizes = [shape[axis] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > axis]
        if sizes:
            said[key] = sizes[0]
    return said


def _refuse_unsupported(own: Mapping[str, Any], raw: Mapping[str, Any], architecture: str, where: str) -> None:
    reader = JsonReader(raw, where)
    heads = max(reader.integer("num_attention_heads"), 1)
    size = reader.integer("head_dim", reader.integer("hidden_size") // heads)
    neutral = dict(_NEUTRAL) | {"rope.dimension_count": (size,), "attention.value_length": (size,)}
    if architecture == "llama":  # with experts it is Mixtral's, whose tensors and router we do not read under this name
        neutral |= {"expert_count": (0,)}
    for key, values in neutral.items():
        if key in own and own[key] not in values:
            raise ConfigError(
                f"{where}: {architecture}.{key} = {str(own[key])[:40]} is not supported (only {values[-1]})"
            )


def _rope_scaling(
    own: Mapping[str, Any], raw: Mapping[str, Any], factors: Tensor | None, where: str
) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type")
    if factors is not None:
        if kind not in (None, "none"):
            raise ConfigError(
                f"{where}: has both rope.scaling.type {str(kind)[:40]!r} and a tensor 'rope_freqs.weight'"
            )
        return _llama3_scaling(raw, factors, where)
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    match kind:
        case "none":
            return None
        case None | "linear":
            return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None
        case "yarn":
            scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": None}
            keys = {"original_max_position_embeddings": "original_context_length"}
            keys |= {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
            stated = {k: own[f"rope.scaling.{v}"] for k, v in keys.items() if f"rope.scaling.{v}" in own}
            if "rope.scaling.factor" not in own:
                raise ConfigError(f"{where}: rope.scaling.type is yarn, but rope.scaling.factor is missing")
            return scaling | stated
    raise ConfigError(f"{where}: rope.scaling.type = {str(kind)[:40]!r} is not supported (linear, yarn)")


def _llama3_scaling(raw: Mapping[str, Any], factors: Tensor, where: str) -> dict[str, Any]:
    """GGUF stores Llama 3's scaling as divisors of the frequencies; find the rule that gives them, or refuse."""
    reader = JsonReader(raw, where)
    size = reader.integer("head_dim", reader.integer("hidden_size") // max(reader.integer("num_attention_heads"), 1))
    divisors = factors.double().flatten()
    if divisors.numel() != size // 2 or not bool(((divisors > 0) & torch.isfinite(divisors)).all()):
        raise ConfigError(f"{where}: tensor 'rope_freqs.weight' must hold {size // 2} positive factors")
    plain = RopeConfig(theta=reader.number("rope_theta", 10_000.0))
    rule = replace(plain, kind="llama3", factor=float(divisors.max()), original_context=8192)
    expected = inverse_frequencies(plain, size) / inverse_frequencies(rule, size)
    if not torch.allclose(divisors, expected, rtol=1e-4):
        raise ConfigError(f"{where}: tensor 'rope_freqs.weight' is not Llama 3's scaling of any factor")
    return {
        "rope_type": "llama3",
        "factor": rule.factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_context,
    }
