"""Forced tokens as drafts: no token changes, and steps are saved where a schema says what comes."""

from __future__ import annotations

import json

from tenth.engine.draft import Draft, PromptLookup
from tenth.engine.draft_forced import with_forced
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.grammar import Grammar
from tenth.engine.progress import Progress
from tenth.engine.sampler import Sampler
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.scripted import ScriptedModel, replay, thinking
from tenth.engine.stream import Answer, Stream
from tenth.engine.thinking import Thinking, Thought
from tests.engine.grammar_text import END, QWEN, qwen_compiler
from tests.engine.test_constrained import ask, ids, text
from tests.engine.test_speculation import Clock, served

SCHEMA = Grammar.json_schema(
    {
        "type": "object",
        "properties": {
            "departure_airport_code": {"type": "string", "pattern": "^[A-Z]{3}$"},
            "arrival_airport_code": {"type": "string", "pattern": "^[A-Z]{3}$"},
            "number_of_passengers": {"type": "integer", "minimum": 1, "maximum": 9},
            "requires_wheelchair_assistance": {"type": "boolean"},
        },
        "required": [
            "departure_airport_code",
            "arrival_airport_code",
            "number_of_passengers",
            "requires_wheelchair_assistance",
        ],
        "additionalProperties": False,
    }
)
SAID = json.dumps(
    {
        "departure_airport_code": "OSL",
        "arrival_airport_code": "LIM",
        "number_of_passengers": 2,
        "requires_wheelchair_assistance": False,
    }
)


def progress_at(said: str, thought: Thought | None = None) -> Progress:
    """A sequence that has said this much."""
    request = ask("?", grammar=SCHEMA)
    answer, sampler = Answer(0), Sampler(request.sampling, request.prompt, QWEN)
    progress = Progress(Stream(request, [answer]), answer, sampler, 0, 0.0, 60, list(request.prompt))
    progress.matcher, progress.thought = qwen_compiler().start(SCHEMA, {END}), thought
    for token in ids(said):
        progress.matcher.take(token)
    return progress


def test_drafts_are_what_the_tokenizer_would_write() -> None:
    start = '{"departure_airport_code": "OSL", "'
    none, other = Draft([], [], "lookup"), Draft(ids("hello there"), [0.9, 0.9], "lookup")
    whole, said = ids(start + 'arrival_airport_code": "LIM"'), ids(start)
    assert whole[: len(said)] == said
    found = with_forced(progress_at(start), other, 8)
    assert found.proposer == "grammar"
    assert len(found.tokens) >= 3
    assert whole[len(said) :][: len(found.tokens)] == found.tokens
    assert found.chances == [1.0] * len(found.tokens)
    assert with_forced(progress_at(start), none, 2).tokens == found.tokens[:2]
    longer = Draft([*found.tokens, 7], [0.5] * (len(found.tokens) + 1), "lookup")
    assert with_forced(progress_at(start), longer, 8) is longer
    assert with_forced(progress_at('{"departure_airport_code": "'), other, 8) is other
    begun = Thought(Thinking(1, 2, begun=True))
    assert with_forced(progress_at(start, begun), other, 8) is other


def test_no_token_changes_and_steps_are_saved() -> None:
    """A model that says the document, one that thinks first, and one that wants something else all the time."""
    opened, closed = (qwen_token(tag) for tag in ("<think>", "</think>"))
    scripts = [
        replay(ids("1?"), ids(SAID)),
        thinking(ids("2?"), [opened, *ids("Where to?")], ids(SAID), closed),
        replay(ids("3?"), ids("I would rather not say.")),
    ]
    requests = [
        ask("1?", grammar=SCHEMA),
        ask("2?", most=80, grammar=SCHEMA, thinking=Thinking(opened, closed)),
        ask("3?", grammar=SCHEMA),
    ]
    options = EngineOptions(200, 4, SchedulerOptions(wait=0))
    model = ScriptedModel(QWEN, scripts, END)
    for request in requests:
        plain, steps = served(Engine(model, options, grammars=qwen_compiler()), Clock(), [request])
        clock = Clock()
        engine = Engine(model, options, clock, proposer=lambda _: PromptLookup(4, 4), grammars=qwen_compiler())
        drafted, fewer = served(engine, clock, [request])
        assert drafted[0].answers[0].tokens == plain[0].answers[0].tokens
        assert fewer < 0.8 * steps if request is requests[0] else fewer <= steps
    assert text(plain[0].answers[0]) != SAID


def qwen_token(tag: str) -> int:
    from tests.weights.vocabularies import qwen

    token = qwen().token_id(tag)
    assert token is not None
    return token
