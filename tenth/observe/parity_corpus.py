"""What two models are compared on: windows of tokens, beginnings of documents, questions with answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tenth.data.readers import TextSource, is_json_lines, read_file, read_records, source_files
from tenth.data.token_file import TokenFile, is_token_file
from tenth.errors import FileFormatError, RequestError, TemplateError
from tenth.weights.template import ChatTemplate
from tenth.weights.tokenizer import Tokenizer

Ids = list[int]


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


class TextIds:
    """Texts and chats to token ids, as the model's own tokenizer and template make them."""

    def __init__(self, tokenizer: Tokenizer | None, name: str) -> None:
        self.tokenizer, self._name = tokenizer, name
        source = None if tokenizer is None else tokenizer.chat_template
        variables = {} if tokenizer is None else tokenizer.special_tokens
        self._template = None if not source else ChatTemplate(source, variables=variables)

    def text(self, text: str) -> Ids:
        """The ids of a text, with what the tokenizer puts in front."""
        if self.tokenizer is None:
            raise RequestError(f"{self._name}: has no tokenizer; a corpus for it is a token file (`tenth tokenize`)")
        return self.tokenizer.encode(text, begin=True)

    def chat(self, messages: object, *, answer: bool) -> Ids:
        """The ids of a chat; with `answer` up to where the model's answer begins."""
        if self.tokenizer is None or self._template is None:
            raise TemplateError(f"{self._name}: has no chat template; give texts instead of messages")
        return self._template.encode(self.tokenizer, cast(list[Any], messages), add_generation_prompt=answer)


def read_corpus(
    paths: Sequence[str], ids_of: TextIds, *, vocabulary: int, tokens: int, context: int, prompt: int = 64
) -> Corpus:
    """The first `tokens` tokens of files, folders or patterns, in windows of up to `context` tokens.

    A text file or a line of JSON is a document (`text`, or a chat as `messages`); so is one of a token file. Windows of
    one token, which predict nothing, are left out. RequestError where no window is left.
    """
    if tokens < 2 or context < 2:
        raise RequestError(f"{tokens} tokens in windows of {context}: a window needs at least 2")
    files = tuple(str(path) for path in _files(paths))
    windows, prompts, others = list[Ids](), list[Ids](), list[Ids]()
    left, seen = tokens, 0
    for where, ids in _documents(paths, ids_of, vocabulary):
        seen += len(ids)
        pieces = [ids[at : min(at + context, left)] for at in range(0, min(len(ids), left), context)]
        pieces = [piece for piece in pieces if len(piece) > 1]
        if any(not 0 <= token < vocabulary for piece in pieces for token in piece):
            raise RequestError(f"{where}: has a token that the vocabulary of {vocabulary} does not have")
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
    return Corpus(files, windows, prompts + others, len(prompts))


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in paths:
        yield from source_files(TextSource(path))


def _documents(paths: Sequence[str], ids_of: TextIds, vocabulary: int) -> Iterator[tuple[str, Ids]]:
    for path in _files(paths):
        if is_token_file(path):
            file = TokenFile(path)
            fingerprint = None if ids_of.tokenizer is None else ids_of.tokenizer.fingerprint
            file.check_made_for(max(vocabulary, file.vocab_size), fingerprint)  # each id is checked where it is used
            yield from ((f"{path}: document {n}", file.document(n).tolist()) for n in range(file.documents))
        elif is_json_lines(path):
            yield from ((where, _line(record, ids_of, where)) for record, where, _ in read_records(path))
        else:
            yield from ((one.where, ids_of.text(one.text)) for one in read_file(path, TextSource(str(path))))


def _line(record: dict[str, object], ids_of: TextIds, where: str, *, answer: bool = False, text: str = "text") -> Ids:
    if "messages" in record:
        try:
            return ids_of.chat(record["messages"], answer=answer)
        except RequestError as error:
            raise FileFormatError(f"{where}: {error}") from None
    found = record.get(text)
    if not isinstance(found, str):
        keys = ", ".join(list(record)[:10]) or "none"
        raise FileFormatError(f"{where}: needs a text {text!r} or a list 'messages'; its keys are: {keys}")
    return ids_of.text(found)


def read_questions(path: Path, ids_of: TextIds) -> list[Question]:
    """The questions of a file of JSON lines: `prompt` or `messages`, and `expected` (a text) or `expected_regex`.

    FileFormatError that names the line for anything else; RequestError where there are none.
    """
    found = []
    for record, where, _ in read_records(path):
        ids = _line(record, ids_of, where, answer=True, text="prompt")
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
