"""The reviews that are kept, in both databases alike: once each, in order, decided in turn, bounded, there later."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tenth.errors import MachineError, RequestError
from tenth.serve.review import MOST_REASONS, Reason, Review
from tenth.serve.review_database import check_address, opened
from tenth.serve.review_store import ReviewChanged, ReviewStore, Verdict
from tests.serve.postgres import Postgres, postgres

ALL = ("waiting", "approved", "corrected", "rejected")
ODD = "NUL \0, half a pair \ud83d, a smile \U0001f600, %s ? {} '\"; DROP TABLE tenth_reviews --"


def review(answer: str, *, owner: str = "", why: str = "rule: x", **fields: Any) -> Review:
    messages = [{"role": "user", "content": "Hallo"}]
    named = {"model": "tiny", **fields}
    return Review("alice", owner, messages=messages, answer=answer, reasons=(Reason("rule", why),), **named)


@pytest.fixture
def store(reviews_url: str) -> Iterator[ReviewStore]:
    found = ReviewStore(opened(reviews_url), 100)
    yield found
    found.close()


def test_what_is_added_comes_back_in_order_and_after_a_restart(store: ReviewStore, reviews_url: str) -> None:
    added = store.add([review(f"{ODD} {n}", note=ODD, confidence=0.5, model=ODD) for n in range(7)])
    store.close()
    again = ReviewStore(opened(reviews_url), 100)
    first, more, count = again.page(("waiting",), limit=4)
    rest, none, _ = again.page(("waiting",), after=first[-1].id, limit=4)
    assert (first + rest, more, none, count) == (added, True, False, 7)
    assert [one.answer for one in first + rest] == [f"{ODD} {n}" for n in range(7)]
    assert again.get(added[3].id) == added[3]
    assert again.get("rev_" + "0" * 24) is None
    assert again.waiting() == 7
    again.close()


def test_an_answer_is_kept_once_with_all_reasons(store: ReviewStore) -> None:
    (one,) = store.add([review("a")])
    (two,) = store.add([review("a", why="rule: y", note="look")])
    assert (two.id, two.version, two.note) == (one.id, 2, "look")
    assert [reason.text for reason in two.reasons] == ["rule: x", "rule: y"]
    assert store.add([review("a", why="rule: y")]) == [two]
    store.add([review("a", why=f"reason {n}") for n in range(40)])
    kept = store.get(one.id)
    assert kept is not None
    assert len(kept.reasons) == MOST_REASONS
    store.add([review("b"), review("a", owner="bob")])
    assert store.waiting() == 3


def test_owners_see_their_own(store: ReviewStore) -> None:
    mine, theirs = store.add([review("a", owner="me"), review("a", owner="they")])
    assert store.page(ALL, "me") == ([mine], False, 1)
    assert store.get(theirs.id, "me") is None
    assert (store.waiting("me"), store.waiting(), store.waiting("nobody")) == (1, 2, 0)


def test_who_flags_without_end_throws_out_nobody_elses(reviews_url: str) -> None:
    store = ReviewStore(opened(reviews_url), 6)
    (decided, waiting) = store.add([review(name, owner="alice") for name in "ab"])
    store.decide(decided.id, Verdict("approve", "rita"))
    flood = [store.add([review(f"{n}", owner="bob")])[0] for n in range(9)]
    store.add([review(f"at once {n}", owner="carol") for n in range(9)])
    left = store.page(ALL).reviews
    assert [one.id for one in left if one.owner == "alice"] == [decided.id, waiting.id]
    assert [one.id for one in left if one.owner == "bob"] == [one.id for one in flood[-2:]]
    assert [one.answer for one in left if one.owner == "carol"] == ["at once 7", "at once 8"]
    store.close()


def test_decisions_follow_each_other(store: ReviewStore) -> None:
    (one,) = store.add([review("a", note="first")])
    decided = store.decide(one.id, Verdict("correct", "bob", correction=ODD, seen=1))
    assert decided is not None
    assert (decided.state, decided.version, decided.correction, decided.note) == ("corrected", 2, ODD, "first")
    assert (decided.decided_by, decided.decided is not None) == ("bob", True)
    with pytest.raises(ReviewChanged, match="at version 2, corrected") as changed:
        store.decide(one.id, Verdict("reject", "eve", seen=1))
    assert changed.value.review == decided == store.get(one.id)
    last = store.decide(one.id, Verdict("approve", "eve", note="fine"))
    assert last is not None
    assert (last.state, last.version, last.correction, last.note) == ("approved", 3, None, "fine")
    assert store.decide("rev_" + "0" * 24, Verdict("approve", "eve")) is None
    assert store.page(("waiting",)) == ([], False, 0)
    assert store.page(("approved", "rejected")) == ([last], False, 0)


def test_many_decide_at_once_and_one_is_first(store: ReviewStore, reviews_url: str) -> None:
    """Threads of two servers; every change is made to what was seen."""
    other, count = ReviewStore(opened(reviews_url), 100), Counter[str]()
    (one,) = store.add([review("a")])
    gate = threading.Barrier(8)

    def decide(number: int) -> None:
        gate.wait()
        for _ in range(20):
            seen = (store.get(one.id) or one).version
            try:
                (store, other)[number % 2].decide(one.id, Verdict("reject", f"n{number}", seen=seen))
                count["decided"] += 1
            except ReviewChanged:
                count["changed"] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, range(8)))
    kept = store.get(one.id)
    assert kept is not None
    assert kept.version == 1 + count["decided"]
    assert sum(count.values()) == 160
    other.close()


def test_those_decided_longest_ago_go_first(reviews_url: str) -> None:
    store = ReviewStore(opened(reviews_url), 4)
    a, b, c, d = store.add([review(text) for text in "abcd"])
    for one in (c, a):
        store.decide(one.id, Verdict("approve", "bob"))
    store.add([review("e")])
    assert {one.answer for one in store.page(ALL)[0]} == {"a", "b", "d", "e"}
    store.add([review(text) for text in "fgh"])
    assert [one.answer for one in store.page(ALL)[0]] == ["e", "f", "g", "h"], "where all wait, the oldest"
    assert store.get(b.id) is store.get(d.id) is None
    store.close()


def test_pages_are_bounded_by_their_size(store: ReviewStore) -> None:
    store.add([review(f"{n}" + "x" * 900_000) for n in range(20)])
    seen, after = 0, ""
    while True:
        found, more, _ = store.page(ALL, after=after, limit=200)
        assert 1 <= len(found) <= 9
        seen, after = seen + len(found), found[-1].id
        if not more:
            break
    assert seen == 20


def test_two_servers_begin_at_once(reviews_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: ReviewStore(opened(reviews_url), 9), range(6)))
    stores[0].add([review("a")])
    assert [store.waiting() for store in stores] == [1] * 6
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("mysql://root:secret@host/db", "begins with 'mysql://'"),
        ("sqlite://file.db", "it must be a file, sqlite:///"),
        ("sqlite:///", "it must be a file"),
        ("sqlite:///a.db?mode=ro", "it must be a file"),
        ("postgresql://u:se%ret@host/db", "is no address of PostgreSQL"),
        ("postgresql://u:secret@host/db?nothing=1", "is no address of PostgreSQL"),
    ],
)
def test_addresses_that_are_none(url: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as error:
        opened(url)
    assert "secret" not in str(error.value)
    assert "se%ret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_databases_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 100)
    for url in (f"{tmp_path}/text", f"sqlite://{tmp_path}", f"{tmp_path}/text/below.db"):
        with pytest.raises(MachineError, match="the reviews cannot be opened"):
            opened(url)
    with pytest.raises(MachineError, match=r"PostgreSQL, database d at 127\.0\.0\.1") as error:
        opened("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(error.value)


def test_a_bare_path_is_a_file_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_address("queue.db")
    for url, path in (("queue.db", "queue.db"), (":memory:", ":memory:"), (f"sqlite:///{tmp_path}/a%20b.db", "a b.db")):
        store = ReviewStore(opened(url), 9)
        store.add([review("a")])
        store.close()
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o600


def test_nothing_of_a_transaction_that_fails(store: ReviewStore) -> None:
    broken = review("b")
    object.__setattr__(broken, "state", None)  # the table refuses it
    with pytest.raises(MachineError):
        store.add([review("a"), broken])
    assert store.waiting() == 0
    store.add([review("c")])
    assert store.waiting() == 1


def test_a_file_that_another_writes_to_is_waited_for(tmp_path: Path) -> None:
    store = ReviewStore(opened(f"{tmp_path}/queue.db"), 9)
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    store.add([review("a")])
    timer.join()
    assert store.waiting() == 1
    other.close()
    store.close()


def test_a_server_of_postgresql_that_was_away() -> None:
    with postgres() as server:
        assert isinstance(server, Postgres)
        store = ReviewStore(opened(server.url), 9)
        (one,) = store.add([review("a")])
        server.stop()
        for _ in range(2):
            with pytest.raises(MachineError, match="PostgreSQL, database postgres at /"):
                store.waiting()
        server.start()
        assert store.get(one.id) == one
        server.stop()
        server.start()
        assert store.add([review("a")]) == [one], "a connection that was lost in between is no error"
        store.close()
