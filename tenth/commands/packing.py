"""What was packed, in a few lines: bytes, bits and what rounding cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenth.quantize.streaming import Count, Tally


def print_tally(out: Path, tally: Tally) -> None:
    """Print a table of the formats and their sum."""
    from rich.console import Console
    from rich.table import Table

    table = Table("format", "weights", "size", "bits a weight", "relative squared error", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in sorted(tally.by_format.items(), key=lambda item: -item[1].nbytes):
        table.add_row(name, *_cells(count))
    table.add_row("total", *_cells(tally.total))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    whole = tally.total
    print(f"{out}: {whole.weights:,} weights at {whole.bits_per_weight:.2f} bits, {_size(whole.nbytes)}")


def _cells(count: Count) -> tuple[str, ...]:
    error = f"{count.relative_error:.2e}" if count.error else "exact"
    return f"{count.weights:,}", _size(count.nbytes), f"{count.bits_per_weight:.3f}", error


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
