"""What is measured of the experts of a layer by themselves: their outputs on shared tokens, and their weights.

N shared tokens, D model width, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.observe.health_inputs import LayerInputs, forced_outputs
from tenth.observe.health_similarity import (
    centred_gram,
    chance_similarity,
    linear_cka,
    nearest,
    unit_similarity,
    without_bias,
)

FEWEST = 16
"""Shared tokens under which outputs are not compared."""
_SILENT = 1e-3  # of the layer's median: outputs that change nothing


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """The experts of a layer, all run on the same inputs.

    `cka_EE` is linear CKA of their outputs, `unbiased_EE` the same U-centred, `units_EE` the similarity of their
    hidden units, which is about `units_chance` for unrelated ones; None where there was too little to compare.
    `peaks_E` is the largest magnitude of an output, `norms_E` the mean norm. `broken` experts answer finite inputs with
    what is no number, `silent` ones hardly answer.
    """

    peaks_E: Tensor
    norms_E: Tensor
    broken: tuple[int, ...]
    silent: tuple[int, ...]
    cka_EE: Tensor | None = None
    unbiased_EE: Tensor | None = None
    units_EE: Tensor | None = None
    units_chance: float = 0.0

    @property
    def shared_EE(self) -> Tensor | None:
        """Units that two experts have in common (E, E), beyond chance: about 0 for unrelated ones, 1 for copies."""
        if self.units_EE is None:
            return None
        return (self.units_EE - self.units_chance) / (1 - self.units_chance)

    @property
    def median_cka(self) -> float:
        """Of the outputs of two experts, U-centred; NaN where none were compared."""
        if self.unbiased_EE is None or len(self.unbiased_EE) < 2:
            return math.nan
        row_P, column_P = torch.triu_indices(len(self.unbiased_EE), len(self.unbiased_EE), offset=1)
        return float(self.unbiased_EE[row_P, column_P].nanmedian())

    def doubles(self, shared: float, cka: float) -> dict[int, int]:
        """Experts that have more in common with another one than either of these, and which one; silent ones are none.

        The other one is the nearest by what found the expert: by units where both did.
        """
        found = dict[int, int]()
        for similar_EE, least in ((self.unbiased_EE, cka), (self.shared_EE, shared)):
            if similar_EE is not None:
                largest_E, partner_E = nearest(similar_EE)
                found |= {expert: int(partner_E[expert]) for expert in (largest_E > least).nonzero()[:, 0].tolist()}
        return {expert: found[expert] for expert in sorted(found.keys() - set(self.silent))}


@torch.inference_mode()
def measure_experts(decoder: Decoder, index: int, inputs: LayerInputs, *, weights: bool = True) -> LayerExperts | None:
    """Run all experts of a sparse layer; None where its inputs are no numbers already.

    `weights`: hidden units are compared too, which costs most where experts are many and wide.
    """
    mlp = decoder.blocks()[index].mlp
    assert isinstance(mlp, SparseMlp), "a sparse layer"
    x_ND = inputs.x_ND
    x_ND = x_ND[torch.isfinite(x_ND).all(1)]
    if not len(x_ND):
        return None
    count = mlp.experts.num_experts
    peaks_E, norms_E, grams = torch.zeros(count), torch.zeros(count), list[Tensor]()
    for expert, y_ND in enumerate(forced_outputs(decoder, mlp, x_ND, range(count))):
        peaks_E[expert], norms_E[expert] = y_ND.abs().max(), y_ND.norm(dim=1).mean()
        if len(x_ND) >= FEWEST:
            grams.append(centred_gram(y_ND.cpu()))
    broken = tuple((~torch.isfinite(norms_E)).nonzero()[:, 0].tolist())
    silent = tuple((norms_E < _SILENT * norms_E.nanmedian()).nonzero()[:, 0].tolist())
    units_EE = unit_similarity(mlp.experts) if weights and grams else None
    if not grams:
        return LayerExperts(peaks_E, norms_E, broken, silent)
    unbiased_EE = linear_cka(without_bias(k_NN) for k_NN in grams)
    both = linear_cka(grams), unbiased_EE
    return LayerExperts(peaks_E, norms_E, broken, silent, *both, units_EE, chance_similarity(mlp.experts))
