"""`tenth check`: are a packed model's weights those that were written?"""

from __future__ import annotations

import typer

from tenth.commands import options as o


def command(model: o.ModelName) -> None:
    """Compare a packed model's weights, headers and shapes with their hashes; exit code 2 where something is damaged.

    The config, the tokenizer and packed.json itself have no hashes.
    """
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
