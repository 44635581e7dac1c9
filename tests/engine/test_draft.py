"""Proposers that read: against slow searches of their own, with bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.draft import Draft, PromptLookup, Proposer
from tenth.engine.draft_suffix import GRAMS, AnswerStore, SuffixMatch
from tenth.errors import RequestError

TEXT = st.lists(st.integers(0, 3), max_size=60)  # few tokens, so that much repeats


def slow_lookup(tokens: list[int], longest: int, shortest: int, most: int) -> list[int]:
    """Every place is compared; drafted tokens count as following."""
    for length in range(longest, shortest - 1, -1):
        for at in range(len(tokens) - 1, length - 1, -1):
            if tokens[at - length : at] == tokens[-length:]:
                whole = list(tokens)
                for place in range(at, at + most):
                    whole.append(whole[place])
                return whole[len(tokens) :]
    return []


@given(TEXT, st.lists(TEXT, max_size=4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
@settings(max_examples=400, deadline=None)
def test_lookup_is_the_slow_search(
    prompt: list[int], parts: list[list[int]], shortest: int, more: int, most: int
) -> None:
    proposer = PromptLookup(shortest + more, shortest)
    proposer.begin(prompt)
    known = list(prompt)
    for part in [[], *parts]:
        proposer.take(part)
        known += part
        draft = proposer.propose(most)
        assert draft.tokens == slow_lookup(known, shortest + more, shortest, most)
        assert len(draft.chances) == len(draft.tokens)
        assert all(0 < chance < 1 for chance in draft.chances)


def test_a_longer_match_is_surer() -> None:
    proposer = PromptLookup()
    chances = []
    for shared in (2, 6, 12):
        proposer.begin([*range(40), 99, *range(20 - shared, 20)])
        draft = proposer.propose(3)
        assert draft.tokens == [20, 21, 22]
        chances.append(draft.chances[0])
    assert chances == sorted(set(chances))


@pytest.mark.parametrize("make", [PromptLookup, SuffixMatch, lambda: SuffixMatch(AnswerStore(), "me")])
def test_a_loop_is_followed_beyond_its_end(make: type[PromptLookup]) -> None:
    proposer: Proposer = make()
    proposer.begin([7, 8, 1, 2, 3, 1, 2, 3])
    assert proposer.propose(8).tokens == [1, 2, 3, 1, 2, 3, 1, 2]
    proposer.take([5])
    assert proposer.propose(8).tokens == []
    proposer.take([1, 2])
    assert proposer.propose(2).tokens == [3, 5]  # of two that are as good the latest
    proposer.close()
    assert proposer.propose(8).tokens == []


def occurrences(text: list[int], tokens: list[int], length: int) -> set[int]:
    """Places with a token behind, in front of which the last `length` tokens stand."""
    end = tokens[len(tokens) - length :]
    return {at for at in range(length, len(text)) if text[at - length : at] == end}


@given(st.lists(TEXT, max_size=3), TEXT, st.lists(TEXT, max_size=3), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_suffixes_are_real_and_drafts_were_seen(
    answers: list[list[int]], prompt: list[int], parts: list[list[int]], most: int
) -> None:
    store = AnswerStore()
    answers = [answer for answer in answers if len(answer) > 2]  # shorter ones are not kept, and not counted
    for answer in answers:
        store.add("me", answer)
    proposer = SuffixMatch(store, "me")
    proposer.begin(prompt)
    known = list(prompt)
    for part in [[], *parts]:
        proposer.take(part)
        known += part
        matches = proposer.matches()
        for match in matches:
            text = known if match.number is None else answers[match.number]
            assert list(match.text) == text
            assert match.at in occurrences(text, known, match.length)
        longest = max((m.length for m in matches), default=0)
        expected = max(
            (n for n in range(33) for text in [known, *answers] if n <= len(known) and occurrences(text, known, n)),
            default=0,
        )
        assert min(longest, 2) == (2 if expected >= 2 else 0)
        for gram in GRAMS:  # nothing longer is overlooked for something shorter
            assert (longest >= gram) == (expected >= gram)
        check_draft(proposer.propose(most), known, answers)


def check_draft(draft: Draft, known: list[int], answers: list[list[int]]) -> None:
    """The two last tokens and the draft are somewhere, the own text going on with the draft."""
    assert len(draft.chances) == len(draft.tokens)
    assert all(0 < chance < 1 for chance in draft.chances)
    if draft.tokens:
        sought = known[-2:] + draft.tokens
        whole = known + draft.tokens
        for text in (whole, *answers):
            for at in range(len(text) - len(sought) + 1):
                if text[at : at + len(sought)] == sought and (text is not whole or at != len(known) - 2):
                    return
        pytest.fail(f"{sought} is nowhere")


def test_what_followed_more_often_is_drafted() -> None:
    proposer = SuffixMatch()
    proposer.begin([1, 2, 3, 4, 0, 1, 2, 9, 0, 1, 2, 3, 5, 0, 1, 2])
    draft = proposer.propose(1)
    assert draft.tokens == [3]
    assert draft.chances[0] == pytest.approx(2 / 3, abs=0.15)
    recent = PromptLookup(2, 2)
    recent.begin([1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 9, 0, 1, 2])
    assert recent.propose(1).tokens == [9]  # the most recent, however rare


def test_answers_of_another_tenant_are_not_seen() -> None:
    store = AnswerStore()
    first = SuffixMatch(store, "one")
    first.begin([50, 51])
    first.take([*range(20)])
    first.close()
    for tenant, expected in (("one", [5, 6, 7]), ("other", []), (None, [])):
        proposer = SuffixMatch(store, tenant)
        proposer.begin([90, 1, 2, 3, 4])
        assert proposer.propose(3).tokens == expected
    proposer = SuffixMatch(store, "one")
    proposer.begin([50])
    proposer.take([51])
    assert proposer.propose(3).tokens == []  # prompts are not kept


@given(st.lists(st.tuples(st.integers(0, 2), TEXT), max_size=40), st.integers(3, 100))
@settings(max_examples=100, deadline=None)
def test_the_store_is_bounded(answers: list[tuple[int, list[int]]], limit: int) -> None:
    store = AnswerStore(limit)
    for tenant, answer in answers:
        store.add(tenant, answer)
        assert len(store) <= limit
        assert store.entries <= limit * len(GRAMS)
    for _ in range(2):
        store.add("last", [1000 + n for n in range(limit)])  # everything else goes, and its places with it
    assert len(store) == limit
    assert store.entries == sum(max(limit - gram, 0) for gram in GRAMS)


def test_what_is_used_stays() -> None:
    store = AnswerStore(40)
    old, new = [*range(20)], [*range(100, 120)]
    store.add("me", old)
    store.add("me", new)
    proposer = SuffixMatch(store, "me")
    proposer.begin([3, 4, 5])
    assert proposer.propose(2).tokens == [6, 7]
    store.add("me", [*range(200, 220)])  # of the two earlier ones, the one that was not used goes
    assert proposer.propose(2).tokens == [6, 7]
    proposer.begin([103, 104, 105])
    assert proposer.propose(2).tokens == []


def test_refusals() -> None:
    with pytest.raises(RequestError, match="matches 3 to 2 tokens"):
        PromptLookup(2, 3)
    with pytest.raises(RequestError, match="store of 0 tokens"):
        AnswerStore(0)
