"""The stream of packed rows a model learns from, and the finite one it is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenth.data.loader_state import check_state
from tenth.data.mixture import Cursor, Mixture, Source, check_sources, permutation
from tenth.data.packing import Piece, Sample, check_length, fill, read_row
from tenth.data.token_file import TokenFile
from tenth.errors import RequestError


class Loader:
    """Endless packed rows from weighted sources: equal arguments give equal rows, on every machine.

    The state is a few numbers, from which `next` continues bit by bit. RequestError where sources cannot be mixed
    (weights, vocabularies, tokenizers, nothing to predict), FileFormatError where a file is broken.
    """

    def __init__(self, sources: Sequence[Source], length: int, seed: int, vocab_size: int) -> None:
        check_length(length)
        check_sources(sources)
        self.sources, self.length, self.seed, self.vocab_size = tuple(sources), length, seed, vocab_size
        self._files = [TokenFile(source.path) for source in sources]
        _check_files(sources, self._files, vocab_size)
        names = dict.fromkeys(name for file in self._files for name in file.domains)
        self.domains = tuple(names)
        numbers = {name: number for number, name in enumerate(self.domains)}
        self._domains = [[numbers[name] for name in file.domains] for file in self._files]
        self._restart()

    def _restart(self) -> None:
        self._index = 0
        self._waiting: list[Piece] = []  # of the row that is being filled
        self._mixture = Mixture(self._files, [source.weight for source in self.sources], self.seed, self.length)

    @property
    def index(self) -> int:
        """The index of the sample that `next` gives."""
        return self._index

    def next(self) -> Sample:
        """The next row. After a FileFormatError (a broken token) the loader stands behind the row that has it."""
        index, pieces = self._index, self._advance()
        domains = [self._domains[p.source][self._files[p.source].domains_S[p.document]] for p in pieces]
        return read_row(index, self.length, pieces, self._files, domains)

    def _advance(self) -> list[Piece]:
        """A part as long as a row is one, whole; the others are laid end to end and cut where a row is full."""
        self._index += 1
        room = self.length - sum(piece.stop - piece.start for piece in self._waiting)
        while (piece := self._mixture.draw()).stop - piece.start < room:
            self._waiting.append(piece)
            room -= piece.stop - piece.start
        if piece.stop - piece.start == self.length:
            return [piece]
        row, cut = self._waiting, piece.start + room
        self._waiting = [replace(piece, start=cut)] if cut < piece.stop else []
        return [*row, replace(piece, stop=cut)]

    def epochs(self) -> dict[str, float]:
        """How often each source has been drawn in full, by name."""
        cursors = enumerate(self._mixture.cursors)
        done = [cursor.epoch + cursor.place / self._mixture.parts(number) for number, cursor in cursors]
        return {source.name: epochs for source, epochs in zip(self.sources, done, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as JSON can hold it, with what tells its sources from others."""
        cursors = [{"epoch": c.epoch, "place": c.place, "drawn": c.drawn} for c in self._mixture.cursors]
        waiting = [[piece.source, piece.document, piece.start] for piece in self._waiting]
        return {"index": self._index, "cursors": cursors, "waiting": waiting, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        sources = [
            {"name": source.name, "weight": source.weight, "checksum": file.checksum}
            for source, file in zip(self.sources, self._files, strict=True)
        ]
        return {"length": self.length, "seed": self.seed, "vocab_size": self.vocab_size, "sources": sources}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; RequestError, and no change, where it is of other data or malformed."""
        counts = [(self._mixture.parts(number), file.bounds) for number, file in enumerate(self._files)]
        check_state(state, self._identity(), counts)
        self._restart()
        self._mixture.cursors = [Cursor(**cursor) for cursor in state["cursors"]]
        self._index = state["index"]
        self._waiting = [self._mixture.part(*place) for place in state["waiting"]]


def samples(path: Path, length: int, limit: int | None = None) -> list[Sample]:
    """One pass over a token file, every document once; the last row is padded. Domains are the file's own.

    With a `limit` of rows the documents come in a shuffled order that is always the same, so that the first rows
    speak for the whole file. FileFormatError where the file is broken.
    """
    check_length(length)
    if limit is not None and limit < 1:
        raise RequestError(f"the limit of rows is {limit}, it must be at least 1")
    file = TokenFile(path)
    order = iter(range(file.documents) if limit is None else permutation(file.documents, 0).tolist())

    def draw() -> Piece | None:
        document = next(order, None)
        if document is None:
            return None
        return Piece(0, document, 0, int(file.bounds[document + 1] - file.bounds[document]))

    rows: list[Sample] = []
    pieces, rest = fill(length, None, draw)
    while pieces and (limit is None or len(rows) < limit):
        domains = [int(file.domains_S[piece.document]) for piece in pieces]
        rows.append(read_row(len(rows), length, pieces, [file], domains))
        pieces, rest = fill(length, rest, draw)
    return rows


def _check_files(sources: Sequence[Source], files: Sequence[TokenFile], vocab_size: int) -> None:
    known: tuple[str, str] | None = None
    for source, file in zip(sources, files, strict=True):
        if file.vocab_size > vocab_size:
            raise RequestError(f"{file.path}: has a vocabulary of {file.vocab_size}, the model's is {vocab_size}")
        if not (file.bounds[1:] - file.bounds[:-1] > 1).any():
            raise RequestError(f"{file.path}: no document of source {source.name!r} is longer than one token: "
                               "there is nothing to predict")  # fmt: skip
        if file.tokenizer is not None:
            known = known or (file.tokenizer, str(file.path))
            if file.tokenizer != known[0]:
                raise RequestError(f"{file.path}: was made by another tokenizer than {known[1]}")
