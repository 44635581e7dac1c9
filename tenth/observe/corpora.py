"""Text that a model is watched on: texts and chats of files, by named domains, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from tenth.data.readers import TextSource, is_json_lines, read_file, read_records, source_files
from tenth.data.token_file import TokenFile, is_token_file
from tenth.errors import FileFormatError, RequestError, TemplateError
from tenth.weights.template import ChatTemplate
from tenth.weights.template_messages import Json
from tenth.weights.tokenizer import Tokenizer

Ids = list[int]
Progress = Callable[[int, int], None]


class TextIds:
    """Texts and chats to token ids, as a model's own tokenizer and template make them."""

    def __init__(self, tokenizer: Tokenizer | None, name: str) -> None:
        self.tokenizer, self._name = tokenizer, name
        source = None if tokenizer is None else tokenizer.chat_template
        variables = {} if tokenizer is None else tokenizer.special_tokens
        self._template = None if not source else ChatTemplate(source, variables=variables)

    @property
    def stamp(self) -> list[str | None]:
        """What decides the ids of a text and of a chat."""
        template = None if self._template is None else self._template.source
        return [None if self.tokenizer is None else self.tokenizer.fingerprint, template]

    def text(self, text: str) -> Ids:
        """The ids of a text, with what the tokenizer puts in front."""
        if self.tokenizer is None:
            raise RequestError(f"{self._name}: has no tokenizer; a corpus for it is a token file (`tenth tokenize`)")
        return self.tokenizer.encode(text, begin=True)

    def chat(self, messages: object, *, answer: bool = False) -> Ids:
        """The ids of a chat; with `answer` up to where the model's answer begins."""
        if self.tokenizer is None or self._template is None:
            raise TemplateError(f"{self._name}: has no chat template; give texts instead of messages")
        return self._template.encode(self.tokenizer, cast(list[Json], messages), add_generation_prompt=answer)

    def line(self, record: dict[str, object], where: str, *, answer: bool = False, text: str = "text") -> Ids:
        """The ids of a line of JSON: a chat under `messages`, else a text. FileFormatError, which names `where`."""
        if "messages" in record:
            try:
                return self.chat(record["messages"], answer=answer)
            except RequestError as error:
                raise FileFormatError(f"{where}: {error}") from None
        found = record.get(text)
        if not isinstance(found, str):
            keys = ", ".join(list(record)[:10]) or "none"
            raise FileFormatError(f"{where}: needs a text {text!r} or a list 'messages'; its keys are: {keys}")
        return self.text(found)


@dataclass(frozen=True, slots=True)
class WatchedDocument:
    """A document; its token ids are made when they are asked for. `read`: bytes of all files up to its end."""

    domain: str
    where: str
    read: int
    ids: Callable[[], Ids]


class WatchedText:
    """Files, folders and patterns, each with the name of its domain in front (`code=src/**/*.py`) or by its own.

    A text file is a document, so is a line of JSON (`text`, or a chat as `messages`) and one of a token file.
    RequestError where a source has no files.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = [_source(source) for source in sources]
        self.files = [(path, source) for source in self.sources for path in source_files(source)]
        self.sizes = [path.stat().st_size for path, _ in self.files]

    @property
    def stamp(self) -> list[list[object]]:
        """Names, domains, sizes and times of the files: other text has another one."""
        return [
            [str(path.resolve()), source.default_domain, path.stat().st_size, path.stat().st_mtime_ns]
            for path, source in self.files
        ]

    def documents(self, ids_of: TextIds, vocabulary: int) -> Iterator[WatchedDocument]:
        """All of them, in order."""
        before = 0
        for (path, source), size in zip(self.files, self.sizes, strict=True):
            for where, read, ids in _documents(path, source, ids_of, vocabulary):
                yield WatchedDocument(source.default_domain, where, before + min(read, size), ids)
            before += size


def check_ids(ids: Ids, vocabulary: int, where: str) -> None:
    """RequestError, which begins with `where`, for an id that the vocabulary does not have."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise RequestError(f"{where}: has a token that the vocabulary of {vocabulary} does not have")


def _source(text: str) -> TextSource:
    name, sign, path = text.partition("=")
    if sign and name and not Path(text).exists() and "/" not in name:
        return TextSource(path, domain=name)
    return TextSource(text)


def _documents(
    path: Path, source: TextSource, ids_of: TextIds, vocabulary: int
) -> Iterator[tuple[str, int, Callable[[], Ids]]]:
    if is_token_file(path):
        file = TokenFile(path)
        fingerprint = None if ids_of.tokenizer is None else ids_of.tokenizer.fingerprint
        file.check_made_for(max(vocabulary, file.vocab_size), fingerprint)  # each id is checked where it is used
        each = path.stat().st_size / max(file.documents, 1)
        for number in range(file.documents):
            yield f"{path}: document {number}", int(each * (number + 1)), partial(_listed, file, number)
    elif is_json_lines(path):
        for record, where, read in read_records(path):
            yield where, read, partial(ids_of.line, record, where)
    else:
        for one in read_file(path, source):
            yield one.where, one.read, partial(ids_of.text, one.text)


def _listed(file: TokenFile, number: int) -> Ids:
    ids: Ids = file.document(number).tolist()
    return ids
