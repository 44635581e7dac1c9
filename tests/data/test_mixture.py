"""Mixing: exact shares, every document once an epoch, the same order for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.data.mixture import Mixture, Source, check_sources, permutation
from tenth.data.token_file import TokenFile
from tenth.errors import RequestError
from tests.data.token_files import numbered, write_tokens

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def mixture(folder: Path, sources: list[list[int]], weights: list[float], seed: int = 0) -> Mixture:
    """Sources of documents with the given lengths."""
    paths = [write_tokens(folder / str(n), numbered(lengths)) for n, lengths in enumerate(sources)]
    return Mixture([TokenFile(path) for path in paths], weights, seed, 1000)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.tuples(SIZES, st.floats(0.01, 100)), min_size=1, max_size=5),
    draws=st.integers(1, 300),
    seed=st.integers(0, 1 << 70),
)
def test_shares_are_exact_at_any_time(
    sources: list[tuple[list[int], float]], draws: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No source is ahead of its share by more than its longest document, nor behind by more than those of the rest."""
    weights = [weight for _, weight in sources]
    mixed = mixture(tmp_path_factory.mktemp("mix"), [lengths for lengths, _ in sources], weights, seed)
    longest = [max(lengths) for lengths, _ in sources]
    for _ in range(draws):
        mixed.draw()
        total = sum(cursor.drawn for cursor in mixed.cursors)
        for n, cursor in enumerate(mixed.cursors):
            ahead = cursor.drawn - weights[n] / sum(weights) * total
            assert ahead < longest[n] + 1e-6
            assert -ahead < sum(longest) - longest[n] + 1e-6


def test_shares_of_many_draws(tmp_path: Path) -> None:
    mixed = mixture(tmp_path, [[5, 50, 500], [7] * 9, [1, 2]], [0.5, 0.3, 0.2])
    for _ in range(20_000):
        mixed.draw()
    drawn = np.array([cursor.drawn for cursor in mixed.cursors])
    assert np.abs(drawn - drawn.sum() * np.array([0.5, 0.3, 0.2])).max() <= 500
    assert drawn.sum() > 100_000


def test_every_document_once_in_every_epoch_and_in_another_order(tmp_path: Path) -> None:
    mixed = mixture(tmp_path, [[3] * 50], [1.0])
    epochs = [[mixed.draw().document for _ in range(50)] for _ in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert (mixed.cursors[0].epoch, mixed.cursors[0].place, mixed.cursors[0].drawn) == (4, 0, 600)


def test_seeds_and_sources_have_orders_of_their_own(tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        mixed = mixture(tmp_path, [[3] * 50] * 2, [1, 1], seed)
        drawn = [mixed.draw() for _ in range(100)]
        orders += [tuple(piece.document for piece in drawn if piece.source == n) for n in (0, 1)]
    assert len(set(orders)) == 4


def test_a_permutation_never_changes() -> None:
    """Runs of years ago must go on: these numbers are for ever."""
    assert permutation(10, 0, 0, 0).tolist() == permutation(10, 0, 0, 0).tolist()
    assert permutation(8, 1, 2, 3).tolist() == [0, 7, 2, 3, 4, 1, 6, 5]
    assert permutation(1, 5).tolist() == [0]
    assert permutation(0, 5).tolist() == []


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 500), key=st.lists(st.integers(0, 1 << 80), min_size=1, max_size=3))
def test_a_permutation_has_every_number(count: int, key: list[int]) -> None:
    assert sorted(permutation(count, *key).tolist()) == list(range(count))


def test_permutations_are_even() -> None:
    """Each number comes to each place about equally often: chi-squared of 9 x 9 freedoms is 81 +- 13."""
    counts = np.zeros((10, 10))
    for seed in range(5000):
        counts[np.arange(10), permutation(10, seed, 0, 0)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 81 + 4 * 13


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True, "1", None, 1e300])
def test_a_weight_must_be_a_positive_number(weight: Any) -> None:
    with pytest.raises(RequestError, match="the weight of source 'b' is "):
        check_sources([Source(Path("a"), 1, "a"), Source(Path("b"), weight, "b")])


def test_sources_must_be_some_with_different_names() -> None:
    with pytest.raises(RequestError, match="no source"):
        check_sources([])
    with pytest.raises(RequestError, match="two sources are called 'a'"):
        check_sources([Source(Path("a"), 1, "a"), Source(Path("b"), 1, "a")])
