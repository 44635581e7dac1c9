"""Pages of earlier sequences, found again by the tokens in them: the beginning that a new one shares is not computed.

A radix tree whose edges are pages. A node's page holds keys and values of its own tokens, which depend on all tokens
before them: the path from the root. Only a full page has children. The last page of a sequence may be filled in part,
and of a page the first tokens alone may be what somebody looks for: whoever finds a part of a page copies it.

No child of a node begins with all of another's tokens, and a node has its children's tokens in order as well. So the
child with the longest common beginning is one of the two that stand beside what is looked for: a search by halves, be
there two children or ten thousand.

Keys and values depend on the model, its adapter and the type of the pages too. An engine has one of each, and a tree of
its own; what differs from request to request, routing options and tenant, is the `key`: it has a root of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from tenth.engine.pages import PagePool

Tokens = tuple[int, ...]

_STALE = 64  # entries of the heap beyond twice the nodes, before it is made anew


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a beginning: full pages, and the first `more` tokens of one that is to be copied, if any."""

    pages: list[int]
    part: int | None = None
    more: int = 0


@dataclass(slots=True, eq=False)
class _Node:
    page: int
    tokens: Tokens
    parent: _Node | None
    key: Hashable = None  # a root's
    used: int = 0
    children: dict[Tokens, _Node] = field(default_factory=dict)
    order: list[Tokens] = field(default_factory=list)  # the children's tokens, sorted
    gone: bool = False

    def put(self, child: _Node) -> _Node | None:
        """Add a child; returns the one whose tokens it begins with, which it stands for from now on."""
        at = bisect_left(self.order, child.tokens)
        before = self.order[at - 1] if at else None
        self.order.insert(at, child.tokens)
        self.children[child.tokens] = child
        return self.children[before] if before is not None and child.tokens[: len(before)] == before else None

    def drop(self, child: _Node) -> None:
        """Forget a child."""
        del self.children[child.tokens]
        del self.order[bisect_left(self.order, child.tokens)]

    def nearest(self, tokens: Tokens) -> tuple[_Node | None, int]:
        """The child with the longest common beginning, and how many tokens that has; None where it has none."""
        at = bisect_left(self.order, tokens)
        beside = self.order[max(at - 1, 0) : at + 1]
        shared, best = max(((shared_length(own, tokens), own) for own in beside), default=(0, ()))
        return (self.children[best], shared) if shared else (None, 0)

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

    def match(self, key: Hashable, tokens: Sequence[int]) -> Found:
        """The longest known beginning of `tokens`; the caller becomes one more holder of every page in it."""
        path, more = self._longest(key, tokens)
        self._use(path)
        pages = [node.page for node in path]
        self._pool.hold(pages)
        return Found(pages[:-1], pages[-1], more) if more else Found(pages)

    def known(self, key: Hashable, tokens: Sequence[int]) -> int:
        """How many tokens `match` would find, without holding anything."""
        path, more = self._longest(key, tokens)
        return self._size * (len(path) - 1) + more if more else self._size * len(path)

    def add(self, key: Hashable, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Keep the pages of a sequence: they hold `tokens` in order, the last one perhaps in part.

        What is known already stays as it is. Its owner may go on writing behind these tokens, to the page's end.
        """
        node, path = self._roots.setdefault(key, _Node(-1, (), None, key)), list[_Node]()
        for part, page in zip(self._parts(tokens), pages, strict=False):
            child = node.children.get(part)
            if child is None and len(part) < self._size:
                longer, shared = node.nearest(part)
                child = longer if shared == len(part) else None
            node = child if child is not None else self._grow(node, part, page)
            path.append(node)
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
        parent.drop(leaf)
        leaf.gone = True
        self._nodes -= 1
        self._pool.release([leaf.page])
        if parent.parent is not None and not parent.children:
            self._note(parent)
        elif not parent.children:
            del self._roots[parent.key]

    def _grow(self, parent: _Node, tokens: Tokens, page: int) -> _Node:
        """A new child, in place of one that holds only its beginning."""
        self._pool.hold([page])
        self._nodes += 1
        child = _Node(page, tokens, parent)
        shorter = parent.put(child)
        if shorter is not None:
            self._remove(shorter)
        return child

    def _longest(self, key: Hashable, tokens: Sequence[int]) -> tuple[list[_Node], int]:
        """The nodes of the longest beginning; of the last one only so many tokens, where that is not 0."""
        node, path = self._roots.get(key), list[_Node]()
        for part in self._parts(tokens) if node is not None else ():
            assert node is not None, "seen above"
            child = node.children.get(part) if len(part) == self._size else None
            if child is None:
                child, more = node.nearest(part)
                return ([*path, child], more) if child is not None else (path, 0)
            path.append(child)
            node = child
        return path, 0

    def _parts(self, tokens: Sequence[int]) -> Iterator[Tokens]:
        for start in range(0, len(tokens), self._size):
            yield tuple(tokens[start : start + self._size])


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
