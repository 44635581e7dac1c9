"""The replicas that the front knows of: they announce themselves, and are no longer asked once they fall silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tenth.cluster.prefixes import BLOCK, SeenPrefixes
from tenth.cluster.wire import News

SILENT_S = 5.0
"""After so long without a word a replica is asked no more."""
_BYTES_A_TOKEN = 16  # some times what text has: to ask where a beginning was, though it is gone, brings it back there
_BYTES_A_STREAM = 8192  # of prompts that are still computed weigh as much as a stream


@dataclass(eq=False)
class Member:
    """One replica: its last news, and what the front has given it to do."""

    news: News
    heard: float
    seen: SeenPrefixes
    flights: int = 0
    unread: int = 0  # bytes of prompts whose answers have not begun
    given: int = 0
    silent: bool = False
    work: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The replica's name."""
        return self.news.id

    @property
    def load(self) -> float:
        """Requests at work, and prompts that wait, in streams."""
        return self.flights + self.unread / _BYTES_A_STREAM


@dataclass
class Flight:
    """A request that a member works on; its prompt is computed once it has `begun`."""

    member: Member
    weight: int

    def begun(self) -> None:
        """The answer has begun; again does nothing."""
        self.member.unread -= self.weight
        self.weight = 0


@dataclass
class Members:
    """All of them. `clock` gives seconds; `changed` is set where one comes, goes, or changes its phase."""

    clock: Callable[[], float] = time.monotonic
    by_id: dict[str, Member] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def heard(self, news: News) -> Member:
        """A replica has said something."""
        member = self.by_id.get(news.id)
        if member is None:
            member = self.by_id[news.id] = Member(news, self.clock(), SeenPrefixes(0))
            self.changed.set()
        elif member.news.phase != news.phase:
            self.changed.set()
        member.news, member.heard = news, self.clock()
        member.seen.most = news.room * _BYTES_A_TOKEN // BLOCK  # it has a cache once its model is loaded
        return member

    def lost(self, member: Member) -> None:
        """It cannot be reached: it is forgotten, until it says something again."""
        if self.by_id.get(member.id) is member:
            del self.by_id[member.id]
            self.changed.set()

    def forget_the_silent(self) -> list[Member]:
        """Those that have said nothing for too long; they are forgotten, and nobody waits for them any more.

        Whoever waits is cancelled, and finds the member `silent`.
        """
        gone = [member for member in self.by_id.values() if self.clock() - member.heard > SILENT_S]
        for member in gone:
            self.lost(member)
            member.silent = True
            for task in member.work:
                task.cancel()
        return gone

    def ready(self) -> list[Member]:
        """Those that take requests."""
        return [member for member in self.by_id.values() if member.news.phase == "ready"]

    @contextmanager
    def flight(self, member: Member, weight: int, task: asyncio.Task[Any] | None = None) -> Iterator[Flight]:
        """A request whose prompt has about so many bytes to compute; `task` waits for its answer."""
        flight = Flight(member, weight)
        member.flights, member.unread, member.given = member.flights + 1, member.unread + weight, member.given + 1
        if task is not None:
            member.work.add(task)
        try:
            yield flight
        finally:
            flight.begun()
            member.flights -= 1
            if task is not None:
                member.work.discard(task)

    async def change(self, seconds: float) -> None:
        """Wait for one, at most so long."""
        self.changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            pass
