"""How many operations a second this machine's products of matrices reach: what a training step is held against."""

from __future__ import annotations

import time

import torch


def product_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.2) -> float:
    """The best of square products of a type, repeated for so long; a multiply-add is two operations."""
    side = 1024 if device.type == "cpu" else 8192
    x, y = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    _product_seconds(x, y)  # the first one also prepares
    while time.perf_counter() < end:
        best = min(best, _product_seconds(x, y))
    return 2 * side**3 / min(best, _product_seconds(x, y))


def _product_seconds(x: torch.Tensor, y: torch.Tensor) -> float:
    _wait(x)
    start = time.perf_counter()
    torch.mm(x, y)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
