"""A linear router fitted to what its experts would have given, and how good its choices are.

N tokens, D model width, E experts, K chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.routing.measures import max_violation

_RIDGE = 1e-3  # of the inputs' mean square


@dataclass(frozen=True, slots=True)
class RouterFit:
    """Of one layer, on tokens that it was not fitted to.

    `recall`: share of the best K experts by true energy that the router chose; `kept` and `kept_best`: share of the
    routed energy in the router's choice, and in the best one; `max_vio` of the router's choice.
    """

    recall: float
    kept: float
    kept_best: float
    max_vio: float


def fitted_router(x_ND: Tensor, energy_NE: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """Rows (E, D) and biases (E) that rank experts by energy: least squares on its logarithm, in float64.

    A token's logits without the biases have a mean of about 0 and a standard deviation of `spread`.
    """
    target_NE = (energy_NE.double() + 1e-6 * energy_NE.double().mean()).log()
    target_NE = target_NE - target_NE.mean(1, keepdim=True)  # only differences between experts decide
    x_ND = x_ND.double()
    mean_D, mean_E = x_ND.mean(0), target_NE.mean(0)
    centred_ND = x_ND - mean_D
    gram_DD = centred_ND.T @ centred_ND
    gram_DD.diagonal().add_(_RIDGE * gram_DD.diagonal().mean())
    rows_ED = torch.linalg.solve(gram_DD, centred_ND.T @ (target_NE - mean_E)).T
    scale = spread / float((centred_ND @ rows_ED.T).std().clamp_min(1e-12))
    return (rows_ED * scale), (mean_E - rows_ED @ mean_D) * scale


def judged_router(x_ND: Tensor, energy_NE: Tensor, rows_ED: Tensor, bias_E: Tensor, top_k: int) -> RouterFit:
    """How well rows and biases choose for these tokens."""
    chosen_NK = (x_ND.double() @ rows_ED.double().T + bias_E.double()).topk(top_k).indices
    best_NE = torch.zeros_like(energy_NE).scatter_(1, energy_NE.topk(top_k).indices, 1.0)
    total = float(energy_NE.sum())
    return RouterFit(
        recall=float(best_NE.gather(1, chosen_NK).mean()),
        kept=float(energy_NE.gather(1, chosen_NK).sum()) / total,
        kept_best=float((energy_NE * best_NE).sum()) / total,
        max_vio=max_violation(torch.bincount(chosen_NK.flatten(), minlength=energy_NE.shape[1])),
    )
