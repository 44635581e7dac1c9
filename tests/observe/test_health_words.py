"""Which double an expert is said to have: the nearest one by the measure that found the expert."""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.observe.health_experts import LayerExperts
from tenth.observe.health_words import copied_words

SHARED, CKA = 0.25, 0.995


def similar(size: int, *pairs: tuple[int, int, float]) -> Tensor:
    found_EE = torch.eye(size, dtype=torch.float64)
    for one, other, value in pairs:
        found_EE[one, other] = found_EE[other, one] = value
    return found_EE


def experts(cka_EE: Tensor, units_EE: Tensor | None, silent: tuple[int, ...] = ()) -> LayerExperts:
    sizes_E = torch.ones(len(cka_EE))
    return LayerExperts(sizes_E, sizes_E, (), silent, cka_EE, cka_EE, units_EE)


def test_doubles_by_outputs_alone() -> None:
    """Units may be most like those of a third expert, which has nothing to do with it."""
    cka_EE = similar(6, (1, 4, 0.999), (1, 2, 0.5))
    for units_EE in (None, similar(6, (1, 2, 0.2), (1, 4, 0.0))):
        found = experts(cka_EE, units_EE)
        doubles = found.doubles(SHARED, CKA)
        assert doubles == {1: 4, 4: 1}
        units = "" if units_EE is None else "0% of their units in common, "
        assert copied_words(found, doubles) == (
            f"2 of 6 experts have a double (1, 4); 1 and 4 have {units}CKA of outputs 1.00"
        )


def test_doubles_by_units_and_by_both() -> None:
    cka_EE, units_EE = similar(6, (0, 3, 0.999), (2, 5, 0.9)), similar(6, (2, 4, 0.6), (0, 1, 0.3))
    found = experts(cka_EE, units_EE)
    doubles = found.doubles(SHARED, CKA)
    assert list(doubles.items()) == [(0, 1), (1, 0), (2, 4), (3, 0), (4, 2)]
    assert "0 and 1 have 30% of their units in common, CKA of outputs 0.00" in copied_words(found, doubles)
    assert list(experts(cka_EE, units_EE, silent=(0, 1)).doubles(SHARED, CKA)) == [2, 3, 4]
