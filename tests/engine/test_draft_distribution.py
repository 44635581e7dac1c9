"""What is drawn with guesses has the model's distribution: Pearson's test over 20,000 tokens, whose power is computed.

V vocabulary, N tokens that are judged together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tenth.engine.draft import Draft, DraftCounts
from tenth.engine.draft_length import DraftLength
from tenth.engine.drafted import Drafting, drafted_generate
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.scripted import ScriptedModel
from tenth.engine.sequence import CachedSequence
from tenth.model.batch import Batch, Output, Want
from tenth.model.cache import KVCache

P_V = torch.tensor([0.3, 0.2, 0.15, 0.1, 0.08, 0.07, 0.06, 0.04], dtype=torch.float64)
DRAWS = 20_000
CRITICAL = 24.32  # of 7 degrees of freedom: passed by chance once in 1,000 times
VARIATION = 0.05


class Die(ScriptedModel):
    """Whatever came before, the next token has the probabilities P_V. A step takes a second, whatever is in it."""

    now = 0.0

    def __call__(
        self, batch: Batch, cache: KVCache | None = None, want: Want | None = None, routing: object = None
    ) -> Output:
        self.now += 1.0
        want = want or Want()
        count = len(want.logits) if isinstance(want.logits, Tensor) else 1
        return Output(P_V.log().expand(count, -1), None, None)


class Hopeful:
    """Drafts the likeliest token, again and again."""

    def begin(self, prompt: Sequence[int]) -> None: ...

    def take(self, tokens: Sequence[int]) -> None: ...

    def propose(self, most: int) -> Draft:
        return Draft([0] * most, [0.3] * most, "hopeful")

    def close(self) -> None: ...


def chi_square(tokens: Sequence[int]) -> float:
    """Pearson's statistic against P_V."""
    seen_V = torch.bincount(torch.tensor(tokens), minlength=len(P_V)).double()
    expected_V = P_V * len(tokens)
    return float(((seen_V - expected_V) ** 2 / expected_V).sum())


@pytest.fixture(scope="module")
def drawn() -> tuple[list[int], DraftCounts]:
    """Steps that cost nothing more for more tokens, so that there is a guess in nearly each."""
    model = Die(len(P_V), [], 0)
    drafting = Drafting(Hopeful(), DraftLength(), clock=lambda: model.now)
    sampler = Sampler(Sampling(temperature=1.0, seed=11), [1], len(P_V))
    steps = drafted_generate(CachedSequence(model), [1], sampler, drafting, max_tokens=DRAWS)
    return [step.token for step in steps], drafting.counts


def power(draws: int, variation: float, seed: int = 0) -> float:
    """How often the test finds a distribution that far off, of those the one that is hardest to find.

    A total variation d makes a noncentrality of 4 d^2 a draw at least, by Cauchy and Schwarz. The statistic is then
    that of 7 normal draws, one of them moved by its root: counted over 20,000 of them.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(20_000, len(P_V) - 1, generator=generator, dtype=torch.float64)
    normal[:, 0] += (4 * variation**2 * draws) ** 0.5
    return float(((normal**2).sum(1) > CRITICAL).double().mean())


def test_the_distribution_is_the_models(drawn: tuple[list[int], DraftCounts]) -> None:
    tokens, counts = drawn
    assert len(tokens) == DRAWS
    assert counts.drafted > DRAWS  # most tokens were judged against a guess,
    assert 0.25 * DRAWS < counts.accepted < 0.35 * DRAWS  # and as many were it as should be
    assert chi_square(tokens) < CRITICAL


def test_the_test_would_find_another_distribution(drawn: tuple[list[int], DraftCounts]) -> None:
    assert power(DRAWS, 0.0) < 0.0025  # 0.001 and its noise
    assert power(DRAWS, VARIATION) > 0.999
    assert power(2_000, VARIATION) > 0.5  # a tenth of the draws would already find it more often than not
    # a rule that lets guesses stand too often: 5 % of all draws more are the guess
    rng, (tokens, _) = random.Random(0), drawn
    share = VARIATION / float(1 - P_V[0])
    assert chi_square([0 if rng.random() < share else token for token in tokens]) > 4 * CRITICAL
