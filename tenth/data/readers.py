"""Documents of files as they come from people: text, JSON lines and Parquet, one at a time."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from tenth.data.document import Chat, Document, valid_text
from tenth.data.parquet import read_parquet
from tenth.data.token_file import is_token_file
from tenth.errors import FileFormatError, RequestError
from tenth.weights.template_messages import normal_messages, normal_tools

Format = Literal["auto", "text", "jsonl", "chat", "parquet"]
FORMATS: tuple[Format, ...] = ("auto", "text", "jsonl", "chat", "parquet")
_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class TextSource:
    """Files with text: a file, a folder with all in it that is not hidden, or a pattern such as `src/**/*.py`.

    A text file is one document; JSON lines and Parquet hold one in `text_key` of each line or row. With format `chat`
    each line holds `messages`, and maybe `tools`. The domain of a document is what `domain_key` holds, else `domain`,
    else the source's name.
    """

    path: str
    name: str = ""
    text_key: str = "text"
    domain: str | None = None
    domain_key: str | None = None
    format: Format = "auto"  # by the files' endings: .jsonl, .ndjson, .parquet, else text; `.gz` behind one is undone

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise RequestError(f"the format is {self.format!r:.40}, it must be one of {', '.join(FORMATS)}")
        if self.format == "chat" and self.text_key != "text":
            raise RequestError("the format chat takes no text key: a chat is under `messages`")
        if not self.path:
            raise RequestError("the path of a source is empty; it must name a file, a folder or a pattern")
        if not self.name:
            object.__setattr__(self, "name", _name(self.path))

    @property
    def default_domain(self) -> str:
        """The domain of a document that does not tell its own."""
        return self.name if self.domain is None else self.domain


def source_files(source: TextSource) -> list[Path]:
    """The files of a source, in order of their names; RequestError where there are none."""
    path = Path(source.path)
    if path.is_dir():
        files = sorted(_walk(path))
    elif path.exists():
        files = [path]
    else:
        # unlike Path.glob it takes absolute patterns, and leaves hidden files out
        found = glob.glob(source.path, recursive=True)  # noqa: PTH207
        files = sorted(Path(name) for name in found if Path(name).is_file())
    if not files:
        reason = "has no files in it" if path.is_dir() else "is neither a file, nor a folder, nor matches any"
        raise RequestError(f"{source.path}: {reason}")
    return files


def read_file(path: Path, source: TextSource) -> Iterator[Document]:
    """The documents of one file of a source; those without any text are passed on, with an empty one.

    RequestError where it cannot be read, FileFormatError where its content is not what its ending says: both name file
    and line (row, byte).
    """
    kind = _kind(path, source)
    if is_token_file(path):
        raise RequestError(f"{path}: is a token file already")
    if kind == "parquet":
        yield from read_parquet(path, source.text_key, source.domain_key, source.default_domain)
    elif kind in ("jsonl", "chat"):
        yield from _read_lines(path, source, chats=kind == "chat")
    else:
        with _opened(path) as (file, raw):
            text = _decoded(file.read(), str(path), " (a pattern such as 'folder/**/*.txt' leaves other files out)")
            yield Document(text, source.default_domain, str(path), raw.tell())


def read_records(path: Path) -> Iterator[tuple[dict[str, object], str, int]]:
    """The objects of a file of JSON lines: each with its place (`file:line`), and the bytes that were needed so far.

    Errors as of `read_file`.
    """
    with _opened(path) as (file, raw):
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if content := _decoded(line, where).strip():
                yield _record(content, where), where, raw.tell()


def _read_lines(path: Path, source: TextSource, *, chats: bool) -> Iterator[Document]:
    for record, where, read in read_records(path):
        chat = _chat(record, where) if chats else None
        text = _text(record, source.text_key, where) if chat is None else _said(chat, where)
        domain = source.default_domain if source.domain_key is None else _text(record, source.domain_key, where)
        yield Document(text, domain, where, read, chat)


def _chat(record: dict[str, object], where: str) -> Chat:
    if "messages" not in record:
        raise FileFormatError(f"{where}: has no key 'messages'; its keys are: {', '.join(list(record)[:10]) or 'none'}")
    try:
        return Chat(normal_messages(record["messages"]), normal_tools(record.get("tools")))
    except RequestError as error:
        raise FileFormatError(f"{where}: {error}") from None


def _said(chat: Chat, where: str) -> str:
    return "\n".join(
        valid_text(message["content"], "content", where) for message in chat.messages if message["content"]
    )


def _record(line: str, where: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where}: is not JSON: {str(error)[:100]}") from None
    if not isinstance(record, dict):
        raise FileFormatError(f"{where}: holds {type(record).__name__}, every line must be a JSON object")
    return record


def _text(record: dict[str, object], key: str, where: str) -> str:
    if key not in record:
        keys = ", ".join(list(record)[:10])
        raise FileFormatError(f"{where}: has no key {key!r}; its keys are: {keys or 'none'}")
    return valid_text(record[key], key, where)


def _decoded(data: bytes, where: str, hint: str = "") -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise FileFormatError(f"{where}: is not UTF-8 text: {wrong}{hint}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content, and the file itself, whose place tells how much has been read."""
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() != ".gz":
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, raw  # type: ignore[misc]  # GzipFile is an IO[bytes] in all that is used
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path}: is no whole gzip file: {str(error)[:100]}") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def is_json_lines(path: Path) -> bool:
    """Whether a file holds JSON lines, by its ending."""
    return _ending(path) in _LINES


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _kind(path: Path, source: TextSource) -> Format:
    if source.format != "auto":
        return source.format
    last = _ending(path)
    if last == ".json":
        raise RequestError(f"{path}: may be one text or JSON lines; say which: format text, or jsonl")
    return "jsonl" if last in _LINES else "parquet" if last == ".parquet" else "text"


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _name(path: str) -> str:
    """A file's or folder's name without its endings; of a pattern, the last part that is a plain name."""
    plain = [part for part in Path(path).parts if part not in ("/", ".", "..")]
    if not Path(path).exists() and glob.has_magic(path):
        first = next(at for at, part in enumerate(plain) if glob.has_magic(part))
        plain = plain[:first]
    return plain[-1].split(".")[0] or plain[-1] if plain else "text"
