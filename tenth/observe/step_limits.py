"""What a step of a decoder must do: the bytes that it reads, and the operations of its products.

T tokens, K active experts, D model width, F inner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from tenth.kernels.packed import PackedExpertTable, PackedWeight
from tenth.kernels.weight import ExpertTable, Weight
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder, Layer
from tenth.model.experts import SparseMlp
from tenth.model.linear import Mlp
from tenth.routing.record import LayerRouting, Routing

if TYPE_CHECKING:
    from tenth.kernels.cpu.limits import Peaks, StepWalk


def read_step(walk: StepWalk, decoder: Decoder, routing: Routing, cache: KVCache, length: int) -> None:
    """Tell a walk what a decode step reads: matrices, the experts of its routing, and the cache.

    The step has a token of each document; document s has the cache's page s, with `length` tokens in it.
    """
    for index, layer in enumerate(decoder.blocks()):
        ids, tokens = _at_work(routing.layers[index]) if isinstance(layer.mlp, SparseMlp) else ((), 0)
        read_layer(walk, layer, ids, tokens, _cached(cache, index, length))
    walk.matrices([decoder.head.weight])


def read_layer(
    walk: StepWalk, layer: Layer, ids: Sequence[int], tokens: int, cached: Sequence[Tensor] | None = None
) -> None:
    """Tell a walk what so many tokens read of a layer: matrices, these of its experts if it has any, and the cache."""
    attention = layer.attention
    walk.matrices([attention.q.weight, attention.k.weight, attention.v.weight])
    if cached is not None:
        walk.memory(cached)
    walk.matrices([attention.o.weight])
    if isinstance(layer.mlp, Mlp):
        _read_mlp(walk, layer.mlp)
    else:
        _read_sparse(walk, layer.mlp, ids, tokens)


def _cached(cache: KVCache, layer: int, length: int) -> list[Tensor]:
    """Keys and values of each document and head: whole groups of tokens, as they lie in the pools."""
    parts = []
    for pool in cache.pools(layer):
        together = cache.page_size // pool.shape[2]
        parts += [head[: -(-length // together)] for page in pool for head in page]
    return parts


def _read_mlp(walk: StepWalk, mlp: Mlp) -> None:
    walk.matrices([mlp.gate.weight, mlp.up.weight])
    walk.matrices([mlp.down.weight])


def _at_work(routing: LayerRouting) -> tuple[list[int], int]:
    """Experts that have something to do (of the others nothing is read), and the tokens."""
    return sorted(set(routing.experts_TK[routing.gates_TK != 0].tolist())), len(routing.experts_TK)


def _read_sparse(walk: StepWalk, mlp: SparseMlp, ids: Sequence[int], tokens: int) -> None:
    walk.router(mlp.router.weight_ED)
    walk.experts(mlp.experts, ids, tokens)
    if mlp.shared_gate is not None:
        walk.matrices([mlp.shared_gate.weight])
    if mlp.shared is not None:
        _read_mlp(walk, mlp.shared)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations by the kind of number that they are best done in; a multiply-add is two."""

    integer: float = 0.0
    floating: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.integer + other.integer, self.floating + other.floating)

    def __mul__(self, factor: float) -> Work:
        return Work(self.integer * factor, self.floating * factor)

    def seconds(self, peaks: Peaks) -> float:
        """The time at the machine's peaks."""
        return self.integer / peaks.integer + self.floating / peaks.floating


def prefill_work(decoder: Decoder, tokens: int, depth: int) -> Work:
    """A prompt of so many tokens behind `depth` others, with the logits of its last one.

    Matrices of integers count as integer work, float ones and attention as floating.
    """
    config = decoder.config
    seen = tokens * depth + tokens * (tokens + 1) // 2
    attention = Work(floating=4.0 * config.num_layers * config.num_heads * config.head_dim * seen)
    return _token_work(decoder) * tokens + _matrices([decoder.head.weight]) + attention


def _token_work(decoder: Decoder) -> Work:
    """The matrices that a token meets in the layers."""
    work = Work()
    for layer in decoder.blocks():
        a, mlp = layer.attention, layer.mlp
        work += _matrices([a.q.weight, a.k.weight, a.v.weight, a.o.weight])
        if isinstance(mlp, Mlp):
            work += _mlp_work(mlp)
            continue
        moe = decoder.config.moe
        assert moe is not None, "a sparse layer has experts"
        work += _mean_expert(mlp.experts) * moe.top_k + Work(floating=2.0 * mlp.router.weight_ED.numel())
        if mlp.shared_gate is not None:
            work += _matrices([mlp.shared_gate.weight])
        if mlp.shared is not None:
            work += _mlp_work(mlp.shared)
    return work


def _mlp_work(mlp: Mlp) -> Work:
    return _matrices([mlp.gate.weight, mlp.up.weight, mlp.down.weight])


def _mean_expert(table: ExpertTable) -> Work:
    assert isinstance(table, PackedExpertTable), "native kernels take packed experts"
    parts = [part for expert in table.experts for part in (expert.gate, expert.up, expert.down)]
    return _matrices(parts) * (1 / table.num_experts)


def _matrices(weights: Sequence[Weight]) -> Work:
    work = Work()
    for weight in weights:
        assert isinstance(weight, PackedWeight), "native kernels take packed weights"
        operations = 2.0 * weight.out_features * weight.in_features
        work += Work(integer=operations) if weight.format.group else Work(floating=operations)
    return work
