"""Random tiny models of every family and option, as `transformers` builds them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from hypothesis import strategies as st

from tenth.model.decoder import Decoder
from tenth.model.huggingface import config_from_huggingface
from tenth.weights.names import huggingface_slots, stacked_slots

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 16, "truncate": False},
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.2,
        "mscale_all_dim": 0.8,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.3,
    },
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]


@st.composite
def raw_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of a random family's config, every option of the network among them."""
    family = draw(st.sampled_from(sorted(CLASSES)))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    head_dim = draw(st.sampled_from([4, 8, 16]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 4))
    free = family not in ("qwen2", "qwen2_moe")  # the head size is a key of its own
    raw: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": heads * draw(st.sampled_from([4, 8, 12])) if free else heads * head_dim,
        "intermediate_size": draw(st.sampled_from([8, 20, 33])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "rope_parameters": dict(draw(st.sampled_from(ROPES))),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if free:
        raw |= {"head_dim": head_dim, "attention_bias": draw(st.booleans())}
    if family == "llama":
        raw["mlp_bias"] = draw(st.booleans())
    if family.endswith("moe"):
        raw |= draw(_moe_keys(layers))
    if family == "qwen2_moe":
        raw |= {"shared_expert_intermediate_size": draw(st.sampled_from([8, 20])), "qkv_bias": draw(st.booleans())}
    return raw


@st.composite
def _moe_keys(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    experts = draw(st.integers(2, 9))
    return {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(st.sampled_from([4, 12, 17])),
        "norm_topk_prob": draw(st.booleans()),
        "decoder_sparse_step": draw(st.integers(1, 2)),
        "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), unique=True, max_size=2)),
    }


def theirs(raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model of `transformers`, randomly initialised: weights, biases and norms all off their defaults."""
    config_class, model_class = CLASSES[raw["model_type"]]
    config = config_class(**{k: v for k, v in raw.items() if k != "model_type"})
    config._experts_implementation = "eager"  # their grouped product refuses odd widths
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.empty(parameter.shape).normal_(0, 0.2, generator=generator)
            parameter.copy_(1 + drawn if "norm" in name else drawn)
    return model.to(dtype).eval()


def ours(raw: dict[str, Any], model: Any, dtype: torch.dtype = torch.float32) -> Decoder:
    """The same weights in our network, by the names of the checkpoint format."""
    config, ignored = config_from_huggingface(raw, "raw")
    assert ignored == ()
    decoder = Decoder(config, dtype=dtype)
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    slots = huggingface_slots(config) | stacked_slots(config)
    state = model.state_dict()
    with torch.no_grad():
        for name, slot in slots.items():
            if name in state:
                slot.view(parameters[slot.parameter]).copy_(state[name])
    per_expert = {name for name in huggingface_slots(config) if ".experts." in name}
    assert set(slots) - per_expert == set(state) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return decoder
