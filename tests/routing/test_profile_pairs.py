"""Pairs of experts against what loads explain, orders of experts, and super experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tenth.routing.profile_pairs import expected_pairs, lifts, seriation, strongest, structure
from tenth.routing.super_experts import super_experts
from tests.observe.planted import MODEL, collapsed, drawn

WIDE = replace(MODEL, experts=16, top_k=4)


def test_expected_pairs_have_the_sums_that_were_counted() -> None:
    pairs_LEE = drawn(WIDE, groups=2.0).pairs_LEE
    expected_LEE = expected_pairs(pairs_LEE)
    off_LEE = pairs_LEE * (1 - np.eye(16, dtype=np.int64))
    np.testing.assert_allclose(expected_LEE.sum(2), off_LEE.sum(2), rtol=1e-6)
    assert (np.diagonal(expected_LEE, axis1=1, axis2=2) == 0).all()
    np.testing.assert_allclose(expected_LEE, expected_LEE.transpose(0, 2, 1))
    # of rank one off the diagonal: a_0 a_1 / (a_0 a_2) is a_3 a_1 / (a_3 a_2)
    e_EE = expected_LEE[0]
    assert e_EE[0, 1] / e_EE[0, 2] == pytest.approx(e_EE[3, 1] / e_EE[3, 2], rel=1e-9)


def test_even_experts_without_taste_have_lift_1_though_none_pairs_with_itself() -> None:
    """N_ij T / (N_i N_j) would say (K - 1) E / (K (E - 1)): 0.8 here."""
    pairs_EE = np.full((16, 16), 300)
    np.fill_diagonal(pairs_EE, 300 * 15 // 3)
    found_EE = lifts(pairs_EE[None], expected_pairs(pairs_EE[None]))[0]
    np.testing.assert_allclose(found_EE[~np.eye(16, dtype=bool)], 1.0, rtol=1e-9)
    assert np.isnan(np.diagonal(found_EE)).all()


def test_groups_are_found_and_stand_side_by_side() -> None:
    profile = drawn(WIDE, groups=2.0, tokens=200)
    expected_LEE = expected_pairs(profile.pairs_LEE)
    lift_LEE = lifts(profile.pairs_LEE, expected_LEE)
    for row in range(4):
        edges = strongest(profile.pairs_LEE[row], expected_LEE[row], 16)
        assert edges
        assert all(i < j and i // 4 == j // 4 for i, j, _ in edges)
        assert [lift for _, _, lift in edges] == sorted((lift for _, _, lift in edges), reverse=True)
        order = seriation(np.log2(lift_LEE[row]))
        assert sorted(order) == list(range(16))
        assert [order[at] // 4 for at in range(0, 16, 4)] == [order[at + 3] // 4 for at in range(0, 16, 4)]


def test_a_router_without_taste_for_pairs_has_no_structure() -> None:
    plain, grouped = (drawn(WIDE, ("all",), groups=groups) for groups in (0.0, 2.0))
    found_L, other_L = (structure(one.pairs_LEE, expected_pairs(one.pairs_LEE)) for one in (plain, grouped))
    assert np.abs(found_L).max() < 0.02 < 0.1 < other_L.min()
    assert not strongest(plain.pairs_LEE[0], expected_pairs(plain.pairs_LEE)[0], 16)


def test_nothing_and_no_pairs_at_all() -> None:
    expected_LEE = expected_pairs(collapsed().pairs_LEE)
    assert (expected_LEE == 0).all()
    assert np.isnan(lifts(collapsed().pairs_LEE, expected_LEE)).all()
    assert (structure(collapsed().pairs_LEE, expected_LEE) == 0).all()
    assert seriation(np.full((1, 1), np.nan)) == [0]
    assert sorted(seriation(np.full((5, 5), np.nan))) == [0, 1, 2, 3, 4]


def test_super_experts() -> None:
    peaks_LE = np.random.default_rng(0).uniform(1, 3, (48, 128)).astype(np.float32)
    peaks_LE[1, 68], peaks_LE[2, 92], peaks_LE[3, 82], peaks_LE[7, 7] = 900, 1500, 700, 140
    assert super_experts(peaks_LE) == [(2, 92), (1, 68), (3, 82)]  # 140 is below a tenth of the largest
    assert super_experts(np.zeros((2, 4), np.float32)) == []
    assert super_experts(np.full((2, 4), 3, np.float32)) == []
    assert super_experts(np.zeros((0, 0), np.float32)) == super_experts(np.full((2, 4), np.nan, np.float32)) == []


def test_super_experts_lie_where_the_stream_is_massive() -> None:
    peaks_LE = np.random.default_rng(0).uniform(1, 3, (48, 128)).astype(np.float32)
    peaks_LE[1, 68], peaks_LE[2, 92], peaks_LE[30, 82] = 900, 1500, 700
    assert super_experts(peaks_LE, (1, 2, 5)) == [(2, 92), (1, 68)]
    assert super_experts(peaks_LE, ()) == []


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_peaks_hide_no_super_expert(broken: float) -> None:
    peaks_LE = np.random.default_rng(0).uniform(1, 3, (48, 128)).astype(np.float32)
    peaks_LE[1, 68], peaks_LE[2, 92], peaks_LE[40, 1] = 900, 1500, broken
    assert super_experts(peaks_LE) == [(2, 92), (1, 68)]
