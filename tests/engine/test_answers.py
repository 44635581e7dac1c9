"""Several answers, beams, log-probabilities of prompts, bounded thinking, guesses: in company and under pressure."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import naive_generate
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.thinking import Thinking
from tenth.errors import MachineError, RequestError
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.record import Routing
from tests.model.configs import ours, theirs
from tests.weights.models import raw_config

CONFIG = preset("tiny-moe")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=1, std=0.2).requires_grad_(False)


def run(engine: Engine, between: Callable[[], None] = lambda: None) -> None:
    steps = 0
    while engine.busy:
        between()
        engine.step()
        engine.scheduler.audit()
        steps += 1
        assert steps < 3000


def alone(decoder: Decoder, request: Request, seed: int | None = None) -> list[int]:
    options = request.sampling if seed is None else Sampling(temperature=request.sampling.temperature, seed=seed)
    sampler = Sampler(options, request.prompt, decoder.config.vocab_size)
    steps = naive_generate(decoder, request.prompt, sampler, max_tokens=request.max_tokens, end_ids=request.end_ids)
    return [step.token for step in steps]


# ---- several answers


@pytest.mark.parametrize(("pages", "page_size"), [(64, 4), (9, 4), (40, 1)])
def test_answers_share_the_prompt_and_draw_with_seeds_of_their_own(tiny: Decoder, pages: int, page_size: int) -> None:
    engine = Engine(tiny, EngineOptions(pages, page_size))
    request = Request(tuple(range(17)), 9, Sampling(temperature=1.5, seed=7), n=4)
    stream = engine.submit(request)
    run(engine)
    assert [answer.tokens for answer in stream.answers] == [alone(tiny, request, 7 + i) for i in range(4)]
    assert len({tuple(answer.tokens) for answer in stream.answers}) == 4
    if not engine.scheduler.counts.preempted:  # 16 of the prompt's tokens are of full pages
        assert engine.scheduler.counts.computed == 17 + 3 * 1 + 4 * 8
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == pages


def test_a_prompt_that_is_being_computed_is_waited_for(tiny: Decoder) -> None:
    """Two requests with the same long beginning, in chunks: the second one finds what the first computes."""
    engine = Engine(tiny, EngineOptions(64, 4, SchedulerOptions(tokens=8, wait=0)))
    first, second = (engine.submit(Request((*range(40), n), 3, GREEDY)) for n in (1, 2))
    other = engine.submit(Request((9, 9, 9), 3, GREEDY))
    run(engine)
    for stream in (first, second, other):
        assert stream.tokens == alone(tiny, stream.request)
    assert (first.found, second.found) == (0, 40)


def test_answers_end_and_are_cancelled_apart(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4))
    request = Request((1, 2, 3), 30, Sampling(temperature=2, seed=1), end_ids=frozenset(range(0, 512, 6)), n=5)
    stream = engine.submit(request)
    for _ in range(4):
        engine.step()
    ended = [answer.finish_reason for answer in stream.answers]
    assert set(ended) == {"stop", None}
    stream.cancel()
    engine.step()
    assert [answer.finish_reason for answer in stream.answers] == [reason or "cancelled" for reason in ended]
    assert stream.finished
    assert not engine.busy


# ---- beams


@pytest.mark.parametrize(
    ("width", "n", "penalty", "ends", "pages"),
    [(2, 1, 1.0, (), 64), (4, 4, 1.0, (3, 17, 40, 51), 64), (3, 2, 0.0, range(0, 60, 4), 64), (5, 3, 2.0, (7,), 14)],
)
def test_beams_are_those_of_transformers(width: int, n: int, penalty: float, ends: tuple[int, ...], pages: int) -> None:
    raw = raw_config("qwen3_moe")
    model = theirs(raw, seed=3, dtype=torch.float64)
    decoder = ours(raw, model, torch.float64)
    prompt = [5, 9, 1, 33, 2, 8, 21]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=n,
            do_sample=False,
            max_new_tokens=12,
            length_penalty=penalty,
            eos_token_id=list(ends) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    engine = Engine(decoder, EngineOptions(pages, 4))
    beside = engine.submit(Request((1, 2, 3), 20, GREEDY))
    request = Request(tuple(prompt), 12, GREEDY, frozenset(ends), n=n, beams=width, length_penalty=penalty)
    stream = engine.submit(request)
    run(engine)
    assert beside.tokens == alone(decoder, beside.request)
    for answer, row, score in zip(stream.answers, expected.sequences, expected.sequences_scores, strict=True):
        ended = answer.tokens[-1] in ends
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.tokens == row[len(prompt) : len(prompt) + len(answer.tokens)].tolist()
        assert answer.score == pytest.approx(float(score), rel=1e-5)
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == pages


def test_a_search_is_cancelled_as_a_whole_and_refuses_what_it_cannot_do(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4, SchedulerOptions(sequences=8)))
    stream = engine.submit(Request((1, 2, 3), 20, GREEDY, n=3, beams=4))
    for _ in range(3):
        engine.step()
        engine.scheduler.audit()
    assert len(engine.scheduler.running) == 4
    stream.cancel()
    engine.step()
    assert [answer.finish_reason for answer in stream.answers] == ["cancelled"] * 3
    assert not engine.busy
    engine.scheduler.audit()
    with pytest.raises(RequestError, match="goes without temperature, logprobs"):
        Request((1,), 4, Sampling(temperature=1), beams=2, logprobs=1)
    with pytest.raises(RequestError, match="beams is 2, it must lie between n, which is 3"):
        Request((1,), 4, GREEDY, n=3, beams=2)
    with pytest.raises(RequestError, match="9 beams are more than the 8 sequences of a step"):
        engine.submit(Request((1,), 4, GREEDY, beams=9))


@pytest.mark.parametrize("left", [0, 2])
def test_a_search_goes_on_for_the_answers_that_are_wanted(tiny: Decoder, left: int) -> None:
    """One that nobody waits for ends at the next step, whichever it is; the others keep their ranks."""
    engine = Engine(tiny, EngineOptions(64, 4))
    whole, stream = (engine.submit(Request((1, 2, 3), 9, GREEDY, n=3, beams=4)) for _ in range(2))
    for _ in range(3):
        engine.step()
    stream.answers[left].cancel()
    engine.step()
    assert [answer.finish_reason for answer in stream.answers] == ["cancelled" if n == left else None for n in range(3)]
    run(engine)
    for number, (answer, full) in enumerate(zip(stream.answers, whole.answers, strict=True)):
        dropped = number == left
        assert (answer.tokens, answer.finish_reason) == (([], "cancelled") if dropped else (full.tokens, "length"))
        assert answer.error is None
    assert engine.scheduler.audit() is None
    assert not engine._searches


# ---- log-probabilities of prompts


@pytest.mark.parametrize("pages", [64, 13])
def test_log_probabilities_of_a_prompt(tiny: Decoder, pages: int) -> None:
    prompt = tuple(random.Random(1).choices(range(512), k=30))
    engine = Engine(tiny, EngineOptions(pages, 4, SchedulerOptions(tokens=7, wait=0)))
    known = engine.submit(Request(prompt, 12, GREEDY))  # its pages could be found
    run(engine)
    beside = engine.submit(Request((3, 4, 5), 20, GREEDY, priority=-1))
    stream = engine.submit(Request(prompt, 3, GREEDY, prompt_logprobs=2, n=2))
    run(engine)
    expected_TV = torch.log_softmax(tiny(Batch.of([prompt])).logits_NV, dim=-1)
    assert [one.token for one in stream.prompt] == list(prompt[1:])
    for place, one in enumerate(stream.prompt):
        assert one.logprob == pytest.approx(float(expected_TV[place, one.token]), abs=1e-5)
        values, ids = expected_TV[place].topk(2)
        assert [token for token, _ in one.top] == ids.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert stream.answers[0].tokens == stream.answers[1].tokens == known.tokens[:3]
    assert beside.tokens == alone(tiny, beside.request)


# ---- thinking


def test_thinking_ends_when_its_budget_is_spent(tiny: Decoder) -> None:
    stop = (400, 401, 501, 402)
    engine = Engine(tiny, EngineOptions(64, 4))
    free = engine.submit(Request((1, 2, 3), 20, GREEDY))
    bound = engine.submit(Request((1, 2, 3), 20, GREEDY, thinking=Thinking(500, 501, 6, stop, begun=True)))
    none = engine.submit(Request((1, 2, 3), 9, GREEDY, thinking=Thinking(500, 501, 0, stop, begun=True)))
    never = engine.submit(Request((1, 2, 3), 20, GREEDY, thinking=Thinking(500, 501, 6, stop)))
    run(engine)
    assert (free.answers[0].thought, never.answers[0].thought, never.tokens) == (0, 0, free.tokens)
    assert bound.tokens[:10] == [*free.tokens[:6], *stop]
    assert bound.tokens[10:] == alone(tiny, Request((1, 2, 3, *bound.tokens[:10]), 10, GREEDY))
    assert (bound.answers[0].thought, len(bound.tokens)) == (6 + 2, 20)  # the stop sentence is thought
    assert none.tokens == [*stop, *alone(tiny, Request((1, 2, 3, *stop), 5, GREEDY))]
    assert none.answers[0].thought == 2


def test_thoughts_are_counted_between_their_tags(tiny: Decoder) -> None:
    """Every token of the free answer is a tag in turn: what lies between the two is the thought."""
    engine = Engine(tiny, EngineOptions(64, 4))
    free = alone(tiny, Request((1, 2, 3), 20, GREEDY))
    opened, closed = 2, 7
    assert free.index(free[opened]) == opened
    assert free[closed] not in free[:closed]
    tags = Thinking(free[opened], free[closed], 30, (free[closed],))
    stream = engine.submit(Request((1, 2, 3), 20, GREEDY, thinking=tags))
    cut = engine.submit(Request((1, 2, 3), 4, GREEDY, thinking=Thinking(free[opened], 510, 30, (510,))))
    run(engine)
    assert (stream.tokens, stream.answers[0].thought) == (free, closed - opened - 1)
    assert (cut.tokens, cut.answers[0].thought, cut.answers[0].finish_reason) == (free[:4], 1, "length")
    for options, words in (({"budget": -1}, "budget is -1"), ({"budget": 1, "stop_ids": (4,)}, "hold the closing tag")):
        with pytest.raises(RequestError, match=words):
            Thinking(1, 2, **options)  # type: ignore[arg-type]


# ---- guesses


@given(
    seed=st.integers(0, 2**20),
    pages=st.integers(12, 40),
    page_size=st.integers(1, 5),
    tokens=st.integers(3, 20),
    temperature=st.sampled_from([0.0, 0.8]),
)
@settings(deadline=None, max_examples=25)
def test_guesses_change_no_token(
    tiny: Decoder, seed: int, pages: int, page_size: int, tokens: int, temperature: float
) -> None:
    """Right guesses, wrong ones, right ones that go wrong: the tokens and the routing are those without any."""
    chance = random.Random(seed)
    requests = [
        Request(
            tuple(chance.choices(range(4), k=chance.randint(1, 9))),
            chance.randint(1, 14),
            Sampling(temperature=temperature, seed=n),
            frozenset(chance.choices(range(512), k=40)),
            min_tokens=1,
            tenant=n,  # what is found in another one's pages has no routing
            record="choice",
        )
        for n in range(4)
    ]
    room = max(pages, -(-24 // page_size))
    plain = Engine(tiny, EngineOptions(4 * room, page_size))
    expected = [plain.submit(request) for request in requests]
    run(plain)
    engine = Engine(tiny, EngineOptions(room, page_size, SchedulerOptions(tokens=tokens, wait=0)))
    streams = [engine.submit(request) for request in requests]
    answers = {stream: other.tokens for stream, other in zip(streams, expected, strict=True)}

    def guess() -> None:
        for progress in engine.scheduler.running:
            if progress.pending == 1:
                rest = answers[progress.stream][progress.generated :][: chance.randint(0, 5)]
                wrong = chance.randint(0, 8)
                progress.draft = [token if place < wrong else token ^ 1 for place, token in enumerate(rest)]

    run(engine, guess)
    for stream, other in zip(streams, expected, strict=True):
        assert stream.tokens == other.tokens
        assert stream.answers[0].finish_reason == other.answers[0].finish_reason
        mine, theirs_ = Routing.join(stream.answers[0].routing), Routing.join(other.answers[0].routing)
        assert mine.num_tokens == theirs_.num_tokens == len(stream.request.prompt) + len(stream.tokens) - 1
        for index, layer in mine.layers.items():
            assert torch.equal(layer.experts_TK, theirs_.layers[index].experts_TK)
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == room


def test_searches_whose_beams_have_no_room_beside_each_other_come_to_an_end(tiny: Decoder) -> None:
    """Two searches in pages for little more than one sequence: beams that wait for others make room for them."""
    for seed in range(12):
        chance = random.Random(seed)
        size, most, beams = chance.randint(1, 4), chance.randint(3, 9), chance.randint(2, 5)
        requests = [
            Request(tuple(chance.choices(range(50), k=4)), most, GREEDY, beams=beams, n=2),
            Request(tuple(chance.choices(range(50), k=4)), most, GREEDY, beams=beams),
        ]
        expected = []
        for request in requests:
            roomy = Engine(tiny, EngineOptions(400, size))
            stream = roomy.submit(request)
            run(roomy)
            expected.append([answer.tokens for answer in stream.answers])
        pages = -(-(4 + most) // size) + chance.randint(0, 2)
        engine = Engine(tiny, EngineOptions(pages, size, SchedulerOptions(sequences=6, wait=0)))
        streams = [engine.submit(request) for request in requests]
        run(engine)
        assert [[answer.tokens for answer in stream.answers] for stream in streams] == expected


def test_a_step_that_failed_says_why_to_a_search_whose_first_beam_is_gone(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4, SchedulerOptions(wait=0)))
    streams = [engine.submit(Request((seed, 2, 3), 12, GREEDY, beams=4, n=2)) for seed in range(6)]
    for _ in range(7):
        engine.step()
    engine.abort(MachineError("the disk is gone"))
    assert {str(answer.error) for stream in streams for answer in stream.answers} == {"the disk is gone"}


def test_a_tenant_that_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(RequestError, match=r"tenant is \['me'\], it must be hashable"):
        Request((1,), 2, tenant=["me"])
