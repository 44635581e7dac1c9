"""A Hugging Face `config.json` to our config: what is read, what is refused, what is ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tenth.errors import ConfigError
from tenth.model.config import ModelConfig, MoeConfig, RopeConfig
from tenth.model.json_reader import JsonReader

OWN_MODEL_TYPE = "tenth"


@dataclass(frozen=True, slots=True)
class Family:
    """What a Hugging Face class fixes in its code rather than in its config."""

    architecture: str
    qk_norm: bool
    sparse: bool = False
    shared_expert: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", qk_norm=False),
    "qwen2": Family("Qwen2ForCausalLM", qk_norm=False),
    "qwen2_moe": Family("Qwen2MoeForCausalLM", qk_norm=False, sparse=True, shared_expert=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", qk_norm=True, sparse=True),
}

# Keys that say nothing of the forward pass: bookkeeping, training, generation.
_HARMLESS = frozenset(
    "_name_or_path _attn_implementation architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward "
    "dtype eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id max_window_layers "
    "output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type "
    "return_dict router_aux_loss_coef sliding_window tokenizer_class torch_dtype transformers_version "
    "unsloth_fixed unsloth_version use_cache use_return_dict".split()
)


def _off(value: object) -> bool:
    return value in (None, False, 0, 1, 1.0)


# Keys that change the mathematics in ways we do not have, and when they are neutral.
_REFUSED: Mapping[str, Callable[[object], bool]] = {
    "hidden_act": lambda v: v in ("silu", "swish"),
    "is_causal": lambda v: v in (None, True),
    "layer_types": lambda v: v is None or (isinstance(v, list) and all(kind == "full_attention" for kind in v)),
    "use_mrope": lambda v: not v,
    "partial_rotary_factor": _off,
    "rope_interleave": lambda v: not v,
    "rope_interleaved": lambda v: not v,
    "no_rope_layers": lambda v: not v,
    "attn_logit_softcapping": lambda v: v is None,
    "final_logit_softcapping": lambda v: v is None,
    "query_pre_attn_scalar": lambda v: v is None,
    "clip_qkv": lambda v: v is None,
    "attention_multiplier": lambda v: v is None,
    "attention_out_bias": lambda v: not v,
    "attention_sinks": lambda v: not v,
    "embedding_multiplier": _off,
    "residual_multiplier": _off,
    "logits_scaling": _off,
    "logit_scale": _off,
    "routed_scaling_factor": _off,
    "n_group": _off,
    "topk_group": _off,
    "scoring_func": lambda v: v in (None, "softmax"),
    "use_parallel_residual": lambda v: not v,
    "norm_after": lambda v: not v,
    "mrope_section": lambda v: not v,
}

_ROPE_KEYS = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate low_freq_factor high_freq_factor".split()
)


def config_from_huggingface(raw: Mapping[str, Any], where: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """Read a parsed `config.json`; returns the config and the names of the keys that were ignored.

    `where` names the file in errors. Raises ConfigError for an architecture that we do not have, for a key that is
    known to change the mathematics and is not supported, and for values out of range.
    """
    reader = JsonReader(raw, where)
    model_type = reader.text("model_type")
    try:
        if model_type == OWN_MODEL_TYPE:
            return _own_config(reader), ()
        if model_type not in FAMILIES:
            known = ", ".join((*FAMILIES, OWN_MODEL_TYPE))
            raise ConfigError(f"model_type {model_type!r} is not supported (supported: {known})")
        _refuse_unsupported(raw)
        config = _read_family(reader, model_type, FAMILIES[model_type])
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None
    judged = {"use_sliding_window", "quantization_config", *_REFUSED}
    ignored = set(raw) - reader.seen - _HARMLESS - judged
    return config, tuple(sorted(ignored))


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    for key, neutral in _REFUSED.items():
        if key in raw and not neutral(raw[key]):
            raise ConfigError(f"{key} = {str(raw[key])[:80]!r} changes the mathematics in a way that is not supported")
    if raw.get("use_sliding_window") and "layer_types" not in raw and not _without_windows(raw):
        raise ConfigError("use_sliding_window = True is not supported (only full attention)")
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ConfigError(f"the weights are quantised as {str(method)[:40]!r}, which is not readable yet")


def _without_windows(raw: Mapping[str, Any]) -> bool:
    """Windows begin at the layer `max_window_layers`, so a model can ask for them and have none."""
    first, layers = raw.get("max_window_layers"), raw.get("num_hidden_layers")
    return isinstance(first, int) and isinstance(layers, int) and first >= layers


def _read_family(reader: JsonReader, model_type: str, family: Family) -> ModelConfig:
    heads = reader.integer("num_attention_heads")
    hidden = reader.integer("hidden_size")
    layers = reader.integer("num_hidden_layers", most=10_000)
    moe, sparse = _read_moe(reader, family, layers)
    qkv_bias, o_bias = _read_biases(reader, model_type)
    reader.expect("use_qk_norm", family.qk_norm)
    return ModelConfig(
        model_type=model_type,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", 0),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", hidden // max(heads, 1)),
        context_length=_read_context(reader),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope=_read_rope(reader),
        tie_word_embeddings=reader.flag("tie_word_embeddings"),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=reader.flag("mlp_bias") and model_type == "llama",
        qk_norm=family.qk_norm,
        moe=moe,
        sparse_layers=sparse,
    )


def _read_context(reader: JsonReader) -> int:
    """Tokens of context; with dual chunk attention, those up to which it is plain attention."""
    context = reader.integer("max_position_embeddings")
    chunks = JsonReader(reader.section("dual_chunk_attention_config"), "dual_chunk_attention_config")
    if not chunks.raw:
        return context
    return min(context, max(chunks.integer("chunk_size") - chunks.integer("local_size"), 1))


def _read_biases(reader: JsonReader, model_type: str) -> tuple[bool, bool]:
    """Biases of (query, key, value) and of the output projection; Qwen2's classes fix them in code."""
    stated = reader.flag("attention_bias")
    if model_type == "qwen2":
        return True, False
    if model_type == "qwen2_moe":
        return reader.flag("qkv_bias", True), False
    reader.expect("qkv_bias", stated)
    return stated, stated


def _read_moe(reader: JsonReader, family: Family, layers: int) -> tuple[MoeConfig | None, tuple[int, ...]]:
    if not family.sparse:
        return None, ()
    # transformers 5 writes the same number under the name that other families use
    key = "num_experts" if reader.has("num_experts") else "num_local_experts"
    experts = reader.integer(key, most=65_536)
    step = reader.integer("decoder_sparse_step", 1)
    dense = reader.indices("mlp_only_layers")
    shared = reader.integer("shared_expert_intermediate_size", 0)
    if shared and not family.shared_expert:
        raise ConfigError(
            f"shared_expert_intermediate_size is {shared}, but {family.architecture} has no shared expert"
        )
    moe = MoeConfig(
        num_experts=experts,
        top_k=reader.integer("num_experts_per_tok"),
        intermediate_size=reader.integer("moe_intermediate_size"),
        norm_topk_prob=reader.flag("norm_topk_prob"),
        shared_intermediate_size=shared,
        shared_gate=shared > 0,
    )
    sparse = tuple(i for i in range(layers) if i not in dense and (i + 1) % max(step, 1) == 0)
    return moe, sparse


def _read_rope(reader: JsonReader) -> RopeConfig:
    """`rope_theta` with `rope_scaling`, or `rope_parameters` which holds both (Hugging Face's newer form)."""
    theta = reader.number("rope_theta", 10_000.0)
    old, new = reader.section("rope_scaling"), reader.section("rope_parameters")
    if old and new and dict(old) != dict(new):
        raise ConfigError("rope_scaling and rope_parameters are both given and differ; keep the one that is meant")
    scaling = JsonReader(new or old, "rope")
    for key, value in scaling.raw.items():
        if key not in _ROPE_KEYS and value is not None:
            raise ConfigError(f"rope: key {key!r} is not supported (supported: {', '.join(sorted(_ROPE_KEYS))})")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    theta = scaling.number("rope_theta", theta)
    scaling.expect("partial_rotary_factor", 1.0)
    context = reader.integer("max_position_embeddings")
    match kind:
        case "default" | "mrope":
            # 'mrope' without sections is how text-only exports of vision models spell the default
            return RopeConfig(theta=theta)
        case "linear":
            return RopeConfig(theta=theta, kind="linear", factor=scaling.number("factor"))
        case "llama3":
            return RopeConfig(
                theta=theta,
                kind="llama3",
                factor=scaling.number("factor"),
                original_context=scaling.integer("original_max_position_embeddings", context),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
            )
        case "yarn":
            return _read_yarn(scaling, theta, context)
    raise ConfigError(f"rope_type {kind!r} is not supported (supported: default, linear, yarn, llama3)")


def _read_yarn(scaling: JsonReader, theta: float, context: int) -> RopeConfig:
    original = scaling.integer("original_max_position_embeddings", context)
    stated = scaling.has("attention_factor")
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=scaling.number(
            "factor", context / original if original and scaling.has("original_max_position_embeddings") else None
        ),
        original_context=original,
        attention_factor=scaling.number("attention_factor") if stated else None,
        beta_fast=scaling.number("beta_fast", 32.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 1.0) or 1.0,
        mscale=scaling.number("mscale", 0.0),
        mscale_all_dim=scaling.number("mscale_all_dim", 0.0),
        truncate=scaling.flag("truncate", True),
    )


def _own_config(reader: JsonReader) -> ModelConfig:
    """Our own form names every field of `ModelConfig`; an unknown key is an error."""
    raw = dict(reader.raw)
    sections: dict[str, Any] = {}
    for name, kind in (("rope", RopeConfig), ("moe", MoeConfig)):
        section = raw.pop(name, None)
        if section is not None:
            sections[name] = _build(kind, section, f"{reader.where}: {name}")
    sparse = raw.pop("sparse_layers", [])
    if not isinstance(sparse, list) or not all(type(i) is int for i in sparse):
        raise ConfigError(f"{reader.where}: sparse_layers must be a list of layer numbers")
    config: ModelConfig = _build(ModelConfig, raw | sections | {"sparse_layers": tuple(sparse)}, reader.where)
    return config


def _build(kind: type[Any], values: object, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be an object")
    types = {field.name: str(field.type) for field in fields(kind)}
    for key, value in values.items():
        if key not in types:
            raise ConfigError(f"{where}: unknown key {key!r} (known: {', '.join(types)})")
        _check_type(value, types[key], f"{where}: {key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).split('__init__() ')[-1]}") from None


def _check_type(value: object, annotation: str, where: str) -> None:
    accepted: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "bool": (bool,),
        "str": (str,),
        "float": (int, float),
        "float | None": (int, float, type(None)),
        "RopeKind": (str,),
        "Score": (str,),
    }
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise ConfigError(f"{where} is {str(value)[:20]}..., which no model has")
    kinds = accepted.get(annotation)
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise ConfigError(f"{where} is {value!r}, it must be {annotation}")
