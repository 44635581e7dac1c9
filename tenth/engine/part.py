"""What one sequence computes in a step, and what all of them have."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.engine.progress import Progress


@dataclass(frozen=True, slots=True)
class Part:
    """The next `count` tokens of a sequence; its pages have room for them.

    Where it `turns`, the first ones again, for the places before its window: keys are turned by their positions.
    """

    progress: Progress
    count: int
    turns: bool = False

    @property
    def draws(self) -> bool:
        """Whether the network has then seen all tokens, so that the next one can be drawn."""
        return self.count == self.progress.pending and not self.turns


@dataclass(slots=True)
class Counts:
    """Since the beginning: tokens that went through the network, those of prompts among them, tokens that could be
    drawn (beams' that came to nothing too), steps, tokens looked for in the prefix cache, those that were found there,
    preemptions.
    """

    computed: int = 0
    prompt: int = 0
    drawn: int = 0
    steps: int = 0
    sought: int = 0
    found: int = 0
    preempted: int = 0
