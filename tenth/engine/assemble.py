"""The parts of a step as one batch.

T tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from tenth.engine.part import Part
from tenth.model.batch import Batch, Placement, Want
from tenth.routing.limit import TokenLimits


def batch_of(parts: Sequence[Part], page_size: int) -> Batch:
    """Tokens, positions, places and limits of all parts, end to end."""
    tokens, lengths = list[int](), list[int]()
    positions, slots, pages = [], [], []
    for part in parts:
        progress, start = part.progress, 0 if part.turns else part.progress.computed
        places_T = np.arange(0 if part.turns else progress.held, part.count + (0 if part.turns else progress.held))
        tokens += progress.tokens[start : start + part.count]
        tokens += progress.draft if part.draws else ()
        table = np.asarray(progress.pages[:1] if part.turns else progress.pages)
        positions.append(places_T + progress.dropped)
        slots.append(table[places_T // page_size] * page_size + places_T % page_size)
        pages.append(torch.from_numpy(table))
        lengths.append(int(places_T[-1]) + 1)
    return Batch(
        tuple(accumulate((part.count for part in parts), initial=0)),
        torch.from_numpy(np.concatenate(positions)),
        torch.tensor(tokens),
        placement=Placement(
            torch.from_numpy(np.concatenate(slots)),
            tuple(pages),
            tuple(lengths),
        ),
        limits=TokenLimits.of([part.progress.request.limit for part in parts], [part.count for part in parts]),
    )


def rows_of(parts: Sequence[Part]) -> list[range]:
    """The positions in the batch whose logits each part needs.

    Those behind which a token is drawn, guesses included; all of a prompt whose log-probabilities are wanted.
    """
    rows, end = [], 0
    for part in parts:
        begin, end = end, end + part.count
        first = end - 1 - len(part.progress.draft) if part.draws else end
        rows.append(range(begin if part.progress.reads_prompt and not part.turns else first, end))
    return rows


def want_of(parts: Sequence[Part], rows: Sequence[range]) -> Want:
    """Those logits, and the fullest routing record that a part asks for."""
    kinds = {part.progress.request.record for part in parts}
    record = next(kind for kind in ("outputs", "full", "choice", "none") if kind in kinds)
    return Want(logits=torch.tensor([row for own in rows for row in own], dtype=torch.int64), routing=record)
