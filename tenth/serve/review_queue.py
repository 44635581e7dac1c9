"""The review queue of a server: answers that ended go in at one side, people work at the other.

Nothing of it stands in an answer's way: what has ended is laid into a queue of bounded length, and a thread judges and
stores it. A database that is gone or full loses no answer; what was flagged meanwhile waits, so much of it as there
is room for.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tenth.api.bodies import Asked
from tenth.engine.request import Request
from tenth.errors import MachineError, RequestError
from tenth.serve.review import MOST_BYTES, Review
from tenth.serve.review_database import opened
from tenth.serve.review_rules import Rules, read_rules
from tenth.serve.review_store import ReviewStore
from tenth.serve.review_watch import Ended, Watch

_ENDED = 1024  # answers that wait to be judged
_FLAGGED = 256  # and reviews that wait for the database
_ASKING = 64  # people who wait for it
_SOON_S = 0.5  # until what is flagged is stored, where answers end all the time
_AGAIN_S = 1.0  # until a database that failed is tried again
_LAST_S = 10.0  # for what is not stored when the server stops

Result = TypeVar("Result")
log = logging.getLogger("tenth.serve.reviews")


class ReviewsBusy(MachineError):
    """The database is gone or slow."""


@dataclass(frozen=True, slots=True)
class ReviewOptions:
    """Where reviews are kept, by what rules answers are flagged, and how many are kept at most."""

    url: str | None = None
    rules: Path | None = None
    keep: int = 10_000


@contextmanager
def open_reviews(options: ReviewOptions) -> Iterator[Reviews | None]:
    """The queue, closed behind it; None without an address. RequestError, ConfigError, MachineError where it fails."""
    if options.url is None:
        if options.rules is not None:
            raise RequestError("--review-rules flags answers, and there is nowhere to keep them: say --reviews FILE")
        yield None
        return
    rules = Rules() if options.rules is None else read_rules(options.rules)
    reviews = Reviews(ReviewStore(opened(options.url), options.keep), rules)
    try:
        yield reviews
    finally:
        reviews.close()


class Reviews:
    """Judges answers by `rules`, and keeps what they flag in a store. Counts are for metrics."""

    def __init__(self, store: ReviewStore, rules: Rules | None = None) -> None:
        self.store, self.rules = store, rules or Rules()
        self.flagged: Counter[str] = Counter(dict.fromkeys(("rule", "confidence", "person"), 0))
        self.lost: Counter[str] = Counter(dict.fromkeys(("full", "too_large", "failed"), 0))
        self.decided: Counter[str] = Counter(dict.fromkeys(("approve", "correct", "reject"), 0))
        self.errors: Counter[str] = Counter(dict.fromkeys(("rules", "people"), 0))  # of the database
        self._ended: queue.Queue[Ended | None] = queue.Queue(_ENDED)
        self._flagged = list[Review]()
        self._failing, self._again_at, self._due = False, 0.0, 0.0
        self._people = ThreadPoolExecutor(2, thread_name_prefix="tenth-review")
        self._asking = 0
        self._thread = threading.Thread(target=self._work, name="tenth-reviews", daemon=True)
        self._thread.start()

    def watch(self, asked: Sequence[Asked], body: Mapping[str, Any], model: str, caller: tuple[str, str]) -> Watch:
        """What listens to the answers of a request; `caller` is a key's name and what it finds its reviews by."""
        return Watch(asked, body, model, caller, self.offer)

    def scored(self, request: Request) -> Request:
        """With log-probabilities of what is drawn, and no more, where a rule needs them; beams have none."""
        if not self.rules.scored or request.logprobs is not None or request.beams is not None:
            return request
        return replace(request, logprobs=0)

    def offer(self, ended: Ended) -> None:
        """An answer has ended. Never waits."""
        try:
            self._ended.put_nowait(ended)
        except queue.Full:
            self._lose("full", 1, "answers end faster than rules judge them")

    async def ask(self, work: Callable[[ReviewStore], Result]) -> Result:
        """Do something with the store, beside the event loop; ReviewsBusy where the database does not answer."""
        if self._asking >= _ASKING:
            log.error("reviews are asked for faster than %s answers", self.store.name)
            raise ReviewsBusy("too many wait for the reviews")
        self._asking += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._people, lambda: work(self.store))
        except MachineError as error:
            self.errors["people"] += 1
            log.error("%s", error)
            raise ReviewsBusy(str(error)) from None
        finally:
            self._asking -= 1

    def close(self) -> None:
        """Store what is flagged, and close the database."""
        try:
            self._ended.put(None, timeout=_LAST_S)
        except queue.Full:
            log.error("answers that have ended are not judged: the server stops")
        self._thread.join(_LAST_S)
        self._people.shutdown()
        self.store.close()

    def _work(self) -> None:
        """The thread."""
        while True:
            try:
                ended = self._ended.get(timeout=_AGAIN_S if self._flagged else None)
            except queue.Empty:
                self._store()
                continue
            if ended is None:
                self._again_at = 0.0
                self._store()
                if self._flagged:
                    self._lose("failed", len(self._flagged), "the server stops before the database is back")
                return
            self._judge(ended)
            if self._ended.empty() or len(self._flagged) >= _FLAGGED // 4 or time.monotonic() >= self._due:
                self._store()

    def _judge(self, ended: Ended) -> None:
        try:
            review = ended.judged(self.rules)
        except Exception:  # whatever it is, the next answer is judged
            log.exception("an answer could not be judged")
            self.lost["failed"] += 1
            return
        if review is None:
            return
        for reason in review.reasons:
            self.flagged[reason.kind] += 1
        if len(review.packed()) > MOST_BYTES:
            self._lose("too_large", 1, f"a flagged answer and what it answers are larger than {MOST_BYTES:,} bytes")
        elif len(self._flagged) >= _FLAGGED:
            self._lose("failed", 1, "the database has been gone for too long")
        else:
            self._due = self._due if self._flagged else time.monotonic() + _SOON_S
            self._flagged.append(review)

    def _store(self) -> None:
        """Write what is flagged. Where that fails it is tried again later; the log says when it begins, and ends."""
        if not self._flagged or time.monotonic() < self._again_at:
            return
        try:
            self.store.add(self._flagged)
        except MachineError as error:
            self.errors["rules"] += 1
            self._again_at = time.monotonic() + _AGAIN_S
            if not self._failing:
                log.error("flagged answers are stored later: %s", error)
            self._failing = True
            return
        except Exception:  # nobody foresaw it, and it would come again
            log.exception("flagged answers could not be stored")
            self.lost["failed"] += len(self._flagged)
        self._flagged.clear()
        if self._failing:
            self._failing = False
            log.info("flagged answers are stored again: %s", self.store.name)

    def _lose(self, why: str, count: int, words: str) -> None:
        if not self.lost[why]:
            log.error("flagged answers are lost (tenth_reviews_lost_total counts them): %s", words)
        self.lost[why] += count
