"""`tenth export`: any model we read, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenth.commands import options as o


def command(
    model: o.ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    model_type: Annotated[
        str | None,
        typer.Option("--as", metavar="TYPE", help="A model_type (qwen3_moe, llama, ...); refused if it differs."),
    ] = None,
    dtype: o.Dtype = "auto",
) -> None:
    """Write a model as safetensors that `transformers` loads, where it has the architecture."""
    from tenth.api import load
    from tenth.commands.progress import progress_bars
    from tenth.weights.save import check_new_folder

    check_new_folder(out)
    with progress_bars() as report:
        loaded = load(model, dtype=dtype, report=report)
        loaded.save(out, model_type=model_type, progress=report("writing the model"))
    kind = model_type or loaded.config.model_type
    print(f"{out}: {loaded.config.parameters.total:,} parameters, model_type {kind}")
