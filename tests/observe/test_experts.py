"""The summary of a routing record, and how it looks in a terminal of 80 columns."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console

from tenth.observe.experts import expert_table, load_bars, summarise
from tenth.routing.record import LayerRouting, Routing


def _layer(counts: list[int], *, logits: torch.Tensor | None = None) -> LayerRouting:
    """Tokens with one expert each, as often as `counts` says."""
    experts = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[:, None]
    return LayerRouting(len(counts), experts, torch.ones(experts.shape), logits)


def _random(tokens: int, experts: int, chosen: int, layers: int, *, skew: float = 1.0) -> Routing:
    generator = torch.Generator().manual_seed(0)
    record = {}
    for index in range(layers):
        logits = torch.randn(tokens, experts, generator=generator) + skew * torch.randn(experts, generator=generator)
        top = logits.topk(chosen)
        record[index] = LayerRouting(experts, top.indices, top.values.softmax(-1), logits)
    return Routing(record)


def _rendered(routing: Routing, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, color_system=None).print(expert_table(routing))
    return out.getvalue().splitlines()


def test_summary_of_known_counts() -> None:
    # router logits of log 4, log 2, 0, 0: shares 1/2, 1/4, 1/8, 1/8, which are 1.75 bits of 2
    logits = torch.tensor([[math.log(4), math.log(2), 0.0, 0.0]]).expand(16, 4)
    (row,) = summarise(Routing({3: _layer([2, 10, 0, 4], logits=logits)}))
    assert row.layer == 3
    assert row.busiest == ((1, 0.625), (3, 0.25), (0, 0.125), (2, 0.0))
    assert row.loads == (0.125, 0.625, 0.0, 0.25)
    assert row.max_violation == pytest.approx(1.5)  # 10 over a mean of 4
    assert row.load_entropy == pytest.approx((0.125 * 3 + 0.625 * math.log2(1.6) + 0.25 * 2) / 2)
    assert row.router_entropy == pytest.approx(0.875)
    assert row.dead == 1


def test_summary_without_logits_tokens_or_layers() -> None:
    (even,) = summarise(Routing({0: _layer([3, 3, 3])}))
    assert (even.max_violation, even.load_entropy, even.router_entropy, even.dead) == (0.0, pytest.approx(1), None, 0)
    assert even.busiest[0] == (0, pytest.approx(1 / 3))  # of equals the lower id
    (empty,) = summarise(Routing({0: _layer([0, 0, 0], logits=torch.zeros(0, 3))}))
    assert (empty.loads, empty.max_violation, empty.load_entropy, empty.dead) == ((0.0, 0.0, 0.0), 0.0, 0.0, 3)
    assert empty.router_entropy == 0.0
    assert summarise(Routing({})) == []


def test_layers_come_in_the_order_of_the_record() -> None:
    assert [row.layer for row in summarise(Routing({1: _layer([1, 1]), 2: _layer([2, 0]), 9: _layer([0, 1])}))] == [
        1,
        2,
        9,
    ]


@pytest.mark.parametrize("layers", [1, 24, 94])
@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (32, 8), (60, 4), (128, 8), (512, 10)])
def test_the_table_fits_in_80_columns(experts: int, chosen: int, layers: int) -> None:
    lines = _rendered(_random(37, experts, chosen, layers))
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = "\n".join(lines)
    assert "…" not in text  # nothing was cut
    assert "Which experts worked (37 tokens)" in text
    for name in ("layer", "busiest", "load by expert", "MaxVio", "router", "idle"):
        assert name in text
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdecimal()]
    assert [int(row[0]) for row in rows] == list(range(layers))


def test_the_table_fits_at_its_widest() -> None:
    # one expert does everything: shares of 100 %, MaxVio of 511.00, and 511 idle ones
    routing = Routing({n: _layer([0] * 511 + [999], logits=torch.zeros(999, 512)) for n in (0, 93)})
    lines = _rendered(routing)
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "…" not in "\n".join(lines)
    (row,) = [line for line in lines if line.strip().startswith("93 ")]
    for part in ("511 100%", "511.00", " 0.00", " 1.00", " 511"):
        assert part in row
    assert "-0.00" not in row


def test_the_table_shows_the_numbers() -> None:
    lines = _rendered(Routing({7: _layer([2, 10, 0, 4])}))
    (row,) = [line for line in lines if line.strip().startswith("7 ")]
    assert row.split()[:5] == ["7", "1", "62%", "3", "25%"]
    assert "▂█ ▄" in row
    assert row.split()[-3:] == ["1.50", f"{summarise(Routing({7: _layer([2, 10, 0, 4])}))[0].load_entropy:.2f}", "1"]


@pytest.mark.parametrize(
    ("loads", "bars"),
    [
        ((0.5, 0.5), "██"),
        ((1.0, 0.0), "█ "),
        ((0.0, 0.0), "  "),
        ((8 / 36, 7 / 36, 6 / 36, 5 / 36, 4 / 36, 3 / 36, 2 / 36, 1 / 36, 0.0), "█▇▆▅▄▃▂▁ "),
        ((0.1, 0.1, 0.1), "███"),  # not beyond the full block for a sum that is not exact
        ((1.0, 1e-7), "█▁"),  # whoever worked at all is seen
    ],
)
def test_bars(loads: tuple[float, ...], bars: str) -> None:
    assert load_bars(loads) == bars


@pytest.mark.parametrize(
    ("experts", "width", "length"), [(32, 32, 32), (33, 32, 17), (128, 32, 32), (60, 32, 30), (1, 32, 1), (512, 32, 32)]
)
def test_bars_of_many_experts_are_groups_of_neighbours(experts: int, width: int, length: int) -> None:
    size = -(-experts // width)
    loads = [0.0] * experts
    loads[-1] = 1.0
    assert load_bars(tuple(loads), width) == " " * (length - 1) + "█"
    loads[:size] = [1.0 / size] * size  # as much together as the last alone
    assert load_bars(tuple(loads), width).count("█") == min(length, 2)
