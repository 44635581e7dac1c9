"""Muon for matrices and for tables of them: the step is the average gradient made orthogonal, each expert by itself.

E experts, O rows, I columns. The rule is that of `torch.optim.Muon`, which takes single matrices only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, chosen for its slope at zero (Jordan et al., 2024)
_ITERATIONS = 5
_TINY = 1e-7


def matrices(name: str, tensor: Tensor) -> Iterator[Tensor]:
    """Views of a parameter's matrices, stacked (E, O, I): gate and up of an expert table apart, since each is one."""
    if tensor.dim() == 2:
        yield tensor[None]
    elif name.endswith("w13_E2FD"):
        yield from tensor.chunk(2, dim=1)
    else:
        yield tensor


def orthogonal(x_EOI: Tensor) -> Tensor:
    """Each matrix with its singular values brought near one (0.7 to 1.2), by five Newton-Schulz steps in bfloat16.

    float64 stays float64. A matrix of zeros stays one.
    """
    tall = x_EOI.shape[1] > x_EOI.shape[2]
    x = x_EOI.to(x_EOI.dtype if x_EOI.dtype == torch.float64 else torch.bfloat16)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_TINY)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def step_scale(rows: int, columns: int, kind: str) -> float:
    """The factor on an orthogonal step: `match_rms_adamw` gives it the size of AdamW's (arXiv 2502.16982)."""
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


@torch.no_grad()
def muon_step(
    name: str, weight: Tensor, grad: Tensor, average: Tensor, *, lr: float, momentum: float, decay: float, scale: str
) -> None:
    """Move one parameter in place, with Nesterov's average of its gradients."""
    average.lerp_(grad, 1 - momentum)
    weight.mul_(1 - lr * decay)
    for part, grad_part, average_part in zip(
        matrices(name, weight), matrices(name, grad), matrices(name, average), strict=True
    ):
        step = orthogonal(grad_part.lerp(average_part, momentum))
        part.add_(step.to(part.dtype), alpha=-lr * step_scale(part.shape[1], part.shape[2], scale))
