"""The smallest modules: Linear, RMSNorm, and the dense SwiGLU layer built from them. D model width, F inner width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenth.kernels.backend import Backend
from tenth.kernels.reference import wide
from tenth.kernels.weight import DenseWeight


class Linear(nn.Module):
    """A weight value, an optional bias, and the kernel for its format."""

    def __init__(self, inputs: int, outputs: int, bias: bool, on: Backend) -> None:
        super().__init__()
        self.weight = DenseWeight(outputs, inputs, on.dtype, on.device)
        self.bias = nn.Parameter(torch.empty(outputs, dtype=on.dtype, device=on.device)) if bias else None
        self._linear = on.kernels.linear

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`, any leading shape."""
        return self._linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; its weight is float32 or wider."""

    def __init__(self, width: int, eps: float, on: Backend) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=wide(on.dtype), device=on.device))
        self._eps, self._rms_norm = eps, on.kernels.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x`, same shape and type."""
        return self._rms_norm(x, self.weight, self._eps)


class Mlp(nn.Module):
    """Dense SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, bias: bool, on: Backend) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias, on)
        self.up = Linear(width, inner, bias, on)
        self.down = Linear(inner, width, bias, on)

    def forward(self, x_TD: Tensor) -> Tensor:
        """T, D to T, D."""
        y: Tensor = self.down(functional.silu(self.gate(x_TD)) * self.up(x_TD))
        return y
