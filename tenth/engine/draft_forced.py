"""Drafts that cost nothing: what a grammar lets follow in one way only, such as the names of required properties."""

from __future__ import annotations

from tenth.engine.draft import Draft
from tenth.engine.progress import Progress


def with_forced(progress: Progress, draft: Draft, most: int) -> Draft:
    """The tokens that its grammar forces now, up to `most`; the draft itself where it says the same or nothing is.

    A text can be cut into tokens in several ways, so the sampler judges these like any draft: they are the cut that the
    tokenizer makes, which a trained model nearly always makes too.
    """
    if not progress.constrained or progress.matcher is None:
        return draft
    forced = progress.matcher.forced()[:most]
    if draft.tokens[: len(forced)] == forced:
        return draft
    return Draft(forced, [1.0] * len(forced), "grammar")
