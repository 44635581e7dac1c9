"""The smallest modules: Linear, RMSNorm, and the dense SwiGLU layer built from them. D model width, F inner width."""

from __future__ import annotations

from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.kernels.weight import Weight


class Linear(nn.Module):
    """A weight value, an optional bias, and the kernel for its format."""

    def __init__(self, inputs: int, outputs: int, bias: bool, on: Backend, weight: Weight | None = None) -> None:
        """`weight` is one that this layer shares with another."""
        super().__init__()
        self.weight = on.at("weight").matrix(outputs, inputs) if weight is None else weight
        self.bias = on.at("bias").bias(outputs) if bias else None
        self._linear = on.kernels.linear

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`, any leading shape."""
        return self._linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; its weight is float32 or wider."""

    def __init__(self, width: int, eps: float, on: Backend) -> None:
        super().__init__()
        self.weight = on.at("weight").precise(width)
        self._eps, self._kernels = eps, on.kernels

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x`, same shape and type."""
        return self._kernels.rms_norm(x, self.weight, self._eps)

    def after(self, x_TD: Tensor, y_TD: Tensor) -> tuple[Tensor, Tensor]:
        """`x + y`, and that normalised."""
        return self._kernels.add_rms_norm(x_TD, y_TD, self.weight, self._eps)


class Mlp(nn.Module):
    """Dense SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, bias: bool, on: Backend) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias, on.at("gate"))
        self.up = Linear(width, inner, bias, on.at("up"))
        self.down = Linear(inner, width, bias, on.at("down"))
        self._kernels = on.kernels

    def forward(self, x_TD: Tensor) -> Tensor:
        """T, D to T, D."""
        weights, biases = (self.gate.weight, self.up.weight), (self.gate.bias, self.up.bias)
        y_TD: Tensor = self.down(self._kernels.swiglu(*self._kernels.linears(x_TD, weights, biases)))
        return y_TD
