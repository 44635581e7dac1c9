"""A window over time: what left it is forgotten, the sums since the beginning are not; any thread may look."""

from __future__ import annotations

import threading

import torch

from tenth.routing.profile import ProfiledModel
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.window import RoutingWindow

MODEL = ProfiledModel("model", "abc", (0, 1), 4, 2)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def step(expert: int, tokens: int = 1, layers: tuple[int, ...] = (0, 1)) -> Routing:
    experts_TK = torch.tensor([[expert, 3]]).repeat(tokens, 1)
    return Routing({index: LayerRouting(4, experts_TK, torch.full((tokens, 2), 0.5)) for index in layers})


def test_what_left_the_window_is_forgotten() -> None:
    clock = Clock()
    window = RoutingWindow(MODEL, seconds=300, clock=clock)
    window.note(step(0, 10))
    clock.now += 200
    window.note(step(1))
    assert window.recent().counts_LE.tolist() == [[10, 1, 0, 11]] * 2
    clock.now += 95  # 295 seconds behind the first step
    assert window.recent().counts_LE.tolist() in ([[10, 1, 0, 11]] * 2, [[0, 1, 0, 1]] * 2)
    clock.now += 10  # 305 seconds
    recent = window.recent()
    assert recent.counts_LE.tolist() == [[0, 1, 0, 1]] * 2
    assert (recent.tokens, recent.dead_L.tolist()) == (1, [2, 2])
    clock.now += 1e6
    assert window.recent().tokens == 0
    total = window.total()
    assert (total.tokens, total.counts_LE.tolist()) == (11, [[10, 1, 0, 11]] * 2)
    assert total.gates_LE.tolist() == [[5, 0.5, 0, 5.5]] * 2


def test_what_was_given_out_changes_no_more() -> None:
    window = RoutingWindow(MODEL)
    window.note(step(0))
    total, recent = window.total(), window.recent()
    window.note(step(1))
    assert total.tokens == recent.tokens == 1
    assert window.total().tokens == window.recent().tokens == 2


def test_a_few_short_steps_are_judged_by_their_logits() -> None:
    window = RoutingWindow(MODEL)
    assert {window.wish(500) for _ in range(200)} == {"choice"}
    wishes = [window.wish(2) for _ in range(320)]
    assert wishes[0] == "full", "something is known from the first step on"
    assert wishes.count("full") == 10


def test_many_steps_do_not_pile_up_where_nobody_looks() -> None:
    window = RoutingWindow(MODEL)
    for number in range(400):
        window.note(step(number % 3, 1000))  # whoever wished for the record: requests may have one of their own
    assert sum(routing.num_tokens for _, routing in window._pending) <= 1024
    assert window.total().tokens == 400_000


def test_the_engine_never_waits_for_who_looks() -> None:
    window = RoutingWindow(MODEL)
    with window._lock:  # somebody sums up
        for _ in range(3):
            window.note(step(1, 1000))
    window.note(step(1, 1))
    assert not window._pending
    assert window.total().tokens == 3001


def test_nothing_is_lost_between_threads() -> None:
    window = RoutingWindow(MODEL)
    ended = threading.Event()
    seen = list[int]()

    def look() -> None:
        while not ended.is_set():
            counts = window.total()
            seen.append(counts.tokens)
            assert (counts.counts_LE.sum(1) == 2 * counts.tokens).all(), "never half a step"

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(3000):
        window.note(step(number % 3, 7))
    ended.set()
    for reader in readers:
        reader.join()
    assert window.total().tokens == 21_000
    assert seen, "somebody looked meanwhile"


def test_a_model_without_experts_says_nothing() -> None:
    window = RoutingWindow(ProfiledModel("dense", "abc", (), 1, 1))
    window.note(Routing({}))
    assert window.total().tokens == window.recent().tokens == 0


def test_the_profile_is_all_that_was_seen_until_it_is_cleared() -> None:
    clock = Clock()
    window = RoutingWindow(MODEL, clock=clock)
    window.note(step(0, 10))
    clock.now += 1e6
    window.note(step(1))
    profile = window.profile()
    assert (profile.counts.tokens, profile.domains) == (11, ("served",))
    assert profile.pairs_LEE[0].tolist() == [[10, 0, 0, 10], [0, 1, 0, 1], [0, 0, 0, 0], [10, 1, 0, 11]]
    assert profile.by_domain()["served"].counts_LE.tolist() == profile.counts.counts_LE.tolist()
    window.clear()
    assert (window.profile().counts.tokens, window.recent().tokens, profile.counts.tokens) == (0, 0, 11)


def test_a_reader_is_given_everything_once() -> None:
    window = RoutingWindow(MODEL)
    window.note(step(0, 10))
    reader = window.reader()
    assert (reader.take().counts.tokens, reader.take().steps) == (0, 0), "from when it began"
    window.note(step(1, 3))
    window.note(step(0, 2))
    window.total()  # somebody else looks
    other = window.reader()
    window.note(step(0))
    fresh = reader.take()
    assert (fresh.counts.tokens, fresh.counts.counts_LE.tolist()) == (6, [[3, 3, 0, 6]] * 2)
    assert (fresh.steps, fresh.at_work_LE.tolist()) == (3, [[2, 1, 0, 3]] * 2)
    assert (other.take().counts.tokens, reader.take().counts.tokens) == (1, 0)
    other.close()
    window.note(step(2))
    assert (other.fresh.counts.tokens, reader.take().counts.tokens) == (0, 1)
    window.note(step(2))
    window.clear()
    assert (reader.take().counts.tokens, window.total().tokens) == (0, 0)


def test_readers_lose_nothing_where_many_steps_come() -> None:
    """The engine's thread sums up what has piled up, while others look."""
    window, ended = RoutingWindow(MODEL), threading.Event()
    reader = window.reader()
    found = [0, 0]

    def look() -> None:
        over = False
        while not over:
            over = ended.is_set()
            fresh = reader.take()
            found[0] += fresh.counts.tokens
            found[1] += int(fresh.at_work_LE[0, 3])

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(3000):
        window.wish(7)
        window.note(step(number % 3, 7))
    ended.set()
    thread.join()
    assert found == [21_000, 3000]
