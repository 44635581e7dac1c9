"""`tenth tokenize`: text, JSON lines or Parquet to a token file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tenth.data.tokenize import Tally


def command(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders, or quoted patterns ('src/**/*.py').")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write; must not exist.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="MODEL", help="A model, or a folder with a tokenizer.json.")
    ],
    text_key: Annotated[str, typer.Option("--text-key", help="Key or column that holds the text.")] = "text",
    domain: Annotated[
        str | None, typer.Option("--domain", help="All documents' domain.", show_default="each source's name")
    ] = None,
    domain_key: Annotated[
        str | None, typer.Option("--domain-key", help="Key or column that holds the domain.", show_default=False)
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="text, jsonl, chat or parquet, whatever the files are called.")
    ] = "auto",
    hold_out: Annotated[
        float, typer.Option("--hold-out", help="Share of documents to write to OUT.held-out instead.")
    ] = 0.0,
    no_end: Annotated[bool, typer.Option("--no-end", help="No end-of-text token behind each document.")] = False,
) -> None:
    """Write the tokens of documents as training reads them, with the bounds and the domain of each.

    A text file is one document; JSON lines and Parquet hold one in each line or row. Which documents are held out is
    decided by a hash of their text: the same ones for any tokenizer and any time, and equal texts together.
    """
    from typing import cast

    from tenth.commands.data_options import text_sources
    from tenth.commands.progress import progress_bars
    from tenth.data.readers import Format
    from tenth.data.tokenize import TokenizeOptions, tokenize
    from tenth.train.named import named_tokenizer

    options = TokenizeOptions(end=not no_end, hold_out=hold_out)
    given = text_sources(sources, text_key, domain, domain_key, cast(Format, format))
    with progress_bars() as report:
        tally = tokenize(given, named_tokenizer(tokenizer, report), out, options, report("tokenising"))
    _print(out, tally)


def _print(out: Path, tally: Tally) -> None:
    from tenth.data.tokenize import held_out_path

    tokens = tally.tokens + tally.held_out_tokens
    print(f"{out}: {tally.tokens:,} tokens in {tally.documents:,} documents, "
          f"{tally.text_bytes / tokens:.2f} bytes of text a token")  # fmt: skip
    if tally.held_out_documents:
        print(f"{held_out_path(out)}: {tally.held_out_tokens:,} tokens in {tally.held_out_documents:,} documents")
    if tally.empty:
        print(f"{tally.empty:,} documents without text were left out")
