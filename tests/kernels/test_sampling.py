"""Native sampling against the oracle in torch: the same token for the same random number, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenth.engine.sampler import Drawn, Sampler, Sampling, _heated, draw_rows, kept
from tenth.kernels.cpu.machine import built, instruction_sets, machine, usable_cpus

if not built():
    pytest.skip("the native kernels are not built", allow_module_level=True)

from tenth.kernels.cpu.sampling import DrawnRow, RowSampling, sample

INF = math.inf
LAST = 1 - 2**-53  # the largest random number

# shares that no sum of a few equal probabilities meets: at such a mark both sides may be right
OPTIONS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-9, 0.31, 0.7, 1.0, 1.7, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 20, 333, 1 << 31]),
    top_p=st.sampled_from([1.0, 0.9513671923, 0.4987123457, 0.0317171717, 1e-12]),
    min_p=st.sampled_from([0.0, 0.0, 0.0103171717, 0.2173717171, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 0.4, 1e-300]),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.1]),
    seed=st.integers(0, 1 << 32),
)


def _logits(generator: torch.Generator, size: int, kind: str) -> Tensor:
    logits = torch.randn(size, generator=generator)
    match kind:
        case "equal":
            return torch.zeros(size)
        case "few values":
            return (logits * 2).round()
        case "sorted":
            return logits.sort().values * 3
        case "impossible":
            return torch.where(logits > 0.5, logits * 4, -INF)
        case "infinite":
            return torch.where(logits > 1.5, INF, logits)
        case "peaked":
            return logits + 20 * (logits > 2.5)
        case _:
            return logits * float(kind)


KINDS = ["equal", "few values", "sorted", "impossible", "infinite", "peaked", "0.1", "1", "4", "30"]


@settings(deadline=None, max_examples=150)
@given(
    requests=st.lists(st.tuples(OPTIONS, st.sampled_from(KINDS)), min_size=1, max_size=4),
    size=st.sampled_from([1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 4099]),
    seed=st.integers(0, 1 << 32),
    logprobs=st.sampled_from([None, 0, 1, 20]),
)
def test_draws_are_those_of_the_oracle(
    requests: list[tuple[Sampling, str]], size: int, seed: int, logprobs: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.stack([_logits(generator, size, kind) for _, kind in requests])
    before = logits_RV.clone()
    prompt = torch.randint(0, size, (size // 3,), generator=generator).tolist()
    forbidden = set(torch.randint(0, size, (size // 4,), generator=generator).tolist())

    def samplers(native: bool) -> list[Sampler]:
        return [Sampler(options, prompt, size, forbidden, native=native) for options, _ in requests]

    ours, theirs = samplers(True), samplers(False)
    for _ in range(3):
        for one, other in zip(
            draw_rows(ours, logits_RV, logprobs=logprobs), draw_rows(theirs, logits_RV, logprobs=logprobs), strict=True
        ):
            _same(one, other)
    assert torch.equal(logits_RV, before)


def _same(one: Drawn | Exception, other: Drawn | Exception) -> None:
    if not (isinstance(one, Drawn) and isinstance(other, Drawn)):
        assert (type(one), str(one)) == (type(other), str(other))
        return
    assert one.token == other.token
    assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert [token for token, _ in one.top] == [token for token, _ in other.top]
    assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-5)


def _row(options: Sampling, uniform: float) -> RowSampling:
    return RowSampling(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        uniform,
        1.0,
        0.0,
        0.0,
        torch.zeros(0, dtype=torch.int32),
        torch.zeros(0),
        None,
    )


@settings(deadline=None, max_examples=150)
@given(
    options=OPTIONS.filter(lambda options: options.temperature > 0),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([1, 16, 17, 257, 1000, 4099]),
    seed=st.integers(0, 1 << 32),
)
def test_kept_tokens_are_those_of_the_oracle(options: Sampling, kind: str, size: int, seed: int) -> None:
    logits_V = _logits(torch.Generator().manual_seed(seed), size, kind)
    if not (logits_V > -INF).any():
        return
    p, ids = kept(_heated(logits_V, options.temperature), options)
    assume((p > 1e-290).all())  # below, the two differ in what counts as nothing
    row = sample(machine(), logits_V[None], [_row(options, LAST)], count_kept=True)[0]
    assert row.kept == len(ids)
    if p[-1] > 1e-12:  # the largest number draws the last one: what is kept is the beginning of one order
        assert row.token == int(ids[-1])


@pytest.mark.parametrize("kind", ["1", "few values", "peaked"])
def test_bits_do_not_depend_on_instruction_set_threads_or_neighbours(kind: str) -> None:
    size = 20011
    generator = torch.Generator().manual_seed(3)
    logits_RV = torch.stack([_logits(generator, size, kind) for _ in range(5)])
    rows = [
        _row(Sampling(temperature=0.7, top_p=0.95), 0.3),
        _row(Sampling(), 0.9),
        _row(Sampling(top_k=50, min_p=0.01), LAST),
        _row(Sampling(min_p=0.001), 0.5),
        _row(Sampling(temperature=0), 0),
    ]

    def run(threads: int, name: str, chosen: list[int]) -> list[DrawnRow]:
        team = machine(threads, name)
        return sample(team, logits_RV[chosen], [rows[i] for i in chosen], logprobs=20, count_kept=True)

    expected = run(1, "portable", list(range(5)))
    for name in instruction_sets():
        for threads in (1, len(usable_cpus())):
            assert run(threads, name, list(range(5))) == expected
            assert [run(threads, name, [i])[0] for i in range(5)] == expected


def test_a_real_vocabulary() -> None:
    size = 151936
    generator = torch.Generator().manual_seed(5)
    wide_RV = torch.randn(8, size + 5, generator=generator) * 2.5
    logits_RV = wide_RV[:, :size]  # rows at a stride
    options = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.05, frequency_penalty=0.2)
    prompt = torch.randint(0, size, (3000,), generator=generator).tolist()
    pairs = [
        [Sampler(replace(options, seed=i), prompt, size, range(151669, size), native=native) for i in range(8)]
        for native in (True, False)
    ]
    for one, other in zip(*(draw_rows(some, logits_RV, logprobs=20) for some in pairs), strict=True):
        _same(one, other)
