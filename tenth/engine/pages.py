"""Which pages of a cache are free, and who holds the others.

A page that several sequences share, or that the prefix cache keeps for later ones, has a holder for each of them; it is
free again when the last has let go. Nothing here knows what is in a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class PagePool:
    """The page ids 0 to `pages` - 1 of one cache, each with a count of its holders."""

    def __init__(self, pages: int) -> None:
        self._holders = [0] * pages
        self._free = list(range(pages - 1, -1, -1))  # the lowest is taken first, the last one freed next

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many free pages, with one holder each. The caller has seen that there are enough."""
        assert count <= len(self._free), "asked for more pages than are free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """One holder more for each page, which somebody holds already."""
        for page in pages:
            assert self._holders[page] > 0, "a free page cannot be shared"
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less for each."""
        for page in pages:
            assert self._holders[page] > 0, "a page was let go more often than it was held"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def alone(self, page: int) -> bool:
        """Whether a page has a single holder."""
        return self._holders[page] == 1

    def audit(self, holders: Iterable[Sequence[int]]) -> None:
        """AssertionError unless these lists of pages, one a holder, are all there is: every page is free or in them."""
        counted = Counter(page for pages in holders for page in pages)
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page, held in enumerate(self._holders):
            assert held == counted[page], f"page {page} has {held} holders, {counted[page]} say that they hold it"
            assert (held == 0) == (page in free), f"page {page} has {held} holders: free is {page in free}"
        assert set(counted) <= set(range(len(self._holders))), "a page is held that the pool does not have"
