"""A weight is a value with a format: one matrix, or a table of experts.

I inputs, O outputs, E experts, D model width, F expert width.

The format here is dense (a float tensor); `packed.py` has the packed ones, a subclass of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Weight(nn.Module, ABC):
    """A matrix of O rows (outputs) by I columns (inputs), in some format."""

    out_features: int
    in_features: int

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """The named rows, dense: what an embedding looks up."""

    @abstractmethod
    def dense(self) -> Tensor:
        """All of it (O, I) as floats: in its own type where it is dense, in float32 where it is packed."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that hold it."""


class DenseWeight(Weight):
    """A matrix as a float tensor, the format that trains."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.values_OI = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device))

    def rows(self, ids: Tensor) -> Tensor:
        """The named rows (..., I)."""
        return nn.functional.embedding(ids, self.values_OI)

    def dense(self) -> Tensor:
        """The values themselves (O, I)."""
        return self.values_OI

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return self.values_OI.nbytes


class ExpertTable(nn.Module, ABC):
    """The experts of one layer: each two matrices, gate over up (2F, D), and down (D, F)."""

    num_experts: int
    hidden_size: int
    intermediate_size: int

    @abstractmethod
    def expert(self, index: int) -> tuple[Tensor, Tensor]:
        """One expert as floats: gate over up (2F, D), and down (D, F)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that hold it."""


class DenseExpertTable(ExpertTable):
    """All experts of a layer stacked in two float tensors, the format that trains."""

    def __init__(
        self, num_experts: int, hidden: int, intermediate: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.num_experts, self.hidden_size, self.intermediate_size = num_experts, hidden, intermediate
        self.w13_E2FD = nn.Parameter(torch.empty(num_experts, 2 * intermediate, hidden, dtype=dtype, device=device))
        self.w2_EDF = nn.Parameter(torch.empty(num_experts, hidden, intermediate, dtype=dtype, device=device))

    def expert(self, index: int) -> tuple[Tensor, Tensor]:
        """Views of one expert's values: (2F, D), and (D, F)."""
        return self.w13_E2FD[index], self.w2_EDF[index]

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All experts' values: (E, 2F, D), and (E, D, F)."""
        return self.w13_E2FD, self.w2_EDF

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return self.w13_E2FD.nbytes + self.w2_EDF.nbytes
