"""The queue between answers and the database: it never waits, is bounded, and outlives whatever goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tenth.api.answer_events import Finish, ReasoningText, Whole, whole_of
from tenth.api.tool_events import ContentText
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn
from tenth.errors import MachineError
from tenth.serve.review import Review
from tenth.serve.review_queue import Reviews
from tenth.serve.review_rules import Rule, Rules
from tenth.serve.review_watch import Ended, Watch
from tests.serve.served import scripted

BODY = {"messages": [{"role": "user", "content": "Hallo"}]}
ASKED: Any = type("Asked", (), {"kind": "chat.completion", "request": Request((1,), 5)})()


class Store:
    """A database that can be made to wait, fail, or break."""

    name = "a store"

    def __init__(self) -> None:
        self.kept = list[Review]()
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def add(self, reviews: Iterable[Review]) -> None:
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        self.kept += reviews

    def close(self) -> None:
        pass


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def reviews(store: Store) -> Iterator[Reviews]:
    found = Reviews(store, Rules([Rule("all", finish=("stop",))]))  # type: ignore[arg-type]
    yield found
    store.free.set()
    found.close()


def ended(text: str, whole: Whole | None = None) -> Ended:
    whole = whole or whole_of([ContentText(text), Finish("stop")])
    return Ended(ASKED, BODY, "tiny", "alice", "", whole, (), {})


def until(done: Any) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_database_that_hangs_is_never_waited_for(reviews: Reviews, store: Store) -> None:
    store.free.clear()
    reviews.offer(ended("first"))
    until(lambda: reviews._ended.empty())
    begun = time.monotonic()
    for number in range(1500):
        reviews.offer(ended(f"{number}"))
    assert time.monotonic() - begun < 1
    assert reviews.lost["full"] == 1500 - 1024
    store.free.set()
    until(lambda: len(store.kept) == 1025)
    assert [one.answer for one in store.kept[:3]] == ["first", "0", "1"]


def test_what_waits_for_a_database_is_bounded(reviews: Reviews, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.error = MachineError("gone")
    for number in range(300):
        reviews.offer(ended(f"{number}"))
    until(lambda: reviews.lost["failed"] == 300 - 256)
    store.error = None
    until(lambda: len(store.kept) == 256)
    reviews.offer(ended("later"))
    until(lambda: len(store.kept) == 257)
    told = [record.message for record in caplog.records if "stored later" in record.message]
    assert told == ["flagged answers are stored later: gone"]
    assert sum("are lost" in record.message for record in caplog.records) == 1


def test_an_answer_that_cannot_be_judged_or_stored_is_the_only_one(reviews: Reviews, store: Store) -> None:
    reviews.offer(ended("x", Whole()))  # it has no end
    until(lambda: reviews.lost["failed"] == 1)
    store.error = KeyError("a bug")
    reviews.offer(ended("y"))
    until(lambda: reviews.lost["failed"] == 2)
    store.error = None
    reviews.offer(ended("z" * (1 << 20)))
    reviews.offer(ended("a"))
    until(lambda: store.kept)
    assert [one.answer for one in store.kept] == ["a"]
    assert reviews.lost == {"full": 0, "failed": 2, "too_large": 1}


def test_thinking_and_what_was_put_in_are_no_part_of_confidence() -> None:
    found = list[Ended]()
    watch = Watch([ASKED], BODY, "tiny", ("alice", ""), found.append)
    watch.drawn(0, [Drawn(1, -9.0), Drawn(2, -9.0), Drawn(3, None)])
    watch.told(0, [ReasoningText("hm")], 3, {})
    watch.drawn(0, [Drawn(4, -1.0), Drawn(5, None), Drawn(6, -2.0)])
    watch.told(0, [ContentText("yes"), Finish("stop")], 3, {"EMAIL": 1})
    (one,) = found
    assert (one.logprobs, one.finds, one.whole.content, one.whole.reasoning) == (
        [-1.0, -2.0],
        {"EMAIL": 1},
        "yes",
        "hm",
    )


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_answers_without_an_end_of_their_own_are_not_judged(reason: Any) -> None:
    found = list[Ended]()
    watch = Watch([ASKED], BODY, "tiny", ("alice", ""), found.append)
    watch.told(0, [ContentText("half"), Finish(reason)], 0, {})
    assert not found


def test_log_probabilities_are_asked_for_where_a_rule_needs_them(reviews: Reviews, store: Store) -> None:
    plain = Request((1,), 5)
    assert reviews.scored(plain) is plain
    reviews.rules = Rules([Rule("unsure", mean_logprob=-1.0)])
    assert reviews.scored(plain).logprobs == 0
    assert reviews.scored(Request((1,), 5, logprobs=3)).logprobs == 3


def test_a_text_that_was_gone_on_with_is_what_a_user_said() -> None:
    model = scripted(lambda _: None)
    ids = tuple(model.tokenizer.encode("Once upon a time"))
    asked: Any = type("Asked", (), {"kind": "text_completion", "request": Request(ids, 5), "model": model})()
    one = Ended(asked, {"prompt": ["x", "y"]}, "tiny", "alice", "", whole_of([Finish("stop")]), (), {})
    review = one.judged(Rules([Rule("all", finish=("stop",))]))
    assert review is not None
    assert (review.messages, review.answer) == ([{"role": "user", "content": "Once upon a time"}], "")
