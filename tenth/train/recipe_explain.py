"""Every field of a recipe with its type, default and meaning, read off the dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_origin

from tenth.model.config import ModelConfig, MoeConfig, RopeConfig
from tenth.train.balance import BalanceOptions
from tenth.train.distill import DistillOptions
from tenth.train.low_rank import LowRankOptions
from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import describe, key_of, types_of
from tenth.train.recipe_writer import toml_value

Row = tuple[str, str, str, str]
"""A key with its type, default and meaning."""

# dataclasses that are not a recipe's own say in their docstrings what their fields mean; here it is field by field
MEANINGS: Mapping[type, Mapping[str, str]] = {
    ModelConfig: {
        "model_type": "Hugging Face's name of the mathematics: qwen3_moe, llama, ...; or `tenth`",
        "vocab_size": "token ids, at least as many as the tokenizer has",
        "hidden_size": "width of the stream",
        "intermediate_size": "inner width of dense feed-forward layers",
        "num_layers": "layers",
        "num_heads": "heads of queries",
        "num_kv_heads": "heads of keys and values, a divisor of num_heads",
        "head_dim": "size of a head, even",
        "context_length": "longest text in tokens that the model is meant for; a longer stage raises it",
        "rms_norm_eps": "guard of the norms against division by nothing",
        "rope": "rotary positions",
        "tie_word_embeddings": "whether the head is the embedding",
        "qkv_bias": "whether query, key and value projections add biases",
        "o_bias": "whether the output projection of attention adds a bias",
        "mlp_bias": "whether dense feed-forward layers add biases",
        "qk_norm": "whether each head's queries and keys are normalised",
        "moe": "the sparse feed-forward layers",
        "sparse_layers": "numbers of the layers with experts, from 0; left out: all where there is [model.shape.moe]",
    },
    MoeConfig: {
        "num_experts": "routed experts of a layer",
        "top_k": "routed experts at work on a token",
        "intermediate_size": "inner width of a routed expert",
        "norm_topk_prob": "whether the gates of the chosen experts sum to one",
        "shared_intermediate_size": "inner width of an expert that is always on; 0: none",
        "shared_gate": "whether a sigmoid weighs the shared expert",
        "score": "what makes scores of router logits",
        "expert_bias": "a bias for each expert that counts for the choice alone; balance.bias_rate moves it",
        "num_groups": "equal groups that experts lie in",
        "top_groups": "best groups that a token's experts may come from",
        "routed_scale": "multiplies the gates",
    },
    RopeConfig: {
        "theta": "base of the wave lengths",
        "kind": "how positions are stretched beyond the original context",
        "factor": "how far they are stretched",
        "original_context": "tokens of context before stretching (yarn, llama3)",
        "attention_factor": "yarn: factor on cosines and sines instead of the rule's",
        "beta_fast": "yarn: turns within the original context above which a pair is kept",
        "beta_slow": "yarn: turns below which a pair is stretched in full",
        "mscale": "yarn: DeepSeek's factor",
        "mscale_all_dim": "yarn: DeepSeek's second factor",
        "truncate": "yarn: whether the edges of the ramp are whole pairs",
        "low_freq_factor": "llama3: turns below which a pair is stretched in full",
        "high_freq_factor": "llama3: turns above which a pair is kept",
    },
    BalanceOptions: {
        "kind": "where the loss counts the experts' shares: micro-batch, document, global batch; `none`: no loss",
        "weight": "factor on the balance loss, summed over layers",
        "z_weight": "factor on the router's z-loss (ST-MoE; 1e-3 is usual)",
        "counts": "a global batch's counts: of its micro-batches so far, or exactly, from a pass before the gradient",
        "bias_rate": "step of the loss-free biases, once a global batch; needs model.shape.moe.expert_bias",
        "capacity": "most assignments of an expert over the mean; `load`: follows the largest load; left out: no limit",
        "noise": "deviation of normal noise on the logits that experts are chosen by",
        "window": "global batches that the global MaxVio looks back",
    },
    DistillOptions: {
        "teacher": "model to learn from: path, hub name or `default-dense`; of the same vocabulary",
        "kl_weight": "factor on KL(teacher || student) of every position",
        "layer_weight": "factor on the squared error of every layer's output over the square of the teacher's",
        "rows": "positions whose logits are computed together",
    },
    LowRankOptions: {
        "rank": "rank of each routed expert's delta; 0 leaves them frozen",
        "shared_rank": "rank of the delta of a shared expert or a dense layer; 0 leaves them frozen",
        "seed": "of the inner factors; the outer ones start at zero",
    },
}


def explain() -> Iterator[tuple[str, str, list[Row]]]:
    """Sections in the order of a recipe: their name as it is written, their meaning, and their keys."""
    yield from _sections(Recipe, "")


def _sections(kind: type, section: str) -> Iterator[tuple[str, str, list[Row]]]:
    types = types_of(kind)
    for field in fields(kind):
        part, many = _section_of(types[field.name])
        if part is None:
            continue
        dotted = f"{section}.{key_of(field)}".lstrip(".")
        optional = "" if field.default is MISSING or many else " (may be left out)"
        rows = [row for inner in fields(part) if (row := _row(part, inner)) is not None]
        yield f"[[{dotted}]]" if many else f"[{dotted}]", meaning(kind, field) + optional, rows
        yield from _sections(part, dotted)


def _section_of(kind: Any) -> tuple[type | None, bool]:
    """The dataclass that a field's sections are of, and whether there may be several."""
    if is_dataclass(kind) and isinstance(kind, type):
        return kind, False
    for part in get_args(kind):
        if is_dataclass(part) and isinstance(part, type):
            return part, get_origin(kind) is tuple
    return None, False


def _row(kind: type, field: Field[Any]) -> Row | None:
    hint = types_of(kind)[field.name]
    if _section_of(hint)[0] is not None:
        return None
    return key_of(field), describe(hint, field.metadata.get("limits")), _default(field), meaning(kind, field)


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return "none" if field.default is None else toml_value(field.default)
    if field.default_factory is not MISSING:
        return toml_value(field.default_factory())
    return "required"


def meaning(kind: type, field: Field[Any]) -> str:
    """What a field means; KeyError for one that nobody explained."""
    stated = field.metadata.get("help")
    return stated if stated is not None else MEANINGS[kind][field.name]
