"""Small models on disk, written by others' code: `transformers` for folders, the `gguf` package for GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

from tests.model.configs import theirs

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}


# where the float16 fields of a block lie
HALVES_OF_KIND = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def raw_config(family: str, **changes: Any) -> dict[str, Any]:
    """A small config of a family, wide enough for blocks of 256 values."""
    raw: dict[str, Any] = {
        "model_type": family,
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": False,
    }
    if family in ("llama", "qwen3", "qwen3_moe"):
        raw |= {"head_dim": 32, "attention_bias": False}
    if family.endswith("moe"):
        moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "decoder_sparse_step": 1}
        raw |= moe | {"mlp_only_layers": [], "norm_topk_prob": family == "qwen3_moe"}
    if family == "qwen2_moe":
        raw |= {"shared_expert_intermediate_size": 256, "qkv_bias": True}
    return raw | changes


def write_folder(folder: Path, raw: dict[str, Any], dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """A folder as `save_pretrained` writes it; returns the model."""
    model = theirs(raw, dtype=dtype)
    model.save_pretrained(folder, **saving)
    return model


def write_gguf(
    path: Path,
    raw: dict[str, Any],
    model: Any,
    quantisation: str | Callable[[str], str] = "F32",
    *,
    tokenizer: bool = False,
) -> None:
    """The model as GGUF with the names of the `gguf` package; matrices in `quantisation`, the rest in F32.

    `quantisation` is a type for all, or gives one for each name of GGUF. `tokenizer` adds one of single bytes.
    """
    family, layers = raw["model_type"], raw["num_hidden_layers"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]])
    _write_keys(writer, raw)
    if tokenizer:
        _write_tokenizer(writer, raw["vocab_size"])
    for name, values in _tensors(raw, model).items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        wanted = quantisation if isinstance(quantisation, str) else quantisation(target)
        kind = gguf.GGMLQuantizationType[wanted if values.ndim > 1 and "gate_inp" not in target else "F32"]
        if "shared_expert_gate" in name:
            values, kind = values[0], gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, _blocks(values, kind), raw_dtype=kind)
    if raw["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(raw))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Values in a type; the package rounds to no K type, so these get random blocks of small scales."""
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(values, kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(values.size)
    raw = random.integers(0, 256, (*values.shape[:-1], values.shape[-1] // elements, size), dtype=np.uint8)
    for at in HALVES_OF_KIND[kind.name]:
        scales = random.standard_normal(raw.shape[:-1]).astype(np.float16) * np.float16(0.0005)
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(*values.shape[:-1], -1)


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "<|im_end|>"]
    pads = [f"[PAD{n}]" for n in range(vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + pads)
    writer.add_token_types([1] * (len(tokens) - 1) + [3] + [5] * len(pads))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(len(tokens) - 1)


def _write_keys(writer: gguf.GGUFWriter, raw: dict[str, Any]) -> None:
    head = raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_parameters"]["rope_theta"])
    rope = raw["rope_parameters"]
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "num_experts" in raw:
        writer.add_expert_count(raw["num_experts"])
        writer.add_expert_used_count(raw["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(raw["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in raw:
        writer.add_expert_shared_feed_forward_length(raw["shared_expert_intermediate_size"])


def _tensors(raw: dict[str, Any], model: Any) -> dict[str, np.ndarray]:
    """The state as a converter to GGUF arranges it: experts stacked, Llama's q and k rows in pairs."""
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    if raw["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    arranged: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(value, 2, axis=1)
            arranged |= {
                name.replace("gate_up_proj", f"{part}_proj.weight"): v for part, v in (("gate", gate), ("up", up))
            }
        elif name.endswith("experts.down_proj"):
            arranged[name + ".weight"] = value
        elif raw["model_type"] == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = raw["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            pairs = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2)
            arranged[name] = np.ascontiguousarray(pairs.reshape(value.shape))
        else:
            arranged[name] = value
    return {name: np.ascontiguousarray(value) for name, value in arranged.items()}


def llama3_factors(raw: dict[str, Any]) -> np.ndarray:
    """The divisors that converters store for Llama 3's scaling, written out pair by pair."""
    rope, size = raw["rope_parameters"], raw["head_dim"]
    factors = []
    for pair in range(size // 2):
        frequency = rope["rope_theta"] ** (-2 * pair / size)
        wave = 2 * np.pi / frequency
        original = rope["original_max_position_embeddings"]
        if wave < original / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wave > original / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (original / wave - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def change_json(path: Path, **changes: Any) -> None:
    """Overwrite some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
