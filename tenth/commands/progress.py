"""Progress on standard error: bars in a terminal, a line for each stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Report = Callable[[str], Callable[[int, int], None]]


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Report]:
    """Gives `report(stage)`, which returns where that stage's (done, total) go."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def report(stage: str) -> Callable[[int, int], None]:
            if not console.is_terminal:
                console.print(f"{stage} ...", style="dim")
            task = bars.add_task(stage, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield report
