"""Log-probabilities as `/v1/completions` has them: lists, an entry for each token, with its place in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenth.engine.sampler import Drawn
from tenth.weights.tokenizer import Tokenizer

Json = dict[str, Any]


class LegacyLogprobs:
    """Of one answer, piece by piece; `ahead` are the characters that its first tokens have more than its text.

    An echoed prompt is shown as it was sent, without what the tokenizer puts in front.
    """

    def __init__(self, tokenizer: Tokenizer, ahead: int = 0) -> None:
        self._tokenizer, self._place = tokenizer, -ahead

    def take(self, drawn: Sequence[Drawn]) -> Json:
        """The next tokens; `text_offset` counts characters, of a token inside of one the place of that one.

        Of likeliest tokens with the same text the better one stands in `top_logprobs`, an object by texts. A token
        without a log-probability, the first of a prompt, has null in both.
        """
        return {
            "tokens": [self._text(one.token) for one in drawn],
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [None if one.logprob is None else self._top(one) for one in drawn],
            "text_offset": [self._offset(one.token) for one in drawn],
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def _top(self, drawn: Drawn) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in drawn.top:  # the best ones first
            found.setdefault(self._text(token), logprob)
        return found

    def _offset(self, token: int) -> int:
        spelt = self._tokenizer.token_bytes(token)
        inside = spelt[:1] != b"" and 0x80 <= spelt[0] < 0xC0
        place = self._place - inside
        self._place += characters(spelt)
        return max(place, 0)


def characters(spelt: bytes) -> int:
    """Characters that begin in these bytes of UTF-8."""
    return sum(not 0x80 <= byte < 0xC0 for byte in spelt)
