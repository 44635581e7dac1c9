"""Who computes how many tokens in the next step, and in which pages.

A step gives every sequence that generates its one token, and those guessed behind it, then chunks of prompts to the
others, until the budget of tokens is spent. Where pages run out, what the prefix cache keeps goes first, then guesses,
then the sequence that is last in order waits again: its tokens stay, and its pages as long as nobody needs them.

A sequence whose prompt begins like one that is just being computed waits for those pages instead of computing them too.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tenth.engine.bounds import whole, within
from tenth.engine.coming import is_coming, shares
from tenth.engine.pages import PagePool
from tenth.engine.part import Counts, Part
from tenth.engine.prefix import Found, PrefixCache
from tenth.engine.progress import Progress
from tenth.errors import RequestError

CopyPage = Callable[[int, int], None]
"""Makes the second page what the first one is, at once."""

_ROWS = 256  # tokens of a prompt at once whose log-probabilities are wanted: each is a row of the vocabulary


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of a step: `tokens` in all, `sequences` at work at once; seconds and number that new ones may wait for.

    RequestError for what cannot be.
    """

    tokens: int = 2048
    sequences: int = 32
    wait: float = 0.05
    together: int = 32

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences", "together"):
            whole(f"SchedulerOptions.{name}", getattr(self, name), 1)
        within("SchedulerOptions.wait", self.wait, 0.0, 3600.0)


class Scheduler:
    """Owns the queues; pages are its own while a sequence is at work."""

    def __init__(self, pool: PagePool, page_size: int, options: SchedulerOptions, copy_page: CopyPage) -> None:
        self.options, self._pool, self._size, self._copy_page = options, pool, page_size, copy_page
        self.prefix = PrefixCache(pool, page_size)
        self.waiting: list[Progress] = []  # in order
        self.running: list[Progress] = []  # in order
        self.counts = Counts()

    def visible(self, rolling: int) -> int:
        """The most tokens that a rolling sequence attends to."""
        return self._size + -(-rolling // self._size) * self._size

    def check(self, tokens: int, sequences: int) -> None:
        """RequestError where a sequence of so many tokens, or so many at work together, could never be."""
        if -(-tokens // self._size) > len(self._pool):
            raise RequestError(
                f"prompt and answer are {tokens} tokens, the cache holds {len(self._pool) * self._size}: "
                "ask for fewer, or give it more memory"
            )
        if sequences > self.options.sequences:
            raise RequestError(f"{sequences} beams are more than the {self.options.sequences} sequences of a step")

    def submit(self, progress: Progress) -> None:
        """Let a sequence wait, one that has been checked."""
        bisect.insort(self.waiting, progress, key=lambda p: p.order)

    def fork(self, parent: Progress, child: Progress) -> None:
        """Put a copy of a sequence beside it, which shares its full pages and has a copy of the last one.

        Where there is no room for the copy, the child computes these tokens again.
        """
        full = parent.computed // self._size
        child.pages, child.computed = parent.pages[:full], full * self._size
        self._pool.hold(child.pages)
        bisect.insort(self.running, child, key=lambda p: p.order)
        if parent.computed > child.computed and self._make_room(1):
            child.pages = [*child.pages, self._copied(parent.pages[full])]
            child.computed = parent.computed

    def schedule(self, now: float) -> list[Part]:
        """The parts of the next step, in order; empty where nobody has anything to compute."""
        parts = self._parts(now)
        parked = [p for p in self.running if p.parked]
        if not parts and parked:  # they wait for beams that have no room beside them
            for progress in parked:
                self._preempt(progress)
            parts = self._parts(now)
        self.counts.steps += bool(parts)
        return parts

    def _parts(self, now: float) -> list[Part]:
        parts: list[Part] = []
        budget = self.options.tokens
        decoding = [p for p in self.running if p.pending == 1 + len(p.draft)]
        for progress in [*decoding, *(p for p in self.running if p.pending > 1 + len(p.draft))]:
            if budget > 0 and progress in self.running:
                budget -= self._give(progress, budget, parts)
        for progress in self._arrivals(now):
            if budget <= 0 or not self._admit(progress, now):
                break
            budget -= self._give(progress, budget, parts)
        return parts

    def computed(self, part: Part) -> None:
        """A part went through the network, guesses apart; its pages may serve others."""
        progress = part.progress
        self.counts.computed += part.count
        self.counts.drawn += part.draws
        if part.turns:
            progress.turned = True
        else:
            self.counts.prompt += max(min(part.count, len(progress.request.prompt) - progress.computed), 0)
            self._advance(progress, part.count - len(progress.draft))

    def confirmed(self, progress: Progress) -> None:
        """The next guess was right: what the network computed of it stays."""
        self.counts.drawn += 1
        self._advance(progress, 1)

    def finish(self, progress: Progress) -> None:
        """A sequence has ended, wherever it was: all it held is let go."""
        for queue in (self.running, self.waiting):
            if progress in queue:
                queue.remove(progress)
        self._release(progress)

    @property
    def sequences(self) -> list[Progress]:
        """All that are at work or wait."""
        return [*self.running, *self.waiting]

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return self._pool.free

    @property
    def pages(self) -> int:
        """All pages of the cache."""
        return len(self._pool)

    @property
    def held_pages(self) -> set[int]:
        """Pages of the sequences at work; what is neither free nor held is kept for later."""
        return {page for progress in self.running for page in progress.pages}

    def audit(self) -> None:
        """AssertionError unless free, held and cached pages are all pages, and none is owned twice."""
        kept = self.prefix.pages()
        assert len(set(kept)) == len(kept) == len(self.prefix), "a page is kept twice"
        self._pool.audit([kept, *(p.pages for p in self.running)])
        assert not any(p.pages or p.computed for p in self.waiting), "a sequence that waits holds pages"
        for progress in self.running:
            assert len(set(progress.pages)) == len(progress.pages), "a sequence has a page twice"
            assert progress.held <= len(progress.pages) * self._size, "a sequence has fewer pages than tokens"

    def _give(self, progress: Progress, budget: int, parts: list[Part]) -> int:
        """The next part of a sequence at work, with pages for it; 0 where there are none, even by preemption."""
        most = min(budget, _ROWS) if progress.reads_prompt else budget
        if progress.request.rolling is not None:
            self._roll(progress, self.visible(progress.request.rolling))
            if not progress.turned:
                parts.append(Part(progress, self._size, turns=True))
                return self._size
            most = min(most, self.visible(progress.request.rolling) - progress.held)
        left_out = progress.pending - most
        if progress.draft and left_out > 0:
            del progress.draft[-left_out:]
        if progress.draft and not self._make_room(self._missing(progress, most)):
            progress.draft.clear()
        while not self._make_room(self._missing(progress, most)):
            victim = self._last(parts)
            self._preempt(victim)
            if victim is progress:
                return 0
        count = min(progress.pending, most)
        progress.pages += self._pool.take(max(self._missing(progress, most), 0))
        parts.append(Part(progress, count))
        return count

    def _missing(self, progress: Progress, most: int) -> int:
        """Pages that the next tokens need, up to so many."""
        return -(-(progress.held + min(progress.pending, most)) // self._size) - len(progress.pages)

    def _roll(self, progress: Progress, visible: int) -> None:
        """Forget the oldest quarter of the window where it is full. The first page is then the sequence's own."""
        if progress.held < visible:
            return
        oldest = max((visible // self._size - 1) // 4, 1)
        first = 0 if not progress.dropped else 1
        self._pool.release(progress.pages[first : 1 + oldest])
        own = self._pool.take(1) if not progress.dropped else progress.pages[:1]
        progress.pages = [*own, *progress.pages[1 + oldest :]]
        progress.dropped += oldest * self._size
        progress.turned = False

    def _last(self, parts: Iterable[Part]) -> Progress:
        """The last in order of those at work that have no part in this step yet."""
        taken = {id(part.progress) for part in parts}
        return next(p for p in reversed(self.running) if id(p) not in taken)

    def _make_room(self, pages: int) -> bool:
        missing = pages - self._pool.free
        return missing <= 0 or self.prefix.evict(missing) == missing

    def _arrivals(self, now: float) -> Iterator[Progress]:
        """Those that may begin now: under load the first ones wait a moment for others to go with."""
        options = self.options
        waiting = [p for p in self.waiting if not p.parked]
        if not waiting:
            return
        fresh = [p for p in waiting if not p.preemptions]
        held_back = (
            self.running
            and len(fresh) == len(waiting) < options.together
            and now - min(p.arrived for p in fresh) < options.wait
        )
        at_work = sum(p.width for p in self.running)
        for progress in [] if held_back else waiting:
            if at_work + progress.width > options.sequences:
                return
            if not is_coming(progress, self.running, self.prefix, self._size):
                yield progress
                at_work = sum(p.width for p in self.running)

    def _admit(self, progress: Progress, now: float) -> bool:
        """Begin a sequence with what is known already, if all its tokens so far would have pages."""
        tokens = progress.tokens[:-1] if shares(progress) else []
        found = self.prefix.match(progress.request.prefix_key, tokens)
        rolling = progress.request.rolling
        most = len(progress.tokens) + 1 if rolling is None else min(len(progress.tokens) + 1, self.visible(rolling))
        needed = -(-most // self._size) - len(found.pages)
        room = self._could_have(needed, found)
        if not room and found.part is not None:  # which is held: without it there may be room
            self._pool.release([found.part])
            found = Found(found.pages)
            room = self._could_have(needed, found)
        if room and self._make_room(needed):
            self.counts.sought += len(tokens)
            self._begin(progress, found, now)
            return True
        self._pool.release([*found.pages, *([] if found.part is None else [found.part])])
        return False

    def _could_have(self, pages: int, found: Found) -> bool:
        """Whether so many are free or kept for later: who has to wait for more takes nothing from the prefix cache."""
        held = self.held_pages.union(found.pages, [] if found.part is None else [found.part])
        return pages <= len(self._pool) - len(held)

    def _begin(self, progress: Progress, found: Found, now: float) -> None:
        self.waiting.remove(progress)
        progress.awaited = None
        progress.pages, progress.computed = found.pages, len(found.pages) * self._size + found.more
        if found.part is not None:
            progress.pages = [*found.pages, self._copied(found.part)]
            self._pool.release([found.part])
        self.counts.found += progress.computed
        if not progress.preemptions and progress.answer is progress.stream.answers[0]:
            progress.stream.found, progress.stream.waited = progress.computed, now - progress.arrived
        bisect.insort(self.running, progress, key=lambda p: p.order)

    def _copied(self, page: int) -> int:
        """A page that is as another one. The caller has seen that there is one free."""
        (own,) = self._pool.take(1)
        self._copy_page(page, own)
        return own

    def _preempt(self, progress: Progress) -> None:
        self.running.remove(progress)
        self._release(progress)
        progress.draft.clear()
        progress.preemptions += 1
        self.counts.preempted += 1
        bisect.insort(self.waiting, progress, key=lambda p: p.order)

    def _advance(self, progress: Progress, count: int) -> None:
        before, progress.computed = progress.computed, progress.computed + count
        seen_prompt = before < len(progress.request.prompt) <= progress.computed
        if seen_prompt or progress.computed // self._size > before // self._size:
            self._keep(progress)

    def _keep(self, progress: Progress) -> None:
        """Let others find what it has computed; of beams, that are many and alike, full pages alone."""
        tokens = progress.tokens[: progress.computed]
        if progress.request.beams is not None:
            del tokens[len(tokens) // self._size * self._size :]
        if tokens and progress.request.rolling is None:
            self.prefix.add(progress.request.prefix_key, tokens, progress.pages)

    def _release(self, progress: Progress) -> None:
        self._keep(progress)
        self._pool.release(progress.pages)
        progress.pages, progress.computed = [], 0
        progress.dropped, progress.turned = 0, True
