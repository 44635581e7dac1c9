"""The length rule on simulated engines of known costs and chances: the best fixed length is found by brute force."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.draft import Draft
from tenth.engine.draft_length import DraftLength, LengthOptions, Tried
from tenth.errors import RequestError

Cost = Callable[[int], float]
MOST = 8


def linear(tokens: int) -> float:
    return 0.02 * tokens


def flat(tokens: int) -> float:
    return 0.02 + 0.0004 * tokens


def experts(tokens: int) -> float:
    """A step that reads 8 of 128 experts for each token, beside what all tokens share."""
    return 0.006 + 0.014 * (1 - (1 - 8 / 128) ** tokens) / (8 / 128)


def stairs(tokens: int) -> float:
    return 0.01 * (1 + math.ceil(tokens / 4))


COSTS = {"linear": linear, "flat": flat, "experts": experts, "stairs": stairs}


@dataclass
class Workload:
    """Each drafted token stands with the chance `stands(score, place)` if those before it do."""

    cost: Cost
    stands: Callable[[float, int], float]
    sequences: int = 1
    noise: float = 0.05
    scores: tuple[float, ...] = (0.7,)
    drafting: float = 0.0  # seconds for each token that is asked for
    length: int = MOST  # no proposer has more
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def draft(self, most: int) -> Draft:
        score = self.rng.choice(self.scores)
        count = min(most, self.length)
        return Draft([0] * count, [score] * count, "simulated")

    def accepted(self, draft: Draft) -> int:
        for place, score in enumerate(draft.chances):
            if self.rng.random() >= self.stands(score, place):
                return place
        return len(draft.tokens)

    def seconds(self, tokens: int) -> float:
        spike = 5.0 if self.noise and self.rng.random() < 0.003 else 1.0
        return self.cost(tokens) * spike * max(self.rng.gauss(1, self.noise), 0.5)


@dataclass
class Total:
    """Tokens and seconds as they were, and the seconds that the known costs say."""

    tokens: int = 0
    seconds: float = 0.0
    lengths: list[int] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def run(control: DraftLength, load: Workload, steps: int) -> Total:
    """So many steps of an engine; time is counted by the known costs, so that noise does not blur the comparison."""
    total = Total()
    for _ in range(steps):
        most = control.most(load.sequences)
        drafts = [load.draft(most) for _ in range(load.sequences)]
        counts = control.cut(drafts)
        assert all(0 <= count <= len(draft.tokens) for count, draft in zip(counts, drafts, strict=True))
        tried = [Tried(cut, load.accepted(cut)) for cut in map(Draft.cut, drafts, counts)]
        for draft, count in zip(drafts, counts, strict=True):
            if draft.tokens and not count:  # compared with what comes all the same
                control.learn(Tried(draft, load.accepted(draft)))
        drafting = load.drafting * most * load.sequences
        control.record(load.sequences, tried, load.seconds(load.sequences + sum(counts)), drafting)
        total.tokens += load.sequences + sum(one.accepted for one in tried)
        total.seconds += load.cost(load.sequences + sum(counts)) + drafting
        total.lengths.append(sum(counts))
    return total


def fixed(load: Workload, length: int) -> float:
    """Expected tokens a second of a length that never changes: the scores of a draft are equal."""
    expected = 0.0
    for score in load.scores:
        chance = 1.0
        for place in range(length):
            chance *= load.stands(score, place)
            expected += chance / len(load.scores)
    count = load.sequences
    return count * (1 + expected) / (load.cost(count * (1 + length)) + load.drafting * length * count)


def best_fixed(load: Workload) -> float:
    return max(fixed(load, length) for length in range(min(MOST, load.length) + 1))


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("cost", COSTS)
def test_near_the_best_fixed_length_and_never_slower_than_none(cost: str, chance: float, sequences: int) -> None:
    load = Workload(COSTS[cost], lambda score, place: chance, sequences)
    total = run(DraftLength(), load, 2000)
    assert total.speed >= 0.98 * fixed(load, 0)
    assert total.speed >= 0.95 * best_fixed(load)


@given(
    st.lists(st.floats(0.0, 0.03), min_size=36, max_size=36),
    st.lists(st.floats(0.0, 1.0), min_size=MOST, max_size=MOST),
    st.integers(1, 4),
    st.integers(1, MOST),
    st.sampled_from([0.0, 0.05, 0.15]),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_any_costs_any_chances(
    more: list[float], chances: list[float], sequences: int, length: int, noise: float, score: float, seed: int
) -> None:
    """Costs rise by anything, chances are anything at each position, the proposer's own view is wrong."""
    costs = [0.02 + sum(more[:tokens]) for tokens in range(37)]
    rng = random.Random(seed)
    load = Workload(costs.__getitem__, lambda _, k: chances[k], sequences, noise, (score,), length=length, rng=rng)
    total = run(DraftLength(), load, 2000)
    assert total.speed >= 0.98 * fixed(load, 0)
    assert total.speed >= 0.93 * best_fixed(load)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_it_follows_when_the_workload_changes(noise: float) -> None:
    """Text that repeats or does not, machines on which more tokens are free or not, one after the other."""
    control = DraftLength()
    phases = [(flat, 0.9), (flat, 0.0), (flat, 0.9), (linear, 0.9), (flat, 0.9), (experts, 0.95), (experts, 0.0)]
    for cost, chance in phases:
        load = Workload(cost, lambda _, __, chance=chance: chance, noise=noise)  # type: ignore[misc]
        early, late = run(control, load, 500), run(control, load, 1500)
        assert early.speed >= 0.93 * fixed(load, 0)  # what was gained before may be lost here, once
        assert late.speed >= 0.97 * fixed(load, 0)  # gains of before are still being lost here
        assert late.speed >= 0.94 * best_fixed(load)


def test_drafts_are_cut_by_what_their_chances_turned_out_to_be_worth() -> None:
    """Half of the drafts are good and half are not, and the proposer has it the wrong way round."""
    load = Workload(experts, lambda score, _: 0.95 if score < 0.5 else 0.2, scores=(0.3, 0.8))
    control = DraftLength()
    run(control, load, 500)
    total = run(control, load, 2000)
    assert total.speed >= 1.05 * best_fixed(load)
    lengths: dict[float, list[int]] = {0.3: [], 0.8: []}
    for _ in range(200):
        draft = load.draft(control.most(1))
        counts = control.cut([draft])
        control.record(1, [Tried(draft.cut(counts[0]), load.accepted(draft.cut(counts[0])))], load.cost(1 + counts[0]))
        if draft.tokens:
            lengths[draft.chances[0]].append(counts[0])
    good, bad = (sum(found) / len(found) for found in lengths.values())
    assert good > 4
    assert bad < 0.5


@pytest.mark.parametrize("drafting", [0.0, 0.001, 0.004, 0.02])
@pytest.mark.parametrize("chance", [0.0, 0.7, 0.9])
def test_what_drafting_costs_counts(drafting: float, chance: float) -> None:
    load = Workload(flat, lambda _, __: chance, drafting=drafting)
    total = run(DraftLength(), load, 2000)
    assert total.speed >= 0.98 * fixed(load, 0)
    assert total.speed >= 0.93 * best_fixed(load)


def test_sequences_come_and_go() -> None:
    control, rng = DraftLength(), random.Random(1)
    totals, alone = Total(), 0.0
    for _ in range(150):
        load = Workload(experts, lambda _, __: 0.9, sequences=rng.randint(1, 6), rng=rng)
        total = run(control, load, 20)
        totals.tokens, totals.seconds = totals.tokens + total.tokens, totals.seconds + total.seconds
        alone += total.tokens / fixed(load, 0)
    assert totals.seconds <= 0.85 * alone


def test_trying_costs_little_for_ever() -> None:
    """Drafts that never stand: 20,000 tokens later the loss is within the share that tries have."""
    load = Workload(experts, lambda _, __: 0.0, noise=0.0)
    control = DraftLength()
    run(control, load, 1000)
    total = run(control, load, 20_000)
    assert any(total.lengths)  # it does go on trying
    assert total.speed >= 0.994 * fixed(load, 0)


def test_steps_with_prompts_teach_chances_and_no_costs() -> None:
    control = DraftLength()
    assert control.most(1) == 0  # nothing is known yet
    for _ in range(20):
        control.record(1, [], 0.02)
    draft = Draft([1, 2, 3], [0.9] * 3, "simulated")
    control.record(1, [Tried(draft, 3)], 0.021)
    taken = []
    for accepted in (3, 0, 3):
        for _ in range(200):
            control.record(1, [Tried(draft, accepted)], None)
        control.cut([draft])  # this one may be a try, the next one is not
        taken.append(control.cut([draft]))
    assert taken == [[3], [0], [3]]


def test_refusals() -> None:
    with pytest.raises(RequestError, match="up to 0 tokens"):
        LengthOptions(most=0)
