"""Text to a token file, once: in batches on all cores, with bounded memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenth.data.document import Chat, Document
from tenth.data.readers import TextSource, read_file, source_files
from tenth.data.token_file import VERSION, Progress, TokenFile
from tenth.data.token_writer import TokenWriter
from tenth.errors import FileFormatError, RequestError, TemplateError, TextError, TokenizerError
from tenth.files import check_new_file
from tenth.weights.template import ChatTemplate
from tenth.weights.tokenizer import Tokenizer

_BATCH = 1 << 20  # characters encoded in one go
_LONGEST = 1 << 20  # characters of one text; the library keeps some hundred bytes for each token of a text
_TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # chat models name the end of a turn as theirs, not of a text


@dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """`end`: append the token that ends a text to each document. `hold_out`: this share of documents goes into a file
    of its own, chosen by a hash of the text, so that equal texts are on one side, in any corpus and at any time.
    """

    end: bool = True
    hold_out: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out < 1:
            raise RequestError(f"the share to hold out is {self.hold_out}, it must be at least 0 and below 1")


@dataclass(slots=True)
class Tally:
    """What was written, and documents without any text, which were not."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    held_out_documents: int = 0
    held_out_tokens: int = 0
    empty: int = 0


def held_out_path(out: Path) -> Path:
    """Where the documents that are held out of `out` are."""
    return out.with_name(out.name + ".held-out")


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """The id that ends a text: `<|endoftext|>` where the tokenizer has it, else the end that its files name."""
    for text in (*_TEXT_ENDS, tokenizer.special_tokens.get("eos_token", "")):
        token_id = tokenizer.token_id(text)
        if token_id is not None and token_id in tokenizer.special_ids:
            return token_id
    return None


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the share that is not learned from: decided by its hash alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * (1 << 64)


def tokenize(
    sources: Sequence[TextSource],
    tokenizer: Tokenizer,
    out: Path,
    options: TokenizeOptions | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Write the documents of `sources` to `out`, in order; progress is in bytes of the files.

    All or nothing is written. RequestError where `out` exists or a source has no files, FileFormatError where a file
    is broken, TextError where no text is left for `out` (or for what is held out), MachineError where the disk is full.
    """
    options = options or TokenizeOptions()
    end = _end(tokenizer, options)
    paths = [out, held_out_path(out)] if options.hold_out else [out]
    for path in paths:
        check_new_file(path)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                TokenWriter(path, tokenizer.vocabulary, tokenizer=tokenizer.fingerprint, end=end)
            ) for path in paths
        ]  # fmt: skip
        tally = _write(documents_of(sources, progress), tokenizer, writers, options, end)
        for writer in writers:
            if not writer.documents:
                raise TextError(f"{writer.path}: {_nothing(sources, tally, options)}")
        _finish(writers)
    return tally


def _finish(writers: Sequence[TokenWriter]) -> None:
    """Both files or none: what is held out must not be lost while the rest is learned from."""
    finished: list[Path] = []
    try:
        for writer in writers:
            writer.finish()
            finished.append(writer.path)
    except BaseException:
        for path in finished:
            path.unlink()
        raise


def tokenize_cached(
    sources: Sequence[TextSource],
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress | None = None,
) -> Path:
    """The token file of `sources` in a cache folder, made where it is not there yet or is broken.

    It is found again while names, sizes and times of the files and the tokenizer are the same.
    """
    path = folder / f"{cache_key(sources, tokenizer)}.tokens"
    if not _whole(path):
        path.unlink(missing_ok=True)
        tokenize(sources, tokenizer, path, progress=progress)
    return path


def cache_key(sources: Sequence[TextSource], tokenizer: Tokenizer) -> str:
    """A hash of all that decides the tokens, as far as it is known without reading the files."""
    files = [
        [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for source in sources
        for path in source_files(source)
    ]
    parts = [VERSION, [asdict(source) for source in sources], files, tokenizer.rules_fingerprint]
    parts.append(asdict(TokenizeOptions()))
    if any(source.format == "chat" for source in sources):
        parts.append(tokenizer.chat_template)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _whole(path: Path) -> bool:
    try:
        return path.exists() and len(TokenFile(path)) > 0
    except FileFormatError:
        return False


def _end(tokenizer: Tokenizer, options: TokenizeOptions) -> int | None:
    end = end_of_text(tokenizer) if options.end else None
    if options.end and end is None:
        raise TokenizerError("the tokenizer has no token that ends a text; documents can be written without (--no-end)")
    return end


def documents_of(sources: Sequence[TextSource], progress: Progress | None = None) -> Iterator[Document]:
    """All documents of several sources in order; progress is in bytes of the files."""
    files = [(path, source) for source in sources for path in source_files(source)]
    sizes = [path.stat().st_size for path, _ in files]
    done = 0
    for (path, source), size in zip(files, sizes, strict=True):
        for document in read_file(path, source):
            yield document
            if progress is not None:
                progress(min(done + document.read, sum(sizes)), sum(sizes))
        done += size


def _write(
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    writers: Sequence[TokenWriter],
    options: TokenizeOptions,
    end: int | None,
) -> Tally:
    tally = Tally()
    for batch in _batches(documents, tally):
        for document, ids_T in zip(batch, _encode(batch, tokenizer, end), strict=True):
            if not len(ids_T):  # of bytes only that the vocabulary lacks
                tally.empty += 1
                continue
            held_out = is_held_out(document.text, options.hold_out)
            writers[held_out].add(ids_T, document.domain)
            tally.text_bytes += len(document.text.encode())
    tally.documents, tally.tokens = writers[0].documents, writers[0].tokens
    if options.hold_out:
        tally.held_out_documents, tally.held_out_tokens = writers[1].documents, writers[1].tokens
    return tally


def _batches(documents: Iterator[Document], tally: Tally) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        if not document.text.strip():
            tally.empty += 1
            continue
        batch.append(document)
        size += len(document.text) + 100  # a document costs something too
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: Sequence[Document], tokenizer: Tokenizer, end: int | None) -> Iterator[NDArray[np.int64]]:
    short = iter(tokenizer.encode_batch([one.text for one in batch if one.chat is None and len(one.text) <= _LONGEST]))
    tail = [] if end is None else [end]
    for document in batch:
        if document.chat is not None:
            yield np.array(_chat_ids(document, document.chat, tokenizer) + tail, np.int64)
            continue
        if len(document.text) <= _LONGEST:
            yield np.array(next(short) + tail, np.int64)
            continue
        parts = (
            tokenizer.encode_batch([piece], after=number > 0)[0] for number, piece in enumerate(pieces(document.text))
        )
        yield np.concatenate([*(np.array(part, np.int64) for part in parts), np.array(tail, np.int64)])


def _chat_ids(document: Document, chat: Chat, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a chat, with control tokens where the model's template puts them."""
    if tokenizer.chat_template is None:
        raise TokenizerError(f"{document.where}: is a chat, and the tokenizer has no chat template")
    template = ChatTemplate(tokenizer.chat_template, variables=tokenizer.special_tokens)
    try:
        return template.encode(tokenizer, chat.messages, tools=chat.tools, add_generation_prompt=False)
    except (TemplateError, RequestError) as error:
        raise FileFormatError(f"{document.where}: {error}") from None


def pieces(text: str, most: int = _LONGEST) -> Iterator[str]:
    """Cut a long text behind a line, or else before a blank, where byte-level tokenizers begin a new token anyway."""
    start = 0
    while len(text) - start > most:
        cut = _cut(text, start + most // 2, start + most)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut(text: str, low: int, high: int) -> int:
    for mark, behind in (("\n", 1), (" ", 0)):
        at = text.rfind(mark, low, high)
        while at > low:
            # of several blanks or lines in a row some tokenizers leave the last one to the next token
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + behind
            at = text.rfind(mark, low, at)
    return high


def _nothing(sources: Sequence[TextSource], tally: Tally, options: TokenizeOptions) -> str:
    where, found = ", ".join(source.path for source in sources), tally.documents + tally.held_out_documents
    if found:
        return f"there is no document for it: a share of {options.hold_out:g} parts the {found} documents in {where} so"
    return f"there is no text in {where}" + (f": all {tally.empty} documents are empty" if tally.empty else "")
