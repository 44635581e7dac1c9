"""A review: an answer that a person is to look at, why, and what was decided of it."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Json = dict[str, Any]
State = Literal["waiting", "approved", "corrected", "rejected"]
STATES: tuple[State, ...] = get_args(State)
Decision = Literal["approve", "correct", "reject"]
DECIDED: dict[Decision, State] = {"approve": "approved", "correct": "corrected", "reject": "rejected"}

MOST_BYTES = 1 << 20
"""A review as it is stored."""
MOST_REASONS = 16


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an answer was flagged."""

    kind: Literal["rule", "confidence", "person"]
    text: str


def new_id() -> str:
    """Ids sort by the time at which they were made, to the microsecond of the machine's clock."""
    return f"rev_{time.time_ns() // 1000:014x}{secrets.token_hex(5)}"


@dataclass(frozen=True, slots=True)
class Review:
    """An answer with what it answers. `key` is the name of the key that asked, `owner` what that key finds it by.

    `confidence` is the geometric mean of the probabilities of the answer's tokens, None where they were not looked at.
    `created` and `decided` are seconds since 1970; every change makes `version` larger.
    """

    key: str
    owner: str
    model: str
    messages: list[Json]
    answer: str
    reasons: tuple[Reason, ...]
    reasoning: str | None = None
    tools: list[Json] = field(default_factory=list)
    tool_calls: list[Json] = field(default_factory=list)
    confidence: float | None = None
    note: str | None = None
    correction: str | None = None
    state: State = "waiting"
    version: int = 1
    decided: float | None = None
    decided_by: str | None = None
    id: str = field(default_factory=new_id)
    created: float = field(default_factory=lambda: round(time.time(), 3))

    @property
    def digest(self) -> str:
        """Equal for the same answer to the same messages of one caller, whoever flags it."""
        calls = [call.get("function") for call in self.tool_calls]  # whose ids are drawn
        same = [self.owner, self.key, self.messages, self.answer, calls]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def flagged_too(self, other: Review) -> Review:
        """With the reasons of another flag of the same answer; itself where there is nothing new."""
        new = [reason for reason in other.reasons if reason not in self.reasons]
        reasons = (*self.reasons, *new)[:MOST_REASONS]
        if len(reasons) == len(self.reasons):
            return self
        confidence = other.confidence if self.confidence is None else self.confidence
        note = other.note if self.note is None else self.note
        return replace(self, reasons=reasons, confidence=confidence, note=note, version=self.version + 1)

    def packed(self) -> str:
        """As it is stored: ASCII, whatever characters its texts have."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def unpacked(cls, text: str) -> Review:
        """What was packed."""
        fields = json.loads(text)
        return cls(**{**fields, "reasons": tuple(Reason(**one) for one in fields["reasons"])})

    def shown(self) -> Json:
        """As the API tells it: all but whose it is to find."""
        fields = asdict(self)
        del fields["owner"]
        return {**fields, "reasons": [asdict(reason) for reason in self.reasons]}

    def example(self) -> Json:
        """The chat to learn from: the messages, and the answer that was approved or put in its place.

        A thought that led to an answer which had to be corrected is left out.
        """
        said: Json = {"role": "assistant", "content": self.answer}
        if self.state == "corrected":
            said["content"] = self.correction
        else:
            said |= {"reasoning_content": self.reasoning} if self.reasoning else {}
            said |= {"tool_calls": self.tool_calls} if self.tool_calls else {}
        tools = {"tools": self.tools} if self.tools else {}
        return {"messages": [*self.messages, said], **tools, "review": self.id}


_KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def kept_messages(messages: Sequence[Json]) -> list[Json]:
    """Of normal messages (`tenth.weights.template_messages`) what templates read."""
    return [{name: message[name] for name in _KEPT if message.get(name) is not None} for message in messages]
