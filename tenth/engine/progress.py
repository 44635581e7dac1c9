"""How far a sequence has come: its tokens, what of them is in the cache, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenth.engine.grammar_matcher import Matcher
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler
from tenth.engine.stream import Answer, Stream
from tenth.engine.thinking import Thought


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
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return self.request.priority, self.number

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are still to come: it then has to be computed, in short parts."""
        prompt = self.request.prompt
        wanted = self.request.prompt_logprobs is not None and self.answer is self.stream.answers[0]
        return wanted and len(self.stream.prompt) < len(prompt) - 1
