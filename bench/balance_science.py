"""Balance of experts as a science: what each way of keeping it does to loads, perplexity and specialisation.

Every arm is `tenth train small-moe` with settings of its own, three seeds each (weights and order of data), all else
equal; `dense` is its twin of equal active compute. MaxVio is global: of 64 batches together, at the end of training
and along it; and of held-out text. Perplexity is of text first published in 2026 (C++: of a package that was not
learned from). Specialisation is phi^2 of expert and domain (tenth/routing/specialisation.py): observed beyond chance,
what token identity predicts of it, and what is left over; held-out C++ is one package, so what sets it apart is that
package as much as its language. Saturation is the share of the choices of the untrained
router that still hold. Intervals are 95 %, by Student's t over seeds.

LAB is the folder of bench/lab_corpus.py. What is in OUT already is not done again, so a run that was stopped goes on;
every arm is a process. Writes balance.json, balance.md and balance.png into OUT.

usage: python bench/balance_science.py LAB OUT [--seeds 3] [--tokens 2000000] [--arms none,micro,...] [--jobs 1]
       [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from science import LINES, MARKS, Mean, carried_out, markdown, mean_of, settle, side_by_side, threads_each, write_json

from tenth.observe.run_plot import COLOURS

FREE = ("model.shape.model_type=tenth", "model.shape.moe.expert_bias=true", "balance.kind=none")


@dataclass(frozen=True)
class Arm:
    """A way of keeping balance: the recipe and what is set in it."""

    label: str
    settings: tuple[str, ...] = ()
    recipe: str = "small-moe"


ARMS = {
    "none": Arm("no balance", ("balance.kind=none",)),
    "micro": Arm("micro-batch loss 1e-3", ("balance.kind=micro", "balance.weight=1e-3")),
    "global": Arm("global-batch loss 1e-3", ("balance.kind=global", "balance.weight=1e-3")),
    "free-sigmoid": Arm("loss-free, sigmoid", (*FREE, "model.shape.moe.score=sigmoid", "balance.bias_rate=3e-3")),
    "free-softmax": Arm("loss-free, softmax", (*FREE, "model.shape.moe.score=softmax", "balance.bias_rate=1e-2")),
    "dense": Arm("dense of equal compute", recipe="small-dense"),
}
PLAIN, BAR, FACTOR = "micro", 0.1, 2.0  # loss-free stays below the bar, the plain loss at least so many times higher
HELD_OUT = {"code": "code-2026", "prose": "prose-2026", "C++": "cpp-held-out"}
LONGEST, AT_ONCE = 1024, 8192  # tokens of a document, of a forward pass


# ---- one arm


def train_command(arm: Arm, folder: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """What trains an arm."""
    lab = options.lab
    settings = [
        f"run.out={folder}",
        f"run.seed={seed}",
        f"run.threads={threads_each(options.jobs)}",
        f"stage.0.tokens={options.tokens}",
        f"model.tokenizer={lab / 'tokenizer'}",
        *(f"source.{n}.path={lab / name}.tokens" for n, name in enumerate(("code", "prose", "cpp"))),
        *(f"evaluation.source.{n}.path={lab / name}.tokens" for n, name in enumerate(HELD_OUT.values())),
        "checkpoint.keep=1",
        "log.tensorboard=false",
        *arm.settings,
        *(setting for setting in options.set if arm.recipe == "small-moe" or ".moe." not in setting),
    ]
    command = [sys.executable, "-m", "tenth", "train", arm.recipe, "--quiet"]
    return command + [word for setting in settings for word in ("--set", setting)]


def carry_out(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and measure an arm, unless that was done."""
    folder = options.out / "runs" / f"{name}-{seed}"
    if (folder / "measured.json").exists():
        return
    log = options.out / "runs" / f"{name}-{seed}.log"
    carried_out(f"{name}, seed {seed}", train_command(ARMS[name], folder, seed, options), log)
    measure = [sys.executable, __file__, options.lab, options.out, "--measure", folder, "--judged", options.judged]
    carried_out(f"{name}, seed {seed}, measured", [str(word) for word in measure], log)
    shutil.rmtree(folder / "checkpoints")  # the model stays; a run at its end needs none


# ---- measures of a trained model


def measure(folder: Path, lab: Path, judged: int) -> dict[str, Any]:
    """What is told of one run: its log's end and curves, and routing on held-out text."""
    from tenth.train.run_log import read_log

    records = read_log(folder / "log.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    last = [record for record in records if record["kind"] == "evaluation"][-1]
    curve = [[r["tokens"], r.get("max_vio_global"), r["loss"]] for r in steps[:: max(len(steps) // 200, 1)]]
    found = {
        "max_vio_global": steps[-1].get("max_vio_global"),
        "max_vio": steps[-1].get("max_vio"),
        "dead_experts": steps[-1].get("dead_experts"),
        "load_entropy": steps[-1].get("load_entropy"),
        "router_entropy": steps[-1].get("router_entropy"),
        "held_out_max_vio": last.get("max_vio"),
        "saturation": last.get("saturation"),
        "loss": last["loss"],
        "domains": last["domains"],
        "tok_s": statistics.median(record["tok_s"] for record in steps),
        "curve": curve,
    }
    return found | routing_measures(folder / "model", lab, judged)


def routing_measures(model: Path, lab: Path, judged: int) -> dict[str, Any]:
    """Loads and specialisation on `judged` tokens of each domain; nothing of a dense model."""
    import torch

    from tenth.model.batch import Batch, Want
    from tenth.routing.measures import expert_counts
    from tenth.routing.record import Routing
    from tenth.routing.specialisation import specialisation
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.load import load_decoder

    with open_checkpoint(model) as checkpoint:
        if not checkpoint.config.sparse_layers:
            return {}
        decoder = load_decoder(checkpoint, dtype=torch.float32)
    documents = [
        (number, ids) for number, name in enumerate(HELD_OUT.values()) for ids in texts(lab / f"{name}.tokens", judged)
    ]
    records = []
    with torch.no_grad():
        for part in batches(documents):
            output = decoder(Batch.of([ids for _, ids in part]), want=Want(logits="none", routing="choice"))
            assert output.routing is not None, "asked for"
            records.append(output.routing.detach())
    record = Routing.join(records)
    sizes_S = torch.tensor([len(ids) for _, ids in documents])
    measured = specialisation(
        record,
        torch.tensor([domain for domain, _ in documents]).repeat_interleave(sizes_S),
        torch.cat([torch.tensor(ids) for _, ids in documents]),
        torch.arange(len(documents)).repeat_interleave(sizes_S),
    )
    loads = {index: expert_counts(layer).tolist() for index, layer in record.layers.items()}
    layers = {
        index: {
            **{kind: vars_of(getattr(layer, kind)) for kind in ("observed", "expected", "residual")},
            "coverage": layer.coverage,
            "shares_ED": layer.shares_ED.tolist(),
        }
        for index, layer in measured.items()
    }
    return {"loads": loads, "specialisation": layers, "judged_tokens": int(sizes_S.sum())}


def vars_of(strength: Any) -> dict[str, float]:
    """A strength as JSON."""
    names = ("value", "chance", "high", "p", "excess")
    return {name: getattr(strength, name) for name in names}


def texts(path: Path, tokens: int) -> list[list[int]]:
    """The first tokens of documents of a token file, until there are enough."""
    from tenth.data.token_file import TokenFile

    file, found, count = TokenFile(path), list[list[int]](), 0
    for number in range(file.documents):
        if count >= tokens:
            break
        found.append([int(token) for token in file.document(number)[:LONGEST]])
        count += len(found[-1])
    return found


def batches(documents: Sequence[tuple[int, list[int]]]) -> list[list[tuple[int, list[int]]]]:
    """Documents in order, in groups of at most so many tokens."""
    groups: list[list[tuple[int, list[int]]]] = [[]]
    for document in documents:
        if groups[-1] and sum(len(ids) for _, ids in groups[-1]) + len(document[1]) > AT_ONCE:
            groups.append([])
        groups[-1].append(document)
    return groups


# ---- all arms together


def gather(out: Path, arms: Sequence[str], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """What was measured of each arm, seed by seed."""
    return {
        name: [json.loads((out / "runs" / f"{name}-{seed}" / "measured.json").read_text()) for seed in range(seeds)]
        for name in arms
    }


def over(runs: Sequence[Mapping[str, Any]], name: str) -> Mean:
    """A number of each run, over seeds; nan where they lack it."""
    values = [run[name] for run in runs if run.get(name) is not None]
    return mean_of(values)


def special(runs: Sequence[Mapping[str, Any]], kind: str) -> Mean:
    """phi^2 beyond chance, mean over layers, over seeds."""
    means = []
    for run in runs:
        layers = run.get("specialisation") or {}
        if layers:
            means.append(statistics.mean(layer[kind]["excess"] for layer in layers.values()))
    return mean_of(means)


def perplexity(runs: Sequence[Mapping[str, Any]], domain: str | None) -> Mean:
    """Held-out perplexity of a domain, or of all, over seeds."""
    losses = [run["loss"] if domain is None else run["domains"][domain]["loss"] for run in runs]
    return mean_of([math.exp(loss) for loss in losses])


def shown(mean: Mean, form: str) -> str:
    """A cell; empty where there is nothing."""
    return "" if math.isnan(mean.value) else f"{mean:{form}}"


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """All arms as Markdown."""
    domains = list(next(iter(found.values()))[0]["domains"])
    head = ["arm", "global MaxVio", "of a batch", "held-out", "dead", *(f"PPL {d}" for d in domains), "PPL all"]
    head += ["phi² beyond chance", "of it by token id", "left over", "saturation", "tok/s"]
    rows = [head]
    for name, runs in found.items():
        cells = [ARMS[name].label, *(shown(over(runs, key), ".3f") for key in ("max_vio_global", "max_vio"))]
        cells += [shown(over(runs, "held_out_max_vio"), ".2f"), shown(over(runs, "dead_experts"), ".1f")]
        cells += [shown(perplexity(runs, domain), ".2f") for domain in [*domains, None]]
        cells += [shown(special(runs, kind), ".3f") for kind in ("observed", "expected", "residual")]
        rows.append([*cells, shown(over(runs, "saturation"), ".3f"), shown(over(runs, "tok_s"), ".0f")])
    return markdown(rows)


def verdicts(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Whether loss-free balance reached the bar, and what the plain loss did, in words."""
    words = []
    for name in (name for name in found if name.startswith("free") and PLAIN in found):
        free, plain = over(found[name], "max_vio_global"), over(found[PLAIN], "max_vio_global")
        reached = free.value < BAR and plain.value >= FACTOR * free.value
        words.append(
            f"{ARMS[name].label}: global MaxVio {free:.3f} against {plain:.3f} of the {ARMS[PLAIN].label}, "
            f"{plain.value / free.value:.1f} times as high: {'reached' if reached else 'NOT reached'} "
            f"(below {BAR:g}, at least {FACTOR:g} times)"
        )
    return words


# ---- the picture


def picture(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """MaxVio along training with the range of the seeds, held-out loads, perplexity by domain, specialisation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((along, loads), (text, kinds)) = pyplot.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    for number, (name, runs) in enumerate(found.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        if runs[0].get("loads"):
            draw_curve(along, runs, ARMS[name].label, style)
            draw_loads(loads, runs, ARMS[name].label, style)
        draw_perplexity(text, runs, number, len(found), ARMS[name].label)
    draw_specialisation(kinds, found)
    along.axhline(BAR, color="grey", linewidth=0.8)
    along.set(xlabel="tokens learned from", ylabel="MaxVio over 64 batches, mean of layers", yscale="log")
    loads.axhline(1, color="grey", linewidth=0.8)
    loads.set(xlabel="experts of a layer, busiest first", ylabel="load over mean, held-out text", yscale="log")
    text.set(ylabel="held-out perplexity")
    for axes, title in ((along, "Imbalance while learning (band: range of seeds)"), (loads, "Who does the work"),
                        (text, "What it costs or gains (95 % intervals over seeds)"),
                        (kinds, "Do experts serve domains? (95 % intervals over seeds)")):  # fmt: skip
        axes.set_title(title, loc="left")
        axes.grid(alpha=0.25)
    for axes in (along, loads, text, kinds):
        axes.legend(fontsize=8, framealpha=0.9)
    loads.set_yticks((0.1, 0.2, 0.5, 1, 2, 4, 8), ("0.1", "0.2", "0.5", "1", "2", "4", "8"), minor=False)
    loads.yaxis.set_minor_formatter("")
    kinds.margins(y=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_curve(axes: Any, runs: Sequence[Mapping[str, Any]], label: str, style: Mapping[str, Any]) -> None:
    """Medians over seeds at each place, and their range."""
    columns = list(zip(*(run["curve"] for run in runs), strict=False))
    tokens = [rows[0][0] for rows in columns]
    values = [sorted(max(row[1], 1e-3) for row in rows) for rows in columns]
    axes.fill_between(tokens, [v[0] for v in values], [v[-1] for v in values], color=style["color"], alpha=0.2, lw=0)
    axes.plot(tokens, [statistics.median(v) for v in values], label=label, **style)


def draw_loads(axes: Any, runs: Sequence[Mapping[str, Any]], label: str, style: Mapping[str, Any]) -> None:
    """Loads of held-out text in falling order, mean over layers and seeds."""
    curves = [sorted((n * len(c) / sum(c) for n in c), reverse=True) for run in runs for c in run["loads"].values()]
    axes.plot([max(statistics.mean(place), 1e-3) for place in zip(*curves, strict=True)], label=label, **style)


def draw_perplexity(axes: Any, runs: Sequence[Mapping[str, Any]], number: int, arms: int, label: str) -> None:
    domains = list(runs[0]["domains"])
    means = [perplexity(runs, domain) for domain in domains]
    places = [n + 0.7 * (number / max(arms - 1, 1) - 0.5) for n in range(len(domains))]
    axes.errorbar(places, [m.value for m in means], [0 if math.isnan(m.half) else m.half for m in means], label=label,
                  fmt=MARKS[number % len(MARKS)], color=COLOURS[number % len(COLOURS)], capsize=3)  # fmt: skip
    axes.set_xticks(range(len(domains)), domains)


def draw_specialisation(axes: Any, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    sparse = {name: runs for name, runs in found.items() if runs[0].get("specialisation")}
    kinds = {"observed": "beyond chance", "expected": "predicted by token id", "residual": "left over"}
    for number, (kind, label) in enumerate(kinds.items()):
        means = [special(runs, kind) for runs in sparse.values()]
        halves = [0 if math.isnan(m.half) else m.half for m in means]
        places = [n + 0.27 * (number - 1) for n in range(len(sparse))]
        axes.bar(places, [m.value for m in means], 0.25, yerr=halves, capsize=3, label=label, color=COLOURS[number],
                 hatch=("", "//", "..")[number], edgecolor="white")  # fmt: skip
    labels = [ARMS[name].label.replace(", ", ",\n").replace(" loss", "\nloss") for name in sparse]
    axes.set_xticks(range(len(sparse)), labels, fontsize=8)
    axes.set(ylabel="phi² of expert and domain, mean of layers")


# ---- the program


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", type=Path, help="the folder that lab_corpus.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens each arm learns from")
    parser.add_argument("--judged", type=int, default=40_000, help="tokens of each domain whose routing is judged")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"which of {','.join(ARMS)}")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, which share the cores")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="put into every arm's recipe")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.lab, options.out = options.lab.absolute(), options.out.absolute()
    options.arms = options.arms.split(",")
    if unknown := set(options.arms) - set(ARMS):
        parser.error(f"no arm is named {', '.join(sorted(unknown))}: there are {', '.join(ARMS)}")
    if not (options.lab / "tokenizer").is_dir():
        parser.error(f"{options.lab}: has no tokenizer; python bench/lab_corpus.py {options.lab} makes it")
    return options


def main() -> None:
    """Run what is missing, then write numbers, table and picture."""
    options = parsed()
    if options.measure:
        write_json(options.measure / "measured.json", measure(options.measure, options.lab, options.judged))
        return
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    settings = {"tokens": options.tokens, "judged": options.judged, "set": options.set}
    settle(options.out, settings, sorted(options.lab.glob("*.tokens")))
    runs = [(name, seed) for seed in range(options.seeds) for name in options.arms]  # if stopped, some were compared
    side_by_side((partial(carry_out, name, seed, options) for name, seed in runs), options.jobs)
    found = gather(options.out, options.arms, options.seeds)
    said = "\n".join([table(found), "", *verdicts(found)])
    write_json(options.out / "balance.json", found)
    (options.out / "balance.md").write_text(said + "\n")
    picture(found, options.out / "balance.png")
    print(said)


if __name__ == "__main__":
    main()
