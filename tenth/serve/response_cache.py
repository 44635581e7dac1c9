"""Answers that are kept: a question that was answered before, and would be answered alike, is not computed again.

The key is a hash over all that an answer depends on; every field of the engine's request enters it by itself, so that
one that is added later cannot be forgotten. An entry is JSON with a hash of its own: one that is not what was written
is a miss. Callers never see each other's answers unless sharing is on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tenth.engine.request import Request
from tenth.errors import RequestError, TenthError

_NOT_IN_KEY = ("priority", "tenant")  # who waits for whom changes no answer; whose it is enters as `Question.tenant`
_DIGEST = 32

T = TypeVar("T")

log = logging.getLogger(__name__)


class Store(Protocol):
    """Where entries lie: bytes under a key, that may be gone. Errors are the store's own; a cache survives them."""

    def get(self, key: bytes, oldest: float) -> bytes | None:
        """What was put and not before this time, None where there is nothing."""
        ...

    def put(self, key: bytes, value: bytes, now: float) -> int:
        """Keep a value, whole or not at all; how many others went for it."""
        ...

    def drop(self, key: bytes) -> None:
        """Forget a value."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """All that an answer depends on.

    `model` stands for the weights and how they are computed, `requests` are the engine's; `form` is JSON for all the
    rest: stop strings, tools, privacy. `tenant` is who asks.
    """

    model: str
    requests: tuple[Request, ...]
    form: Mapping[str, Any]
    tenant: str

    def key(self, *, shared: bool) -> bytes:
        """A hash of it; RequestError where `form` is no JSON."""
        asked = [one.name for one in fields(Request) if one.name not in _NOT_IN_KEY]
        requests = [{name: _canonical(getattr(request, name)) for name in asked} for request in self.requests]
        parts = ["2", self.model, requests, _canonical(self.form), None if shared else self.tenant]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole answer: its events in their order, any JSON, and the tokens that it took (`prompt`, `completion`)."""

    events: list[Any]
    usage: dict[str, int]


@dataclass(slots=True)
class CacheStats:
    """What has come of questions so far."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    damaged: int = 0
    errors: int = 0
    tokens_saved: int = 0


class Flight:
    """One question while it is answered. `entry` is what was found; without one, whoever has computed it stores it.

    Whoever has it closes it: equal questions wait for that.
    """

    def __init__(self, cache: ResponseCache, key: bytes) -> None:
        self._cache, self._key, self._open = cache, key, True
        self.entry: Entry | None = None

    @property
    def mark(self) -> str:
        """Says of the answer whether it was kept."""
        return "miss" if self.entry is None else "hit"

    async def store(self, entry: Entry) -> None:
        """Keep a whole answer."""
        await self._cache._put(self._key, entry)

    def close(self) -> None:
        """It is answered, or will not be. Again does nothing."""
        if self._open:
            self._open = False
            self._cache._leave(self._key)


class ResponseCache:
    """Finds and keeps answers in a store; `clock` gives seconds since 1970."""

    def __init__(
        self,
        store: Store,
        *,
        max_age_s: float = 7 * 24 * 3600,
        max_entry_bytes: int = 4 << 20,
        share: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._share, self._clock = store, share, clock
        self._max_age_s, self._max_entry_bytes = max_age_s, max_entry_bytes
        self._stats, self._flights = CacheStats(), dict[bytes, _Turn]()

    @classmethod
    def open(
        cls, where: str, *, max_bytes: int = 1 << 30, max_age_s: float = 7 * 24 * 3600, share: bool = False
    ) -> ResponseCache:
        """With a file, or `redis://` and `rediss://`, of which `max_bytes` is the server's business (maxmemory)."""
        from tenth.serve.response_store import FileStore, RedisStore

        if where.partition("://")[0] in ("redis", "rediss"):
            return cls(RedisStore(where, max_age_s), max_age_s=max_age_s, share=share)
        store = FileStore(Path(where).expanduser(), max_bytes)
        return cls(store, max_age_s=max_age_s, max_entry_bytes=max(1, max_bytes // 8), share=share)

    def stats(self) -> CacheStats:
        """Counts since the start."""
        return self._stats

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def key_of(self, question: Question) -> bytes:
        """What a question is found by."""
        return question.key(shared=self._share)

    def busy(self, key: bytes) -> bool:
        """Whether the answer is being computed now: who asks has to wait."""
        return key in self._flights

    async def ask(self, key: bytes) -> Flight:
        """Look for an answer. While one is computed, equal questions wait: for it, or to compute it if it fails."""
        flight = Flight(self, key)
        turn = self._flights.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            await turn.lock.acquire()
        except BaseException:
            self._forget(key)
            raise
        try:
            flight.entry = await self._get(key)
        except BaseException:
            flight.close()
            raise
        if flight.entry is not None:
            flight.close()
        return flight

    def _leave(self, key: bytes) -> None:
        """Let the next one have its turn; for `Flight`."""
        self._flights[key].lock.release()
        self._forget(key)

    def _forget(self, key: bytes) -> None:
        turn = self._flights[key]
        turn.wanted -= 1
        if not turn.wanted:
            del self._flights[key]

    async def _get(self, key: bytes) -> Entry | None:
        oldest = self._clock() - self._max_age_s
        value = await self._tried(lambda: self._store.get(key, oldest))
        entry = _unpacked(key, value) if value is not None else None
        if value is not None and entry is None:
            self._stats.damaged += 1
            await self._tried(lambda: self._store.drop(key))
        if entry is None:
            self._stats.misses += 1
            return None
        self._stats.hits += 1
        self._stats.tokens_saved += entry.usage.get("prompt", 0) + entry.usage.get("completion", 0)
        return entry

    async def _put(self, key: bytes, entry: Entry) -> None:
        value = _packed(key, entry)
        if len(value) > self._max_entry_bytes:
            return
        now = self._clock()
        evicted = await self._tried(lambda: self._store.put(key, value, now))
        if evicted is not None:
            self._stats.stored += 1
            self._stats.evicted += evicted

    async def _tried(self, act: Callable[[], T]) -> T | None:
        """In a thread; a store that fails is no store: answers are computed."""
        try:
            return await asyncio.to_thread(act)
        except (OSError, TenthError) as error:
            if not self._stats.errors:
                log.warning("the response cache fails, answers are computed: %s", error)
            self._stats.errors += 1
            return None


class _Turn:
    """Who computes the answer to a question, and how many want it."""

    def __init__(self) -> None:
        self.lock, self.wanted = asyncio.Lock(), 0


def _canonical(value: Any) -> Any:
    """A value as JSON that is equal for equal values and differs for others, whatever types they are of."""
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, {one.name: _canonical(getattr(value, one.name)) for one in fields(value)}]
    if isinstance(value, Mapping):
        pairs = [[_canonical(key), _canonical(one)] for key, one in value.items()]
        return ["map", sorted(pairs, key=lambda pair: json.dumps(pair[0], sort_keys=True))]
    if isinstance(value, Set):
        if all(type(one) is int for one in value):
            return ["set", sorted(value)]
        return ["set", sorted((_canonical(one) for one in value), key=json.dumps)]
    if isinstance(value, list | tuple):
        plain = all(type(one) is int for one in value)  # ids, and many of them
        return ["ints" if plain and value else "list", *(value if plain else map(_canonical, value))]
    if isinstance(value, float):
        return ["float", value.hex()]
    if value is None or isinstance(value, bool | int | str):
        return value
    raise RequestError(f"a question to the response cache holds {type(value).__name__}, it must be JSON")


def _packed(key: bytes, entry: Entry) -> bytes:
    text = json.dumps([entry.events, entry.usage], separators=(",", ":")).encode()
    return hashlib.sha256(key + text).digest() + text


def _unpacked(key: bytes, value: bytes) -> Entry | None:
    """What was stored under this key; None where these are other bytes."""
    digest, text = value[:_DIGEST], value[_DIGEST:]
    if hashlib.sha256(key + text).digest() != digest:
        return None
    events, usage = json.loads(text)
    return Entry(events, usage)
