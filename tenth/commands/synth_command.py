"""`tenth synth`: a packed model of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_FORMATS = {4: "int4-g16-s4", 8: "int8-g32", 16: "bf16", 32: "fp32"}


def command(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A preset's name, such as qwen3-30b-a3b.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    layers: Annotated[
        int | None, typer.Option("--layers", help="Only so many of the preset's layers.", show_default=False)
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="4 (the default), 8, 16 or 32 a weight.", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Instead of --bits: int4-g64-min, int8-g16-k, ...")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same bytes.")] = 0,
) -> None:
    """Write a packed model of random weights: the size and speed of a model that is not here."""
    from tenth.commands.progress import progress_bars
    from tenth.errors import RequestError
    from tenth.kernels.packed import PackedFormat
    from tenth.model.preset import preset as preset_config
    from tenth.weights.synthetic import with_layers, write_synthetic

    if bits is not None and format is not None:
        raise RequestError("--bits and --format say the same; give one of them")
    if bits is not None and bits not in _FORMATS:
        raise RequestError(f"bits is {bits}, it must be one of {', '.join(map(str, _FORMATS))}")
    form = PackedFormat.parse(_FORMATS[bits or 4] if format is None else format)
    config = preset_config(preset)
    if layers is not None:
        config = with_layers(config, layers)
    with progress_bars() as report:
        nbytes = write_synthetic(out, config, form, seed=seed, progress=report("writing random weights"))
    count = config.parameters.total
    print(f"{out}: {count:,} parameters, {nbytes / 1e9:.2f} GB, {nbytes * 8 / count:.2f} bits a weight, no tokenizer")
