"""`tenth pack`: a quantised GGUF as it is, in the form that the kernels read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model: path, hub name, `default-dense`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Round types that cannot be kept to one of more bits.")
    ] = False,
) -> None:
    """Write a model's weights with the values they have, as the kernels read them.

    Q4_0, Q4_1, Q8_0, Q4_K and Q6_K keep their values exactly, also mixed in one file; floats become bfloat16 where that
    has them all, else float32. Other types are refused unless --requantize is given.
    """
    from tenth.api import resolve
    from tenth.commands.packing import print_tally
    from tenth.commands.progress import progress_bars
    from tenth.quantize.take_over import pack_checkpoint
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.save import check_new_folder

    check_new_folder(out)
    with progress_bars() as report, open_checkpoint(resolve(source, report)) as checkpoint:
        tally = pack_checkpoint(checkpoint, out, requantize=requantize, progress=report("packing"))
    print_tally(out, tally)
