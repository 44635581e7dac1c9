"""`tenth tokenizer`: a vocabulary of one's own from text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders, or quoted patterns ('src/**/*.py').")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; must not exist, or be empty.")
    ],
    vocabulary: Annotated[int, typer.Option("--vocab", help="Tokens, the end of text and the bytes among them.")],
    text_key: Annotated[str, typer.Option("--text-key", help="Key or column that holds the text.")] = "text",
    format: Annotated[
        str, typer.Option("--format", help="text, jsonl, chat or parquet, whatever the files are called.")
    ] = "auto",
) -> None:
    """Learn a byte-level BPE tokenizer and write it as `tenth` and transformers read it."""
    from typing import cast

    from tenth.commands.data_options import text_sources
    from tenth.commands.progress import progress_bars
    from tenth.data.readers import Format
    from tenth.data.tokenize import documents_of
    from tenth.data.train_tokenizer import train_tokenizer
    from tenth.weights.save import new_folder

    given = text_sources(sources, text_key, None, None, cast(Format, format))
    with new_folder(out) as place, progress_bars() as report:
        learned = train_tokenizer(documents_of(given, report("learning a vocabulary")), vocabulary)
        learned.save(place)
    print(f"{out}: {learned.vocabulary:,} tokens")
