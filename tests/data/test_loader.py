"""Packed rows: every token once, nothing across documents, and a state that continues bit by bit."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.data.collate import TrainBatch, collate
from tenth.data.loader import Loader, samples
from tenth.data.mixture import Source
from tenth.data.packing import IGNORE, NO_DOMAIN, Sample
from tenth.errors import FileFormatError, RequestError, TenthError
from tests.data.token_files import numbered, write_tokens

VOCABULARY = 100_000
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=10).filter(lambda sizes: max(sizes) > 1)
MIXES = st.lists(st.tuples(SIZES, st.floats(0.05, 5)), min_size=1, max_size=3)


def sources(folder: Path, mix: Sequence[tuple[list[int], float]]) -> list[Source]:
    """Token files in which every id says where it is: source n begins at 10,000 n."""
    made = []
    for n, (lengths, weight) in enumerate(mix):
        documents = numbered(lengths, 10_000 * n)
        path = write_tokens(folder / f"{n}.tokens", documents, vocab_size=VOCABULARY, domains=[f"d{n}", "shared"])
        made.append(Source(path, weight, f"source {n}"))
    return made


def equal(a: Sample, b: Sample) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Sample)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def check_row(row: Sample, length: int, ends: set[int]) -> None:
    """`ends` are the ids at the ends of documents: ids rise by one within a document."""
    assert len(row.tokens_T) == len(row.targets_T) == len(row.positions_T) == length
    assert row.tokens_T.dtype == row.targets_T.dtype == row.positions_T.dtype == torch.int64
    assert row.bounds[0] == 0
    assert row.bounds[-1] == length
    assert len(row.domains) == len(row.bounds) - 1
    tokens, targets = row.tokens_T.tolist(), row.targets_T.tolist()
    for start, end in pairwise(row.bounds):
        assert row.positions_T[start:end].tolist() == list(range(end - start))
        if start >= row.real:
            assert targets[start:end] == [IGNORE] * (end - start)
            continue
        assert tokens[start:end] == list(range(tokens[start], tokens[start] + end - start))
        assert not ends.intersection(tokens[start : end - 1])
        assert targets[start:end] == [IGNORE if token in ends else token + 1 for token in tokens[start:end]]


def ends_of(mix: Sequence[tuple[list[int], float]]) -> set[int]:
    return {document[-1] for n, (lengths, _) in enumerate(mix) for document in numbered(lengths, 10_000 * n)}


@settings(max_examples=60, deadline=None)
@given(mix=MIXES, length=st.integers(1, 90), seed=st.integers(0, 1 << 40), rows=st.integers(1, 60))
def test_every_token_once_an_epoch_in_order(
    mix: list[tuple[list[int], float]], length: int, seed: int, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loader = Loader(sources(tmp_path_factory.mktemp("data"), mix), length, seed, VOCABULARY)
    stream = [loader.next() for _ in range(rows)]
    assert [row.index for row in stream] == list(range(rows))
    for row in stream:
        check_row(row, length, ends_of(mix))
        assert row.real == length
    state = loader.state_dict()
    drawn = collections.Counter(torch.cat([row.tokens_T for row in stream]).tolist())
    for source, document, start in state["waiting"]:  # drawn, and not in a row yet: each to the end of its part
        first = 10_000 * source + sum(mix[source][0][:document])
        stop = min((start // length + 1) * length, mix[source][0][document])
        drawn.update(range(first + start, first + stop))
    for n, (lengths, _) in enumerate(mix):
        cursor = state["cursors"][n]
        counts = [drawn[10_000 * n + token] for token in range(sum(lengths))]
        assert set(counts) <= {cursor["epoch"], cursor["epoch"] + 1}  # once an epoch, some already in the next
        assert sum(counts) == cursor["drawn"]
        assert cursor["place"] < sum(-(-size // length) for size in lengths)


def test_a_long_document_is_spread_over_an_epoch_in_whole_rows(tmp_path: Path) -> None:
    (source,) = sources(tmp_path, [([1000, *[7] * 400], 1.0)])
    rows = Loader([source], 20, 3, VOCABULARY)
    stream = [rows.next() for _ in range(3800 // 20)]
    long = [n for n, row in enumerate(stream) if int(row.tokens_T[0]) < 1000]
    assert len(long) == 50
    assert all(stream[n].bounds == (0, 20) for n in long)  # not cut in two
    assert max(b - a for a, b in pairwise(long)) < 40
    assert long != list(range(long[0], long[0] + 50))
    assert sum(n < 95 for n in long) in range(12, 39)  # a fair half of them in each half


@settings(max_examples=40, deadline=None)
@given(mix=MIXES, length=st.integers(1, 70), seed=st.integers(0, 99), at=st.integers(0, 80), more=st.integers(1, 9))
def test_a_state_continues_bit_by_bit(
    mix: list[tuple[list[int], float]],
    length: int,
    seed: int,
    at: int,
    more: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = sources(tmp_path_factory.mktemp("data"), mix)
    first = Loader(made, length, seed, VOCABULARY)
    for _ in range(at):
        first.next()
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.next() for _ in range(more)]
    second = Loader(made, length, seed, VOCABULARY)
    second.load_state_dict(state)
    assert second.index == at
    for row in expected:
        assert equal(row, second.next())
    assert first.state_dict() == second.state_dict()


def test_rows_by_hand(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[1, 2, 3, 4, 5], [6], [7, 8]], domains=["a", "b"])
    first, second = samples(path, 4)
    assert first.tokens_T.tolist() == [1, 2, 3, 4]
    assert first.targets_T.tolist() == [2, 3, 4, 5]  # 5 is known, though it is in the next row
    assert second.tokens_T.tolist() == [5, 6, 7, 8]
    assert second.targets_T.tolist() == [IGNORE, IGNORE, 8, IGNORE]
    assert second.positions_T.tolist() == [0, 0, 0, 1]
    assert (second.bounds, second.domains, second.real) == ((0, 1, 2, 4), (0, 1, 0), 4)
    last = samples(path, 5)[1]
    assert last.tokens_T.tolist() == [6, 7, 8, 0, 0]
    assert last.targets_T.tolist() == [IGNORE, 8, IGNORE, IGNORE, IGNORE]
    assert (last.bounds, last.domains, last.real) == ((0, 1, 3, 5), (1, 0, NO_DOMAIN), 3)


@settings(max_examples=40, deadline=None)
@given(lengths=SIZES, length=st.integers(1, 90), limit=st.one_of(st.none(), st.integers(1, 20)))
def test_a_pass_has_every_document_once(
    lengths: list[int], length: int, limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (source,) = sources(tmp_path_factory.mktemp("data"), [(lengths, 1.0)])
    rows = samples(source.path, length, limit)
    for row in rows:
        check_row(row, length, ends_of([(lengths, 1.0)]))
    tokens = [token for row in rows for token in row.tokens_T[: row.real].tolist()]
    assert len(rows) == min(limit or 1 << 30, -(-sum(lengths) // length))
    assert all(row.real == length for row in rows[:-1])
    assert len({*tokens}) == len(tokens) == min(len(rows) * length, sum(lengths))
    targets = sum(int((row.targets_T != IGNORE).sum()) for row in rows)
    if limit is None:
        assert tokens == list(range(sum(lengths)))
        assert targets == sum(lengths) - len(lengths)  # whatever the length of rows


def test_a_limit_takes_rows_from_everywhere(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[n] * 10 for n in range(900)])
    few = samples(path, 100, 9)
    seen = torch.cat([row.tokens_T for row in few]).unique()
    assert len(seen) == 90
    assert all(int(((seen >= low) & (seen < low + 300)).sum()) > 15 for low in (0, 300, 600))
    assert all(equal(a, b) for a, b in zip(few, samples(path, 100, 9), strict=True))
    assert all(equal(a, b) for a, b in zip(few, samples(path, 100, 30), strict=False))
    with pytest.raises(RequestError, match="limit of rows is 0"):
        samples(path, 100, 0)


def test_domains_have_one_number_in_all_sources(tmp_path: Path) -> None:
    loader = Loader(sources(tmp_path, [([3] * 4, 1.0), ([3] * 4, 1.0)]), 24, 0, VOCABULARY)
    assert loader.domains == ("d0", "shared", "d1")
    row = loader.next()
    named = {int(row.tokens_T[at]): loader.domains[d] for at, d in zip(row.bounds, row.domains, strict=False)}
    assert named == {
        **{0: "d0", 3: "shared", 6: "d0", 9: "shared"},
        **{10_000: "d1", 10_003: "shared", 10_006: "d1", 10_009: "shared"},
    }
    assert loader.epochs() == {"source 0": 1.0, "source 1": 1.0}


def test_one_document_longer_than_many_rows_and_rows_longer_than_all_data(tmp_path: Path) -> None:
    (source,) = sources(tmp_path, [([9999], 1.0)])
    loader = Loader([source], 7, 0, VOCABULARY)
    rows = [loader.next() for _ in range(1429)]
    seen = torch.cat([row.tokens_T for row in rows]).tolist()
    assert {*seen} <= {*range(9999)}
    assert len({*seen}) >= 9999 - 7  # what waits at most, where the next epoch has begun
    (small,) = sources(tmp_path, [([2, 1], 1.0)])
    row = Loader([small], 1000, 0, VOCABULARY).next()
    check_row(row, 1000, {1, 2})
    assert row.real == 1000
    assert len(row.domains) in (666, 667)


def test_rows_are_the_same_for_ever(tmp_path: Path) -> None:
    """A run of last year goes on with the rows it would have had."""
    loader = Loader(sources(tmp_path, [([5, 3, 4], 2.0), ([2, 6], 1.0)]), 12, 7, VOCABULARY)
    assert [loader.next().tokens_T.tolist() for _ in range(2)] == [
        [0, 1, 2, 3, 4, 10000, 10001, 10002, 10003, 10004, 10005, 10006],
        [10007, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3],
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(length=9), "the data's length is 8, the state is of 9"),
        (lambda s: s.update(seed=1), "the data's seed is 0, the state is of 1"),
        (lambda s: s.update(vocab_size=5), "vocab_size is 100000, the state is of 5"),
        (lambda s: s["sources"].pop(), "the sources are source 0, source 1; the state is of source 0"),
        (lambda s: s["sources"].reverse(), "the state is of source 1, source 0"),
        (lambda s: s["sources"][1].update(weight=3), "the weight of source 'source 1' is 1.0, in the state it is 3"),
        (lambda s: s["sources"][0].update(checksum="?"), "'source 0' has other tokens than the state"),
        (lambda s: s.update(sources=None), "malformed"),
        (lambda s: s.update(sources=[1, 2]), "malformed"),
        (lambda s: s.update(extra=1), "malformed: 'extra'"),
        (lambda s: s.pop("index"), "malformed: 'index'"),
        (lambda s: s.update(index=-1), "malformed"),
        (lambda s: s.update(index=1.5), "malformed"),
        (lambda s: s["cursors"].pop(), "malformed"),
        (lambda s: s["cursors"][0].update(place=3), "malformed"),
        (lambda s: s["cursors"][0].update(epoch=True), "malformed"),
        (lambda s: s["cursors"][0].pop("drawn"), "malformed"),
        (lambda s: s.update(cursors=[[], []]), "malformed"),
        (lambda s: s.update(waiting=[[2, 0, 1]]), "malformed"),
        (lambda s: s.update(waiting=[[0, 3, 1]]), "malformed"),
        (lambda s: s.update(waiting=[[0, 0, 5]]), "malformed"),
        (lambda s: s.update(waiting=[[0, 0]]), "malformed"),
        (lambda s: s.update(waiting="abc"), "malformed"),
    ],
)
def test_a_state_of_other_data_is_refused(change: Callable[[Any], None], words: str, tmp_path: Path) -> None:
    loader = Loader(sources(tmp_path, [([5, 3, 4], 2.0), ([2, 6], 1.0)]), 8, 0, VOCABULARY)
    loader.next()
    before = loader.state_dict()
    state = json.loads(json.dumps(before))
    change(state)
    with pytest.raises(RequestError) as caught:
        loader.load_state_dict(state)
    assert words in str(caught.value)
    assert loader.state_dict() == before
    for wrong in (None, [], "x"):
        with pytest.raises(RequestError, match="malformed"):
            loader.load_state_dict(wrong)  # type: ignore[arg-type]


def test_a_state_moves_with_its_files(tmp_path: Path) -> None:
    made = sources(tmp_path, [([5, 3, 4], 2.0)])
    loader = Loader(made, 8, 0, VOCABULARY)
    loader.next()
    moved = made[0].path.rename(tmp_path / "elsewhere")
    other = Loader([Source(moved, 2.0, "source 0")], 8, 0, VOCABULARY)
    other.load_state_dict(loader.state_dict())
    assert equal(other.next(), loader.next())


def refused(made: Sequence[Source], kind: type[TenthError] = RequestError, **changed: Any) -> str:
    arguments = {"length": 8, "seed": 0, "vocab_size": VOCABULARY} | changed
    with pytest.raises(kind) as caught:
        Loader(made, **arguments)
    return str(caught.value)


def test_sources_that_cannot_be_mixed_are_refused(tmp_path: Path) -> None:
    a = write_tokens(tmp_path / "a", [[1, 2]], tokenizer="one")
    b = write_tokens(tmp_path / "b", [[1, 2]], tokenizer="two")
    unknown = write_tokens(tmp_path / "c", [[1, 2]])
    single = write_tokens(tmp_path / "d", [[1]] * 9)
    assert "was made by another tokenizer than" in refused([Source(a, 1, "a"), Source(b, 1, "b")])
    assert Loader([Source(unknown, 1, "c"), Source(a, 1, "a")], 8, 0, 1000).index == 0
    assert "no document of source 'd' is longer than one token" in refused([Source(single, 1, "d")])
    assert "has a vocabulary of 1000, the model's is 999" in refused([Source(a, 1, "a")], vocab_size=999)
    assert "cannot be read" in refused([Source(tmp_path / "none", 1, "a")])
    assert "the weight of source 'a' is 0" in refused([Source(a, 0, "a")])
    assert refused([]).startswith("there is no source")
    for length in (0, -1, 1.5, True, 1 << 40):
        assert "the length of rows is" in refused([Source(a, 1, "a")], length=length)
    a.write_bytes(a.read_bytes()[:-1])
    assert refused([Source(a, 1, "a")], FileFormatError).startswith(str(a))


def test_a_broken_token_is_named_and_can_be_passed_by(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[1, 2, 3, 4]] * 10, vocab_size=50)
    data = bytearray(path.read_bytes())
    data[4096 + 2 * 21] = 99
    path.write_bytes(data)
    loader = Loader([Source(path, 1, "x")], 4, 0, 100)
    found = []
    for index in range(10):
        try:
            assert loader.next().index == index
        except FileFormatError as error:
            found.append(str(error))
    assert found == [f"{path}: token 21 (in document 5) is 99, not below the vocabulary's 50"]
    assert loader.index == 10
    shifted = Loader([Source(path, 1, "x")], 1, 0, 100)  # the broken token is a target here before it is a token
    errors = 0
    for _ in range(40):
        try:
            shifted.next()
        except FileFormatError:
            errors += 1
    assert errors == 2
    with pytest.raises(FileFormatError, match="token 21"):
        samples(path, 4)


def test_collate(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "x", [[1, 2, 3, 4, 5], [6], [7, 8]], domains=["a", "b"])
    rows = samples(path, 5)
    made = collate([*rows, rows[0]])
    assert made.batch.bounds == (0, 5, 6, 8, 10, 15)
    assert made.batch.tokens_T is not None
    assert made.batch.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 2, 3, 4, 5]
    assert made.batch.positions_T.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 0, 1, 2, 3, 4]
    x = IGNORE
    assert made.targets_T.tolist() == [2, 3, 4, 5, x, x, 8, x, x, x, 2, 3, 4, 5, x]
    assert made.domains_T.tolist() == [0] * 5 + [1, 0, 0, NO_DOMAIN, NO_DOMAIN] + [0] * 5
    assert made.real_T.tolist() == [True] * 8 + [False] * 2 + [True] * 5
    assert made.samples == (0, 1, 0)
    assert made.loss_tokens == 9
    assert collate(samples(path, 3)[2:]).batch.bounds == (0, 2, 3)
    with pytest.raises(RequestError, match="at least one row"):
        collate([])


@settings(max_examples=30, deadline=None)
@given(mix=MIXES, length=st.integers(1, 50), rows=st.integers(1, 6))
def test_a_batch_is_its_rows(
    mix: list[tuple[list[int], float]], length: int, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loader = Loader(sources(tmp_path_factory.mktemp("data"), mix), length, 0, VOCABULARY)
    stream = [loader.next() for _ in range(rows)]
    made: TrainBatch = collate(stream)
    assert made.batch.bounds[-1] == rows * length == len(made.targets_T) == len(made.domains_T) == len(made.real_T)
    assert made.real_T.all()
    for n, row in enumerate(stream):
        at = slice(n * length, (n + 1) * length)
        assert torch.equal(made.targets_T[at], row.targets_T)
        assert [bound - n * length for bound in made.batch.bounds if at.start <= bound <= at.stop] == [*row.bounds]
    inside = [made.domains_T[start:end].unique().tolist() for start, end in pairwise(made.batch.bounds)]
    assert inside == [[domain] for row in stream for domain in row.domains]


def test_the_loader_is_faster_than_any_training(tmp_path: Path) -> None:
    """Rows and batches of 200-token documents; 6 million tokens a second of processor time were measured."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 8192, 1 + int(rng.exponential(200))) for _ in range(3000)]
    path = write_tokens(tmp_path / "x", documents, vocab_size=8192)  # type: ignore[arg-type]
    loader = Loader([Source(path, 3, "x"), Source(path, 1, "y")], 512, 0, 8192)
    loader.next()
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(60):
            collate([loader.next() for _ in range(4)])
        best = min(best, time.process_time() - start)
    assert 60 * 4 * 512 / best > 1.5e6
