"""Drafts of a small model: its own naive greedy continuation, whatever stood and was refused before, alone or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.draft import Draft, PromptLookup, Proposer
from tenth.engine.draft_model import DraftModel, DraftSequence, Vocabulary, propose_all
from tenth.errors import RequestError
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset

CONFIG = preset("tiny-moe")
WORDS = Vocabulary(CONFIG.vocab_size, "one tokenizer")


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=3, std=0.2).requires_grad_(False)


def naive(decoder: Decoder, tokens: list[int], count: int) -> Draft:
    """The whole text through the network for each token."""
    draft = Draft([], [], "model")
    for _ in range(count):
        logits_NV = decoder(Batch.of([tokens + draft.tokens])).logits_NV
        assert logits_NV is not None
        p_V = torch.softmax(logits_NV[-1], 0)
        draft.tokens.append(int(p_V.argmax()))
        draft.chances.append(float(p_V.max()))
    return draft


def check(draft: Draft, expected: Draft) -> None:
    assert draft.tokens == expected.tokens
    assert draft.chances == pytest.approx(expected.chances, rel=1e-9)


# each step: tokens to draft; how many of them stand; the token behind them
STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 511)), max_size=4)
SEQUENCES = st.lists(st.tuples(st.lists(st.integers(0, 511), min_size=1, max_size=9), STEPS), min_size=1, max_size=3)


@given(SEQUENCES, st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_naive_continuation_after_anything(
    tiny: Decoder, sequences: list[tuple[list[int], list[tuple[int, int, int]]]], page_size: int
) -> None:
    """Several sequences at once, each with its own number of tokens accepted in each step."""
    model = DraftModel(tiny, WORDS, WORDS, pages=60, page_size=page_size)
    proposers, known = [model.sequence() for _ in sequences], [list(prompt) for prompt, _ in sequences]
    for proposer, tokens in zip(proposers, known, strict=True):
        proposer.begin(tokens)
    for step in range(5):
        plans = [steps[step] if step < len(steps) else (0, 0, step) for _, steps in sequences]
        asked = [row for row, (most, _, _) in enumerate(plans) if most]  # in some steps some are not asked at all
        made = propose_all([proposers[row] for row in asked], [plans[row][0] for row in asked])
        drafts = [made[asked.index(row)] if row in asked else Draft([], [], "model") for row in range(len(plans))]
        for proposer, tokens, draft, (most, accepted, token) in zip(proposers, known, drafts, plans, strict=True):
            check(draft, naive(tiny, tokens, most))
            taken = [*draft.tokens[:accepted], token]
            proposer.take(taken)
            tokens += taken
    for proposer in proposers:
        proposer.close()
    assert model.free_pages == 60


def test_it_is_a_proposer_that_can_be_asked_alone_and_twice(tiny: Decoder) -> None:
    proposer: Proposer = DraftModel(tiny, WORDS, WORDS, pages=8).sequence()
    assert proposer.propose(3).tokens == []
    proposer.begin([1, 2, 3])
    expected = naive(tiny, [1, 2, 3], 3)
    check(proposer.propose(2), expected.cut(2))
    check(proposer.propose(3), expected)
    proposer.take(expected.tokens)  # all of it stood, and no token came behind
    check(proposer.propose(1), naive(tiny, [1, 2, 3, *expected.tokens], 1))
    proposer.begin([4])
    check(proposer.propose(1), naive(tiny, [4], 1))


def test_what_was_refused_is_forgotten_though_nobody_asks_for_a_while(tiny: Decoder) -> None:
    proposer = DraftModel(tiny, WORDS, WORDS, pages=8).sequence()
    proposer.begin([1, 2, 3])
    refused = proposer.propose(4).tokens
    for token in (refused[0] + 1, refused[1], refused[2]):
        proposer.take([token % CONFIG.vocab_size])
    check(proposer.propose(2), naive(tiny, proposer.tokens, 2))


def test_where_pages_or_context_end_there_is_no_draft(tiny: Decoder) -> None:
    model = DraftModel(tiny, WORDS, WORDS, pages=3, page_size=4)
    first, second = model.sequence(), model.sequence()
    first.begin([1, 2, 3])
    second.begin([4, 5, 6, 7])
    drafts = propose_all([first, second, PromptLookup()], [3, 6, 2])
    assert [len(draft.tokens) for draft in drafts] == [3, 0, 0]
    check(drafts[0], naive(tiny, [1, 2, 3], 3))
    first.close()
    check(second.propose(6), naive(tiny, [4, 5, 6, 7], 6))
    second.close()
    long = DraftModel(tiny, WORDS, WORDS, pages=4, page_size=CONFIG.context_length).sequence()
    long.begin([5] * (CONFIG.context_length - 1))
    assert [len(long.propose(count).tokens) for count in (2, 1)] == [0, 1]


def test_long_prompts_are_read_in_chunks(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenth.engine.draft_model.PROMPT_CHUNK", 8)
    model = DraftModel(tiny, WORDS, WORDS, pages=30, page_size=4)
    prompts = [[*range(20)], [*range(50, 55)]]
    sequences = [model.sequence() for _ in prompts]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.begin(prompt)
    made = [[len(draft.tokens) for draft in propose_all(sequences, [2, 2])] for _ in range(3)]
    assert made == [[0, 0], [0, 0], [2, 0]]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        check(sequence.propose(2), naive(tiny, prompt, 2))


def test_another_vocabulary_is_refused(tiny: Decoder) -> None:
    for of, words in (
        (Vocabulary(CONFIG.vocab_size + 1, WORDS.fingerprint), "vocabulary of 512, the model 513"),
        (Vocabulary(CONFIG.vocab_size, "another"), "another tokenizer than the model"),
    ):
        with pytest.raises(RequestError, match=words):
            DraftModel(tiny, WORDS, of)
    assert isinstance(DraftModel(tiny, WORDS, WORDS, pages=1).sequence(), DraftSequence)
