"""What makes a carved model out of its source, and is small: neurons, routers, and low-rank deltas from healing.

F neurons, E experts, D model width, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import RequestError, TensorError
from tenth.kernels.weight import DenseExpertTable, DenseWeight
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.linear import Mlp
from tenth.train.carve import CarvedLayer, CarveOptions, assembled, carved_config
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.load import Progress, load_decoder

_MOST_LOST = 0.05  # of a difference's squares


@dataclass(frozen=True, slots=True)
class Delta:
    """outer (..., O, R) @ diag(scale (..., R)) @ inner (..., R, I); the outer two are int8."""

    outer: Tensor
    scale: Tensor
    inner: Tensor

    def values(self) -> Tensor:
        """The product in float64, in which no order of summing shows in a narrower type."""
        return (self.outer.double() * self.scale.double().unsqueeze(-2)) @ self.inner.double()


@dataclass(frozen=True, slots=True)
class Artefact:
    """`source` is the hash of the dense model's weights (`weights_hash`), `deltas` are by layer and matrix.

    Matrices are called `experts.w13`, `experts.w2`, and `gate`, `up`, `down` of a shared expert or a pruned layer.
    """

    source: str
    options: CarveOptions
    layers: tuple[CarvedLayer, ...]
    deltas: tuple[Mapping[str, Delta], ...]


def weights_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 of the files that hold a model's weights, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted({info.where for info in checkpoint.source.tensors.values()}):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def assemble(checkpoint: Checkpoint, artefact: Artefact, progress: Progress | None = None) -> Decoder:
    """The carved model, bfloat16, from its dense source and what was kept of it; the same bits every time.

    RequestError where the checkpoint is not the one that was carved.
    """
    if weights_hash(checkpoint) != artefact.source:
        raise RequestError(f"{checkpoint.path}: is not the model that was carved: its weights have another hash")
    config = carved_config(checkpoint.config, artefact.options)
    _check(artefact, checkpoint.config, config)
    dense = load_decoder(checkpoint, dtype=torch.bfloat16, progress=progress)
    carved = assembled(dense, config, artefact.layers)
    for layer, deltas in zip(carved.blocks(), artefact.deltas, strict=True):
        matrices = delta_matrices(layer.mlp)
        for name, delta in deltas.items():
            values = delta.values()
            if name not in matrices or values.shape != matrices[name].shape:
                raise TensorError(
                    f"the carving has a delta {name!r} of shape {tuple(values.shape)}: no matrix is like it"
                )
            matrices[name].copy_(matrices[name].double() + values)
    return carved


def _check(artefact: Artefact, dense: ModelConfig, carved: ModelConfig) -> None:
    """TensorError where neurons or routers are not those of this model: they are indices into its weights."""
    if len(artefact.layers) != dense.num_layers:
        raise TensorError(f"the carving has {len(artefact.layers)} layers, the model {dense.num_layers}")
    moe = carved.moe
    kept = carved.intermediate_size if moe is None else dense.intermediate_size
    for index, layer in enumerate(artefact.layers):
        neurons = torch.unique(layer.neurons_F)
        if not len(neurons) == len(layer.neurons_F) == kept or neurons[0] < 0 or neurons[-1] >= dense.intermediate_size:
            raise TensorError(f"the carving's layer {index} does not name {kept} neurons of {dense.intermediate_size}")
        shapes = [None if part is None else tuple(part.shape) for part in (layer.rows_ED, layer.bias_E)]
        if shapes != ([None, None] if moe is None else [(moe.num_experts, dense.hidden_size), (moe.num_experts,)]):
            raise TensorError(f"the carving's layer {index} has a router of shapes {shapes}")


def delta_matrices(mlp: Mlp | SparseMlp) -> dict[str, Tensor]:
    """The matrices of a layer that may have deltas, by the names they have in an artefact."""
    matrices: dict[str, Tensor] = {}
    if isinstance(mlp, SparseMlp) and isinstance(mlp.experts, DenseExpertTable):
        matrices |= {"experts.w13": mlp.experts.w13_E2FD.data, "experts.w2": mlp.experts.w2_EDF.data}
    dense = mlp if isinstance(mlp, Mlp) else mlp.shared
    for name in ("gate", "up", "down") if dense is not None else ():
        weight = getattr(dense, name).weight
        if isinstance(weight, DenseWeight):
            matrices[name] = weight.values_OI.data
    return matrices


def healed_artefact(carved: Artefact, before: Decoder, after: Decoder, rank: int, shared_rank: int) -> Artefact:
    """What healing changed: the new routers, and the best deltas of the given ranks from `before` to `after`.

    Singular vectors of the difference, so weights that learned low-rank deltas are found again but for rounding.
    RequestError where that would lose something: other weights have changed, or deltas are of a higher rank.
    """
    _check_frozen(before, after)
    layers, deltas = [], []
    for index, (old, start, end) in enumerate(zip(carved.layers, before.blocks(), after.blocks(), strict=True)):
        layers.append(_healed_layer(old, end.mlp))
        ends = delta_matrices(end.mlp)
        found = {}
        for name, matrix in delta_matrices(start.mlp).items():
            difference = ends[name].double() - matrix.double()
            if not difference.any():
                continue
            option, most = ("rank", rank) if name.startswith("experts") else ("shared_rank", shared_rank)
            found[name] = nearest_delta(difference, most)
            if (lost := _lost(difference, found[name], ends[name])) > _MOST_LOST:
                raise RequestError(
                    f"layer {index}: {option} {most} keeps {1 - lost:.0%} of what {name} learned: give the rank it had"
                )
        deltas.append(found)
    return Artefact(carved.source, carved.options, tuple(layers), tuple(deltas))


def _healed_layer(old: CarvedLayer, mlp: Mlp | SparseMlp) -> CarvedLayer:
    if isinstance(mlp, Mlp):
        return old
    bias_E = mlp.router.bias_E
    return CarvedLayer(old.neurons_F, mlp.router.weight_ED.bfloat16(), None if bias_E is None else bias_E.bfloat16())


def _check_frozen(before: Decoder, after: Decoder) -> None:
    """RequestError where something else than feed-forward matrices and routers has changed."""
    theirs = dict(after.named_parameters())
    for name, values in before.named_parameters():
        if ".mlp." not in name and not torch.equal(values, theirs[name]):
            raise RequestError(
                f"{name} has changed in healing, which a small file does not hold: train with [low_rank]"
            )


def _lost(difference: Tensor, delta: Delta, values: Tensor) -> float:
    """The share of a difference's squares that its delta lacks, beyond twice what rounding to bfloat16 adds."""
    step = torch.exp2(torch.frexp(values.float()).exponent.double() - 8)
    lost = (difference - delta.values()).square().sum() - step.square().sum() / 6
    return float(lost / difference.square().sum())


def nearest_delta(difference: Tensor, rank: int) -> Delta:
    """The closest product of a rank (..., O, I), its vectors rounded to int8."""
    outer, singular, inner = torch.linalg.svd(difference, full_matrices=False)
    rank = min(rank, singular.shape[-1])
    outer, singular, inner = outer[..., :rank], singular[..., :rank], inner[..., :rank, :]
    outer_step = outer.abs().amax(-2).clamp_min(1e-30) / 127
    inner_step = inner.abs().amax(-1).clamp_min(1e-30) / 127
    return Delta(
        (outer / outer_step.unsqueeze(-2)).round().to(torch.int8),
        (singular * outer_step * inner_step).float(),
        (inner / inner_step.unsqueeze(-1)).round().to(torch.int8),
    )
