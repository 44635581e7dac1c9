"""Token ids to calibrate on, out of corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tenth.data.readers import TextSource, read_file, source_files
from tenth.data.standard_library import documents
from tenth.data.token_file import TokenFile, is_token_file
from tenth.errors import RequestError
from tenth.weights.tokenizer import Tokenizer

_LENGTH = 1024  # tokens of a document that are taken at most: more documents tell more than longer ones


def calibration_documents(corpora: Sequence[str], tokenizer: Tokenizer, tokens: int, seed: int) -> list[list[int]]:
    """Documents of `tokens` tokens in all, or what there is, as much of each corpus; of each document its beginning.

    A corpus is a file, a folder or a pattern: token files, text, JSON lines, Parquet. Without any, passages of Python's
    own library are taken, drawn by `seed`. RequestError where there is no text.
    """
    if tokens < 1:
        raise RequestError(f"tokens is {tokens}, it must be at least 1")
    if corpora:
        turns = [_documents(corpus, tokenizer) for corpus in corpora]
    else:
        turns = [(tokenizer.encode(text) for text in documents(seed))]
    taken: list[list[int]] = []
    given = [0] * len(turns)
    while sum(given) < tokens and turns:
        turn = min(range(len(turns)), key=given.__getitem__)  # the corpus that has given least
        ids = next(turns[turn], None)
        if ids is None:
            del turns[turn]
            tokens -= given.pop(turn)
            continue
        taken.append(ids[: min(_LENGTH, tokens - sum(given))])
        given[turn] += len(taken[-1])
    if not taken:
        raise RequestError("the texts to calibrate with are empty")
    return taken


def _documents(corpus: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The token ids of every document that has any."""
    source = TextSource(corpus)
    for path in source_files(source):
        if is_token_file(path):
            yield from _ids(path, tokenizer)
            continue
        for document in read_file(path, source):
            if ids := tokenizer.encode(document.text):
                yield ids


def _ids(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    file = TokenFile(path)
    file.check_made_for(tokenizer.vocabulary, tokenizer.fingerprint)
    for index in range(file.documents):
        yield file.document(index).tolist()
