"""`tenth check`: is a packed model what was written?"""

from __future__ import annotations

import typer

from tenth.commands import options as o


def command(model: o.ModelName) -> None:
    """Read all of a packed model and compare it with its hashes; exit code 2 where something is damaged."""
    from tenth.api import resolve
    from tenth.commands.progress import progress_bars
    from tenth.errors import RequestError
    from tenth.weights.checkpoint import open_checkpoint

    with open_checkpoint(resolve(model)) as checkpoint:
        files = checkpoint.packed
        if files is None:
            raise RequestError(f"{checkpoint.path}: is {checkpoint.format}, which has no hashes; packed models have")
        with progress_bars() as report:
            damaged = files.damaged(report("reading the model"))
        for info in damaged:
            print(f"{info}: is damaged: these are not the bytes that were written")
        count = len(files.source.tensors)
        if damaged:
            print(f"{files.path}: {len(damaged)} of {count} tensors are damaged; write or fetch the model again")
            raise typer.Exit(2)
        print(f"{files.path}: {count} tensors, {files.index.nbytes / 1e9:.2f} GB, all as written")
