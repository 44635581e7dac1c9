"""The answers of a request as its client is shown them, for rules to look at once they have ended."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenth.api.answer_events import Event, Finish, Logprobs, Whole
from tenth.api.bodies import Asked
from tenth.engine.sampler import Drawn
from tenth.errors import TenthError
from tenth.serve.review import Json, Reason, Review, kept_messages
from tenth.serve.review_rules import Rules, Seen, mean_of
from tenth.weights.template_messages import normal_messages, normal_tools

_WHOLE = ("stop", "length", "tool_calls", "content_filter")  # others have not come to an end of their own


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that has ended. `asked` and `body` are its request, masked if that is asked for; `key` who asked."""

    asked: Asked
    body: Mapping[str, Any]
    model: str
    key: str
    owner: str
    whole: Whole
    logprobs: Sequence[float]
    finds: Mapping[str, int]

    def judged(self, rules: Rules) -> Review | None:
        """What there is to review, if any rule flags it. Takes its time: not for the event loop."""
        assert self.whole.finish is not None
        messages, calls = self._messages(), self.whole.tool_calls
        answer = self.whole.content or ""
        arguments = [call["function"]["arguments"] for call in calls]
        seen = Seen(
            _new_text(messages), "\n".join([answer, *arguments]), self.whole.finish.reason, self.logprobs, self.finds
        )
        reasons = rules.reasons(seen)
        return self._review(reasons, messages, answer, calls) if reasons else None

    def _review(self, reasons: tuple[Reason, ...], messages: list[Json], answer: str, calls: list[Json]) -> Review:
        mean = mean_of(self.logprobs)
        return Review(
            key=self.key,
            owner=self.owner,
            model=self.model,
            messages=messages,
            answer=answer,
            reasons=reasons,
            reasoning=self.whole.reasoning or None,
            tools=normal_tools(self.body.get("tools")) or [],
            tool_calls=calls,
            confidence=None if mean is None else math.exp(mean),
        )

    def _messages(self) -> list[Json]:
        """Those of a chat; a text that was gone on with is what a user said."""
        if self.asked.kind == "chat.completion" and "messages" in self.body:
            try:
                return kept_messages(normal_messages(self.body["messages"]))
            except TenthError:  # never, since the template took them
                pass
        prompt = self.asked.model.tokenizer.decode(self.asked.request.prompt, skip_specials=False)
        return [{"role": "user", "content": prompt}]


def _new_text(messages: Sequence[Json]) -> str:
    """What users and tools have said since the answer before."""
    said = list[str]()
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        if message["role"] not in ("system", "developer"):
            said.append(message.get("content") or "")
    return "\n".join(reversed(said))


class Watch:
    """Gathers the answers of one request and gives each to `offer` when it has ended."""

    def __init__(
        self,
        asked: Sequence[Asked],
        body: Mapping[str, Any],
        model: str,
        caller: tuple[str, str],
        offer: Callable[[Ended], object],
    ) -> None:
        """`caller` is the name of the key, and what it finds its own reviews by."""
        self._asked = [one for one in asked for _ in range(one.request.n)]
        self._body, self._model, self._caller, self._offer = body, model, caller, offer
        self._wholes = [Whole() for _ in self._asked]
        self._logprobs = [array("d") for _ in self._asked]

    def drawn(self, choice: int, drawn: Sequence[Drawn]) -> None:
        """Tokens that an answer has got; those without a log-probability were put in, not drawn."""
        self._logprobs[choice].extend(math.nan if one.logprob is None else one.logprob for one in drawn)

    def told(self, choice: int, events: Sequence[Event], thought: int, finds: Mapping[str, int]) -> None:
        """What its client is shown; `thought` of its tokens are thinking, which is no part of its confidence."""
        whole = self._wholes[choice]
        for event in events:
            if not isinstance(event, Logprobs):
                whole.take(event)
            if isinstance(event, Finish) and event.reason in _WHOLE:
                self._end(choice, thought, finds)

    def _end(self, choice: int, thought: int, finds: Mapping[str, int]) -> None:
        logprobs = [one for one in self._logprobs[choice][thought:] if not math.isnan(one)]
        name, owner = self._caller
        ended = Ended(
            self._asked[choice], self._body, self._model, name, owner, self._wholes[choice], logprobs, dict(finds)
        )
        self._offer(ended)
