"""Token files for tests, and what a stream made of them must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenth.data.token_file import TokenFile
from tenth.data.token_writer import TokenWriter


def write_tokens(
    path: Path,
    documents: Sequence[Sequence[int]],
    *,
    vocab_size: int = 1000,
    domains: Sequence[str] = ("general",),
    tokenizer: str | None = None,
    end: int | None = None,
) -> Path:
    """Documents of ids; their domains go round."""
    with TokenWriter(path, vocab_size, tokenizer=tokenizer, end=end) as writer:
        for number, ids in enumerate(documents):
            writer.add(ids, domains[number % len(domains)])
        writer.finish()
    return path


def numbered(lengths: Sequence[int], first: int = 0) -> list[list[int]]:
    """Documents of so many tokens in which no id comes twice."""
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def domain_of(file: TokenFile, document: int) -> str:
    """The name of a document's domain."""
    return file.domains[int(file.domains_S[document])]
