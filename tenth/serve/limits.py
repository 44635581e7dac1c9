"""What a key may use: requests and tokens a minute, requests at once, tokens a day and a month.

The books are one SQLite file that several servers of a machine may share: every decision is one transaction, so limits
hold exactly however many ask at once, and what was spent is still spent after a restart or a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tenth.errors import ConfigError, RequestError
from tenth.serve.limits_books import Books, Spent

WINDOW_S = 60.0
_NOTHING_SPENT = Spent(requests=(), tokens=(), running=0, day=0, month=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, None where there is none. Minutes slide; days and months are those of the calendar, in UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if type(value) is not int or not 1 <= value <= 1 << 53:
                raise ConfigError(f"{name} is {value!r:.40}, it must be a whole number of at least 1")

    @property
    def given(self) -> dict[str, int]:
        """Those that are bounds."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Limits:
        """Of names and numbers; ConfigError for a name that is none."""
        known = [one.name for one in fields(cls)]
        for name in table:
            if name not in known:
                raise ConfigError(f"no limit is named {name!r:.40} (there are: {', '.join(known)})")
        return cls(**table)


class LimitReached(RequestError):
    """A limit stands in the way: `limit` names it; after `wait_s` seconds it does not, None if waiting never helps."""

    def __init__(self, message: str, limit: str, wait_s: float | None) -> None:
        super().__init__(message)
        self.limit, self.wait_s = limit, wait_s

    @property
    def quota(self) -> bool:
        """Whether it is a day's or a month's."""
        return self.limit in ("tokens_per_day", "tokens_per_month")


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of a minute's limits, and seconds until all of it is back; None where there is no limit."""

    requests: tuple[int, int, float] | None = None  # limit, remaining, reset
    tokens: tuple[int, int, float] | None = None


class Limiter:
    """Judges requests of keys. `clock` gives seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._books, self._clock = Books(path, WINDOW_S), clock

    def close(self) -> None:
        """Close the file; leases that are open count as those of a server that was killed."""
        self._books.close()

    def begin(self, name: str, limits: Limits) -> Lease:
        """Count a request of the key `name`; LimitReached where it may not run now."""
        if not limits.given:
            return Lease.free(name)
        now = self._clock()
        with self._books.transaction():
            spent = self._spent(name, limits, now)
            _check_requests(limits, spent, now)
            _check_tokens(limits, spent, now, 1)  # a key that has nothing left need not send a prompt
            charge = self._books.begin(name, now)
        return Lease(self, name, limits, charge)

    def _spent(self, name: str, limits: Limits, now: float) -> Spent:
        spent = self._books.spent(name, now)
        if limits.concurrent_requests is not None and spent.running >= limits.concurrent_requests:
            self._books.end_those_of_the_dead()
            spent = self._books.spent(name, now)
        return spent

    def reserve(self, lease: Lease, tokens: int) -> None:
        """Set aside so many tokens for a request; LimitReached, and nothing set aside, where they are not there."""
        if lease.charge is None:
            return
        now = self._clock()
        with self._books.transaction():
            spent = self._books.spent(lease.name, now, without=lease.charge)
            _check_tokens(lease.limits, spent, now, tokens)
            self._books.charge(lease.charge, tokens)

    def settle(self, lease: Lease, tokens: int) -> None:
        """End a request that has used so many."""
        if lease.charge is not None:
            self._books.settle(lease.charge, tokens)

    def standing(self, name: str, limits: Limits) -> Standing:
        """How a key stands in its minute."""
        now = self._clock()
        minute = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
        spent = self._books.spent(name, now) if minute else _NOTHING_SPENT
        return Standing(
            _left(limits.requests_per_minute, [(at, 1) for at in spent.requests], now),
            _left(limits.tokens_per_minute, spent.tokens, now),
        )


class Lease:
    """One request that runs. Used tokens are totals so far; whoever opened it closes it, once."""

    def __init__(self, limiter: Limiter | None, name: str, limits: Limits, charge: int | None) -> None:
        self.name, self.limits, self.charge = name, limits, charge
        self.prompt_tokens = self.completion_tokens = 0
        self._limiter, self._open = limiter, True

    @classmethod
    def free(cls, name: str) -> Lease:
        """For those who have no limits."""
        return cls(None, name, Limits(), None)

    def reserve(self, prompt_tokens: int, max_tokens: int) -> None:
        """Set aside what the request may come to; LimitReached where the key has not so much left."""
        if self._limiter is not None and self._open:
            self._limiter.reserve(self, prompt_tokens + max_tokens)

    async def set_aside(self, prompt_tokens: int, max_tokens: int) -> None:
        """`reserve`, as handlers ask for it: a lease whose books are elsewhere (`tenth.cluster`) waits for them."""
        self.reserve(prompt_tokens, max_tokens)

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Say what it has come to so far; the last word before it is closed is what is charged."""
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    def close(self) -> None:
        """Charge what was used and give back the rest."""
        if self._limiter is not None and self._open:
            self._limiter.settle(self, self.prompt_tokens + self.completion_tokens)
        self._open = False

    def standing(self) -> Standing:
        """How its key stands in its minute."""
        return Standing() if self._limiter is None else self._limiter.standing(self.name, self.limits)


def _check_requests(limits: Limits, spent: Spent, now: float) -> None:
    most = limits.concurrent_requests
    if most is not None and spent.running >= most:
        raise LimitReached(f"this key runs {spent.running} requests, {most} may at once", "concurrent_requests", 1.0)
    most = limits.requests_per_minute
    if most is not None and len(spent.requests) >= most:
        wait = _until(spent.requests[-most], now)
        raise LimitReached(f"this key may make {most} requests a minute", "requests_per_minute", wait)


def _check_tokens(limits: Limits, spent: Spent, now: float, wanted: int) -> None:
    days = {"tokens_per_month": (spent.month, _next_month(now)), "tokens_per_day": (spent.day, _next_day(now))}
    for name, (used, wait) in days.items():
        most = getattr(limits, name)
        if most is not None and used + wanted > most:
            raise LimitReached(_beyond(name, most, used, wanted), name, wait if wanted <= most else None)
    most = limits.tokens_per_minute
    used = sum(tokens for _, tokens in spent.tokens)
    if most is not None and used + wanted > most:
        wait_s = _until_free(spent.tokens, used + wanted - most, now) if wanted <= most else None
        raise LimitReached(_beyond("tokens_per_minute", most, used, wanted), "tokens_per_minute", wait_s)


def _beyond(name: str, most: int, used: int, wanted: int) -> str:
    span = name.removeprefix("tokens_per_")
    if wanted > most:
        return f"prompt and max_tokens are {wanted} tokens, this key may use {most} a {span}: ask for less"
    return f"this key may use {most} tokens a {span}: {used} are used or set aside, {wanted} more are asked for"


def _until_free(charges: tuple[tuple[float, int], ...], missing: int, now: float) -> float:
    """Seconds until charges, oldest first, of so many tokens have left the window."""
    for at, tokens in charges:
        missing -= tokens
        if missing <= 0:
            return _until(at, now)
    raise AssertionError("more is missing than was charged")


def _left(most: int | None, charges: Any, now: float) -> tuple[int, int, float] | None:
    if most is None:
        return None
    used = sum(amount for _, amount in charges)
    return most, max(0, most - used), _until(charges[-1][0], now) if charges else 0.0


def _until(at: float, now: float) -> float:
    return max(0.0, at + WINDOW_S - now)


def _next_day(now: float) -> float:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=1)).timestamp() - now


def _next_month(now: float) -> float:
    first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1).timestamp() - now
