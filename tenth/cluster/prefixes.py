"""Which beginnings of prompts a replica has seen, and so probably has in its prefix cache.

A text is cut into blocks; the digest of a block is that of all text up to its end, so a digest that is known stands for
a whole beginning. This is a guess at what the replica holds: its cache knows tokens and evicts by itself. Wrong guesses
cost time and change no answer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 128
"""Bytes of text: some 30 tokens, two pages of a cache."""
_LONGEST = 256 << 10  # bytes of a text that are looked at


def digests(text: bytes, tenant: str) -> list[bytes]:
    """Of each whole block's end; caches keep tenants apart, and so do these."""
    hashed = hashlib.blake2b(tenant.encode(), digest_size=8)
    found = []
    for start in range(0, min(len(text), _LONGEST) // BLOCK * BLOCK, BLOCK):
        hashed.update(text[start : start + BLOCK])
        found.append(hashed.digest())
    return found


class SeenPrefixes:
    """Digests of one replica, at most so many: those unused for longest go first."""

    def __init__(self, most: int) -> None:
        self.most, self._seen = most, OrderedDict[bytes, None]()

    def __len__(self) -> int:
        return len(self._seen)

    def matched(self, found: Sequence[bytes]) -> int:
        """Bytes of the text that it has seen, from the beginning on."""
        blocks = next((number for number, digest in enumerate(found) if digest not in self._seen), len(found))
        return BLOCK * blocks

    def add(self, found: Sequence[bytes]) -> None:
        """The replica is given this text. Ends go before beginnings, without which they are worth nothing."""
        for digest in reversed(found):
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > self.most:
            self._seen.popitem(last=False)
