"""`tenth quantize`: any model we read, in 4 or 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_FEW_OR_MORE = "4, 8, 16 (bfloat16) or 32."


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model: path, hub name, `default`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    bits: Annotated[int, typer.Option("--bits", help="Of experts and linear layers: 4 or 8.")] = 4,
    group: Annotated[
        int | None,
        typer.Option(
            "--group",
            help="Columns that share a scale: 32, 64 or 128 (halved until it divides).",
            show_default="8 bits: 32; 4 bits: 16 with integer steps",
        ),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="A minimum for each group beside its scale: 16 bits more a group.")
    ] = False,
    embedding_bits: Annotated[int, typer.Option("--embedding-bits", help=_FEW_OR_MORE)] = 8,
    head_bits: Annotated[int, typer.Option("--head-bits", help=_FEW_OR_MORE)] = 8,
) -> None:
    """Round a model's weights to 4 or 8 bits in groups, and write them as the kernels read them.

    Norms, biases and router rows stay float32. A head that is the embedding gets the larger of both bits.
    """
    from tenth.api import resolve
    from tenth.commands.packing import print_tally
    from tenth.commands.progress import progress_bars
    from tenth.quantize.nearest import quantize
    from tenth.quantize.policy import Policy
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.save import check_new_folder

    policy = Policy(bits, group, asymmetric, embedding_bits, head_bits)
    check_new_folder(out)
    with progress_bars() as report, open_checkpoint(resolve(source, report)) as checkpoint:
        tally = quantize(checkpoint, out, policy, report("quantising"))
    print_tally(out, tally)
