"""`tenth check`: are a packed model's weights, or the tokens of a token file, those that were written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    what: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A packed model, or a token file.")],
) -> None:
    """Compare what was written with its hashes; exit code 2 where something is damaged.

    Of a packed model: weights, headers and shapes; the config, the tokenizer and packed.json itself have no hashes. Of
    a token file: all of it, and whether every id is in its vocabulary.
    """
    from tenth.data.token_file import is_token_file

    if Path(what).is_file() and (what.endswith(".tokens") or is_token_file(Path(what))):
        _check_tokens(Path(what))
    else:
        _check_model(what)


def _check_tokens(path: Path) -> None:
    from tenth.commands.progress import progress_bars
    from tenth.data.token_file import TokenFile

    file = TokenFile(path)
    with progress_bars() as report:
        file.verify(report("reading the tokens"))
    print(f"{path}: {len(file):,} tokens in {file.documents:,} documents, all as written")


def _check_model(model: str) -> None:
    from tenth.api import resolve
    from tenth.commands.progress import progress_bars
    from tenth.errors import RequestError
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.packed_index import is_padding

    with open_checkpoint(resolve(model)) as checkpoint:
        files = checkpoint.packed
        if files is None:
            raise RequestError(f"{checkpoint.path}: is {checkpoint.format}, which has no hashes; packed models have")
        with progress_bars() as report:
            damaged = files.damaged(report("reading the weights"))
        for info in damaged:
            print(f"{info}: is damaged: these are not the bytes that were written")
        count, hurt = len(files.index.tensors), sum(not is_padding(info.name) for info in damaged)
        if damaged:
            between = f" and {len(damaged) - hurt} of the paddings between them" if hurt < len(damaged) else ""
            print(f"{files.path}: damaged: {hurt} of {count} tensors{between}; write or fetch the model again")
            raise typer.Exit(2)
        print(f"{files.path}: {count} tensors, {files.index.nbytes / 1e9:.2f} GB, all as written")
