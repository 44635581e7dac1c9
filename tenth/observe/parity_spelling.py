"""Which of our tokens a server means: by id, by bytes, or by text where one token alone is spelt so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tenth.errors import RequestError
from tenth.weights.tokenizer import Tokenizer

_BY_ID = re.compile(r"token_id:(\d{1,18})")  # vLLM's `return_tokens_as_token_ids`
_HALF = "�"
_LEAST, _ROUNDING = -1e4, 1e-3  # servers write -inf as -9999; sums of rounded numbers may lie above 0


@dataclass(frozen=True, slots=True)
class Token:
    """A token that a server tells of: its id, its text, log-probabilities in its place by id, the likeliest id.

    `id` and `best` are None where it cannot be told which token is meant: parts of characters look alike as text.
    `text` is None where an id was named without one. `logprobs` are empty where none were told.
    """

    id: int | None
    text: str | None
    logprobs: Mapping[int, float]
    best: int | None


class Spelling:
    """From a token as a server names it to its id."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """`vocabulary` is how many ids our model has."""
        self.vocabulary = vocabulary
        self._texts = [
            None if spelt is None else spelt.decode(errors="replace") for spelt in tokenizer.bytes_by_id[:vocabulary]
        ]
        self._by_text: dict[str, int | None] = {}
        self._by_bytes: dict[bytes, int | None] = {}
        for token, (text, spelt) in enumerate(zip(self._texts, tokenizer.bytes_by_id, strict=False)):
            if text is not None and spelt is not None:
                self._by_text[text] = None if text in self._by_text else token
                self._by_bytes[spelt] = None if spelt in self._by_bytes else token

    def text(self, token: int) -> str:
        """As a server would write it; empty for an id that is no token."""
        return (self._texts[token] if token < len(self._texts) else None) or ""

    def by_text(self, text: str) -> int | None:
        """The id; None where several tokens are spelt so, or none is."""
        named = _BY_ID.fullmatch(text)
        return self._by_text.get(text) if named is None else self.checked(int(named[1]))

    def of(self, one: Mapping[str, Any]) -> int | None:
        """The id of an object that may have it, or its bytes, beside its text."""
        if type(one.get("id")) is int:
            return self.checked(one["id"])
        spelt = one.get("bytes")
        if isinstance(spelt, list) and spelt and all(type(byte) is int and 0 <= byte < 256 for byte in spelt):
            return self._by_bytes.get(bytes(spelt))
        return self.by_text(str(one["token"]))

    def checked(self, token: int) -> int:
        """The same id; RequestError where our model has none such."""
        if not 0 <= token < self.vocabulary:
            raise RequestError(
                f"the server names token {token}, the other model's go from 0 to {self.vocabulary - 1}: parity needs "
                "one vocabulary"
            )
        return token

    def differs(self, token: Token) -> bool | None:
        """Whether a token is none of ours, or another one than its id says; None where that cannot be seen."""
        if not token.text or _HALF in token.text or _BY_ID.fullmatch(token.text):
            return None
        if token.id is None:
            return token.text not in self._by_text
        return self.text(token.id).strip() != token.text.strip()  # some servers leave a word's space out


def check_vocabulary(tokens: Iterable[Token], address: str, spelling: Spelling) -> int:
    """How many tokens could be held against ours; RequestError where most of them are none of those."""
    seen = [differs for token in tokens if (differs := spelling.differs(token)) is not None]
    if 2 * sum(seen) > len(seen):
        raise RequestError(f"{address}: most of its tokens are none of the other model's: parity needs one vocabulary")
    return len(seen)


def logprob(value: Any) -> float:
    """A log-probability that can be one: TypeError or ValueError for no number, RequestError for one above 0 or NaN."""
    number = float(value)
    if not number <= _ROUNDING:
        raise RequestError(f"the server tells a log-probability of {number:g}, it must lie at 0 or below")
    return min(max(number, _LEAST), 0.0)
