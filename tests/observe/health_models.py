"""Small mixtures whose experts and routers have structure, healthy until something is planted in them.

E experts, D model width, F hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tenth.kernels.weight import DenseExpertTable
from tenth.model.decoder import Decoder, initialise
from tenth.model.experts import SparseMlp
from tenth.model.preset import preset
from tenth.observe.profiling import Part, Profiler

EXPERTS, TOP_K = 8, 2


def healthy_decoder(seed: int = 0, experts: int = EXPERTS, top_k: int = TOP_K) -> Decoder:
    """Three layers, the last two sparse; embeddings far enough apart that routers spread their tokens."""
    shape = preset("tiny-moe")
    assert shape.moe is not None
    moe = replace(shape.moe, num_experts=experts, top_k=top_k, expert_bias=True)
    decoder = initialise(Decoder(replace(shape, moe=moe, model_type="tenth")), seed, std=0.1).requires_grad_(False)
    for parameter in decoder.embedding.parameters():
        parameter.mul_(20)
    return decoder


def text(tokens: int = 2048, length: int = 64, seed: int = 0) -> list[Part]:
    """Documents of random tokens of two domains, each with half of the vocabulary."""
    dice = torch.Generator().manual_seed(seed)
    found = list[Part]()
    for number in range(tokens // length):
        low = number % 2 * 128
        ids = torch.randint(low, low + 256, (length,), generator=dice).tolist()
        found.append(Part(ids, ("even", "odd")[number % 2], number // 2))
    return found


def sparse(decoder: Decoder, layer: int) -> SparseMlp:
    mlp = decoder.blocks()[layer].mlp
    assert isinstance(mlp, SparseMlp)
    return mlp


def stacked(decoder: Decoder, layer: int) -> tuple[Tensor, Tensor]:
    table = sparse(decoder, layer).experts
    assert isinstance(table, DenseExpertTable)
    return table.stacked()


def copy_expert(decoder: Decoder, layer: int, source: int, target: int, *, shuffled: bool = False) -> None:
    """Make one expert a copy of another, with its hidden units in another order if asked."""
    w13_E2FD, w2_EDF = stacked(decoder, layer)
    units = w2_EDF.shape[2]
    order = torch.randperm(units, generator=torch.Generator().manual_seed(1)) if shuffled else torch.arange(units)
    w13_E2FD[target] = w13_E2FD[source].view(2, units, -1)[:, order].flatten(0, 1)
    w2_EDF[target] = w2_EDF[source][:, order]


def favour(decoder: Decoder, layer: int, experts: Sequence[int], size: float) -> None:
    """Add to some experts' scores, for every token."""
    bias_E = sparse(decoder, layer).router.bias_E
    assert bias_E is not None
    bias_E[list(experts)] += size


def balance(decoder: Decoder, parts: Sequence[Part], steps: int = 20) -> Decoder:
    """Move the biases of routers until experts share the work (arXiv 2408.15664), by steps that shrink; returns it."""
    for step in range(steps):
        profiler = Profiler(decoder, "model", outputs=False)
        profiler.show(parts)
        for at, layer in enumerate(decoder.config.sparse_layers):
            counts_E = torch.from_numpy(profiler.profile.counts.counts_LE[at]).double()
            bias_E = sparse(decoder, layer).router.bias_E
            assert bias_E is not None
            bias_E += 0.5 * 0.85**step * (counts_E.mean() - counts_E).sign()
    return decoder
