"""Which tokens a sequence has seen: what penalties go by.

S tokens, each once: those of the prompt, in its order, then others as they came.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class PromptTokens:
    """The tokens of a prompt, each once, with their places; the samplers of several answers share it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        # numpy: torch takes 10 microseconds to write a number, which is every token of every request
        self.ids = np.array([*self.places, *[0] * 64], dtype=np.int32)


class SeenTokens:
    """The tokens of a sequence, each once, and how often each was generated."""

    def __init__(self, prompt: PromptTokens) -> None:
        self._prompt, self._places = prompt, dict[int, int]()  # of tokens that the prompt has not
        self._ids, self._counts = prompt.ids.copy(), np.zeros(len(prompt.ids), dtype=np.float32)

    @property
    def _length(self) -> int:
        return len(self._prompt.places) + len(self._places)

    @property
    def ids_S(self) -> Tensor:
        """Which (S), int32."""
        return torch.from_numpy(self._ids[: self._length])

    @property
    def counts_S(self) -> Tensor:
        """How often each was generated (S), float32."""
        return torch.from_numpy(self._counts[: self._length])

    def add(self, token: int) -> None:
        """One more was generated."""
        place = self._prompt.places.get(token)
        if place is None:
            place = self._places.setdefault(token, self._length)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
