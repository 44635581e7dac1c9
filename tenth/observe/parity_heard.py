"""What a server tells of a corpus by position: of its windows where it can, else of its own answers to prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tenth.observe.parity_corpus import Corpus
from tenth.observe.parity_server import Generated, Method, Server
from tenth.observe.parity_spelling import Spelling, Token, check_vocabulary

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Told:
    """What the server tells of one position: the token that follows it, and log-probabilities by id.

    `best` is the likeliest id (None: it cannot be told which token that is).
    """

    window: int
    place: int  # the position that predicts
    target: int
    logprobs: Mapping[int, float]
    best: int | None


@dataclass(frozen=True, slots=True)
class Heard:
    """Positions of windows, how they were told (None: nothing was), and what has to be said of that."""

    method: str | None
    windows: list[list[int]]
    told: list[Told]
    notes: list[str]


def hear(
    server: Server,
    corpus: Corpus,
    prompts: Sequence[Sequence[int]],
    generated: Sequence[Generated],
    spelling: Spelling,
    progress: Progress,
) -> Heard:
    """Ask about the corpus; RequestError where the tokens told of are not ours."""
    first = server.of_prompt(corpus.windows[0], spelling)
    tokens = [token for one in generated for token in one.tokens or ()]
    checked = check_vocabulary([*tokens, *(() if first is None else first[1])], server.address, spelling)
    refused = [f"{way} is not used: {said}" for way, said in server.refusals.items() if first is None or said.broken]
    unchecked = "the server spells no tokens: that they are those of the other model could not be checked"
    heard = _of_corpus(server, corpus, first, spelling, progress) if first else _of_answers(prompts, generated)
    notes = [*heard.notes, *_unnamed(heard.told), *refused, *(() if checked else (unchecked,))]
    return Heard(heard.method, heard.windows, heard.told, notes)


def _of_corpus(
    server: Server, corpus: Corpus, first: tuple[Method, list[Token]], spelling: Spelling, progress: Progress
) -> Heard:
    told, silent, why = list[Told](), list[int](), ""
    for number, window in enumerate(corpus.windows):
        found = first if number == 0 else server.of_prompt(window, spelling)
        if found is None:
            silent.append(number)
            why = str(server.refusals.get(first[0], "the server tells nothing of them"))
        for place, token in enumerate(() if found is None else found[1]):
            if token.id is not None and token.id in token.logprobs:
                told.append(Told(number, place, token.id, token.logprobs, token.best))
        progress(number + 1, len(corpus.windows))
    heard = [window for number, window in enumerate(corpus.windows) if number not in silent]
    missing = sum(len(window) - 1 for window in heard) - len(told)
    notes = [_coarse("of prompts")]
    notes += [f"{len(silent)} of {len(corpus.windows)} windows are left out: {why}"] if silent else []
    notes += [f"{missing:,} positions are left out: the server tells nothing of the token there"] if missing else []
    return Heard(first[0], corpus.windows, told, notes)


def _of_answers(prompts: Sequence[Sequence[int]], generated: Sequence[Generated]) -> Heard:
    """Of the tokens of greedy answers, up to the first that cannot be told: what follows would be of another prompt."""
    windows, told, tokens = list[list[int]](), list[Told](), 0
    for number, (prompt, answer) in enumerate(zip(prompts, generated, strict=True)):
        ids = list(prompt)
        for token in answer.tokens or ():
            if token.id is None or token.id not in token.logprobs:
                break
            told.append(Told(number, len(ids) - 1, token.id, token.logprobs, token.best))
            ids.append(token.id)
        windows.append(ids)
        tokens += len(answer.tokens or ())
    if not tokens:
        return Heard(None, windows, told, ["the server tells no log-probabilities: divergence could not be measured"])
    notes = [
        _coarse("of its own answers alone, on which both are compared"),
        "perplexity on the corpus cannot be measured at this server",
    ]
    if left := tokens - len(told):
        notes.append(
            f"{left} of {tokens} tokens of answers are left out: from the first on that cannot be told from others, "
            "or of which nothing is told"
        )
    return Heard("generated", windows, told, notes)


def _coarse(known: str) -> str:
    return (
        f"the server tells log-probabilities {known}, of a few tokens each: KL takes all others as one, so that it is "
        "at most the true one"
    )


def _unnamed(told: Sequence[Told]) -> list[str]:
    left = sum(one.best is None for one in told)
    if not left:
        return []
    return [
        f"{left:,} of {len(told):,} positions are left out of the same likeliest token: by text the server's likeliest "
        "one cannot be told from others, as of half characters"
    ]
