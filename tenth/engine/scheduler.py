"""Who computes how many tokens in the next step, and in which pages.

A step gives every sequence that generates its one token, then chunks of prompts to the others, until the budget of
tokens is spent. Where pages run out, what the prefix cache keeps goes first, then the sequence that is last in order
waits again: its tokens stay, and its full pages do as long as nobody needs them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from tenth.engine.pages import PagePool
from tenth.engine.prefix import PrefixCache
from tenth.engine.progress import Progress
from tenth.errors import RequestError


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of a step: `tokens` in all, `sequences` at work at once; seconds and number that new ones may wait for."""

    tokens: int = 2048
    sequences: int = 32
    wait: float = 0.05
    together: int = 32


@dataclass(slots=True)
class Counts:
    """Since the beginning: tokens that went through the network, tokens found in the prefix cache, preemptions."""

    computed: int = 0
    found: int = 0
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The next `count` tokens of a sequence; its pages have room for them."""

    progress: Progress
    count: int

    @property
    def draws(self) -> bool:
        """Whether the network has then seen all tokens, so that the next one can be drawn."""
        return self.count == self.progress.pending


class Scheduler:
    """Owns the queues; pages are its own while a sequence is at work."""

    def __init__(self, pool: PagePool, page_size: int, options: SchedulerOptions) -> None:
        self.options, self._pool, self._size = options, pool, page_size
        self.prefix = PrefixCache(pool, page_size)
        self.waiting: list[Progress] = []  # in order
        self.running: list[Progress] = []  # in order
        self.counts = Counts()

    def submit(self, progress: Progress) -> None:
        """Let a sequence wait; RequestError where it could never have enough pages."""
        most = len(progress.request.prompt) + progress.room
        if -(-most // self._size) > len(self._pool):
            raise RequestError(
                f"prompt and answer are {most} tokens, the cache holds {len(self._pool) * self._size}: "
                "ask for fewer, or give it more memory"
            )
        bisect.insort(self.waiting, progress, key=lambda p: p.order)

    def schedule(self, now: float) -> list[Part]:
        """The parts of the next step, in order; empty where nobody has anything to compute."""
        parts: list[Part] = []
        budget = self.options.tokens
        decoding = [p for p in self.running if p.pending == 1]
        for progress in [*decoding, *(p for p in self.running if p.pending > 1)]:
            if budget and progress in self.running:
                budget -= self._give(progress, budget, parts)
        for progress in self._arrivals(now):
            if not budget or not self._admit(progress):
                break
            budget -= self._give(progress, budget, parts)
        return parts

    def computed(self, part: Part) -> None:
        """A part went through the network; its full pages may serve others."""
        progress = part.progress
        before = progress.computed // self._size
        progress.computed += part.count
        self.counts.computed += part.count
        if progress.computed // self._size > before:
            self._keep(progress)

    def finish(self, progress: Progress) -> None:
        """A sequence has ended, wherever it was: all it held is let go."""
        for queue in (self.running, self.waiting):
            if progress in queue:
                queue.remove(progress)
        self._release(progress)

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return self._pool.free

    def audit(self) -> None:
        """AssertionError unless free, held and cached pages are all pages, and none is owned twice."""
        self._pool.audit([self.prefix.pages(), *(p.pages for p in self.running)])
        assert not any(p.pages or p.computed for p in self.waiting), "a sequence that waits holds pages"
        for progress in self.running:
            assert len(set(progress.pages)) == len(progress.pages), "a sequence has a page twice"
            assert progress.computed <= len(progress.pages) * self._size, "a sequence has fewer pages than tokens"

    def _give(self, progress: Progress, budget: int, parts: list[Part]) -> int:
        """The next part of a sequence at work, with pages for it; 0 where there are none, even by preemption."""
        count = min(progress.pending, budget)
        needed = -(-(progress.computed + count) // self._size) - len(progress.pages)
        while not self._make_room(needed):
            victim = self._last(parts)
            self._preempt(victim)
            if victim is progress:
                return 0
        progress.pages += self._pool.take(max(needed, 0))
        parts.append(Part(progress, count))
        return count

    def _last(self, parts: Iterable[Part]) -> Progress:
        """The last in order of those at work that have no part in this step yet."""
        taken = {id(part.progress) for part in parts}
        return next(p for p in reversed(self.running) if id(p) not in taken)

    def _make_room(self, pages: int) -> bool:
        missing = pages - self._pool.free
        return missing <= 0 or self.prefix.evict(missing) == missing

    def _arrivals(self, now: float) -> list[Progress]:
        """Those that may begin now: under load the first ones wait a moment for others to go with."""
        options = self.options
        room = options.sequences - len(self.running)
        if not self.waiting or room <= 0:
            return []
        fresh = [p for p in self.waiting if not p.preemptions]
        held_back = (
            self.running
            and len(fresh) == len(self.waiting) < options.together
            and now - min(p.arrived for p in fresh) < options.wait
        )
        return [] if held_back else self.waiting[:room]

    def _admit(self, progress: Progress) -> bool:
        """Begin a sequence with the pages that are known already, if all its tokens so far would have pages."""
        pages = self.prefix.match(progress.request.tenant, progress.tokens[:-1])
        needed = -(-(len(progress.tokens) + 1) // self._size) - len(pages)
        if not self._make_room(needed):
            self._pool.release(pages)
            return False
        self.waiting.remove(progress)
        progress.pages, progress.computed = pages, len(pages) * self._size
        self.counts.found += progress.computed
        bisect.insort(self.running, progress, key=lambda p: p.order)
        return True

    def _preempt(self, progress: Progress) -> None:
        self.running.remove(progress)
        self._release(progress)
        progress.preemptions += 1
        self.counts.preempted += 1
        bisect.insort(self.waiting, progress, key=lambda p: p.order)

    def _keep(self, progress: Progress) -> None:
        full = progress.computed // self._size
        tokens = progress.tokens[: full * self._size]
        self.prefix.add(progress.request.tenant, tokens, progress.pages[:full])

    def _release(self, progress: Progress) -> None:
        self._pool.release(progress.pages)
        progress.pages, progress.computed = [], 0
