"""Pages of earlier sequences, found again by the tokens in them: the beginning that a new one shares is not computed.

A radix tree whose edges are whole pages. A node's page holds keys and values of its own tokens, which depend on all
tokens before them: the path from the root. Roots are apart for everything else that they depend on (`key`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from tenth.engine.pages import PagePool

Tokens = tuple[int, ...]

_STALE = 64  # entries of the heap beyond twice the nodes, before it is made anew


@dataclass(slots=True, eq=False)
class _Node:
    page: int
    tokens: Tokens
    parent: _Node | None
    used: int = 0
    children: dict[Tokens, _Node] = field(default_factory=dict)
    gone: bool = False

    def __lt__(self, other: _Node) -> bool:
        """Any order will do for leaves of one age."""
        return self.page < other.page


class PrefixCache:
    """The tree of one cache's pages; it is a holder of each page in it.

    `key` names what keys and values depend on beside tokens, or who may find them.
    """

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self._pool, self._size = pool, page_size
        self._roots: dict[Hashable, _Node] = {}
        self._nodes = 0
        self._ticks = count(1)
        # leaves by their last use; an entry is stale where the node was used again, has children now, or is gone
        self._leaves: list[tuple[int, _Node]] = []

    def __len__(self) -> int:
        """Pages in the tree."""
        return self._nodes

    def match(self, key: Hashable, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest known beginning of `tokens`, which get the caller as one more holder."""
        path = list(self._path(key, tokens))
        self._use(path)
        pages = [node.page for node in path]
        self._pool.hold(pages)
        return pages

    def known(self, key: Hashable, tokens: Sequence[int]) -> int:
        """How many tokens `match` would find, without holding anything."""
        return self._size * sum(1 for _ in self._path(key, tokens))

    def add(self, key: Hashable, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Keep the full pages of a sequence: `pages` hold `tokens` in order. What is known already stays as it is."""
        node, path = self._roots.setdefault(key, _Node(-1, (), None)), []
        for part, page in zip(self._parts(tokens), pages, strict=False):
            child = node.children.get(part)
            if child is None:
                self._pool.hold([page])
                child = node.children[part] = _Node(page, part, node)
                self._nodes += 1
            path.append(child)
            node = child
        self._use(path)

    def evict(self, pages: int) -> int:
        """Let go of up to so many pages that nobody else holds, those unused for longest first; returns how many."""
        freed, held = 0, []
        while self._leaves and freed < pages:
            entry = heappop(self._leaves)
            if not self._is_leaf(*entry):
                continue
            if self._pool.alone(entry[1].page):
                self._remove(entry[1])
                freed += 1
            else:
                held.append(entry)
        for entry in held:
            heappush(self._leaves, entry)
        return freed

    def clear(self) -> None:
        """Let go of every page."""
        self._pool.release(self.pages())
        self._roots, self._nodes, self._leaves = {}, 0, []

    def pages(self) -> list[int]:
        """All pages in the tree."""
        found, nodes = list[int](), list(self._roots.values())
        while nodes:
            children = nodes.pop().children.values()
            found += [child.page for child in children]
            nodes += children
        return found

    def _use(self, path: Sequence[_Node]) -> None:
        """These nodes, from the root down, are in use now."""
        now = next(self._ticks)
        for node in path:
            node.used = now
        if path and not path[-1].children:
            self._note(path[-1])

    def _note(self, leaf: _Node) -> None:
        if len(self._leaves) > 2 * self._nodes + _STALE:
            self._leaves = [entry for entry in self._leaves if self._is_leaf(*entry)]
            heapify(self._leaves)
        heappush(self._leaves, (leaf.used, leaf))

    def _is_leaf(self, used: int, node: _Node) -> bool:
        return not node.gone and not node.children and node.used == used

    def _remove(self, leaf: _Node) -> None:
        parent = leaf.parent
        assert parent is not None, "a root is no leaf: it has no page"
        del parent.children[leaf.tokens]
        leaf.gone = True
        self._nodes -= 1
        self._pool.release([leaf.page])
        if parent.parent is not None and not parent.children:
            self._note(parent)

    def _path(self, key: Hashable, tokens: Sequence[int]) -> Iterator[_Node]:
        node = self._roots.get(key)
        for part in self._parts(tokens) if node is not None else ():
            node = node.children.get(part) if node is not None else None
            if node is None:
                return
            yield node

    def _parts(self, tokens: Sequence[int]) -> Iterator[Tokens]:
        for start in range(0, len(tokens) - self._size + 1, self._size):
            yield tuple(tokens[start : start + self._size])
