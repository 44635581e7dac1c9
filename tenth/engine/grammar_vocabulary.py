"""What each token id spells, for grammars: the engine itself knows ids only.

V vocabulary; W words of 32 bits, one bit a token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property

import llguidance
import numpy as np
import numpy.typing as npt

from tenth.errors import RequestError

Words = npt.NDArray[np.int32]


class Vocabulary:
    """The bytes of every token id, None where an id is no token; ids up to `size` (V) that are not listed are none.

    `special` are the tokens that no text spells, which a grammar allows only where it names them. `encode` gives the
    ids of a text as the model was trained on them.
    """

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        special: Collection[int],
        size: int,
        encode: Callable[[str], list[int]],
    ) -> None:
        self.size = size
        self.encode = encode
        self._tokens = [*tokens[:size], *[None] * (size - len(tokens))]
        self._special = frozenset(special)

    @cached_property
    def library(self) -> llguidance.LLTokenizer:
        """The vocabulary as llguidance sees it, with V for its end token, which is none; 150,000 take half a second."""
        return llguidance.LLTokenizer(_Tokens(self._tokens, self._special, self.encode))  # type: ignore[arg-type]

    @cached_property
    def special_names(self) -> list[str]:
        """How a grammar names the special tokens."""
        named = (self._tokens[token] for token in sorted(self._special) if token < self.size)
        return [spelled.decode(errors="replace") for spelled in named if spelled]

    @cached_property
    def known_W(self) -> Words:
        """The ids that are tokens."""
        return words(self.size, (token for token, spelled in enumerate(self._tokens) if spelled))

    def words_of(self, tokens: Collection[int]) -> Words:
        """These ids as a mask; RequestError for one outside the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise RequestError(f"token id {token} is outside the vocabulary, 0 to {self.size - 1}")
        return words(self.size, tokens)


def words(size: int, tokens: Iterable[int]) -> Words:
    """A mask (W) with the bits of these ids, the lowest first, as the sampler takes it."""
    bits = np.zeros(-(-size // 32) * 32, dtype=np.bool_)
    bits[np.fromiter(tokens, np.int64)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    eos_token_id = None  # then it adds one behind the others: end tokens are a request's own
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes | None], special: Iterable[int], encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens = [spelled or b"" for spelled in tokens]
        self.special_token_ids = sorted(token for token in special if token < len(tokens))
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
