"""Which tensor of a file is which part of the network: the names of Hugging Face and of GGUF, as tables.

E experts, F expert width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from tenth.errors import TensorError
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one tensor: all of a parameter, or of it the given expert, or of that the given rows.

    `rows` counts along the first axis behind the expert axis. `rope_heads` is the number of heads whose rows GGUF keeps
    in pairs (0: not so).
    """

    parameter: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    rope_heads: int = 0

    def view(self, parameter: Tensor) -> Tensor:
        """The part of the parameter that this slot names; a view."""
        part = parameter if self.expert is None else parameter[self.expert]
        if self.rows is None:
            return part
        axis = part.dim() - 2
        return part.narrow(axis, self.rows[0], self.rows[1] - self.rows[0])


# file name, our name; behind the prefix of the layer. `{}.weight` and, where the network has it, `{}.bias`.
_HF_ATTENTION = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "o"))
_HF_MLP = (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down"))
_GGUF_ATTENTION = (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v"), ("attn_output", "o"))


def huggingface_slots(config: ModelConfig) -> dict[str, Slot]:
    """Every tensor of a Hugging Face checkpoint (each expert apart), by name."""
    slots = {
        "model.embed_tokens.weight": Slot("embedding.values_OI"),
        "model.norm.weight": Slot("norm.weight"),
    }
    if not config.tie_word_embeddings:
        slots["lm_head.weight"] = Slot("head.weight.values_OI")
    for layer in range(config.num_layers):
        slots.update(_huggingface_layer(config, layer))
    return slots


def stacked_slots(config: ModelConfig) -> dict[str, Slot]:
    """The names under which some tools write all experts of a layer as one tensor."""
    slots = {}
    for layer in config.sparse_layers:
        slots[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = Slot(f"layers.{layer}.mlp.experts.w13_E2FD")
        slots[f"model.layers.{layer}.mlp.experts.down_proj"] = Slot(f"layers.{layer}.mlp.experts.w2_EDF")
    return slots


def _huggingface_layer(config: ModelConfig, layer: int) -> Iterator[tuple[str, Slot]]:
    theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
    yield f"{theirs}.input_layernorm.weight", Slot(f"{ours}.attention_norm.weight")
    yield f"{theirs}.post_attention_layernorm.weight", Slot(f"{ours}.mlp_norm.weight")
    for name, own in _HF_ATTENTION:
        bias = config.o_bias if own == "o" else config.qkv_bias
        yield from _linear(f"{theirs}.self_attn.{name}", f"{ours}.attention.{own}", bias)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            yield f"{theirs}.self_attn.{name}.weight", Slot(f"{ours}.attention.{name}.weight")
    moe = config.moe
    if moe is None or not config.is_sparse(layer):
        for name, own in _HF_MLP:
            yield from _linear(f"{theirs}.mlp.{name}", f"{ours}.mlp.{own}", config.mlp_bias)
        return
    yield f"{theirs}.mlp.gate.weight", Slot(f"{ours}.mlp.router.weight_ED")
    if moe.expert_bias:
        yield f"{theirs}.mlp.gate.e_score_correction_bias", Slot(f"{ours}.mlp.router.bias_E")
    for expert in range(moe.num_experts):
        for name, slot in _expert_parts(f"{ours}.mlp.experts", expert, moe.intermediate_size):
            yield f"{theirs}.mlp.experts.{expert}.{name}.weight", slot
    if moe.shared_intermediate_size:
        for name, own in _HF_MLP:
            yield f"{theirs}.mlp.shared_expert.{name}.weight", Slot(f"{ours}.mlp.shared.{own}.weight.values_OI")
    if moe.shared_gate:
        yield f"{theirs}.mlp.shared_expert_gate.weight", Slot(f"{ours}.mlp.shared_gate.weight.values_OI")


def _linear(theirs: str, ours: str, bias: bool, rope_heads: int = 0) -> Iterator[tuple[str, Slot]]:
    yield f"{theirs}.weight", Slot(f"{ours}.weight.values_OI", rope_heads=rope_heads)
    if bias:
        yield f"{theirs}.bias", Slot(f"{ours}.bias", rope_heads=rope_heads)


def _expert_parts(table: str, expert: int | None, width: int) -> Iterator[tuple[str, Slot]]:
    yield "gate_proj", Slot(f"{table}.w13_E2FD", expert, (0, width))
    yield "up_proj", Slot(f"{table}.w13_E2FD", expert, (width, 2 * width))
    yield "down_proj", Slot(f"{table}.w2_EDF", expert)


def gguf_slots(config: ModelConfig) -> dict[str, Slot]:
    """Every tensor of a GGUF file, by name (all experts of a layer in one tensor)."""
    slots = {
        "token_embd.weight": Slot("embedding.values_OI"),
        "output_norm.weight": Slot("norm.weight"),
    }
    if not config.tie_word_embeddings:
        slots["output.weight"] = Slot("head.weight.values_OI")
    for layer in range(config.num_layers):
        slots.update(_gguf_layer(config, layer))
    return slots


def _gguf_layer(config: ModelConfig, layer: int) -> Iterator[tuple[str, Slot]]:
    theirs, ours = f"blk.{layer}", f"layers.{layer}"
    yield f"{theirs}.attn_norm.weight", Slot(f"{ours}.attention_norm.weight")
    yield f"{theirs}.ffn_norm.weight", Slot(f"{ours}.mlp_norm.weight")
    # GGUF keeps the rows of Llama's rotated heads as pairs (0, 1), (2, 3) ...; Qwen's as halves, like us
    pairs = {"q": config.num_heads, "k": config.num_kv_heads} if config.model_type == "llama" else {}
    for name, own in _GGUF_ATTENTION:
        bias = config.o_bias if own == "o" else config.qkv_bias
        yield from _linear(f"{theirs}.{name}", f"{ours}.attention.{own}", bias, pairs.get(own, 0))
    if config.qk_norm:
        for own in ("q", "k"):
            yield f"{theirs}.attn_{own}_norm.weight", Slot(f"{ours}.attention.{own}_norm.weight")
    moe = config.moe
    if moe is None or not config.is_sparse(layer):
        for own in ("gate", "up", "down"):
            yield from _linear(f"{theirs}.ffn_{own}", f"{ours}.mlp.{own}", config.mlp_bias)
        return
    yield f"{theirs}.ffn_gate_inp.weight", Slot(f"{ours}.mlp.router.weight_ED")
    for name, slot in _expert_parts(f"{ours}.mlp.experts", None, moe.intermediate_size):
        yield f"{theirs}.ffn_{name.removesuffix('_proj')}_exps.weight", slot
    if moe.shared_intermediate_size:
        for own in ("gate", "up", "down"):
            yield f"{theirs}.ffn_{own}_shexp.weight", Slot(f"{ours}.mlp.shared.{own}.weight.values_OI")
    if moe.shared_gate:
        yield f"{theirs}.ffn_gate_inp_shexp.weight", Slot(f"{ours}.mlp.shared_gate.weight.values_OI")


# Tensors that a checkpoint may carry and the network does not read, with the reason.
def skipped(config: ModelConfig, name: str) -> str | None:
    """Why a tensor is left out (None: it is not one of those)."""
    if config.tie_word_embeddings and name in ("lm_head.weight", "output.weight"):
        return "the head is tied to the embedding"
    if name.endswith(".rotary_emb.inv_freq"):
        return "rotary frequencies follow from the config"
    if name == "rope_freqs.weight":
        return "rotary frequencies follow from the config, which was read off this tensor"
    return None


def check_shapes(
    decoder: Decoder, slots: Mapping[str, Slot], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Every slot's tensor is there in its shape; TensorError names the first that is not."""
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    for name, slot in slots.items():
        if name not in shapes:
            raise TensorError(f"{where}: tensor {name!r} is missing, the config asks for it")
        expected = tuple(slot.view(parameters[slot.parameter]).shape)
        if _squeezed(shapes[name]) != _squeezed(expected):
            raise TensorError(f"{where}: tensor {name!r} has shape {shapes[name]}, the config asks for {expected}")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shapes are compared without axes of size one: GGUF drops them."""
    return tuple(size for size in shape if size != 1)
