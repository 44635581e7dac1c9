"""Beginnings that end inside a page: copied, not computed again, and never seen by anybody as what they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.scripted import ScriptedModel
from tenth.engine.stream import Stream
from tenth.kernels.choice import choose_kernels
from tenth.kernels.contract import KVType
from tenth.kernels.packed import PackedFormat
from tenth.model.cache import KV_TYPES
from tenth.model.decoder import Decoder
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import write_synthetic

GREEDY = Sampling(temperature=0)
VOCABULARY = 40


def _next(tokens: Sequence[int]) -> int:
    """Depends on every token and its place, so that a token taken from a wrong page shows."""
    return sum((place + 3) * token for place, token in enumerate(tokens)) % (VOCABULARY - 1)


MODEL = ScriptedModel(VOCABULARY, [_next], VOCABULARY - 1)


def _run(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        engine.scheduler.audit()


def _said(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(_next(tokens))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("page", [1, 3, 4, 32])
def test_the_next_turn_of_a_chat_computes_its_own_tokens_alone(page: int) -> None:
    engine = Engine(MODEL, EngineOptions(64, page))
    first = engine.submit(Request(tuple(range(17)), 9, GREEDY))
    _run(engine)
    before = engine.scheduler.counts.computed
    assert before == 17 + 9 - 1  # the last token is drawn, and shown to nobody
    turn = (*range(17), *first.tokens, 5, 6, 7)
    second = engine.submit(Request(turn, 1, GREEDY))
    _run(engine)
    assert second.tokens == _said(turn, 1)
    assert (second.found, engine.scheduler.counts.computed - before) == (25, 4)


@pytest.mark.parametrize("page", [1, 4, 32])
def test_two_that_part_inside_a_page(page: int) -> None:
    engine = Engine(MODEL, EngineOptions(64, page))
    one = engine.submit(Request((*range(22), 1, 2, 3), 5, GREEDY))
    _run(engine)
    other = engine.submit(Request((*range(22), 3, 2, 1), 5, GREEDY))
    _run(engine)
    again = engine.submit(Request((*range(22), 1, 2, 3), 5, GREEDY))  # the copy was written on, its source was not
    _run(engine)
    assert (other.found, again.found) == (22, 24)
    assert one.tokens == again.tokens == _said(one.request.prompt, 5)
    assert other.tokens == _said(other.request.prompt, 5)


def test_answers_of_one_prompt_compute_its_last_token_alone() -> None:
    engine = Engine(MODEL, EngineOptions(64, 4))
    engine.submit(Request(tuple(range(19)), 2, Sampling(temperature=1.0, seed=1), n=5))
    _run(engine)
    assert engine.scheduler.counts.computed == 19 + 4 * 1 + 5 * 1


def test_where_the_page_to_copy_takes_the_last_room_it_is_computed_again() -> None:
    """Three pages are all there are: the second request needs each of them, the one with its beginning too."""
    engine = Engine(MODEL, EngineOptions(3, 4))
    engine.submit(Request((1, 2, 3, 4, 5, 6), 1, GREEDY))
    _run(engine)
    other = engine.submit(Request((1, 2, 3, 9, 9, 9), 6, GREEDY))
    _run(engine)
    assert other.found == 3  # of three pages two were kept, and one of these goes
    last = engine.submit(Request((1, 2, 8, 8, 8, 8, 8, 8), 4, GREEDY))
    _run(engine)
    assert last.tokens == _said(last.request.prompt, 4)
    assert last.found == 0  # its source was one of three that it needed


def test_beams_that_end_do_not_fill_the_cache_with_their_last_pages() -> None:
    engine = Engine(MODEL, EngineOptions(64, 8))
    engine.submit(Request((1, 2, 3), 4, GREEDY, beams=4, n=4))
    _run(engine)
    assert len(engine.scheduler.prefix) == 0


def _request(shared: int, tail: list[int], most: int, kind: str, priority: int) -> Request:
    """Prompts that part anywhere in one text."""
    prompt = (*_said((1, 2), 20)[:shared], *tail)
    options: dict[str, dict[str, object]] = {
        "plain": {"sampling": GREEDY},
        "drawn": {"sampling": Sampling(temperature=9.0, seed=1)},
        "answers": {"sampling": Sampling(temperature=9.0, seed=2), "n": 3},
        "logprobs": {"sampling": GREEDY, "prompt_logprobs": 1},
        "tenant": {"sampling": GREEDY, "tenant": "other"},
        "beams": {"sampling": GREEDY, "beams": 2, "n": 2},
    }
    return Request(prompt, most, priority=priority, **options[kind])  # type: ignore[arg-type]


_KINDS = st.sampled_from(["plain", "plain", "drawn", "answers", "logprobs", "tenant", "beams"])
_REQUESTS = st.builds(
    _request,
    st.integers(0, 20),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(1, 6),
    _KINDS,
    st.integers(0, 1),
)


def _alone(request: Request) -> tuple[list[list[int]], list[object]]:
    engine = Engine(MODEL, EngineOptions(64, 32))
    stream = engine.submit(request)
    _run(engine)
    return [answer.tokens for answer in stream.answers], list(stream.prompt)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 12), _REQUESTS, st.sampled_from([None, None, 0, 2, 9])), max_size=9),
    page=st.integers(1, 8),
    spare=st.sampled_from([0, 1, 3, 60]),
    tokens=st.integers(1, 40),
    width=st.integers(2, 5),
)
@settings(deadline=None, max_examples=80)
def test_any_schedule(
    arrivals: list[tuple[int, Request, int | None]], page: int, spare: int, tokens: int, width: int
) -> None:
    """Small pools, cancels, chunks, answers, beams, log-probabilities: as each request alone, and no page is lost.

    The model reads all its tokens back from the pages in every step: what was copied wrongly is not read over.
    """
    pages = -(-30 // page) + spare
    engine = Engine(MODEL, EngineOptions(pages, page, SchedulerOptions(tokens=tokens, sequences=width, wait=0)))
    streams: list[Stream] = []
    cancels: dict[int, list[Stream]] = {}
    step = 0
    while engine.busy or step <= max((at for at, _, _ in arrivals), default=0):
        for at, request, cancelled in arrivals:
            if at == step:
                streams.append(engine.submit(request))
                if cancelled is not None:
                    cancels.setdefault(step + cancelled, []).append(streams[-1])
        for stream in cancels.get(step, ()):
            stream.cancel()
        engine.step()
        engine.scheduler.audit()
        step += 1
        assert step < 3000
    for stream in streams:
        answers, prompt = _alone(stream.request)
        if all(answer.finish_reason != "cancelled" for answer in stream.answers):
            assert ([answer.tokens for answer in stream.answers], list(stream.prompt)) == (answers, prompt)
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == pages


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_synthetic(folder, replace(preset("tiny-moe"), head_dim=32), PackedFormat.parse("int4-g16-s4"), seed=1)
    with open_checkpoint(folder) as checkpoint:
        yield load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=32))


@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_copied_part_is_what_computing_it_gives_to_the_bit(packed: Decoder, kv: KVType) -> None:
    """Log-probabilities of the native kernels, beginnings that end at every place of a page; scales go with bytes."""
    text = tuple((7 * i) % 500 for i in range(130))
    page = 64
    engine = Engine(packed, EngineOptions(40, page, SchedulerOptions(wait=0), kv))
    engine.submit(Request(text, 1, GREEDY))
    _run(engine)
    for end in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 129):
        request = Request((*text[:end], 501, 502), 3, GREEDY, logprobs=3)
        found = engine.submit(request)
        _run(engine)
        fresh = Engine(packed, EngineOptions(40, page, SchedulerOptions(wait=0), kv))
        computed = fresh.submit(request)
        _run(fresh)
        assert (found.found, computed.found) == (end, 0)
        assert found.answers[0].drawn == computed.answers[0].drawn, end


def test_who_must_wait_for_pages_takes_none_from_the_cache() -> None:
    engine = Engine(MODEL, EngineOptions(12, 4, SchedulerOptions(wait=0)))
    engine.submit(Request(tuple(range(15)), 1, GREEDY))
    _run(engine)
    kept = engine.scheduler.prefix.pages()
    running = engine.submit(Request(tuple(range(20, 36)), 12, GREEDY))
    engine.step()
    engine.submit(Request(tuple(range(5, 33)), 4, GREEDY))  # eight pages; seven are free or kept
    engine.step()
    assert len(engine.scheduler.waiting) == 1
    assert set(kept) <= set(engine.scheduler.prefix.pages())
    _run(engine)
    assert running.finished
