"""`tenth train`: a recipe, carried out."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

if TYPE_CHECKING:
    from tenth.train.training_run import Outcome


def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a recipe that ships.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Put a value into the recipe: stage.0.steps=100."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a run that is there.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; a run in the same folder is removed.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every field of a recipe with its default and meaning, and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the end.")] = False,
) -> None:
    """Train a model as a recipe says, in a folder that can be continued at any time.

    A run of the same recipe goes on where it was. Ctrl-C ends it behind the step at work, with a checkpoint.
    """
    if explain:
        _explain()
        return
    from tenth.commands.train_progress import TrainProgress
    from tenth.errors import RequestError
    from tenth.train.recipe_reader import bundled_recipes, load_recipe
    from tenth.train.training_run import Choice, train

    if recipe is None:
        raise RequestError(f"name a recipe: a TOML file, or one that ships ({', '.join(bundled_recipes()) or 'none'})")
    if resume and fresh:
        raise RequestError("--resume goes on with a run, --fresh begins anew: choose one")
    choice: Choice = "resume" if resume else "fresh" if fresh else "auto"
    loaded = load_recipe(recipe, settings or [])
    with TrainProgress(loaded, quiet=quiet) as shown, _Signals() as signals:

        def begun(text: str) -> None:
            shown.begin(text)
            signals.wait_for_a_step()

        outcome = train(loaded, choice=choice, report=shown.report, told=shown.tell, note=begun, stop=signals.arrived)
    _print(outcome, shown.last)
    if signals.first and not outcome.ended:
        raise typer.Exit(128 + signals.first)


class _Signals:
    """Signals to end: once the run has begun, the first one waits for the step at work, a second one does not."""

    def __init__(self) -> None:
        self.first = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def wait_for_a_step(self) -> None:
        """From now on; one that is ignored (as `nohup` does with SIGHUP) stays so."""
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN and number not in self._before:
                self._before[number] = signal.signal(number, self._note)

    def arrived(self) -> bool:
        """Whether one has."""
        return self.first > 0

    def _note(self, number: int, _: object) -> None:
        self.first = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def _print(outcome: Outcome, last: Mapping[str, Any]) -> None:
    where = f"{outcome.folder}: step {outcome.step:,}, {outcome.tokens:,} tokens"
    if not outcome.ended:
        print(f"{where}; stopped, with a checkpoint: the same command goes on from here")
        return
    held_out = f", held-out loss {last['loss']:.4f}" if "loss" in last else ""
    print(f"{where}{held_out}; the model is {outcome.folder / 'model'}")


def _explain() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tenth.train.recipe_explain import explain

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 150)
    for section, meaning, rows in explain():
        console.print(Text(section, "bold"), Text(meaning))
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
        for name in ("key", "type", "default", "meaning"):
            table.add_column(name, overflow="fold", no_wrap=name == "key")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        console.print()
