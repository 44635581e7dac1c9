"""Who gets a request."""

from __future__ import annotations

import random
from collections import Counter

from tenth.cluster.members import SILENT_S, Member, Members
from tenth.cluster.prefixes import BLOCK, digests
from tenth.cluster.routing import Policy, choose
from tenth.cluster.wire import News


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def members(*names: str, clock: Clock | None = None) -> Members:
    found = Members(clock or Clock())
    for name in names:
        found.heard(news(name))
    return found


def news(name: str, phase: str = "ready") -> News:
    return News(name, f"http://{name}", 1, phase, 16_384, 0, "box", 1)


def chosen(found: Members, text: bytes = b"", policy: Policy = "prefix") -> Member:
    return choose(found.ready(), digests(text, ""), policy, random.Random(0)).member


def test_by_load_the_idlest_is_asked_and_waiting_prompts_count() -> None:
    found = members("one", "two")
    one, two = found.ready()
    with found.flight(one, 0):
        assert chosen(found, policy="load") is two
        with found.flight(two, 50_000) as flight:
            assert (one.load, two.load > 7) == (1.0, True)
            assert chosen(found, policy="load") is one
            flight.begun()
            assert two.load == 1.0
    assert (one.flights, two.flights, one.unread, two.unread) == (0, 0, 0, 0)


def test_a_known_beginning_goes_where_it_is_known_until_too_much_is_there() -> None:
    found, text = members("one", "two"), b"t" * 20 * BLOCK
    one, two = found.ready()
    two.seen.add(digests(text, ""))
    loads = [found.flight(two, 0) for _ in range(5)]
    for load in loads[:3]:
        load.__enter__()
        assert chosen(found, text + b"and an end") is two
    for load in loads[3:]:
        load.__enter__()
    assert chosen(found, text) is one
    assert chosen(found, b"x" * 20 * BLOCK) is one


def test_a_short_beginning_decides_among_equals_only() -> None:
    found, text = members("one", "two"), b"t" * BLOCK
    one, two = found.ready()
    two.seen.add(digests(text, ""))
    assert chosen(found, text + b"end") is two
    with found.flight(two, 0):
        assert chosen(found, text + b"end") is one


def test_new_beginnings_spread_over_idle_replicas() -> None:
    found, counts = members("one", "two", "three"), Counter[str]()
    for number in range(30):
        text = str(number).encode() * 10 * BLOCK
        member = chosen(found, text)
        member.seen.add(digests(text, ""))
        counts[member.id] += 1
    assert set(counts.values()) == {10}


def test_random_asks_all() -> None:
    found, chance = members("one", "two"), random.Random(1)
    asked = Counter(choose(found.ready(), [], "random", chance).member.id for _ in range(100))
    assert min(asked.values()) > 30


def test_a_replica_that_was_loading_when_it_came_remembers_what_it_is_shown() -> None:
    found, text = members(), digests(b"t" * 20 * BLOCK, "")
    found.heard(News("one", "http://one", 1, "loading", 0, 0, "box", 1))
    member = found.heard(news("one"))
    member.seen.add(text)
    assert member.seen.matched(text) == 20 * BLOCK


def test_replicas_come_and_go() -> None:
    clock = Clock()
    found = members("one", "two", clock=clock)
    one, two = found.ready()
    found.heard(news("two", "draining"))
    assert found.ready() == [one]
    clock.now = SILENT_S
    found.heard(news("two"))
    clock.now += 0.1
    assert found.forget_the_silent() == [one]
    assert found.ready() == [two]
    found.lost(two)
    assert found.ready() == []
    assert found.heard(news("two")) is not two  # what it had in its cache is not known any more
