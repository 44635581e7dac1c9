"""How far a sequence has come: its tokens, what of them is in the cache, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenth.engine.grammar_matcher import Matcher
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler
from tenth.engine.stream import Answer, Stream
from tenth.engine.thinking import Thought

Biases = tuple[Tensor, Tensor]
"""Token ids (int64), each once, and what is added to their logits (float64)."""


def biases_of(request: Request) -> Biases | None:
    """Its `logit_bias` as tensors, which all its sequences share; None where it has none."""
    given = request.logit_bias
    return (torch.tensor(list(given)), torch.tensor(list(given.values()), dtype=torch.float64)) if given else None


@dataclass(slots=True, eq=False)
class Progress:
    """One sequence at work or waiting; the scheduler alone changes `computed` and `pages`.

    `tokens` are the prompt's and those generated, `draft` a guess at the next ones; keys and values of the first
    `computed` are in `pages`. A beam is `parked` while others of its search have yet to come as far.
    """

    stream: Stream
    answer: Answer
    sampler: Sampler
    number: int  # in the order of arrival
    arrived: float
    room: int  # tokens that may be drawn: no more than the context has
    tokens: list[int]
    biases: Biases | None = None
    draft: list[int] = field(default_factory=list)
    thought: Thought | None = None
    matcher: Matcher | None = None  # where it stands in its grammar
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    dropped: int = 0  # tokens behind the first page that a rolling sequence has no keys and values of any more
    turned: bool = True  # whether those of its first page are where the window now begins
    recorded: int = 0  # tokens whose routing was given
    parked: bool = False
    preemptions: int = 0
    awaited: tuple[Progress, int] | None = None  # who computes its beginning, and how many tokens of it

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.stream.request

    @property
    def constrained(self) -> bool:
        """Whether the next token must be one that its grammar allows: not while it thinks."""
        return self.matcher is not None and not (self.thought is not None and self.thought.inside)

    @property
    def pending(self) -> int:
        """Tokens that the network has not seen, or has to see again."""
        return 0 if self.parked else len(self.tokens) + len(self.draft) - self.computed

    @property
    def held(self) -> int:
        """Tokens whose keys and values are in `pages`."""
        return self.computed - self.dropped

    @property
    def generated(self) -> int:
        """Tokens that were drawn, or that the engine put in."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def must_go_on(self) -> bool:
        """Whether the next token must not be an end."""
        return self.generated < self.request.min_tokens and bool(self.request.end_ids)

    @property
    def width(self) -> int:
        """Places in a step that it takes, or will when it is searched on from."""
        forked = self.generated > 0
        return 1 if forked or self.request.beams is None else self.request.beams

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return self.request.priority, self.number

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are still to come: it then has to be computed, in short parts."""
        prompt = self.request.prompt
        wanted = self.request.prompt_logprobs is not None and self.answer is self.stream.answers[0]
        return wanted and len(self.stream.prompt) < len(prompt) - 1
