"""What two models are compared on: windows of tokens, beginnings of documents, questions with answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenth.data.readers import read_records
from tenth.errors import FileFormatError, RequestError
from tenth.observe.corpora import Ids, TextIds, WatchedText, check_ids


@dataclass(frozen=True, slots=True)
class Corpus:
    """`windows` of token ids, each of one document; `prompts` for greedy answers: beginnings of documents, then of
    their other windows.
    """

    files: tuple[str, ...]
    windows: list[Ids]
    prompts: list[Ids]
    documents: int

    @property
    def tokens(self) -> int:
        """Of all windows."""
        return sum(map(len, self.windows))


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and what its answer must be: an exact text, or a regular expression that is found in it."""

    where: str
    ids: tuple[int, ...]
    passes: Callable[[str], bool]


def read_corpus(
    paths: Sequence[str], ids_of: TextIds, *, vocabulary: int, tokens: int, context: int, prompt: int = 64
) -> Corpus:
    """The first `tokens` tokens of files, folders or patterns, in windows of up to `context` tokens.

    A text file or a line of JSON is a document (`text`, or a chat as `messages`); so is one of a token file. Windows of
    one token, which predict nothing, are left out. RequestError where no window is left.
    """
    if tokens < 2 or context < 2:
        raise RequestError(f"{tokens} tokens in windows of {context}: a window needs at least 2")
    text = WatchedText(paths)
    windows, prompts, others = list[Ids](), list[Ids](), list[Ids]()
    left, seen = tokens, 0
    for document in text.documents(ids_of, vocabulary):
        ids = document.ids()
        check_ids(ids, vocabulary, document.where)
        seen += len(ids)
        pieces = [ids[at : min(at + context, left)] for at in range(0, min(len(ids), left), context)]
        pieces = [piece for piece in pieces if len(piece) > 1]
        begins = [piece[: min(prompt, max(len(piece) // 2, 1))] for piece in pieces]
        prompts += begins[:1]
        others += begins[1:]
        windows += pieces
        left -= sum(map(len, pieces))
        if left < 2:
            break
    if not windows:
        found = "is empty" if not seen else f"has {seen} token{'s' if seen > 1 else ''} and no two in one document"
        raise RequestError(f"{', '.join(paths)}: {found}: there is nothing to predict")
    return Corpus(tuple(str(path) for path, _ in text.files), windows, prompts + others, len(prompts))


def read_questions(path: Path, ids_of: TextIds) -> list[Question]:
    """The questions of a file of JSON lines: `prompt` or `messages`, and `expected` (a text) or `expected_regex`.

    FileFormatError that names the line for anything else; RequestError where there are none.
    """
    found = []
    for record, where, _ in read_records(path):
        ids = ids_of.line(record, where, answer=True, text="prompt")
        if not ids:
            raise FileFormatError(f"{where}: its prompt is empty")
        found.append(Question(where, tuple(ids), _judge(record, where)))
    if not found:
        raise RequestError(f"{path}: has no questions")
    return found


def _judge(record: dict[str, object], where: str) -> Callable[[str], bool]:
    keys = [key for key in ("expected", "expected_regex") if key in record]
    value = record[keys[0]] if len(keys) == 1 else None
    if not isinstance(value, str):
        raise FileFormatError(f"{where}: needs one text, 'expected' (exact) or 'expected_regex' (found in the answer)")
    if keys == ["expected"]:
        return lambda answer: answer.strip() == value.strip()
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise FileFormatError(f"{where}: expected_regex is no regular expression: {error}") from None
    return lambda answer: pattern.search(answer) is not None
