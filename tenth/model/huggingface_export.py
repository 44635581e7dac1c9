"""Our config to a `config.json`: under a Hugging Face class where one computes the same, else under our own type."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tenth.errors import ConfigError
from tenth.model.config import ModelConfig, MoeConfig, RopeConfig
from tenth.model.huggingface import FAMILIES, OWN_MODEL_TYPE, Family


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of this model: under its class's keys, or all of our fields under our own `model_type`."""
    if config.model_type == OWN_MODEL_TYPE:
        raw = asdict(config)
        raw["sparse_layers"] = list(config.sparse_layers)
        return raw
    family = FAMILIES[config.model_type]
    raw = {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config.rope),
    }
    return raw | _bias_keys(config) | (_moe_keys(config) if family.sparse else {})


def _bias_keys(config: ModelConfig) -> dict[str, Any]:
    match config.model_type:
        case "llama":
            return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
        case "qwen2_moe":
            return {"qkv_bias": config.qkv_bias}
        case "qwen3" | "qwen3_moe":
            return {"attention_bias": config.qkv_bias}
    return {}


def _moe_keys(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None, "checked by exportable_as"
    keys = {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(config.num_layers) if not config.is_sparse(i)],
    }
    return keys | ({"shared_expert_intermediate_size": moe.shared_intermediate_size} if moe.shared_gate else {})


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    match rope.kind:
        case "linear":
            return {"rope_type": "linear", "factor": rope.factor}
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
        case "yarn":
            keys = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
            stated = {key: getattr(rope, key) for key in keys}
            original = {"rope_type": "yarn", "original_max_position_embeddings": rope.original_context}
            return original | {
                key: value
                for key, value in stated.items()
                if value is not None and not (value == 0 and "mscale" in key)
            }
    return None


def exportable_as(config: ModelConfig, model_type: str) -> ModelConfig:
    """The same mathematics under another `model_type`; ConfigError where that class would compute something else."""
    if model_type == OWN_MODEL_TYPE:
        return replace(config, model_type=model_type)
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model_type {model_type!r} is not one we export to ({', '.join(FAMILIES)}, {OWN_MODEL_TYPE})"
        )
    for reason in _differences(config, model_type, FAMILIES[model_type]):
        raise ConfigError(
            f"as {model_type!r} this model would compute something else: {reason}; use model_type {OWN_MODEL_TYPE!r}"
        )
    return replace(config, model_type=model_type)


def _differences(config: ModelConfig, model_type: str, family: Family) -> list[str]:
    moe = config.moe
    fixed_qkv = {"qwen2": True}.get(model_type, config.qkv_bias)
    fixed_o = config.qkv_bias if model_type in ("llama", "qwen3", "qwen3_moe") else False
    checks = {
        f"per-head q/k norm is {config.qk_norm}, there it is {family.qk_norm}": config.qk_norm != family.qk_norm,
        f"query, key and value biases are {config.qkv_bias}": config.qkv_bias != fixed_qkv,
        f"the output projection's bias is {config.o_bias}": config.o_bias != fixed_o,
        "its dense layers have biases": config.mlp_bias and model_type != "llama",
        "it has experts": moe is not None and not family.sparse,
        "it has no experts": moe is None and family.sparse,
    }
    if moe is not None and family.sparse:
        gated = moe.shared_gate and moe.shared_intermediate_size > 0
        shared = f"its shared expert has width {moe.shared_intermediate_size}, gate {moe.shared_gate}"
        checks |= _router_differences(moe)
        checks[shared] = gated != family.shared_expert or (moe.shared_intermediate_size > 0) != family.shared_expert
    return [reason for reason, differs in checks.items() if differs]


def _router_differences(moe: MoeConfig) -> dict[str, bool]:
    """What a router has that no class there computes, and whether this one has it."""
    return {
        f"its router's scores are {moe.score}, there a softmax": moe.score != "softmax",
        "its router has a bias for the choice of experts": moe.expert_bias,
        f"its experts are chosen from {moe.top_groups} of {moe.num_groups} groups": moe.top_groups < moe.num_groups,
        f"its gates are multiplied by {moe.routed_scale:g}": moe.routed_scale != 1,
    }
