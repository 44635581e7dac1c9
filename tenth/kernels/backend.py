"""Where a module's weights come from, in what type, and which kernels work on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.kernels.weight import DenseExpertTable, DenseWeight, ExpertTable, Weight


@dataclass(frozen=True, slots=True)
class Backend:
    """Passed to every module when it is built, which asks it for its weights; two modules may have different ones.

    This one allocates dense weights of type `dtype`, uninitialised. Others look up what lies at `path`, the name of the
    weight in the network: `layers.3.attention.q.weight`. `dtype` is also the type of the activations.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    kernels: Kernels = reference
    path: str = ""

    def at(self, part: str) -> Self:
        """The same for a part of the module."""
        return replace(self, path=f"{self.path}.{part}" if self.path else part)

    def matrix(self, outputs: int, inputs: int) -> Weight:
        """What a linear layer multiplies with, or an embedding looks up."""
        return DenseWeight(outputs, inputs, self.dtype, self.device)

    def table(self, experts: int, hidden: int, intermediate: int) -> ExpertTable:
        """The experts of one layer."""
        return DenseExpertTable(experts, hidden, intermediate, self.dtype, self.device)

    def bias(self, size: int) -> nn.Parameter:
        """What a linear layer adds."""
        return nn.Parameter(torch.empty(size, dtype=self.dtype, device=self.device))

    def precise(self, *shape: int) -> nn.Parameter:
        """Norm weights and router rows: float32 or wider, in every format."""
        return nn.Parameter(torch.empty(shape, dtype=reference.wide(self.dtype), device=self.device))
