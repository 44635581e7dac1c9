"""Limits of experts: what cannot be is refused, what drops nothing is no limit, documents become tokens."""

from __future__ import annotations

import math

import pytest
import torch

from tenth.errors import RequestError
from tenth.routing.limit import NO_CAP, ExpertLimit, TokenLimits


@pytest.mark.parametrize("mass", [0, -0.1, 1.0001, math.nan, math.inf, "0.5", True])
def test_a_mass_is_a_share(mass: object) -> None:
    with pytest.raises(RequestError, match=r"expert_mass is .*, it must be above 0 and at most 1$"):
        ExpertLimit(mass=mass)  # type: ignore[arg-type]


@pytest.mark.parametrize("cap", [0, -3, 2.0, "2", True])
def test_a_cap_is_a_number_of_experts(cap: object) -> None:
    with pytest.raises(RequestError, match=r"max_experts is .*, it must be a whole number of at least 1$"):
        ExpertLimit(cap=cap)  # type: ignore[arg-type]


def test_what_drops_nothing_is_no_limit() -> None:
    for idle in (ExpertLimit(), ExpertLimit(1), ExpertLimit(1.0, 8), ExpertLimit(None, 8)):
        assert idle.fitted(8) is None
    for limit in (ExpertLimit(0.99), ExpertLimit(1.0, 7), ExpertLimit(0.5, 8)):
        assert limit.fitted(8) is limit


def test_a_limit_must_fit_the_model() -> None:
    with pytest.raises(RequestError, match="max_experts is 9, this model has 8 experts at work on a token"):
        ExpertLimit(cap=9).fitted(8)
    for limit in (ExpertLimit(0.5), ExpertLimit(1.0)):
        with pytest.raises(RequestError, match="this model is dense"):
            limit.fitted(None)


def test_documents_become_tokens() -> None:
    assert TokenLimits.of([None, None], [2, 3]) is None
    limits = TokenLimits.of([ExpertLimit(0.25), None, ExpertLimit(cap=2)], [1, 2, 3])
    assert limits is not None
    assert limits.mass_T.tolist() == [0.25, 1, 1, 1, 1, 1]
    assert limits.cap_T.tolist() == [NO_CAP] * 3 + [2] * 3
    limits.check(6)
    with pytest.raises(RequestError, match="the batch's 5 tokens"):
        limits.check(5)
    with pytest.raises(RequestError, match="float32"):
        TokenLimits(limits.mass_T.double(), limits.cap_T).check(6)
    assert limits.mass_T.dtype == torch.float32
