"""Low-rank deltas on frozen weights: what heals a carved model, small enough to be kept apart from it.

I inputs, O outputs, E experts, D model width, F expert width, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tenth.errors import RequestError
from tenth.kernels.reference import wide
from tenth.kernels.weight import DenseExpertTable, DenseWeight, ExpertTable, Weight
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.linear import Linear, Mlp


@dataclass(frozen=True, slots=True)
class LowRankOptions:
    """Ranks of the deltas that learn: `rank` of each routed expert, `shared_rank` of a shared expert or a dense layer.

    A routed expert has two deltas, of gate and up together and of down; others have one of each matrix. 0 leaves those
    weights frozen. `seed` draws the inner factors; the outer ones start at zero.
    """

    rank: int = 10
    shared_rank: int = 56
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "shared_rank"):
            if getattr(self, name) < 0:
                raise RequestError(f"low_rank {name} is {getattr(self, name)}, it must be at least 0")
        if not 0 <= self.seed < 1 << 48:
            raise RequestError(f"low_rank seed is {self.seed}, it must lie between 0 and 2^48")


class LowRankWeight(Weight):
    """A frozen matrix plus outer (O, R) times inner (R, I), which learn in float32 or wider."""

    def __init__(self, base: Weight, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        values_OI = base.dense()
        self.out_features, self.in_features = base.out_features, base.in_features
        self.base = base.requires_grad_(False)
        self.inner_RI = _drawn((rank, base.in_features), values_OI, generator)
        self.outer_OR = _zeros((base.out_features, rank), values_OI)

    def rows(self, ids: Tensor) -> Tensor:
        """The named rows (..., I)."""
        rows = self.base.rows(ids)
        return rows + (self.outer_OR[ids] @ self.inner_RI).to(rows.dtype)

    def dense(self) -> Tensor:
        """The sum (O, I), in the frozen matrix's type."""
        values_OI = self.base.dense()
        return values_OI + (self.outer_OR @ self.inner_RI).to(values_OI.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return self.base.nbytes + self.inner_RI.nbytes + self.outer_OR.nbytes


class LowRankExpertTable(ExpertTable):
    """A frozen table plus two deltas for each expert, of gate over up and of down, in float32 or wider."""

    def __init__(self, base: DenseExpertTable, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_experts, self.hidden_size, self.intermediate_size = shape = (
            base.num_experts,
            base.hidden_size,
            base.intermediate_size,
        )
        experts, hidden, width = shape
        self.base = base.requires_grad_(False)
        self.w13_inner_ERD = _drawn((experts, rank, hidden), base.w13_E2FD, generator)
        self.w13_outer_E2FR = _zeros((experts, 2 * width, rank), base.w13_E2FD)
        self.w2_inner_ERF = _drawn((experts, rank, width), base.w2_EDF, generator)
        self.w2_outer_EDR = _zeros((experts, hidden, rank), base.w2_EDF)

    def expert(self, index: int) -> tuple[Tensor, Tensor]:
        """One expert's sums: (2F, D), and (D, F)."""
        w13_2FD, w2_DF = self.base.expert(index)
        delta_2FD = self.w13_outer_E2FR[index] @ self.w13_inner_ERD[index]
        delta_DF = self.w2_outer_EDR[index] @ self.w2_inner_ERF[index]
        return w13_2FD + delta_2FD.to(w13_2FD.dtype), w2_DF + delta_DF.to(w2_DF.dtype)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All experts' sums, with a gradient: (E, 2F, D), and (E, D, F)."""
        w13_E2FD, w2_EDF = self.base.w13_E2FD, self.base.w2_EDF
        delta_E2FD = torch.bmm(self.w13_outer_E2FR, self.w13_inner_ERD)
        delta_EDF = torch.bmm(self.w2_outer_EDR, self.w2_inner_ERF)
        return w13_E2FD + delta_E2FD.to(w13_E2FD.dtype), w2_EDF + delta_EDF.to(w2_EDF.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return sum(part.nbytes for part in self.parameters())


def attach(decoder: Decoder, options: LowRankOptions) -> Decoder:
    """Put deltas on every feed-forward layer, in place; they and the routers learn, all else is frozen. Returns it.

    RequestError where weights are packed, or have deltas already.
    """
    if any(isinstance(part, LowRankWeight | LowRankExpertTable) for part in decoder.modules()):
        raise RequestError("the model has low-rank deltas already; merge them first")
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(options.seed)
    for layer in decoder.blocks():
        if isinstance(layer.mlp, Mlp):
            _attach_dense(layer.mlp, options.shared_rank, generator)
        else:
            _attach_sparse(layer.mlp, options, generator)
    return decoder


def _attach_sparse(mlp: SparseMlp, options: LowRankOptions, generator: torch.Generator) -> None:
    mlp.router.weight_ED.requires_grad_(True)
    if options.rank:
        if not isinstance(mlp.experts, DenseExpertTable):
            raise RequestError("low-rank deltas go on float experts; dequantise the model first")
        mlp.experts = LowRankExpertTable(mlp.experts, options.rank, generator)
    if mlp.shared is not None:
        _attach_dense(mlp.shared, options.shared_rank, generator)


def _attach_dense(mlp: Mlp, rank: int, generator: torch.Generator) -> None:
    for part in _linears(mlp) if rank else ():
        if not isinstance(part.weight, DenseWeight):
            raise RequestError("low-rank deltas go on float weights; dequantise the model first")
        part.weight = LowRankWeight(part.weight, rank, generator)


@torch.no_grad()
def merge(decoder: Decoder) -> Decoder:
    """Add all deltas to the weights they are on, in place; nothing of the result is low-rank or learns. Returns it."""
    for layer in decoder.blocks():
        mlp = layer.mlp
        if isinstance(mlp, SparseMlp) and isinstance(mlp.experts, LowRankExpertTable):
            merged, table = mlp.experts.base, mlp.experts
            for target, values in zip((merged.w13_E2FD, merged.w2_EDF), table.stacked(), strict=True):
                target.copy_(values)
            mlp.experts = merged
        dense = mlp if isinstance(mlp, Mlp) else mlp.shared
        for part in _linears(dense) if dense is not None else ():
            if isinstance(part.weight, LowRankWeight) and isinstance(part.weight.base, DenseWeight):
                part.weight.base.values_OI.copy_(part.weight.dense())
                part.weight = part.weight.base
    return decoder.requires_grad_(False)


def _linears(mlp: Mlp) -> tuple[Linear, Linear, Linear]:
    return mlp.gate, mlp.up, mlp.down


def _drawn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> nn.Parameter:
    """Rows of unit length in the mean, so that deltas move at one pace whatever the width."""
    values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    return nn.Parameter(values.to(like.device, wide(like.dtype)))


def _zeros(shape: tuple[int, ...], like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=wide(like.dtype), device=like.device))
