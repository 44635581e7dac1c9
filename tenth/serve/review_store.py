"""The reviews that are kept: added once each, listed by their age, decided in turn, bounded in number."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tenth.errors import RequestError
from tenth.serve.review import DECIDED, Decision, Review, State
from tenth.serve.review_database import Database, Execute

_PAGE_BYTES = 8 << 20  # of a page, unless its first review alone is larger


class ReviewChanged(RequestError):
    """Somebody else was quicker: `review` is what it has become."""

    def __init__(self, review: Review) -> None:
        words = f"the review has changed meanwhile: it is at version {review.version}, {review.state}; look at it again"
        super().__init__(words)
        self.review = review


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person decides. `correction` comes with `correct` alone; `seen` is the version that was looked at."""

    decision: Decision
    by: str
    correction: str | None = None
    note: str | None = None
    seen: int | None = None


class Page(NamedTuple):
    """Some reviews, whether there are more behind them, and how many wait in all, at the same moment."""

    reviews: list[Review]
    more: bool
    waiting: int


class ReviewStore:
    """Reviews in a database, `keep` of them at most. `owner` is whose reviews there are to be seen; None sees all."""

    def __init__(self, database: Database, keep: int) -> None:
        self._database, self._keep = database, keep

    @property
    def name(self) -> str:
        """Where they lie."""
        return self._database.name

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, reviews: Iterable[Review]) -> list[Review]:
        """Keep them: an answer that is there already gets the reasons that are new. As they are then."""
        with self._database.transaction(write=True) as execute:
            kept = [_added(execute, review) for review in reviews]
            self._trim(execute)
        return kept

    def get(self, name: str, owner: str | None = None) -> Review | None:
        """One of them, if there is such a one."""
        with self._database.transaction() as execute:
            return _found(execute, name, owner)

    def page(self, states: Sequence[State], owner: str | None = None, after: str = "", limit: int = 50) -> Page:
        """Those behind an id, the oldest first, as many as `limit` and a size allow."""
        where, values = _those(states, owner)
        with self._database.transaction() as execute:
            waiting = _waiting(execute, owner)
            query = f"SELECT id, size FROM tenth_reviews WHERE {where} AND id > ? ORDER BY id LIMIT ?"
            sizes = execute(query, (*values, after, limit + 1))
            count = _fitting([size for _, size in sizes[:limit]])
            if not count:
                return Page([], False, waiting)
            query = f"SELECT body FROM tenth_reviews WHERE {where} AND id > ? AND id <= ? ORDER BY id"
            rows = execute(query, (*values, after, sizes[count - 1][0]))
        return Page([Review.unpacked(body) for (body,) in rows], len(sizes) > count, waiting)

    def waiting(self, owner: str | None = None) -> int:
        """How many nobody has decided."""
        with self._database.transaction() as execute:
            return _waiting(execute, owner)

    def decide(self, name: str, verdict: Verdict) -> Review | None:
        """Decide one, again if need be; None where there is none. ReviewChanged where it is not what was seen."""
        with self._database.transaction(write=True) as execute:
            review = _found(execute, name, None)
            if review is None:
                return None
            if verdict.seen not in (None, review.version):
                raise ReviewChanged(review)
            decided = replace(
                review,
                state=DECIDED[verdict.decision],
                version=review.version + 1,
                correction=verdict.correction,
                note=review.note if verdict.note is None else verdict.note,
                decided=round(time.time(), 6),
                decided_by=verdict.by,
            )
            _rewrite(execute, decided)
        return decided

    def _trim(self, execute: Execute) -> None:
        """Of the owner who has most those decided longest ago go first, and where all wait, the oldest.

        So nobody who flags without end throws out what others have.
        """
        beyond = execute("SELECT COUNT(*) FROM tenth_reviews", ())[0][0] - self._keep
        while beyond > 0:
            most = "SELECT owner, COUNT(*) FROM tenth_reviews GROUP BY owner ORDER BY COUNT(*) DESC, owner LIMIT 2"
            (owner, count), *others = execute(most, ())
            gone = min(beyond, count - others[0][1] + 1 if others else count)
            order = "CASE WHEN state = 'waiting' THEN 1 ELSE 0 END, decided, id"
            which = f"SELECT id FROM tenth_reviews WHERE owner = ? ORDER BY {order} LIMIT ?"
            execute(f"DELETE FROM tenth_reviews WHERE id IN ({which})", (owner, gone))
            beyond -= gone


def _those(states: Sequence[State], owner: str | None) -> tuple[str, tuple[object, ...]]:
    where, values = f"state IN ({', '.join('?' for _ in states)})", tuple[object, ...](states)
    return (where, values) if owner is None else (f"{where} AND owner = ?", (*values, owner))


def _waiting(execute: Execute, owner: str | None) -> int:
    where, values = _those(("waiting",), owner)
    count: int = execute(f"SELECT COUNT(*) FROM tenth_reviews WHERE {where}", values)[0][0]
    return count


def _fitting(sizes: Sequence[int]) -> int:
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and total > _PAGE_BYTES:
            return number
    return len(sizes)


def _found(execute: Execute, name: str, owner: str | None) -> Review | None:
    rows = execute("SELECT owner, body FROM tenth_reviews WHERE id = ?", (name,))
    return Review.unpacked(rows[0][1]) if rows and owner in (None, rows[0][0]) else None


def _added(execute: Execute, review: Review) -> Review:
    rows = execute("SELECT body FROM tenth_reviews WHERE digest = ?", (review.digest,))
    if rows:
        there = Review.unpacked(rows[0][0])
        more = there.flagged_too(review)
        if more is not there:
            _rewrite(execute, more)
        return more
    body = review.packed()
    row = (review.id, review.digest, review.owner, review.state, review.version, review.decided, len(body), body)
    execute("INSERT INTO tenth_reviews VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    return review


def _rewrite(execute: Execute, review: Review) -> None:
    body = review.packed()
    change = "UPDATE tenth_reviews SET state = ?, version = ?, decided = ?, size = ?, body = ? WHERE id = ?"
    execute(change, (review.state, review.version, review.decided, len(body), body, review.id))
