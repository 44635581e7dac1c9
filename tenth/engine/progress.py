"""How far a request has come: its tokens, what of them is in the cache, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenth.engine.request import Request
from tenth.engine.sampler import Sampler

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(slots=True, eq=False)
class Progress:
    """One request at work or waiting; the scheduler alone changes `computed` and `pages`.

    `tokens` are the prompt's and those generated; keys and values of the first `computed` are in `pages`.
    """

    request: Request
    sampler: Sampler
    number: int  # in the order of arrival
    arrived: float
    room: int  # tokens that may be drawn: no more than the context has
    tokens: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    recorded: int = 0  # tokens whose routing was given, or was computed for another sequence
    cancelled: bool = False
    preemptions: int = 0

    @property
    def pending(self) -> int:
        """Tokens that the network has not seen, or has to see again."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens that were drawn."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return self.request.priority, self.number
