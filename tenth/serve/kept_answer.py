"""What the response cache keeps of an answer: its events, which become any API's form again, and its usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from tenth import __version__
from tenth.api.answer_body import Usage
from tenth.api.answer_events import Event, Finish, Logprobs, ReasoningText, Said
from tenth.api.bodies import Asked
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.engine.sampler import Drawn
from tenth.serve.privacy import Privacy
from tenth.serve.response_cache import Entry, Question

_KINDS = {
    kind.__name__: kind for kind in (ReasoningText, ContentText, CallBegin, ArgumentsText, CallEnd, Logprobs, Finish)
}
_JOINED = (ReasoningText, ContentText)
_WHOLE = ("stop", "length", "tool_calls")


def question_of(asked: Sequence[Asked], model: str, privacy: Privacy, tenant: str) -> Question:
    """All that these answers' events depend on; `model` stands for the weights and how they are computed."""
    form = {
        "version": __version__,
        "privacy": [privacy.mode, privacy.names],
        "asked": [
            {
                "kind": one.kind,
                "stops": list(one.stops),
                "reasoning": one.reasoning or one.request.thinking is None,  # all the same where there is none
                "shown": one.shown,
                "tools": [one.tools.form, one.tools.most, [asdict(tool) for tool in one.tools.callable]],
            }
            for one in asked
        ],
    }
    return Question(model, tuple(one.request for one in asked), form, tenant)


class Told:
    """Gathers what an answer's clients are told. Texts of one answer that follow each other are one."""

    def __init__(self, answers: int) -> None:
        self._events: list[list[Event]] = [[] for _ in range(answers)]

    def take(self, found: Sequence[Said]) -> None:
        """Add what has come."""
        for said in found:
            events, event = self._events[said.choice], said.event
            last = events[-1] if events else None
            if isinstance(event, _JOINED) and isinstance(last, _JOINED) and type(event) is type(last):
                events[-1] = type(event)(last.text + event.text)
            else:
                events.append(event)

    def entry(self, usage: Usage) -> Entry | None:
        """To be kept; None where an answer was not brought to its own end."""
        ends = [events[-1] if events else None for events in self._events]
        if not all(isinstance(end, Finish) and end.reason in _WHOLE for end in ends):
            return None
        written = [[choice, *_written(event)] for choice, events in enumerate(self._events) for event in events]
        return Entry(written, asdict(usage))


def told_again(entry: Entry) -> tuple[list[Said], Usage]:
    """The events, one answer behind the other, and the usage, of whose prompt nothing was computed."""
    prompt, completion, reasoning = (entry.usage[name] for name in ("prompt", "completion", "reasoning"))
    kept = Usage(prompt, completion, prompt, reasoning, kept=True)
    return [Said(choice, _read(name, values)) for choice, name, *values in entry.events], kept


def _written(event: Event) -> list[Any]:
    if isinstance(event, Logprobs):
        return ["Logprobs", [[one.token, one.logprob, [list(pair) for pair in one.top]] for one in event.drawn]]
    return [type(event).__name__, *(getattr(event, one.name) for one in fields(event))]


def _read(name: str, values: list[Any]) -> Event:
    if name == "Logprobs":
        drawn = (Drawn(token, logprob, [(t, p) for t, p in top]) for token, logprob, top in values[0])
        return Logprobs(tuple(drawn))
    event: Event = _KINDS[name](*values)
    return event
