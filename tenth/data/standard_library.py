"""Text that every Python installation has: the language reference as prose, the standard library as code."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def documents(seed: int, characters: int = 2000) -> Iterator[str]:
    """Passages of about `characters`, prose and code by turns, drawn without end and equal for equal seeds."""
    if characters < 1:
        raise ValueError(f"characters is {characters}, it must be at least 1")
    order = random.Random(seed)
    sources = [_prose(), _code()]
    turn = 0
    while True:
        text = order.choice(sources[turn % len(sources)])
        start = order.randrange(max(len(text) - characters, 1))
        passage = text[start : start + characters]
        turn += 1
        if passage.strip():
            yield passage


def _prose() -> list[str]:
    from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

    return [str(text) for _, text in sorted(topics.items()) if len(text) > 500]


def _code() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*.py"))]
    return [text for text in texts if len(text) > 500]
