"""Held-out loss: by hand on few documents, its interval on many, and cross-entropy in blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tenth.data.packing import IGNORE, NO_DOMAIN, Sample
from tenth.errors import RequestError
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.train import cross_entropy
from tenth.train.cross_entropy import cross_entropy_sum, token_losses
from tenth.train.evaluate import evaluate, mean_loss, student
from tenth.train.run_watch import Counts


def _rows(lengths: list[tuple[int, ...]], domains: list[tuple[int, ...]], seed: int = 0) -> list[Sample]:
    """Packed rows of documents of such lengths; a negative length is cut at the row's end and goes on in the next."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, (sizes, own) in enumerate(zip(lengths, domains, strict=True)):
        bounds = [0, *np.cumsum([abs(size) for size in sizes]).tolist()]
        tokens_T = torch.randint(0, 512, (bounds[-1] + 1,), generator=generator)
        targets_T = tokens_T[1:].clone()
        for size, end, domain in zip(sizes, bounds[1:], own, strict=True):
            if size > 0:
                targets_T[end - 1] = IGNORE
            if domain == NO_DOMAIN:
                targets_T[end - size : end] = IGNORE
        positions_T = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])
        real = sum(abs(size) for size, domain in zip(sizes, own, strict=True) if domain != NO_DOMAIN)
        rows.append(Sample(index, tokens_T[:-1], targets_T, tuple(bounds), positions_T, own, real))
    return rows


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return initialise(Decoder(preset("tiny-moe"), dtype=torch.float64), 5, std=0.2).requires_grad_(False)


def test_by_domain_against_plain_torch(decoder: Decoder) -> None:
    rows = _rows([(4, 8), (6, -6), (3, 7, 2)], [(0, 1), (1, 0), (0, 1, NO_DOMAIN)])
    sums: dict[int, list[tuple[float, int]]] = {0: [], 1: []}
    for row in rows:
        for number, (start, end) in enumerate(pairwise(row.bounds)):
            if row.domains[number] == NO_DOMAIN:
                continue
            logits_NV = decoder(Batch.of([row.tokens_T[start:end]])).logits_NV
            loss = F.cross_entropy(logits_NV, row.targets_T[start:end], ignore_index=IGNORE, reduction="sum")
            sums[row.domains[number]].append((float(loss), int((row.targets_T[start:end] != IGNORE).sum())))
    every, found = evaluate(decoder, rows, ("code", "prose"), rows=2)
    assert list(found) == ["code", "prose"]
    for domain, name in enumerate(("code", "prose")):
        total = sum(loss for loss, _ in sums[domain]), sum(count for _, count in sums[domain])
        assert found[name].loss == pytest.approx(total[0] / total[1], abs=1e-9)
        assert found[name].tokens == total[1]
        assert found[name].perplexity == pytest.approx(math.exp(found[name].loss))
    assert found["code"].documents == 2  # of four characters, and of the six that go on with three in the next row
    assert found["prose"].documents == 3
    assert every.tokens == 3 + 7 + 5 + 6 + 2 + 6
    assert every.low < every.loss < every.high


def test_a_domain_may_be_called_all(decoder: Decoder) -> None:
    every, found = evaluate(decoder, _rows([(4, 8)], [(0, 1)]), ("all", "prose"))
    assert (every.tokens, found["all"].tokens, found["prose"].tokens) == (10, 3, 7)


def test_counts_leave_padding_out(decoder: Decoder) -> None:
    counts = Counts()
    evaluate(decoder, _rows([(5, 3)], [(0, NO_DOMAIN)]), ("x",), watch=counts.take)
    assert sorted(counts.layers) == [1, 2]
    assert int(counts.layers[1].sum()) == 5 * 2
    assert counts.max_violation() is not None


def test_nothing_to_evaluate(decoder: Decoder) -> None:
    with pytest.raises(RequestError, match="nothing to evaluate"):
        evaluate(decoder, _rows([(1, 1)], [(0, 0)]), ("x",))


def test_an_interval_of_a_ratio_by_hand() -> None:
    found = mean_loss([2.0, 9.0, 4.0], [1, 3, 2])
    mean = 15 / 6
    spread = (2 - mean) ** 2 + (9 - 3 * mean) ** 2 + (4 - 2 * mean) ** 2
    half = 4.302653 * math.sqrt(3 / 2 * spread) / 6  # three documents: two degrees of freedom
    assert (found.loss, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert mean_loss([3.0], [2]).high == math.inf


@pytest.mark.parametrize(
    ("freedom", "known"),
    [(1, 12.70620), (2, 4.30265), (9, 2.26216), (10, 2.22814), (30, 2.04227), (60, 2.00030), (1000, 1.96234)],
)
def test_student_as_tables_have_it(freedom: int, known: float) -> None:
    assert student(freedom) == pytest.approx(known, abs=2e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Documents of uneven lengths whose tokens err together: an interval of single tokens would hold it far less."""
    draw, held, by_token = np.random.default_rng(0), 0, 0
    for _ in range(400):
        sizes = draw.integers(5, 60, 80)
        own = draw.normal(3.0, 0.5, 80)  # the document's mean
        losses = [float(draw.normal(mean, 1.0, size).sum()) for mean, size in zip(own, sizes, strict=True)]
        found = mean_loss(losses, sizes.tolist())
        held += found.low < 3.0 < found.high
        half = 1.96 * math.sqrt(1.25 / sizes.sum())
        by_token += abs(found.loss - 3.0) < half
    assert 0.91 < held / 400 < 0.98
    assert by_token / 400 < 0.6


@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 7), (37, 11), (50, 300)])
def test_blocks_of_cross_entropy(tokens: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients in blocks of few rows, against torch, with targets that count nothing."""
    monkeypatch.setattr(cross_entropy, "_BLOCK", 4 * vocabulary)
    monkeypatch.setattr(cross_entropy, "_ROWS", 1)
    monkeypatch.setattr(cross_entropy, "_CACHED", 3 * vocabulary)
    generator = torch.Generator().manual_seed(tokens)
    hidden_TD = torch.empty(tokens, 5, dtype=torch.float64).normal_(generator=generator).requires_grad_()
    head_VD = torch.empty(vocabulary, 5, dtype=torch.float64).normal_(generator=generator).requires_grad_()
    targets_T = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets_T[1::3] = IGNORE
    expected = F.cross_entropy(hidden_TD @ head_VD.T, targets_T, ignore_index=IGNORE, reduction="sum")
    loss = cross_entropy_sum(hidden_TD, head_VD, targets_T)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(token_losses(hidden_TD, head_VD, targets_T).sum(), expected)
    ours = torch.autograd.grad(loss * 0.3, [hidden_TD, head_VD])
    theirs = torch.autograd.grad(expected * 0.3, [hidden_TD, head_VD])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_cross_entropy_far_from_the_target_and_a_frozen_head() -> None:
    hidden_TD = torch.tensor([[300.0]], requires_grad=True)
    loss = cross_entropy_sum(hidden_TD, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert float(loss.detach()) == 600.0  # a probability of e^-600 is 0 in float32
    loss.backward()
    assert float(hidden_TD.grad[0, 0]) == 2.0  # type: ignore[index]


def test_bfloat16_gives_a_float32_loss_and_a_float32_gradient_of_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.empty(40, 16).normal_(generator=generator).bfloat16().requires_grad_()
    head_VD = torch.empty(50, 16).normal_(0, 0.3, generator=generator).bfloat16().requires_grad_()
    head_VD.grad_dtype = torch.float32
    targets_T = torch.randint(0, 50, (40,), generator=generator)
    loss = cross_entropy_sum(hidden_TD, head_VD, targets_T)
    exact = F.cross_entropy(hidden_TD.double() @ head_VD.double().T, targets_T, reduction="sum")
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=2e-3)
    (loss / 40).backward()
    assert head_VD.grad is not None
    assert head_VD.grad.dtype == torch.float32
