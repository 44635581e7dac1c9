"""Who is let in, and when the others may come again."""

from __future__ import annotations

import pytest

from tenth.engine.request import Request
from tenth.serve.admission import Admission, AdmissionLimits
from tenth.serve.problems import HttpProblem


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def asked(prompt: int, most: int, n: int = 1) -> list[Request]:
    return [Request((1,) * prompt, most, n=n)]


def test_answers_are_counted() -> None:
    admission = Admission(AdmissionLimits(4, 10**6))
    first = admission.enter(asked(1, 10, n=3))
    with pytest.raises(HttpProblem, match="the server is full: 3 answers") as full:
        admission.enter(asked(1, 10, n=2))
    assert (full.value.status, full.value.retry_after) == (429, 1)
    second = admission.enter(asked(1, 10))
    first.leave(30)
    first.leave(30)  # once is enough
    admission.enter(asked(1, 10, n=3))
    assert admission.answers == 4
    second.leave(10)
    assert admission.answers == 3


def test_tokens_are_expected_by_what_answers_took() -> None:
    admission = Admission(AdmissionLimits(100, 5000))
    ticket = admission.enter(asked(1000, 32_000))
    assert admission.tokens == 1000 + 2048
    with pytest.raises(HttpProblem, match="the server is full"):
        admission.enter(asked(1000, 32_000))
    ticket.leave(10)
    for _ in range(60):
        admission.enter(asked(10, 32_000)).leave(10)
    tickets = [admission.enter(asked(1000, 32_000)) for _ in range(4)]  # short answers: four go in now
    assert admission.tokens < 5000
    for one in tickets:
        one.leave(10)
    assert (admission.answers, admission.tokens) == (0, 0)


def test_one_that_is_larger_than_everything_goes_in_alone() -> None:
    admission = Admission(AdmissionLimits(1, 10))
    admission.enter(asked(100, 5)).leave(5)


def test_the_wait_is_what_the_last_ones_took() -> None:
    clock = Clock()
    admission = Admission(AdmissionLimits(100, 1000), clock)
    for _ in range(5):
        ticket = admission.enter(asked(90, 10))
        clock.now += 10
        ticket.leave(10)  # 100 tokens in 10 seconds
    admission.enter(asked(900, 10))
    with pytest.raises(HttpProblem) as full:
        admission.enter(asked(290, 10))
    assert full.value.retry_after is not None
    assert 15 <= full.value.retry_after <= 40
