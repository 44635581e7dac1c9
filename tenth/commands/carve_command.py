"""`tenth carve`: a dense model's neurons into experts, of which few work on a token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from tenth.commands.progress import Report
    from tenth.model.config import ModelConfig
    from tenth.train.carve import CarveOptions
    from tenth.train.router_fit import RouterFit

_CONTROL = "Carving"
_ARTEFACT = "Small files instead of whole models"


def _carving(name: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, metavar=metavar, rich_help_panel=_CONTROL)


def _artefact(name: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, metavar=metavar, rich_help_panel=_ARTEFACT)


_Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A dense model: path, hub name or `default-dense`.")]
_Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist, or be empty.")]
_Experts = Annotated[int, _carving("--experts", "Equal slices of each dense layer.")]
_Shared = Annotated[int, _carving("--shared", "Slices that are always at work.")]
_TOP_K = "Of the others, how many a token goes to (default: 16; with --healed, as many as in SOURCE)."
_TopK = Annotated[int | None, _carving("--top-k", _TOP_K)]
_CORPUS = "Text, JSON lines, Parquet or token files to see the neurons at work on (default: Python's own)."
_Calibrate = Annotated[list[str] | None, _carving("--calibrate", _CORPUS, "CORPUS")]
_Tokens = Annotated[int, _carving("--tokens", "Tokens of it that are used.")]
_SPLIT = "coactivation; for comparison random, or prune: the most important neurons as a narrower dense layer."
_Split = Annotated[str, _carving("--split", _SPLIT)]
_Seed = Annotated[int, _carving("--seed", "Of the split.")]
_FROM = "Rebuild a carved model from SOURCE and the file that --healed wrote."
_From = Annotated[Path | None, _artefact("--from", _FROM, "FILE")]
_HEALED = "Write to the file OUT what was learned from the carved folder SOURCE to this model."
_Healed = Annotated[Path | None, _artefact("--healed", _HEALED, "FOLDER")]
_Rank = Annotated[int, _artefact("--rank", "Of the deltas kept for each expert.")]
_SharedRank = Annotated[int, _artefact("--shared-rank", "Of those of shared experts.")]

# what each way of calling it heeds, beside SOURCE and OUT
_HEEDED = {
    "--from": {"carving"},
    "--healed": {"healed", "rank", "shared_rank", "top_k"},
    "carving": {"experts", "shared", "top_k", "calibrate", "tokens", "split", "seed", "dtype"},
}


def command(
    context: typer.Context,
    source: _Source,
    out: _Out,
    experts: _Experts = 32,
    shared: _Shared = 8,
    top_k: _TopK = None,
    calibrate: _Calibrate = None,
    tokens: _Tokens = 32_768,
    split: _Split = "coactivation",
    seed: _Seed = 0,
    carving: _From = None,
    healed: _Healed = None,
    rank: _Rank = 10,
    shared_rank: _SharedRank = 56,
    dtype: o.Dtype = "auto",
) -> None:
    """Carve a dense model into a sparse one: its own neurons, all experts distinct, fewer at work.

    Neurons that always matter are shared, the others are grouped by when they work, and a router is fitted layer by
    layer. The model loses some quality, which `tenth train` with a distillation recipe gives back for the most part.
    """
    from tenth.commands.progress import progress_bars
    from tenth.train.carve import CarveOptions

    _check_heeded(context, "--healed" if healed is not None else "--from" if carving is not None else "carving")
    with progress_bars() as report:
        if healed is not None:
            _keep(source, healed, out, rank, shared_rank, top_k, report)
        elif carving is not None:
            _rebuild(source, carving, out, report)
        else:
            chosen = CarveOptions().top_k if top_k is None else top_k
            options = CarveOptions(experts, shared, chosen, split, seed)  # type: ignore[arg-type]  # checked there
            _carve(source, out, options, calibrate or [], tokens, dtype, report)


def _check_heeded(context: typer.Context, action: str) -> None:
    """RequestError where an option was given that this way of calling it does not heed."""
    o.refuse(context, set().union(*_HEEDED.values()) - _HEEDED[action], action)


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


def _keep(source: str, healed: Path, out: Path, rank: int, shared_rank: int, top_k: int | None, report: Report) -> None:
    from tenth.train.carve_checkpoint import keep_healed

    size = keep_healed(Path(source), healed, out, rank, shared_rank, top_k, report)
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
