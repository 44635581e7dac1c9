"""Pictures of runs: what is drawn is what the log says, and what cannot be drawn is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenth.errors import FileFormatError, MachineError, RequestError
from tenth.observe.run_plot import COLOURS, RunRecords, draw_runs, plot_runs, smoothed


def _write(folder: Path, steps: int = 50, *, sparse: bool = True, domains: tuple[str, ...] = ("code", "prose")) -> Path:
    """A run's log with round numbers in it."""
    folder.mkdir()
    records: list[dict[str, Any]] = []
    for step in range(steps + 1):
        place = {"step": step, "tokens": 1000 * step, "stage": "main"}
        if step % 10 == 0:
            losses = {name: {"loss": 5.0 - step / 20 + n, "low": 4.0, "high": 6.0} for n, name in enumerate(domains)}
            record = {"kind": "evaluation", **place, "loss": 5.0 - step / 20, "low": None, "high": None}
            records.append(record | {"domains": losses} | ({"saturation": 0.9} if sparse else {}))
        if step == 7:
            records.append({"kind": "skip", **place, "what": "the loss is nan"})
        elif step:
            record = {"kind": "step", **place, "loss": 6 - step / 10, "lr": 1e-3, "grad_norm": 1.0, "tok_s": 500.0}
            layers = {"0": {"max_vio_global": 0.1}, "1": {"max_vio_global": 0.5}}
            balance = {"max_vio": 0.4, "max_vio_global": 0.3, "load_entropy": 0.9, "router_entropy": 0.8}
            records.append(record | ({**balance, "dead_experts": 2.0, "layers": layers} if sparse else {}))
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _drawn(figure: Any, title: str) -> list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Colour, places and values of a panel's lines."""
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return [
        (line.get_color(), line.get_xdata(), line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata())
    ]


def test_a_run_is_drawn_as_it_is_logged(tmp_path: Path) -> None:
    figure = draw_runs([RunRecords.read(_write(tmp_path / "one"))])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Training loss",
        "Held-out loss",
        "Learning rate",
        "Speed",
        "Norm of the gradient",
        "MaxVio",
        "Entropy",
        "Dead experts",
        "Routing as at the start",
    ]
    raw, mean, skipped = _drawn(figure, "Training loss")
    assert raw[2].tolist() == [6 - step / 10 for step in range(1, 51) if step != 7]
    assert raw[1].tolist() == [1000 * step for step in range(1, 51) if step != 7]
    np.testing.assert_allclose(mean[2], raw[2])  # 49 steps are too few for a mean to reach beyond a step
    assert skipped[1].tolist() == [7000]
    code, prose = _drawn(figure, "Held-out loss")
    assert code[2].tolist() == [5.0, 4.5, 4.0, 3.5, 3.0, 2.5]
    assert prose[2][0] == 6.0
    assert {code[0], prose[0]} == set(COLOURS[:2])
    assert [line[2][0] for line in _drawn(figure, "MaxVio")] == [0.4, 0.3]
    assert [line[2][0] for line in _drawn(figure, "Entropy")] == [0.9, 0.8]


def test_several_runs_share_panels_and_have_a_colour_each(tmp_path: Path) -> None:
    runs = [RunRecords.read(_write(tmp_path / name, sparse=name != "dense")) for name in ("moe", "dense")]
    figure = draw_runs(runs)
    assert [line[0] for line in _drawn(figure, "Held-out loss")] == list(COLOURS[:2])
    assert _drawn(figure, "Held-out loss")[0][2].tolist() == [5.0, 4.5, 4.0, 3.5, 3.0, 2.5]  # of all domains
    assert {line[0] for line in _drawn(figure, "Dead experts")} == {COLOURS[0]}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["moe", "dense"]


def test_a_dense_run_has_no_panels_of_balance(tmp_path: Path) -> None:
    figure = draw_runs([RunRecords.read(_write(tmp_path / "dense", sparse=False))])
    assert len(figure.axes) == 5


def test_smoothing_reaches_to_both_sides() -> None:
    values = [float(n % 2) for n in range(400)]
    found = smoothed(values)
    assert len(found) == 400
    assert all(abs(value - 0.5) < 0.06 for value in found[5:-5])
    ramp = [float(n) for n in range(400)]
    np.testing.assert_allclose(smoothed(ramp)[5:-5], ramp[5:-5])  # no lag


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_files(ending: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / f"p{ending}"
    plot_runs([_write(tmp_path / "run")], out)
    assert out.stat().st_size > 5000
    assert list(out.parent.iterdir()) == [out]


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    run = _write(tmp_path / "run")
    with pytest.raises(RequestError, match=r"x\.jpeg: pictures are written as \.png, \.svg, \.pdf"):
        plot_runs([run], tmp_path / "x.jpeg")
    with pytest.raises(RequestError, match=r"nothing: is no run: it has no log\.jsonl"):
        plot_runs([run, tmp_path / "nothing"], tmp_path / "x.png")
    with pytest.raises(RequestError, match="8 runs are named; one picture holds 1 to 7"):
        plot_runs([run] * 8, tmp_path / "x.png")
    (run / "log.jsonl").write_text("")
    with pytest.raises(RequestError, match="has no step yet"):
        plot_runs([run], tmp_path / "x.png")
    (run / "log.jsonl").write_text("[]\n")
    with pytest.raises(FileFormatError, match=r"log\.jsonl:1"):
        plot_runs([run], tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        plot_runs([_write(tmp_path / "other")], tmp_path / "file" / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_every_domain_is_drawn(tmp_path: Path) -> None:
    domains = tuple("abcdefghi")
    figure = draw_runs([RunRecords.read(_write(tmp_path / "one", domains=domains))])
    assert len(_drawn(figure, "Held-out loss")) == 9
