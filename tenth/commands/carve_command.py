"""`tenth carve`: a dense model's neurons into experts, of which few work on a token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from tenth.commands.progress import Report
    from tenth.model.config import ModelConfig
    from tenth.train.carve import CarveOptions
    from tenth.train.router_fit import RouterFit

_CONTROL = "Carving"
_ARTEFACT = "Small files instead of whole models"


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A dense model: path, hub name or `default-dense`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")],
    experts: Annotated[
        int, typer.Option("--experts", help="Equal slices of each dense layer.", rich_help_panel=_CONTROL)
    ] = 32,
    shared: Annotated[
        int, typer.Option("--shared", help="Slices that are always at work.", rich_help_panel=_CONTROL)
    ] = 8,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Of the others, how many a token goes to.", rich_help_panel=_CONTROL)
    ] = 16,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            metavar="CORPUS",
            help="Text, JSON lines, Parquet or token files to see the neurons at work on (default: Python's own).",
            rich_help_panel=_CONTROL,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Tokens of it that are used.", rich_help_panel=_CONTROL)
    ] = 32_768,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="coactivation; for comparison random, or prune: the most important neurons as a narrower dense layer.",
            rich_help_panel=_CONTROL,
        ),
    ] = "coactivation",
    seed: Annotated[int, typer.Option("--seed", help="Of the split.", rich_help_panel=_CONTROL)] = 0,
    carving: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Rebuild a carved model from SOURCE and the file that --healed wrote.",
            rich_help_panel=_ARTEFACT,
        ),
    ] = None,
    healed: Annotated[
        Path | None,
        typer.Option(
            "--healed",
            metavar="FOLDER",
            help="Write to the file OUT what was learned from the carved folder SOURCE to this model.",
            rich_help_panel=_ARTEFACT,
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option("--rank", help="Of the deltas kept for each expert.", rich_help_panel=_ARTEFACT)
    ] = 8,
    shared_rank: Annotated[
        int, typer.Option("--shared-rank", help="Of those of shared experts.", rich_help_panel=_ARTEFACT)
    ] = 40,
    dtype: o.Dtype = "auto",
) -> None:
    """Carve a dense model into a sparse one: its own neurons, all experts distinct, fewer at work.

    Neurons that always matter are shared, the others are grouped by when they work, and a router is fitted layer by
    layer. The model loses some quality, which `tenth train` with a distillation recipe gives back for the most part.
    """
    from tenth.commands.progress import progress_bars

    with progress_bars() as report:
        if carving is not None and healed is not None:
            from tenth.errors import RequestError

            raise RequestError("--from and --healed are two things to do: give one of them")
        if healed is not None:
            _keep(source, healed, out, rank, shared_rank, report)
        elif carving is not None:
            _rebuild(source, carving, out, report)
        else:
            from tenth.train.carve import CarveOptions

            options = CarveOptions(experts, shared, top_k, split, seed)  # type: ignore[arg-type]  # checked there
            _carve(source, out, options, calibrate or [], tokens, dtype, report)


def _carve(
    source: str, out: Path, options: CarveOptions, corpora: list[str], tokens: int, dtype: str, report: Report
) -> None:
    from tenth.api import chosen_dtype, resolve
    from tenth.train.carve import carved_config
    from tenth.train.carve_checkpoint import carve_checkpoint
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.save import check_new_folder

    check_new_folder(out)
    with open_checkpoint(resolve(source, report)) as checkpoint:
        carved_config(checkpoint.config, options)  # what cannot be carved is refused before it is read
        carved = carve_checkpoint(checkpoint, out, options, corpora, tokens, chosen_dtype(dtype), report)
    _print(out, carved.decoder.config, options)
    _print_fits(carved.fits)


def _rebuild(source: str, carving: Path, out: Path, report: Report) -> None:
    from tenth.api import resolve
    from tenth.train.artefact_file import open_artefact
    from tenth.train.carve_checkpoint import rebuild_checkpoint
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.save import check_new_folder

    check_new_folder(out)
    artefact = open_artefact(carving)
    with open_checkpoint(resolve(source, report)) as checkpoint:
        decoder = rebuild_checkpoint(checkpoint, artefact, out, report)
    _print(out, decoder.config, artefact.options)


def _keep(source: str, healed: Path, out: Path, rank: int, shared_rank: int, report: Report) -> None:
    from tenth.train.carve_checkpoint import keep_healed

    size = keep_healed(Path(source), healed, out, rank, shared_rank, report)
    print(f"{out}: {size / 1e6:.2f} MB; `tenth carve DENSE FOLDER --from {out}` makes the model")


def _print(out: Path, config: ModelConfig, options: CarveOptions) -> None:
    count, moe = config.parameters, config.moe
    what = f"dense layers of width {config.intermediate_size}"
    if moe is not None:
        width = moe.intermediate_size
        what = f"{options.shared} shared and {moe.top_k} of {moe.num_experts} experts of width {width} a token"
    print(
        f"{out}: {count.total:,} parameters, {count.active:,} active ({options.active_share:.1%} of feed-forward "
        f"neurons); {what}; model_type {config.model_type}"
    )


def _print_fits(fits: tuple[RouterFit, ...]) -> None:
    """One line a layer, of tokens that nothing was fitted to."""
    if fits:
        print("layer  recall of the best experts  routed energy kept (by the best)  MaxVio")
    for layer, fit in enumerate(fits):
        print(f"{layer:5d}  {fit.recall:26.3f}  {fit.kept:20.3f} ({fit.kept_best:.3f})  {fit.max_vio:10.2f}")
