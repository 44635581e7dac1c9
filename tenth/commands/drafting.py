"""The option `--draft`, and the model it may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tenth.api import Model
    from tenth.api.drafts import DraftKind
    from tenth.weights.load import Progress

Draft = Annotated[
    str,
    typer.Option("--draft", help="Guess tokens ahead: off, lookup, suffix, or the name of a small model."),
]


def drafter(
    draft: str, *, backend: str, threads: int | None, report: Callable[[str], Progress] | None
) -> DraftKind | Model:
    """Who drafts: one of the kinds by its name, or else the model of that name, loaded."""
    from tenth.api import load
    from tenth.api.drafts import DRAFT_KINDS

    kind = next((kind for kind in DRAFT_KINDS if kind == draft), None)
    return kind or load(draft, backend=backend, threads=threads, report=report, to_run=True)
