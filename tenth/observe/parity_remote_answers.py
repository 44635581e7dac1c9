"""Answers of a server beside those of the model that lies here: greedy ones token by token, questions by their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from tenth.errors import MachineError
from tenth.observe.parity import Report, VerifyOptions
from tenth.observe.parity_corpus import Question
from tenth.observe.parity_greedy import Agreement, Answers, answers_of, pass_rate
from tenth.observe.parity_server import Generated, Server
from tenth.observe.parity_sides import Side
from tenth.observe.parity_spelling import Spelling, Token

Progress = Callable[[int, int], None]


def completed(
    server: Server, prompts: Sequence[Sequence[int]], tokens: int, spelling: Spelling, progress: Progress
) -> list[Generated]:
    """The server's greedy answers."""
    found = []
    for number, prompt in enumerate(prompts, 1):
        found.append(server.complete(prompt, tokens, spelling))
        progress(number, len(prompts))
    return found


def compare_answers(
    found: Report,
    side: Side,
    server: Server,
    prompts: Sequence[list[int]],
    generated: Sequence[Generated],
    options: VerifyOptions,
    questions: Sequence[Question],
    spelling: Spelling,
    report: Callable[[str], Progress],
    server_is_b: bool,
) -> None:
    """Fill in agreement and pass rates; what cannot be measured is noted."""
    if not prompts and not questions:
        return
    answers = answers_of(side, prompts, options.greedy_tokens, questions, options.answer_tokens, report)
    if isinstance(answers, MachineError):
        found["notes"].append(f"no answers were generated: {side.name}: {answers}")
        return
    if prompts:
        agreement, notes = _agreement(side, answers[0], generated, spelling)
        found["greedy"] = None if agreement is None else agreement.facts(options.greedy_tokens)
        found["notes"] += notes
    if questions:
        asked = completed(
            server, [question.ids for question in questions], options.answer_tokens, spelling, report("questions")
        )
        own = pass_rate(side, questions, answers[1])
        other = sum(q.passes(one.text) for q, one in zip(questions, asked, strict=True)) / len(questions)
        a, b = (own, other) if server_is_b else (other, own)
        found["questions"] = {"count": len(questions), "a": a, "b": b, "drop": a - b}


def _agreement(
    side: Side, answers: Answers, generated: Sequence[Generated], spelling: Spelling
) -> tuple[Agreement | None, list[str]]:
    """Over the answers whose tokens the server tells; the notes say what is left out."""
    ends = {spelling.text(token) for token in side.end_ids}
    pairs, unknown, silent = [], 0, 0
    for ours, answer in zip(answers, generated, strict=True):
        if answer.tokens is None:
            silent += 1
            continue
        own = [token for token in ours if token not in side.end_ids]
        theirs = [t for t in answer.tokens if not (t.text in ends if t.id is None else t.id in side.end_ids)]
        one, other, left = told_apart(own, theirs, spelling)
        unknown += left
        if one or other or not left:
            pairs.append((one, other))
    notes = []
    if silent:
        notes.append(
            f"the server does not tell the tokens of {silent} of {len(generated)} greedy answers: no agreement"
        )
    if unknown:
        notes.append(
            f"{unknown} tokens of greedy answers are left out: by text they cannot be told from others, as half "
            "characters"
        )
    return (Agreement.of(*zip(*pairs, strict=True)) if pairs else None), notes


def told_apart(
    ours: Sequence[int], theirs: Sequence[Token], spelling: Spelling
) -> tuple[list[int], list[int | str | None], int]:
    """Both answers without tokens, up to the first difference, that may be the same or not; and how many those were."""
    one, other, left, same = list[int](), list[int | str | None](), 0, True
    for own, token in zip_longest(ours, theirs):
        if same and own is not None and token is not None and token.id is None and token.text == spelling.text(own):
            left += 1
            continue
        one += [] if own is None else [own]
        other += [] if token is None else [token.text if token.id is None else token.id]
        same = same and token is not None and own == token.id
    return one, other, left
