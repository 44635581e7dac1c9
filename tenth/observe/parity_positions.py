"""Two rows of logits at a time: divergence, likeliest token, loss; and what the figures of all positions come to.

N positions, V vocabulary, W windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]

_DRAWS = 2000  # of the bootstrap
_SEED = 0


@dataclass(frozen=True, slots=True)
class Positions:
    """Of each position: KL(A||B) in nats, whether both find the same token likeliest, both losses in nats."""

    kl_N: Floats
    same_N: npt.NDArray[np.bool_]
    loss_a_N: Floats
    loss_b_N: Floats

    @classmethod
    def join(cls, parts: list[Positions]) -> Positions:
        """One after the other."""
        names = cls.__slots__
        if not parts:
            return cls(np.zeros(0), np.zeros(0, np.bool_), np.zeros(0), np.zeros(0))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def compare(a_NV: Tensor, b_NV: Tensor, targets_N: Tensor) -> Positions:
    """Positions from logits of one size; sums over the vocabulary are float32 in pairs, or wider.

    KL(A||B) is sum p_A (a - b) - (log sum e^a - log sum e^b): equal logits give exactly 0.
    """
    # numpy: torch would wake its own threads, which then spin beside those of the native kernels
    a, b, targets = _floats(a_NV), _floats(b_NV), targets_N.tolist()
    found = np.empty((3, len(a)))
    same_N = np.empty(len(a), np.bool_)
    x_V, y_V = np.empty_like(a[:1])[0], np.empty_like(b[:1])[0]
    for n, (a_V, b_V, target) in enumerate(zip(a, b, targets, strict=True)):
        best_a, best_b = int(a_V.argmax()), int(b_V.argmax())
        same_N[n] = best_a == best_b
        lse_b = _log_sum(b_V, best_b, y_V)[0]
        lse_a, total = _log_sum(a_V, best_a, x_V)
        np.subtract(a_V, b_V, out=y_V)
        np.multiply(x_V, y_V, out=y_V)
        kl = float(y_V.sum()) / total - (lse_a - lse_b)
        found[:, n] = max(kl, 0.0) if math.isfinite(kl) else kl, lse_a - float(a_V[target]), lse_b - float(b_V[target])
    return Positions(found[0], same_N, found[1], found[2])


def _floats(logits_NV: Tensor) -> npt.NDArray[Any]:
    wide = logits_NV if logits_NV.itemsize >= 4 else logits_NV.float()
    return np.asarray(wide.numpy())


def _log_sum(logits_V: npt.NDArray[Any], best: int, out_V: npt.NDArray[Any]) -> tuple[float, float]:
    """log sum e^x, and the sum of e^(x - max), which `out_V` holds the terms of."""
    np.subtract(logits_V, logits_V[best], out=out_V)
    np.exp(out_V, out=out_V)
    total = float(out_V.sum())
    return float(logits_V[best]) + math.log(total) if total > 0 else math.nan, total


def divergence(kl_N: Floats, window_N: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Mean, quantiles and largest KL; `low` and `high` are a 95 % interval of the mean, None for a single window."""
    low, high = interval(kl_N, window_N)
    p50, p99 = (float(value) for value in np.quantile(kl_N, [0.5, 0.99]))
    return {
        "mean": float(kl_N.mean()),
        "low": low,
        "high": high,
        "p50": p50,
        "p99": p99,
        "max": float(kl_N.max()),
    }


def interval(value_N: Floats, window_N: npt.NDArray[np.int64]) -> tuple[float | None, float | None]:
    """The middle 95 % of the means of windows drawn with replacement: tokens of one window err together."""
    sums_W, counts_W = np.bincount(window_N, value_N), np.bincount(window_N)
    sums_W, counts_W = sums_W[counts_W > 0], counts_W[counts_W > 0]
    if len(counts_W) < 2:
        return None, None
    drawn = np.random.default_rng(_SEED).integers(0, len(counts_W), (_DRAWS, len(counts_W)))
    means = sums_W[drawn].sum(1) / counts_W[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def perplexity(loss_N: Floats) -> float:
    """e to the mean loss, which is taken for 700 where it is larger: JSON has no infinity."""
    return math.exp(min(float(loss_N.mean()), 700.0))
