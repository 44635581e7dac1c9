"""Pages and the prefix cache: against a model of both that keeps whole sequences, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.pages import PagePool
from tenth.engine.prefix import PrefixCache

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


def _kept(cache: PrefixCache, pool: PagePool, tokens: list[int], key: str = "m") -> list[int]:
    """A sequence comes, computes what is not known, and leaves; its pages."""
    pages = cache.match(key, tokens)
    pages += pool.take(-(-len(tokens) // SIZE) - len(pages))
    cache.add(key, tokens, pages)
    pool.release(pages)
    return pages


def _known(cache: PrefixCache, pool: PagePool, key: str, tokens: list[int]) -> int:
    pages = cache.match(key, tokens)
    pool.release(pages)
    return len(pages) * SIZE


def test_the_longest_beginning_is_found() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, SIZE)
    first = _kept(cache, pool, [1, 2, 3, 4, 5])
    assert len(cache) == 2  # full pages alone
    assert _known(cache, pool, "m", [1, 2, 3, 4, 9, 9]) == 4
    assert _known(cache, pool, "m", [1, 2, 9, 4]) == 2
    assert (
        _known(cache, pool, "m", [1])
        == _known(cache, pool, "m", [2, 1])
        == _known(cache, pool, "other", [1, 2, 3, 4])
        == 0
    )
    found = cache.match("m", [1, 2, 3, 4, 5, 6])
    assert found == first[:2]
    assert not pool.alone(found[0])
    pool.release(found)
    second = _kept(cache, pool, [1, 2, 7, 8])
    assert second[0] == first[0]
    assert len(cache) == 3
    pool.audit([cache.pages()])
    cache.clear()
    assert (pool.free, len(cache)) == (20, 0)


def test_what_was_unused_for_longest_goes_first_and_nothing_that_is_held() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, SIZE)
    for tokens in ([1, 1, 2, 2], [1, 1, 3, 3], [4, 4]):
        _kept(cache, pool, tokens)
    held = cache.match("m", [1, 1, 2, 2])
    assert cache.evict(1) == 1
    assert (_known(cache, pool, "m", [1, 1, 3, 3]), _known(cache, pool, "m", [4, 4])) == (2, 2)
    assert cache.evict(9) == 1  # [4, 4]; the rest is in use
    pool.release(held)
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
    assert cache.match("m", [1, 2, 3, 4, 5, 6]) == [*one, other[2]]
    pool.audit([cache.pages(), [*one, other[2]]])


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.sampled_from(["come", "go", "evict"]), TOKENS, st.integers(0, 5)), max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_order_of_events(events: list[tuple[str, list[int], int]]) -> None:
    """What is found was computed for the same beginning; counts of holders are right after every event."""
    pool = PagePool(24)
    cache = PrefixCache(pool, SIZE)
    content: dict[int, tuple[int, ...]] = {}  # of a page: all tokens up to its end
    running: list[tuple[list[int], list[int]]] = []
    for what, tokens, number in events:
        if what == "evict":
            before = pool.free
            freed = cache.evict(number)
            assert (pool.free, freed <= number) == (before + freed, True)
        elif what == "go" and running:
            pool.release(running.pop(number % len(running))[1])
        elif what == "come":
            pages = cache.match(str(number % 2), tokens)
            for n, page in enumerate(pages, 1):
                assert content[page] == (number % 2, *tokens[: n * SIZE])
            missing = -(-len(tokens) // SIZE) - len(pages)
            if pool.free < missing:
                cache.evict(missing - pool.free)
            if pool.free < missing:
                pool.release(pages)
                continue
            pages += pool.take(missing)
            for n, page in enumerate(pages, 1):
                content[page] = (number % 2, *tokens[: n * SIZE])
            cache.add(str(number % 2), tokens, pages)
            running.append((tokens, pages))
        pool.audit([cache.pages(), *(pages for _, pages in running)])
    for _, pages in running:
        pool.release(pages)
    cache.evict(24)
    assert pool.free == 24
