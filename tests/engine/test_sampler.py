"""The sampler: every option against its definition, against `transformers`, and by the frequencies of many draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tenth.engine.sampler import Drawn, Sampler, Sampling, draw_rows, kept
from tenth.engine.seen import PromptTokens, SeenTokens
from tenth.errors import RequestError

INF = math.inf


@pytest.fixture(autouse=True, scope="module", params=["native", "torch"])
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds with the native kernels and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr("tenth.engine.sampler.built", lambda: False)
        yield


# natural logarithms of 0.5, 0.25, 0.125, 0.125, but for a constant, and not in order
LOGITS = torch.log(torch.tensor([0.125, 0.5, 0.125, 0.25])) + 3.0
ORDER = [1, 3, 0, 2]  # likeliest first, the lower id first where two are equal


def _kept(logits: torch.Tensor, **options: Any) -> dict[int, float]:
    p, ids = kept(logits, Sampling(**options))
    assert p.dtype == torch.float64
    assert (p.diff() <= 0).all()
    return dict(zip(ids.tolist(), p.tolist(), strict=True))


def _draws(logits: torch.Tensor, count: int, options: Sampling, *, prompt: list[int] | None = None) -> list[int]:
    """Draws that know nothing of each other, from one stream of random numbers."""
    sampler = Sampler(options, prompt or [], len(logits))
    drawn = []
    for _ in range(count):
        drawn.append(sampler.draw(logits))
        sampler._seen = SeenTokens(PromptTokens(prompt or []))
    return drawn


def _chi_square(drawn: list[int], p: torch.Tensor) -> float:
    """Pearson's statistic over the tokens with a probability; infinite where one without was drawn."""
    seen = torch.bincount(torch.tensor(drawn), minlength=len(p)).double()
    possible = p > 0
    if seen[~possible].any():
        return INF
    expected = p[possible] * len(drawn)
    return float(((seen[possible] - expected) ** 2 / expected).sum())


def test_kept_keeps_all_by_default_likeliest_first() -> None:
    assert list(_kept(LOGITS)) == ORDER
    assert _kept(LOGITS) == pytest.approx({1: 0.5, 3: 0.25, 0: 0.125, 2: 0.125})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 0]),  # of the two equal ones the lower id stays
        ({"top_k": 4}, ORDER),
        ({"top_k": 400}, ORDER),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),  # the token that reaches the share belongs to it
        ({"top_p": 0.76}, [1, 3, 0]),
        ({"top_p": 0.9}, ORDER),
        ({"min_p": 0.24}, ORDER),
        ({"min_p": 0.26}, [1, 3]),
        ({"min_p": 0.51}, [1]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1]),  # behind top-k the shares are 2/3 and 1/3: k comes before p
        ({"top_p": 0.6}, [1, 3]),
        ({"top_k": 3, "top_p": 0.85}, [1, 3]),  # 4/7 and 2/7 make 0.857
        ({"top_p": 0.76, "min_p": 0.3}, [1, 3]),
    ],
)
def test_kept_sets(options: dict[str, Any], expected: list[int]) -> None:
    assert list(_kept(LOGITS, **options)) == expected


def test_kept_keeps_equal_best_tokens_at_min_p_one() -> None:
    assert list(_kept(torch.tensor([1.0, 2.0, 2.0]), min_p=1.0)) == [1, 2]


def test_kept_of_one_token_vocabulary() -> None:
    assert _kept(torch.tensor([-7.0]), top_k=5, top_p=0.1, min_p=1.0) == {0: 1.0}


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 2.0, 100.0])
def test_temperature_raises_probabilities_to_its_inverse(temperature: float) -> None:
    options = Sampling(temperature=temperature, seed=3)
    powers = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64) ** (1 / temperature)
    # 3 degrees of freedom: 27.9 is passed by chance once in 260,000 times
    assert _chi_square(_draws(LOGITS, 2000, options), powers / powers.sum()) < 27.9


@pytest.mark.parametrize(
    ("options", "p"),
    [
        ({}, [0.125, 0.5, 0.125, 0.25]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.76}, [1 / 7, 4 / 7, 0, 2 / 7]),
        ({"min_p": 0.26}, [0, 2 / 3, 0, 1 / 3]),
        # temperature comes first: squared, the probabilities are 1/22, 16/22, 1/22, 4/22
        ({"temperature": 0.5, "top_p": 0.74}, [0, 0.8, 0, 0.2]),
        ({"temperature": 0.5, "top_p": 0.72}, [0, 1, 0, 0]),
        ({"temperature": 2.0, "min_p": 0.45}, [0.25 / 1.2071, 0.5 / 1.2071, 0.25 / 1.2071, 0.35355 / 1.2071]),
    ],
)
def test_draws_have_the_stated_frequencies(options: dict[str, Any], p: list[float]) -> None:
    expected = torch.tensor(p, dtype=torch.float64)
    drawn = _draws(LOGITS, 2000, Sampling(seed=11, **options))
    assert _chi_square(drawn, expected / expected.sum()) < 27.9


def test_chi_square_notices_a_wrong_distribution() -> None:
    drawn = _draws(LOGITS, 2000, Sampling(seed=11, temperature=1.3))
    assert _chi_square(drawn, torch.tensor([0.125, 0.5, 0.125, 0.25])) > 27.9


def test_penalties_come_before_temperature() -> None:
    # 2 - 1 (presence), then halved by the temperature: odds of e^0.5 against a logit of 0
    sampler = Sampler(Sampling(temperature=2.0, presence_penalty=1.0, seed=1), [], 2)
    seen = []
    for _ in range(2000):
        sampler._seen = SeenTokens(PromptTokens([]))
        sampler._seen.add(0)
        seen.append(sampler.draw(torch.tensor([2.0, 0.0])))
    odds = math.exp(0.5)
    assert _chi_square(seen, torch.tensor([odds, 1.0]) / (odds + 1)) < 19.5  # once in 100,000


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_equals() -> None:
    sampler = Sampler(Sampling(temperature=0), [], 5)
    assert [sampler.draw(torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0])) for _ in range(20)] == [1] * 20


def test_greedy_obeys_penalties_and_ignores_cuts() -> None:
    sampler = Sampler(Sampling(temperature=0, presence_penalty=0.4, top_k=1, top_p=0.1, min_p=1.0), [], 3)
    # 1.0 then 0.6 against 0.9, then 0.5 against 0.8: the untouched third, then the first again
    assert [sampler.draw(torch.tensor([1.0, 0.9, 0.8])) for _ in range(4)] == [0, 1, 2, 0]


def test_presence_is_taken_once_and_frequency_each_time_from_generated_tokens_only() -> None:
    logits = torch.tensor([1.0, 0.0])
    presence = Sampler(Sampling(temperature=0, presence_penalty=0.9), [0, 0, 0, 0], 2)
    assert [presence.draw(logits) for _ in range(5)] == [0, 0, 0, 0, 0]  # 0.1 is still the best, the prompt is free
    frequency = Sampler(Sampling(temperature=0, frequency_penalty=0.4), [0, 0, 0, 0], 2)
    # 1.0, 0.6, 0.2, then -0.2 against 0, then -0.2 against -0.4
    assert [frequency.draw(logits) for _ in range(5)] == [0, 0, 0, 1, 0]


def test_negative_penalties_favour_what_was_said() -> None:
    sampler = Sampler(Sampling(temperature=0, presence_penalty=-1.0), [], 2)
    assert sampler.draw(torch.tensor([1.0, 0.0])) == 0
    assert sampler.draw(torch.tensor([0.0, 0.9])) == 0


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    prompt=st.lists(st.integers(0, 5), max_size=8),
    generated=st.lists(st.integers(0, 5), max_size=8),
    penalty=st.floats(0.0625, 20, width=32),
)
def test_repetition_penalty_is_that_of_transformers(
    logits: list[float], prompt: list[int], generated: list[int], penalty: float
) -> None:
    sampler = Sampler(Sampling(repetition_penalty=penalty), prompt, 6)
    for token in generated:
        sampler._seen.add(token)
    ours = torch.tensor(logits)
    sampler._penalise(ours)
    seen = torch.tensor([prompt + generated], dtype=torch.int64)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(seen, torch.tensor([logits]))[0]
    assert torch.equal(ours, theirs)


def _their_kept(logits: torch.Tensor, options: Sampling) -> torch.Tensor:
    """Log-probabilities (1, V) behind transformers' steps, in its order and in float64."""
    scores = TemperatureLogitsWarper(options.temperature)(None, logits[None].double())
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(None, scores)
    if options.top_p < 1.0:
        scores = TopPLogitsWarper(options.top_p)(None, scores)
    if options.min_p > 0.0:
        scores = MinPLogitsWarper(options.min_p)(None, scores)
    return torch.log_softmax(scores, -1)[0]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.integers(2, 300),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.03]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 0.9]),
)
def test_kept_tokens_are_those_of_transformers(
    seed: int, size: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few distinct values would be ties, which the two break differently
    logits = torch.randn(size, generator=generator, dtype=torch.float64) * spread
    options = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    theirs = _their_kept(logits, options)
    p, ids = kept(logits / temperature, options)
    assert sorted(ids.tolist()) == theirs.isfinite().nonzero().flatten().tolist()
    torch.testing.assert_close((p / p.sum()).log(), theirs[ids], rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-6, 1.0, 100.0])
def test_forbidden_tokens_are_never_drawn(temperature: float) -> None:
    forbidden = {0, 3, 4}
    sampler = Sampler(Sampling(temperature=temperature, seed=5, presence_penalty=-50.0), [0, 3], 6, forbidden)
    logits = torch.tensor([90.0, 1.0, 0.5, 90.0, INF, -3.0])
    drawn = {sampler.draw(logits) for _ in range(500)}
    assert not drawn & forbidden
    sampler = Sampler(Sampling(temperature=temperature, seed=5), [], 6, forbidden)
    assert sampler.draw(torch.tensor([90.0, -INF, -80.0, 90.0, 90.0, -INF])) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_a_mask_is_for_one_draw_of_one_row(temperature: float) -> None:
    """With what is never drawn: 40 tokens in two words, every eleventh allowed, 11 forbidden."""
    masks = [None, torch.tensor([sum(1 << n for n in range(0, 32, 11)), 1 << 1], dtype=torch.int32)]
    logits = torch.zeros(2, 40)
    logits[:, 5] = 9.0
    found: list[set[int]] = [set(), set()]
    samplers = [Sampler(Sampling(temperature=temperature, seed=n), [], 40, {11}) for n in range(2)]
    for _ in range(300):
        for row, one in enumerate(draw_rows(samplers, logits, allowed=masks)):
            assert isinstance(one, Drawn)
            found[row].add(one.token)
    possible = {0, 22, 33} if temperature else {0}
    assert found[1] == possible
    assert 5 in found[0]
    nothing = torch.zeros(2, dtype=torch.int32)
    free, none = draw_rows(samplers, logits, allowed=[None, nothing])
    assert isinstance(free, Drawn)
    assert isinstance(none, RequestError)


def test_all_possible_tokens_come_up_at_temperature_100() -> None:
    sampler = Sampler(Sampling(temperature=100.0, seed=5), [], 6, {0})
    drawn = [sampler.draw(torch.tensor([9.0, 1.0, 0.5, 9.0, 3.0, -3.0])) for _ in range(200)]
    assert set(drawn) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature), [], 3)
    with pytest.raises(RequestError, match="NaN"):
        sampler.draw(torch.tensor([0.0, math.nan, 1.0]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_leave_nothing_are_refused(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature), [], 3, {0, 1})
    with pytest.raises(RequestError, match="no token to draw"):
        sampler.draw(torch.tensor([1.0, 1.0, -INF]))
    with pytest.raises(RequestError, match="no token to draw"):
        Sampler(Sampling(temperature=temperature), [], 2).draw(torch.tensor([-INF, -INF]))


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 0.1, 1.0, 100.0])
def test_infinite_logits_are_certain_and_impossible(temperature: float) -> None:
    drawn = _draws(torch.tensor([5.0, INF, -INF, INF]), 200, Sampling(temperature=temperature, seed=2))
    assert set(drawn) == ({1} if temperature == 0 else {1, 3})
    # two logits of plus infinity are equally likely; 200 fair throws lie within 5 deviations (35) of 100
    assert temperature == 0 or 65 <= drawn.count(1) <= 135
    assert set(_draws(torch.tensor([-INF, 0.0, -INF]), 50, Sampling(temperature=temperature, seed=2))) == {1}


def test_the_smallest_temperatures_are_greedy() -> None:
    logits = torch.tensor([1.0, 1.0 + 1e-6, -5.0])
    for temperature in (5e-324, 1e-300, 1e-9):
        assert set(_draws(logits, 50, Sampling(temperature=temperature, seed=1))) == {1}


def test_half_precision_and_other_logits_are_not_changed_in_place() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        before = logits.clone()
        sampler = Sampler(Sampling(seed=0, repetition_penalty=2.0, presence_penalty=1.0), [2], 3, {1})
        for _ in range(5):
            sampler.draw(logits)
        assert torch.equal(logits, before)


def _sequence(seed: int | None, length: int = 40) -> list[int]:
    sampler = Sampler(Sampling(seed=seed), [], 50)
    return [sampler.draw(torch.zeros(50)) for _ in range(length)]


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    assert _sequence(7) == _sequence(7)
    assert len({tuple(_sequence(seed)) for seed in (0, 1, 2, (1 << 63) - 1, None, None, None)}) == 7


def test_the_seed_that_was_chosen_repeats_the_draws() -> None:
    first = Sampler(Sampling(), [], 50)
    drawn = [first.draw(torch.zeros(50)) for _ in range(40)]
    assert 0 <= first.seed < 1 << 63
    assert _sequence(first.seed) == drawn


def test_rows_are_drawn_as_if_alone_and_an_error_is_only_its_own_row_s() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3
    logits[1, 7], logits[3] = math.nan, -INF
    options = [
        Sampling(seed=1),
        Sampling(seed=2),
        Sampling(temperature=0),
        Sampling(),
        Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.4, seed=3),
    ]
    rows = [Sampler(one, [1, 2, 299], 300, {5, 31, 32}) for one in options]
    alone = [Sampler(one, [1, 2, 299], 300, {5, 31, 32}) for one in options]
    for _ in range(80):  # more tokens than a request has room for at first
        drawn = draw_rows(rows, logits, logprobs=3)
        for place, message in ((1, "NaN"), (3, "no token to draw")):
            assert isinstance(drawn[place], RequestError)
            assert message in str(drawn[place])
        for place in (0, 2, 4):
            assert drawn[place] == draw_rows([alone[place]], logits[place : place + 1], logprobs=3)[0]
    assert draw_rows([], logits[:0]) == []


def test_logprobs_are_the_model_s_own_whatever_the_options() -> None:
    logits = torch.randn(400, generator=torch.Generator().manual_seed(2)) * 3
    expected = torch.log_softmax(logits.double(), 0)
    likeliest = expected.topk(20)
    options = Sampling(temperature=0.4, top_k=9, top_p=0.8, repetition_penalty=2.0, presence_penalty=1.0, seed=1)
    sampler = Sampler(options, list(range(200)), 400, set(range(100, 250)))
    for _ in range(20):
        (drawn,) = draw_rows([sampler], logits[None], logprobs=20)
        assert isinstance(drawn, Drawn)
        assert drawn.logprob == pytest.approx(float(expected[drawn.token]), abs=1e-5)
        assert [token for token, _ in drawn.top] == likeliest.indices.tolist()
        assert [value for _, value in drawn.top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)
    (drawn,) = draw_rows([sampler], logits[None])
    assert isinstance(drawn, Drawn)
    assert (drawn.logprob, drawn.top) == (None, ())


def test_draws_do_not_touch_the_global_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _sequence(None)
    assert torch.equal(torch.rand(3), expected)


RANGES = [
    ("temperature", 0.0, 100.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("repetition_penalty", 0.0, 100.0, False),
    ("presence_penalty", -100.0, 100.0, True),
    ("frequency_penalty", -100.0, 100.0, True),
]


@pytest.mark.parametrize(("name", "low", "high", "low_allowed"), RANGES)
def test_numbers_outside_their_range_are_refused_by_name(name: str, low: float, high: float, low_allowed: bool) -> None:
    below = [math.nextafter(low, -INF), low - 1, -INF] + ([] if low_allowed else [low])
    above = [math.nextafter(high, INF), high + 1, INF, 10**400]
    wrong: list[Any] = [math.nan, True, False, "1", None, [1.0], 1j, torch.tensor(1.0)]
    for value in below + above + wrong:
        with pytest.raises(RequestError, match=rf"^{name} is .*, it must lie (above|between)"):
            Sampling(**{name: value})
    for value in [high, math.nextafter(high, -INF), math.nextafter(low, INF)] + ([low] if low_allowed else []):
        assert getattr(Sampling(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "most"), [("top_k", 1 << 31), ("seed", (1 << 63) - 1)])
def test_whole_numbers_outside_their_range_are_refused_by_name(name: str, most: int) -> None:
    wrong: list[Any] = [-1, most + 1, 10**400, 1.0, 0.0, math.nan, True, False, "1", "", [], torch.tensor(1)]
    for value in wrong:
        with pytest.raises(RequestError, match=rf"^{name} is .*, it must be a whole number from 0 to {most}$"):
            Sampling(**{name: value})
    for value in (0, 1, most):
        assert getattr(Sampling(**{name: value}), name) == value


def test_every_option_was_tried() -> None:
    assert {field.name for field in dataclasses.fields(Sampling)} == {name for name, *_ in RANGES} | {"top_k", "seed"}


@pytest.mark.parametrize("bad", [-1, 6, 1 << 70, -(1 << 70)])
def test_a_prompt_outside_the_vocabulary_is_refused(bad: int) -> None:
    with pytest.raises(RequestError, match=f"token id {bad} is outside the vocabulary, 0 to 5"):
        Sampler(Sampling(), [1, bad, 2], 6)


@pytest.mark.parametrize("options", [Sampling(1.5, repetition_penalty=1.4, frequency_penalty=0.5), Sampling(1.5)])
def test_samplers_beside_each_other_know_the_same_prompt(options: Sampling) -> None:
    """What one has seen is not the others'; each draws as one that was made alone."""
    prompt, generator = [3, 1, 3, 60], torch.Generator().manual_seed(1)
    first = Sampler(replace(options, seed=5), prompt, 64, {2, 9})
    shared = [first, *(first.beside(seed) for seed in (6, 7))]
    own = [Sampler(replace(options, seed=seed), prompt, 64, {2, 9}) for seed in (5, 6, 7)]
    for _ in range(200):
        logits_RV = 2 * torch.randn(3, 64, generator=generator)
        assert draw_rows(shared, logits_RV) == draw_rows(own, logits_RV)
    assert [one.seed for one in shared] == [5, 6, 7]
    assert first.beside(None).seed != first.beside(None).seed
