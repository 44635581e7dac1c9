"""What commands that read text share: sources and tokenizers as they are named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenth.commands.progress import Report
    from tenth.data.readers import Format, TextSource
    from tenth.weights.tokenizer import Tokenizer


def text_sources(
    paths: Sequence[str], text_key: str, domain: str | None, domain_key: str | None, format: Format
) -> list[TextSource]:
    """The sources of a command; RequestError where one has no files, before any work."""
    from tenth.data.readers import TextSource, source_files

    sources = [TextSource(path, "", text_key, domain, domain_key, format) for path in paths]
    for source in sources:
        source_files(source)
    return sources


def open_tokenizer(name: str, report: Report) -> Tokenizer:
    """A model's tokenizer, or that of a folder which holds nothing else."""
    from tenth.api import resolve
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.tokenizer import Tokenizer

    if (Path(name) / "tokenizer.json").is_file():
        return Tokenizer.from_folder(Path(name))
    with open_checkpoint(resolve(name, report)) as checkpoint:
        return checkpoint.tokenizer()
