"""Texts that are almost the same as others, by MinHash. Needs datasketch, which the extra `train` brings."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tenth.errors import MachineError, RequestError

_SHINGLE = 5  # words and signs in a row
_HASHES = 128
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A text that is nearly another one: their places, and the Jaccard similarity of their runs of five words."""

    index: int
    against: int
    similarity: float


def near_duplicates(documents: Sequence[str], against: Iterable[str], threshold: float = 0.8) -> list[Duplicate]:
    """Each of `documents` that some text of `against` resembles to `threshold` or more, with the most similar one.

    `documents` (such as held-out text) are kept in memory, `against` (such as the text to learn from) passes by once.
    MinHash LSH (Broder 1997) proposes pairs, their exact similarity decides; of pairs at the threshold it
    misses at most one in a hundred, above it hardly any. Only words, numbers and signs count, case does not.
    """
    if not 0 < threshold <= 1:
        raise RequestError(f"the threshold is {threshold}, it must be above 0 and at most 1")
    kept = [_shingles(text) for text in documents]
    index = _index(kept, threshold)
    best: dict[int, Duplicate] = {}
    for number, text in enumerate(against):
        if not (shingles := _shingles(text)):
            continue
        for key in index.query(_min_hash(shingles)):
            similarity = len(shingles & kept[key]) / len(shingles | kept[key])
            if similarity >= threshold and (key not in best or similarity > best[key].similarity):
                best[key] = Duplicate(key, number, similarity)
    return [best[key] for key in sorted(best)]


def _shingles(text: str) -> frozenset[int]:
    """Hashes of runs of five words; of a shorter text, of all of it."""
    words = _WORD.findall(text.lower())
    runs = range(max(len(words) - _SHINGLE + 1, min(len(words), 1)))
    return frozenset(zlib.crc32(" ".join(words[at : at + _SHINGLE]).encode("utf-8", "replace")) for at in runs)


def _index(kept: Sequence[frozenset[int]], threshold: float) -> Any:
    # below the threshold, and with misses dearer than vain proposals: the exact similarity sorts those out
    index = _datasketch().MinHashLSH(threshold=threshold * 0.85, num_perm=_HASHES, weights=(0.1, 0.9))
    for key, shingles in enumerate(kept):
        if shingles:
            index.insert(key, _min_hash(shingles))
    return index


def _min_hash(shingles: frozenset[int]) -> Any:
    made = _datasketch().MinHash(num_perm=_HASHES, hashfunc=_same)
    made.update_batch(sorted(shingles))
    return made


def _same(value: int) -> int:
    """Shingles are hashes already."""
    return value


def _datasketch() -> Any:
    try:
        import datasketch  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise MachineError("near duplicates need datasketch: `pip install 'tenth[train]'` brings it") from None
    return datasketch
