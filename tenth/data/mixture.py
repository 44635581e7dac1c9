"""Which part of a document comes next: sources mixed by their shares of tokens, each shuffled anew in every epoch.

Documents longer than a row are drawn in parts of a row each: attention does not see beyond the row anyway, and a book
would else fill whole batches by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenth.data.packing import Piece
from tenth.data.token_file import TokenFile
from tenth.errors import RequestError

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Source:
    """A token file and its share: tokens of the sources come in proportion to their weights."""

    path: Path
    weight: float
    name: str


@dataclass(slots=True)
class Cursor:
    """How far a source is: the epoch, the place in its order, and all tokens drawn from it so far."""

    epoch: int = 0
    place: int = 0
    drawn: int = 0


class Mixture:
    """An endless, deterministic order of documents, or parts of `length` tokens of them, over several files."""

    def __init__(self, files: Sequence[TokenFile], weights: Sequence[float], seed: int, length: int) -> None:
        total = math.fsum(weights)
        self._files, self._seed, self._length = files, seed, length
        # of each source: the number of the first part of each document, and of all parts
        self._firsts = [parts_before(file.bounds, length) for file in files]
        self._shares = [weight / total for weight in weights]
        self._orders: list[tuple[int, NDArray[np.int64]] | None] = [None] * len(files)
        self.cursors = [Cursor() for _ in files]

    def draw(self) -> Piece:
        """The next part, from the source that is furthest behind its share of the tokens so far."""
        total = sum(cursor.drawn for cursor in self.cursors)
        behind = [share * total - cursor.drawn for share, cursor in zip(self._shares, self.cursors, strict=True)]
        source = behind.index(max(behind))
        firsts, cursor = self._firsts[source], self.cursors[source]
        part = int(self._order(source)[cursor.place])
        document = int(np.searchsorted(firsts, part, side="right")) - 1
        piece = self.part(source, document, (part - int(firsts[document])) * self._length)
        cursor.drawn += piece.stop - piece.start
        cursor.place += 1
        if cursor.place == self.parts(source):
            cursor.epoch, cursor.place = cursor.epoch + 1, 0
        return piece

    def parts(self, source: int) -> int:
        """Parts of a source's documents in an epoch."""
        return int(self._firsts[source][-1])

    def part(self, source: int, document: int, start: int) -> Piece:
        """From a token of a document to the end of the part that it is in."""
        first, last = self._files[source].bounds[document : document + 2].tolist()
        return Piece(source, document, start, min((start // self._length + 1) * self._length, last - first))

    def _order(self, source: int) -> NDArray[np.int64]:
        epoch, kept = self.cursors[source].epoch, self._orders[source]
        if kept is None or kept[0] != epoch:
            kept = epoch, permutation(self.parts(source), self._seed, source, epoch)
            self._orders[source] = kept
        return kept[1]


def parts_before(bounds: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """How many parts of at most `length` tokens lie before each document, and in all; one longer than the documents."""
    parts = -(-(bounds[1:] - bounds[:-1]) // length)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(parts)))


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order that `key` decides, the same for ever and on every machine.

    They are sorted by SplitMix64 (Steele, Lea and Flood 2014) of themselves; numpy's own shuffles may change with
    its version.
    """
    start = 0
    for part in key:
        start = int(_mix(np.array([(start ^ part) & _MASK], np.uint64))[0])
    numbers = np.arange(count, dtype=np.uint64)
    return np.argsort(_mix(numbers * np.uint64(_GOLDEN) + np.uint64(start)), kind="stable")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step: one to one, so no two numbers tie."""
    mixed = values + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def check_sources(sources: Sequence[Source]) -> None:
    """RequestError where there is none, where two share a name, or where a weight is no positive number."""
    if not sources:
        raise RequestError("there is no source of data; at least one is needed")
    names: set[str] = set()
    for source in sources:
        weight: Any = source.weight
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight <= 1e12 or weight < 1e-12:
            raise RequestError(f"the weight of source {source.name!r} is {weight!r:.40}, it must be a positive number; "
                               "leave out a source that is not wanted")  # fmt: skip
        if source.name in names:
            raise RequestError(f"two sources are called {source.name!r}; each needs a name of its own")
        names.add(source.name)
