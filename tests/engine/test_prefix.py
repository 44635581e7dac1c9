"""Pages and the prefix cache: against a model of both that keeps whole sequences, and by hand."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.pages import PagePool
from tenth.engine.prefix import Found, PrefixCache

SIZE = 2


def test_pages_are_taken_and_let_go() -> None:
    pool = PagePool(4)
    assert pool.take(3) == [0, 1, 2]
    pool.hold([1])
    pool.release([0, 1])
    assert pool.free == 2
    assert (pool.alone(1), pool.alone(2)) == (True, True)
    pool.audit([[1], [2]])
    assert pool.take(2) == [0, 3]
    for wrong in ([[1], [2]], [[0, 1, 2, 3], [1]], [[0, 1, 2, 3, 7]]):
        with pytest.raises(AssertionError):
            pool.audit(wrong)
    for act in (lambda: pool.take(1), lambda: pool.release([0, 0])):
        with pytest.raises(AssertionError):
            act()


def _take(cache: PrefixCache, pool: PagePool, tokens: list[int], key: str = "m") -> tuple[list[int], int]:
    """Pages for a sequence, with all that is known of it; how many tokens that are."""
    found = cache.match(key, tokens)
    own = pool.take(-(-len(tokens) // SIZE) - len(found.pages))
    if found.part is not None:
        pool.release([found.part])  # copied
    return [*found.pages, *own], SIZE * len(found.pages) + found.more


def _kept(cache: PrefixCache, pool: PagePool, tokens: list[int], key: str = "m") -> list[int]:
    """A sequence comes, computes what is not known, and leaves; its pages."""
    pages, _ = _take(cache, pool, tokens, key)
    cache.add(key, tokens, pages)
    pool.release(pages)
    return pages


def _known(cache: PrefixCache, pool: PagePool, key: str, tokens: list[int]) -> int:
    """Tokens that are found; they are then those used last."""
    found = cache.match(key, tokens)
    pool.release(found.pages if found.part is None else [*found.pages, found.part])
    assert cache.known(key, tokens) == SIZE * len(found.pages) + found.more
    return cache.known(key, tokens)


def test_the_longest_beginning_is_found() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, SIZE)
    first = _kept(cache, pool, [1, 2, 3, 4, 5])
    assert len(cache) == 3  # the last one in part
    for tokens, known in (
        ([1, 2, 3, 4, 9, 9], 4),
        ([1, 2, 3, 9], 3),
        ([1, 2, 9, 4], 2),
        ([1, 2], 2),
        ([1], 1),
        ([2], 0),
    ):
        assert _known(cache, pool, "m", tokens) == known, tokens
    assert _known(cache, pool, "other", [1, 2, 3, 4]) == 0
    found = cache.match("m", [1, 2, 3, 4, 5, 6])
    assert found == Found(first[:2], first[2], 1)
    assert not any(pool.alone(page) for page in first)  # kept, and held for the caller
    pool.release(first)
    second = _kept(cache, pool, [1, 2, 7, 8])
    assert second[0] == first[0]
    assert second[1] not in first
    pool.audit([cache.pages()])
    cache.clear()
    assert (pool.free, len(cache)) == (20, 0)


def test_a_page_in_part_gives_way_to_one_that_goes_on_from_it() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, 4)
    own = pool.take(2)
    kept = []
    for count in (5, 6, 8, 5):  # its owner writes on; a shorter part changes nothing
        cache.add("m", [1, 2, 3, 4, 5, 6, 7, 8][:count], own)
        pool.audit([own, cache.pages()])
        kept.append((len(cache), cache.known("m", [1, 2, 3, 4, 5, 6, 7, 8])))
    assert kept == [(2, 5), (2, 6), (2, 8), (2, 8)]
    other = pool.take(2)
    cache.add("m", [1, 2, 3, 4, 5, 9], other)  # goes another way: both stay
    assert (len(cache), cache.known("m", [1, 2, 3, 4, 5, 9]), cache.known("m", [1, 2, 3, 4, 5, 6, 7])) == (3, 6, 7)
    pool.release([*own, *other])
    assert cache.evict(9) == 3
    assert (pool.free, len(cache), cache.known("m", [1])) == (20, 0, 0)


def test_ten_thousand_that_part_at_one_place_are_searched_by_halves() -> None:
    """Looked through one by one, each search would compare 10,000 pages: some 3 ms."""
    pool, size = PagePool(10_001), 32
    cache = PrefixCache(pool, size)
    chance = random.Random(1)
    texts = [tuple(chance.randrange(1000) for _ in range(size)) for _ in range(10_000)]
    for text in texts:
        (page,) = pool.take(1)
        cache.add("m", text, [page])
        pool.release([page])
    start = time.process_time()
    for text in texts[:2000]:
        assert cache.known("m", (*text[:20], -1)) == 20
    assert time.process_time() - start < 0.5
    assert cache.evict(10_000) == 10_000


def test_what_was_unused_for_longest_goes_first_and_nothing_that_is_held() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, SIZE)
    for tokens in ([1, 1, 2, 2], [1, 1, 3, 3], [4, 4]):
        _kept(cache, pool, tokens)
    held = cache.match("m", [1, 1, 2, 2])
    assert cache.evict(1) == 1
    assert (_known(cache, pool, "m", [1, 1, 3, 3]), _known(cache, pool, "m", [4, 4])) == (2, 2)
    assert cache.evict(9) == 1  # [4, 4]; the rest is in use
    pool.release(held.pages)
    assert cache.evict(1) == 1
    assert _known(cache, pool, "m", [1, 1, 2, 2]) == 2
    assert cache.evict(9) == 1
    assert pool.free == 20


def test_two_that_computed_the_same_share_what_comes_behind() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, SIZE)
    one, other = pool.take(2), pool.take(3)
    cache.add("m", [1, 2, 3, 4], one)
    cache.add("m", [1, 2, 3, 4, 5, 6], other)  # its third page comes behind the first's two
    pool.release(one)
    pool.release(other)
    assert pool.free == 20 - 3
    assert cache.match("m", [1, 2, 3, 4, 5, 6]) == Found([*one, other[2]])
    pool.audit([cache.pages(), [*one, other[2]]])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "go", "evict"]),
            st.lists(st.integers(0, 1), min_size=1, max_size=9),
            st.integers(0, 5),
        ),
        max_size=60,
    ),
    st.integers(1, 5),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_any_order_of_events(events: list[tuple[str, list[int], int]], size: int, roomy: bool) -> None:
    """What is found was computed for the same beginning, and where nothing was evicted it is the longest there was.

    Sequences go on behind what they have added; counts of holders are right after every event.
    """
    pool = PagePool(1000 if roomy else 24)
    cache = PrefixCache(pool, size)
    slots: dict[int, list[tuple[str, int] | None]] = {}  # of a page: who may find it, and the tokens in it
    running: list[tuple[str, list[int], list[int]]] = []
    added: list[tuple[str, list[int]]] = []
    for what, tokens, number in events:
        key = str(number % 2)
        if what == "evict" and not roomy:
            before, freed = pool.free, cache.evict(number)
            assert (pool.free, freed <= number) == (before + freed, True)
        elif what == "go" and running:
            key, own, pages = running.pop(number % len(running))
            added.append((key, own))
            cache.add(key, own, pages)
            pool.release(pages)
        elif what == "come":
            found = cache.match(key, tokens)
            held = found.pages if found.part is None else [*found.pages, found.part]
            known = size * len(found.pages) + found.more
            if roomy:
                assert known == max((_common(tokens, own) for name, own in added if name == key), default=0)
            missing = -(-len(tokens) // size) - len(found.pages)
            if pool.free < missing and cache.evict(missing - pool.free) < missing - pool.free:
                pool.release(held)
                continue
            pages = [*found.pages, *pool.take(missing)]
            for page in pages[len(found.pages) :]:
                slots[page] = [None] * size
            if found.part is not None:
                slots[pages[len(found.pages)]][: found.more] = slots[found.part][: found.more]
                pool.release([found.part])
            assert [slots[pages[at // size]][at % size] for at in range(known)] == [(key, t) for t in tokens[:known]]
            for at in range(known, len(tokens)):
                slots[pages[at // size]][at % size] = (key, tokens[at])
            first = 1 + number % len(tokens)  # its first tokens while it is at work, all when it goes
            cache.add(key, tokens[:first], pages)
            added.append((key, tokens[:first]))
            running.append((key, tokens, pages))
        kept = cache.pages()
        assert len(set(kept)) == len(kept) == len(cache)
        pool.audit([kept, *(pages for _, _, pages in running)])
    for _, _, pages in running:
        pool.release(pages)
    cache.evict(len(pool))
    assert pool.free == len(pool)


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
