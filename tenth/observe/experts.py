"""Which experts worked: a routing record summed up layer by layer, and drawn for the terminal. E experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

from tenth.routing.measures import dead_experts, expert_counts, load_entropy, max_violation, router_entropy
from tenth.routing.record import LayerRouting, Routing

_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One sparse layer over the tokens of a record; see `tenth.routing.measures` for the definitions.

    `busiest` holds expert ids and their shares of the layer's work, the first four; `loads` the share of each expert.
    `router_entropy` is None where the record has no router logits.
    """

    layer: int
    busiest: tuple[tuple[int, float], ...]
    loads: tuple[float, ...]
    max_violation: float
    load_entropy: float
    router_entropy: float | None
    dead: int


def summarise(routing: Routing) -> list[LayerSummary]:
    """One summary for each sparse layer."""
    return [_summary(index, layer) for index, layer in routing.layers.items()]


def _summary(index: int, layer: LayerRouting) -> LayerSummary:
    counts_E = expert_counts(layer)
    loads_E: Tensor = counts_E / counts_E.sum().clamp_min(1)
    top = loads_E.sort(descending=True, stable=True)
    pairs = zip(top.indices[:4].tolist(), top.values[:4].tolist(), strict=True)
    return LayerSummary(
        layer=index,
        busiest=tuple(pairs),
        loads=tuple(loads_E.tolist()),
        max_violation=max_violation(counts_E),
        load_entropy=load_entropy(counts_E),
        router_entropy=None if layer.logits_TE is None else router_entropy(layer.logits_TE, layer.score),
        dead=dead_experts(counts_E),
    )


def expert_table(routing: Routing) -> Table:
    """A table with a row a layer: busiest experts, a bar for each expert's load, balance and router entropy."""
    table = Table(
        title=f"Which experts worked ({routing.num_tokens} tokens)",
        caption="MaxVio: (max - mean) / mean load, 0 is even; entropies of load and router: 1 is even, 0 one expert",
        box=None,
        header_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,  # with it the line would be 81 columns long
    )
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("busiest", no_wrap=True)
    table.add_column("load by expert", no_wrap=True)
    for name in ("MaxVio", "load", "router", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summarise(routing):
        busiest = " ".join(f"{expert:>3} {share:<4.0%}" for expert, share in row.busiest[:2])
        entropy = "" if row.router_entropy is None else f"{row.router_entropy:.2f}"
        numbers = (f"{row.max_violation:.2f}", f"{row.load_entropy:.2f}", entropy, str(row.dead))
        table.add_row(str(row.layer), busiest, load_bars(row.loads), *numbers)
    return table


def load_bars(loads: tuple[float, ...], width: int = 32) -> str:
    """One block character for each expert (or each group of neighbours, where there are more than `width`).

    Heights are shares of the highest; only an expert without work has none.
    """
    size = -(-len(loads) // width)
    groups = [sum(loads[at : at + size]) for at in range(0, len(loads), size)]
    top = max(groups) or 1.0
    return "".join(_BLOCKS[_eighths(group / top)] for group in groups)


def _eighths(share: float) -> int:
    """Rounded up, but for the error of a sum."""
    return max(math.ceil(share * 8 - 1e-6), 1) if share > 0 else 0
