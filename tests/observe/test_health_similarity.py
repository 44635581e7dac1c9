"""How alike experts are: CKA against a slow count, and hidden units in whatever order they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tenth.kernels.weight import DenseExpertTable
from tenth.observe.health_similarity import (
    centred_gram,
    chance_similarity,
    linear_cka,
    nearest,
    unit_similarity,
    without_bias,
)


def slow_cka(one_ND: Tensor, other_ND: Tensor) -> float:
    """|Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features, number by number (arXiv 1905.00414)."""

    def product(a_ND: list[list[float]], b_ND: list[list[float]]) -> float:
        total = 0.0
        for column in zip(*a_ND, strict=True):
            for other in zip(*b_ND, strict=True):
                total += sum(x * y for x, y in zip(column, other, strict=True)) ** 2
        return math.sqrt(total)

    def centred(y_ND: Tensor) -> list[list[float]]:
        rows = y_ND.double().tolist()
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return [[x - mean for x, mean in zip(row, means, strict=True)] for row in rows]

    one, other = centred(one_ND), centred(other_ND)
    return product(other, one) ** 2 / (product(one, one) * product(other, other))


def outputs(count: int, tokens: int = 12, width: int = 5, seed: int = 0) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    shared_ND = torch.randn(tokens, width, generator=dice)
    return [shared_ND * (n % 2) + torch.randn(tokens, width, generator=dice) for n in range(count)]


def test_cka_is_a_slow_count() -> None:
    found = outputs(4)
    cka_EE = linear_cka([centred_gram(y_ND) for y_ND in found])
    for i in range(4):
        for j in range(4):
            assert float(cka_EE[i, j]) == pytest.approx(slow_cka(found[i], found[j]), abs=1e-10)
    assert cka_EE.diagonal().tolist() == pytest.approx([1.0] * 4)


def test_cka_does_not_see_rotation_scale_and_offset() -> None:
    y_ND = outputs(1, tokens=40)[0]
    turn_DD = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    grams = [centred_gram(y_ND), centred_gram(3 * y_ND @ turn_DD + 7)]
    assert float(linear_cka(grams)[0, 1]) == pytest.approx(1.0, abs=1e-6)
    assert float(linear_cka([without_bias(k_NN) for k_NN in grams])[0, 1]) == pytest.approx(1.0, abs=1e-6)


def test_few_tokens_of_many_channels_are_alike_only_with_the_bias() -> None:
    """Unrelated outputs as wide as an expert's: plain CKA calls them the same, the U-centred one does not."""
    grams = [centred_gram(y_ND) for y_ND in (torch.randn(32, 2048), torch.randn(32, 2048))]
    assert float(linear_cka(grams)[0, 1]) > 0.9
    assert abs(float(linear_cka([without_bias(k_NN) for k_NN in grams])[0, 1])) < 0.2


def test_u_centred_products_have_no_sums() -> None:
    k_NN = without_bias(centred_gram(outputs(1)[0]))
    assert k_NN.sum(0).abs().max() < 1e-12
    assert k_NN.diagonal().abs().max() == 0


def test_an_expert_without_an_answer_is_like_none() -> None:
    grams = [centred_gram(y_ND) for y_ND in (*outputs(2), torch.zeros(12, 5))]
    largest_E, partner_E = nearest(linear_cka(grams))
    assert partner_E.tolist()[:2] == [1, 0]
    assert float(largest_E[2]) == -1


def table(count: int = 4, width: int = 24, units: int = 40) -> DenseExpertTable:
    experts = DenseExpertTable(count, width, units, torch.float32, "cpu").requires_grad_(False)
    dice = torch.Generator().manual_seed(3)
    for part in experts.parameters():
        part.copy_(torch.randn(part.shape, generator=dice))
    return experts


@pytest.mark.parametrize(("width", "units"), [(24, 40), (300, 200)])
def test_units_in_another_order_are_the_same(width: int, units: int) -> None:
    """Exactly for narrow experts, and for those of which units are drawn and projected."""
    experts = table(width=width, units=units)
    w13_E2FD, w2_EDF = experts.stacked()
    order = torch.randperm(units, generator=torch.Generator().manual_seed(5))
    w13_E2FD[2] = w13_E2FD[0].view(2, units, -1)[:, order].flatten(0, 1)
    w2_EDF[2] = w2_EDF[0][:, order]
    w13_E2FD[2, units:] *= 3  # a factor that moves from up to down
    w2_EDF[2] /= 3
    similar_EE = unit_similarity(experts)
    assert float(similar_EE[0, 2]) == pytest.approx(1.0, abs=1e-5)
    assert nearest(similar_EE)[1].tolist()[::2] == [2, 0]
    others = [float(similar_EE[i, j]) for i, j in ((0, 1), (0, 3), (1, 2), (1, 3))]
    assert max(others) < chance_similarity(experts) + 0.05


def test_units_are_a_slow_count() -> None:
    experts = table(count=2, width=6, units=5)
    w13_E2FD, w2_EDF = experts.stacked()

    def parts(expert: int, unit: int) -> list[Tensor]:
        return [w13_E2FD[expert, unit], w13_E2FD[expert, 5 + unit], w2_EDF[expert, :, unit]]

    def cosine(one: tuple[int, int], other: tuple[int, int]) -> float:
        pairs = zip(parts(*one), parts(*other), strict=True)
        return sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / 3

    ways = [sum(max(cosine((e, u), (1 - e, v)) for v in range(5)) for u in range(5)) / 5 for e in range(2)]
    assert float(unit_similarity(experts)[0, 1]) == pytest.approx(max(ways), abs=1e-6)
