"""The metadata of a GGUF file to our config, by way of the keys that Hugging Face would have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tenth.errors import ConfigError
from tenth.model.config import ModelConfig, RopeConfig
from tenth.model.huggingface import config_from_huggingface
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
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}

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
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"{where}: architecture {str(architecture)[:60]!r} is not supported (supported: {known})")
    prefix = f"{architecture}."
    raw: dict[str, Any] = {ours: metadata[prefix + key] for ours, key in _KEYS.items() if prefix + key in metadata}
    embedding = shapes.get("token_embd.weight", (0,))
    raw |= {
        "model_type": _ARCHITECTURES[architecture],
        "vocab_size": embedding[0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "norm_topk_prob": metadata.get(prefix + "expert_weights_norm", _NORM_TOPK.get(architecture, False)),
    }
    if architecture in ("llama", "qwen3", "qwen3moe"):
        raw["attention_bias"] = "blk.0.attn_q.bias" in shapes
    _check_unsupported(metadata, prefix, raw, where)
    raw["rope_scaling"] = _rope_scaling(metadata, prefix, raw, rope_factors, where)
    config, _ = config_from_huggingface(raw, where)
    used = {prefix + key for key in _KEYS.values()}
    ignored = [key for key in metadata if key.startswith(prefix) and key not in used and ".rope." not in key]
    return config, tuple(sorted(set(ignored) - {prefix + "vocab_size", prefix + "expert_weights_norm"}))


def _check_unsupported(metadata: Mapping[str, Any], prefix: str, raw: Mapping[str, Any], where: str) -> None:
    heads = raw.get("num_attention_heads")
    size = raw.get("head_dim") or (raw.get("hidden_size", 0) // heads if isinstance(heads, int) and heads else 0)
    neutral: dict[str, tuple[object, ...]] = {
        "rope.dimension_count": (size,),
        "attention.value_length": (size,),
        "expert_weights_scale": (0.0, 1.0),
        "expert_gating_func": (0, 1),
        "attention.sliding_window": (0,),
        "expert_group_count": (0, 1),
        "logit_scale": (0.0, 1.0),
        "embedding_scale": (0.0, 1.0),
        "residual_scale": (0.0, 1.0),
        "attention.scale": (0.0,),
    }
    # Llama files with experts are Mixtral's, whose tensors and router we do not read under this name
    if prefix == "llama.":
        neutral["expert_count"] = (0,)
    for key, values in neutral.items():
        value = metadata.get(prefix + key)
        if value is not None and value not in values:
            raise ConfigError(f"{where}: {prefix}{key} = {str(value)[:40]} is not supported (only {values[-1]})")


def _rope_scaling(
    metadata: Mapping[str, Any], prefix: str, raw: Mapping[str, Any], factors: Tensor | None, where: str
) -> dict[str, Any] | None:
    if factors is not None:
        return _llama3_scaling(raw, factors, where)
    kind = metadata.get(prefix + "rope.scaling.type", "none")
    factor = metadata.get(prefix + "rope.scaling.factor", metadata.get(prefix + "rope.scale_linear", 1.0))
    if kind in ("none", "linear"):
        return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None
    if kind == "yarn":
        original = metadata.get(prefix + "rope.scaling.original_context_length", raw.get("max_position_embeddings"))
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        optional = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        stated = {
            k: metadata[f"{prefix}rope.scaling.{v}"]
            for k, v in optional.items()
            if f"{prefix}rope.scaling.{v}" in metadata
        }
        return scaling | stated
    raise ConfigError(f"{where}: {prefix}rope.scaling.type = {str(kind)[:40]!r} is not supported (linear, yarn)")


def _llama3_scaling(raw: Mapping[str, Any], factors: Tensor, where: str) -> dict[str, Any]:
    """GGUF stores Llama 3's scaling as divisors of the frequencies; find the rule that gives them, or refuse."""
    divisor = float(factors.max())
    rule = RopeConfig(
        theta=float(raw.get("rope_theta", 10_000.0)),
        kind="llama3",
        factor=divisor if math.isfinite(divisor) and divisor > 0 else 1.0,
        original_context=8192,
    )
    plain = RopeConfig(theta=rule.theta)
    size = 2 * factors.numel()
    expected = inverse_frequencies(plain, size) / inverse_frequencies(rule, size)
    if not torch.allclose(factors.double().flatten(), expected, rtol=1e-4):
        raise ConfigError(f"{where}: tensor 'rope_freqs.weight' is not Llama 3's scaling of any factor")
    return {
        "rope_type": "llama3",
        "factor": rule.factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_context,
    }
