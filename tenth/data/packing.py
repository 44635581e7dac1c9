"""Rows of a fixed length from documents: one that does not fit is cut, its rest begins another row.

Attention cannot see the part in the row before, so positions of the rest begin at 0 again. T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from tenth.data.token_file import TokenFile
from tenth.errors import RequestError

IGNORE = -100  # the target of a token that has none; what torch's cross entropy passes over
NO_DOMAIN = -1  # of padding


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start:stop` of a document of a source."""

    source: int
    document: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One packed row. Rows of a `Loader` are full; the last one of a finite pass ends with a document of padding."""

    index: int  # in the order of the loader, from 0
    tokens_T: Tensor  # int64
    targets_T: Tensor  # int64: the document's next token, also where the row cuts it; IGNORE at its end and on padding
    bounds: tuple[int, ...]  # of the row's documents, padding included, from 0 to T
    positions_T: Tensor  # int64, from 0 in each document of the row
    domains: tuple[int, ...]  # of the row's documents, into the loader's or the file's names; NO_DOMAIN for padding
    real: int  # tokens that are not padding


def check_length(length: int) -> None:
    """RequestError unless rows of so many tokens can be."""
    if type(length) is not int or not 1 <= length <= 1 << 28:
        raise RequestError(f"the length of rows is {length!r:.40}, it must be a whole number from 1 to {1 << 28}")


def fill(length: int, rest: Piece | None, draw: Callable[[], Piece | None]) -> tuple[list[Piece], Piece | None]:
    """The pieces of one row of `length` tokens, `rest` first, and what is left of the last one.

    `draw` gives whole documents, or None when there are no more: then the row may be short, or empty.
    """
    pieces: list[Piece] = []
    room = length
    while room:
        piece, rest = rest or draw(), None
        if piece is None:
            break
        cut = min(piece.start + room, piece.stop)
        pieces.append(Piece(piece.source, piece.document, piece.start, cut))
        room -= cut - piece.start
        if cut < piece.stop:
            rest = Piece(piece.source, piece.document, cut, piece.stop)
    return pieces, rest


def read_row(
    index: int, length: int, pieces: Sequence[Piece], files: Sequence[TokenFile], domains: Sequence[int]
) -> Sample:
    """Read a row's tokens; what `length` has beyond the pieces becomes padding.

    `domains` are the numbers of the pieces' domains. FileFormatError where a file has an id beyond its vocabulary.
    """
    tokens_T, targets_T = np.zeros(length, np.int64), np.full(length, IGNORE, np.int64)
    positions_T = np.arange(length)
    at = 0
    for piece in pieces:
        file, end = files[piece.source], at + piece.stop - piece.start
        first, last = file.bounds[piece.document : piece.document + 2].tolist()
        start, stop = first + piece.start, first + piece.stop
        tokens_T[at:end] = file.tokens_T[start:stop]
        known = min(stop + 1, last)  # the token behind a cut is a target, though it is in the next row
        targets_T[at : at + known - start - 1] = file.tokens_T[start + 1 : known]
        if tokens_T[at:end].max() >= file.vocab_size or targets_T[end - 1] >= file.vocab_size:
            file.check_ids(start, known)
        positions_T[at:end] -= at
        at = end
    positions_T[at:] -= at
    sizes = [piece.stop - piece.start for piece in pieces] + ([length - at] if at < length else [])
    return Sample(
        index=index,
        tokens_T=torch.from_numpy(tokens_T),
        targets_T=torch.from_numpy(targets_T),
        bounds=tuple(accumulate(sizes, initial=0)),
        positions_T=torch.from_numpy(positions_T),
        domains=(*domains, *((NO_DOMAIN,) if at < length else ())),
        real=at,
    )
