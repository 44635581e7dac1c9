"""`tenth upcycle`: a dense model into a mixture of experts of the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenth.commands import options as o


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A dense model: path, hub name or `default-dense`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    experts: Annotated[int, typer.Option("--experts", help="Experts in each layer.")] = 32,
    top_k: Annotated[int, typer.Option("--top-k", help="Experts at work on a token.")] = 8,
    shards: Annotated[
        int, typer.Option("--shards", help="Experts that make up one copy of the dense layer; 0 chooses.")
    ] = 0,
    reinit: Annotated[
        float, typer.Option("--reinit", help="Share of each expert's neurons drawn anew (0 keeps the function).")
    ] = 0.0,
    calibrate: Annotated[
        list[Path] | None, typer.Option("--calibrate", help="Text files to fit the routers to (default: Python's own).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of permutations, routers and redrawn neurons.")] = 0,
    dtype: o.Dtype = "auto",
) -> None:
    """Turn a dense model into a fine-grained mixture of experts that computes the same."""
    from tenth.api import chosen_dtype, resolve
    from tenth.commands.files import read_text
    from tenth.commands.progress import progress_bars
    from tenth.train.upcycle import UpcycleOptions, upcycled_config
    from tenth.train.upcycle_checkpoint import upcycle_checkpoint
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.save import check_new_folder, save_model

    options = UpcycleOptions(num_experts=experts, top_k=top_k, shards=shards, reinit=reinit, seed=seed)
    texts = [read_text(path) for path in calibrate or []]
    check_new_folder(out)
    with progress_bars() as report, open_checkpoint(resolve(source)) as checkpoint:
        upcycled_config(checkpoint.config, options)  # what cannot be upcycled is refused before it is read
        sparse = upcycle_checkpoint(checkpoint, options, texts, chosen_dtype(dtype), report)
        tokenizer = checkpoint.tokenizer()
        generation = checkpoint.generation().with_ends(tokenizer.end_ids)
        save_model(sparse, out, tokenizer=tokenizer, generation=generation, progress=report("writing the model"))
    moe = sparse.config.moe
    assert moe is not None
    copies = moe.num_experts * moe.intermediate_size // checkpoint.config.intermediate_size
    print(
        f"{out}: {sparse.config.parameters.total:,} parameters, {sparse.config.parameters.active:,} active; "
        f"{copies} copies in shards of {moe.intermediate_size}, {moe.top_k} of {moe.num_experts} experts a token; "
        f"model_type {sparse.config.model_type}"
    )
