"""How far a training run is: a live line in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tenth.train.recipe import Recipe

_SECONDS = 10.0  # between lines where there is no terminal


class TrainProgress:
    """A context manager that is told what a run does, and shows it on standard error."""

    def __init__(self, recipe: Recipe, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self._bars = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._steps, self._printed = recipe.total_steps, 0.0
        self._training = self._bars.add_task("training", total=self._steps, figures="", start=False, visible=False)
        self.last: Mapping[str, Any] = {}
        """The last evaluation."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, stage: str) -> Callable[[int, int], None]:
        """A part of the run before or behind the training; returns where its (done, total) go."""
        if not self._console.is_terminal:
            self._console.print(f"{stage} ...", style="dim")
        task = self._bars.add_task(stage, total=None, figures="")

        def show(done: int, total: int) -> None:
            self._bars.update(task, completed=done, total=total, figures=f"{done / max(total, 1):.0%}")

        return show

    def begin(self, text: str) -> None:
        """What came before is done; the run goes on as `text` says."""
        for task in [task.id for task in self._bars.tasks if task.id != self._training]:
            self._bars.remove_task(task)
        self._note(text)

    def tell(self, record: Mapping[str, Any]) -> None:
        """Show a record of the log."""
        if record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "evaluation":
            self.last = record
            self._note(f"step {record['step']:,}: {_evaluation(record)}")
        else:
            what = f"left out: {record['what']}" if record["kind"] == "skip" else record["what"]
            self._console.print(f"step {record['step']:,}: {what}", style="yellow", markup=False)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _step(self, record: Mapping[str, Any]) -> None:
        step, figures = record["step"], _figures(record)
        if self._console.is_terminal:
            self._bars.start_task(self._training)
            description = f"step {step:,} of {self._steps:,}"
            self._bars.update(self._training, completed=step, visible=True, description=description, figures=figures)
        elif time.monotonic() > self._printed + _SECONDS or step == self._steps:
            self._printed = time.monotonic()
            self._console.print(f"step {step:,} of {self._steps:,}: {figures}", markup=False)


def _figures(record: Mapping[str, Any]) -> str:
    balance = f", MaxVio {record['max_vio']:.2f}" if "max_vio" in record else ""
    return f"loss {record['loss']:.3f}, {record['tok_s']:,.0f} tok/s, MFU {record['mfu']:.0%}{balance}"


def _evaluation(record: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {domain['loss']:.3f} (perplexity {domain['perplexity']:.2f})"
        for name, domain in record.get("domains", {}).items()
    ]
    text = f"held out: {', '.join(parts)}" if parts else "no held-out text"
    if record.get("saturation") is not None:
        text += f"; routing as at the start {record['saturation']:.0%}"
    return text
