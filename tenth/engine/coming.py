"""Which sequences wait for a beginning that another is just computing, instead of computing it too."""

from __future__ import annotations

from collections.abc import Sequence

from tenth.engine.prefix import PrefixCache, shared_length
from tenth.engine.progress import Progress


def shares(progress: Progress) -> bool:
    """Whether it may take pages of others: not where its prompt is read, nor where pages are forgotten."""
    return not progress.reads_prompt and progress.request.rolling is None


def is_coming(progress: Progress, running: Sequence[Progress], prefix: PrefixCache, page_size: int) -> bool:
    """Whether a sequence at work is just computing as much as a page that this one could then find.

    What was found is kept with `progress`: thousands may wait for one, step after step.
    """
    if progress.awaited is not None:
        other, shared = progress.awaited
        if _computes_prompt(other) and other in running and shared - other.computed >= page_size:
            return True
        progress.awaited = None
    key = progress.request.prefix_key
    others = [p for p in running if _computes_prompt(p) and p.request.prefix_key == key]
    if not others or not shares(progress):
        return False
    enough = prefix.known(key, progress.tokens[:-1]) + page_size
    begins = tuple(progress.tokens[:-1][:enough])
    ahead = next((p for p in others if p.request.prompt[:enough] == begins), None)
    if len(begins) < enough or ahead is None:
        return False
    progress.awaited = ahead, shared_length(ahead.request.prompt, progress.tokens[:-1])
    return True


def _computes_prompt(progress: Progress) -> bool:
    return progress.computed < len(progress.request.prompt)
