"""Carving as a science: held-out loss against measured decode speed, beside controls that could have won.

SmolLM2-135M is carved at three active ratios (8 of 32 slices of each feed-forward layer always on, 16, 12 or 8 of the
other 24 chosen), before and after healing (`tenth train heal-default`, equal tokens for all). The controls have equal
active size, equal healing and as many numbers that learn: neurons dealt out at random instead of by co-activation, and
structured pruning to a narrower dense layer. At one ratio all three have three seeds (split, order of data, deltas).

Loss is on text first published in 2026, without near-duplicates of the text healed on, document by document, so that
each model is compared with the dense one on the same documents: the interval is that of the mean difference, documents
being the clusters; so is that of carved models against their controls. Speed is `tenth bench` on models of 8 bits, one
sequence; models take turns and ratios to the dense one are taken within a round.

LAB is the folder of bench/lab_corpus.py. What is in OUT already is not done again; the most telling parts come first,
and figures are made of what is there. Writes carve.json, carve.md and carve.png into OUT.

usage: python bench/carve_science.py LAB OUT [--tokens 500000] [--judged 30000] [--chats FILE.tokens] [--jobs 1]
       [--set KEY=VALUE]
       python bench/carve_science.py LAB OUT --speed-only    # again on a quiet machine
"""

from __future__ import annotations

import argparse
import itertools
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

from science import MARKS, Mean, carried_out, markdown, mean_of, settle, side_by_side, threads_each, write_json

from tenth.observe.run_plot import COLOURS
from tenth.train.evaluate import mean_loss
from tenth.train.low_rank import LowRankOptions

DENSE = "default-dense"
SLICES, SHARED, RATIOS = 32, 8, {"75": 16, "50": 8, "62.5": 12}  # percent active: how many of the others are chosen
SPLITS = {"coactivation": "carved", "prune": "pruned", "random": "random split"}
SEEDS = {"75": 3}  # of the others: one
RANK, SHARED_RANK = LowRankOptions().rank, LowRankOptions().shared_rank
LONGEST, AT_ONCE = 1024, 4096
TICKS = (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # nats, of the picture
HELD_OUT = ("code-2026", "prose-2026")


@dataclass(frozen=True)
class Arm:
    """A way to fewer active neurons."""

    split: str
    ratio: str
    seed: int

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.split}-{self.ratio}-{self.seed}"


def arms() -> list[Arm]:
    """All of them, the most telling first."""
    first = [Arm(split, ratio, 0) for ratio in RATIOS for split in SPLITS]
    return first + [Arm(split, r, seed) for r, seeds in SEEDS.items() for seed in range(1, seeds) for split in SPLITS]


def equal_rank(width: int, inner: int, top_k: int) -> int:
    """The rank of a pruned layer's three deltas that learns as many numbers as a carved layer's deltas do.

    `width` is the model's, `inner` the dense feed-forward layer's.
    """
    expert, shared, pruned = inner // SLICES, SHARED * inner // SLICES, (SHARED + top_k) * inner // SLICES
    routed = (SLICES - SHARED) * RANK * ((width + 2 * expert) + (expert + width))
    routers = (SLICES - SHARED) * width
    return round((routed + routers + 3 * SHARED_RANK * (width + shared)) / (3 * (width + pruned)))


# ---- steps of an arm


class Laboratory:
    """The folder, and what is done in it once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        for name in ("data", "carved", "healed", "packed", "measured", "logs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        self.chats = options.chats or self.out / "data" / "chats.tokens"

    def tenth(self, what: str, *words: str | Path) -> None:
        """Run a command of ours."""
        log = self.out / "logs" / f"{what.replace(' ', '-')}.log"
        carried_out(what, [sys.executable, "-m", "tenth", *words], log)

    def prepare(self) -> None:
        """Token files with the model's own tokenizer, and the chats to heal on where none are given."""
        for name in ("code", "prose", *HELD_OUT):
            path = self.out / "data" / f"{name}.tokens"
            if not path.exists():
                text = self.options.lab / "text" / f"{name}.jsonl"
                self.tenth(f"tokens {name}", "tokenize", text, "--out", path, "--tokenizer", DENSE, "--domain", name)
        if not self.chats.exists():
            self.packed("dense", DENSE)
            program = Path(__file__).parent / "self_chats.py"
            command = [sys.executable, program, self.out / "packed" / "dense", self.chats, "--chats", "512"]
            carried_out("chats", command, self.out / "logs" / "chats.log")

    def packed(self, name: str, model: str | Path) -> Path:
        """A model in 8 bits, for its speed."""
        path = self.out / "packed" / name
        if not path.exists():
            self.tenth(f"pack {name}", "quantize", model, path, "--bits", "8")
        return path

    def carve(self, arm: Arm) -> Path:
        """The model before healing."""
        path = self.out / "carved" / arm.name
        if not path.exists():
            shape = ["--experts", str(SLICES), "--shared", str(SHARED), "--top-k", str(RATIOS[arm.ratio])]
            texts = [self.chats, *(self.out / "data" / f"{name}.tokens" for name in ("prose", "code"))]
            calibrate = [word for text in texts for word in ("--calibrate", text)]
            how = ["--split", arm.split, "--seed", str(arm.seed)]
            self.tenth(f"carve {arm.name}", "carve", DENSE, path, *shape, *how, *calibrate)
        return path

    def heal(self, arm: Arm) -> Path:
        """The model behind healing."""
        folder = self.out / "healed" / arm.name
        if not (folder / "model").exists():
            data = self.out / "data"
            settings = [
                f"model.from={self.carve(arm)}",
                f"run.out={folder}",
                f"run.seed={arm.seed}",
                f"run.threads={threads_each(self.options.jobs)}",
                f"low_rank.seed={arm.seed}",
                f"low_rank.shared_rank={self.shared_rank(arm)}",
                f"source.0.path={self.chats}",
                f"source.1.path={data / 'prose.tokens'}",
                f"source.2.path={data / 'code.tokens'}",
                f"stage.0.tokens={self.options.tokens}",
                "evaluation.source=[]",
                "checkpoint.keep=1",
                "log.tensorboard=false",
                *self.options.set,
            ]
            words = [word for setting in settings for word in ("--set", setting)]
            self.tenth(f"heal {arm.name}", "train", "heal-default", "--quiet", *words)
            shutil.rmtree(folder / "checkpoints")  # the model stays; a run at its end needs none
        return folder / "model"

    def shared_rank(self, arm: Arm) -> int:
        """Of the deltas that are not experts'."""
        if arm.split != "prune":
            return SHARED_RANK
        shape = json.loads((self.carve(arm) / "config.json").read_text())
        inner = shape["intermediate_size"] * SLICES // (SHARED + RATIOS[arm.ratio])
        return equal_rank(shape["hidden_size"], inner, RATIOS[arm.ratio])

    def carry_out(self, arm: Arm) -> None:
        """An arm from beginning to end."""
        self.judge(f"carved-{arm.name}", self.carve(arm))
        self.judge(f"healed-{arm.name}", self.heal(arm))

    def judge(self, what: str, model: str | Path) -> None:
        """Measure a model's loss, document by document."""
        path = self.out / "measured" / f"{what}.json"
        if not path.exists():
            words = ["--judge", str(model), "--to", str(path), "--judged", str(self.options.judged)]
            command = [sys.executable, __file__, self.options.lab, self.out, *words]
            carried_out(f"judge {what}", command, self.out / "logs" / f"judge-{what}.log")


# ---- loss


def document_losses(model: str, files: Sequence[Path], tokens: int) -> list[list[float]]:
    """Domain (by number), summed loss and targets of every document, until each file has given so many tokens."""
    import torch

    from tenth.api import resolve
    from tenth.data.packing import IGNORE
    from tenth.kernels.backend import Backend
    from tenth.kernels.training import training_kernels
    from tenth.model.batch import Batch, Want
    from tenth.model.decoder import Decoder
    from tenth.train.cross_entropy import token_losses
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.load import load_decoder

    with open_checkpoint(resolve(model)) as checkpoint:
        loaded = load_decoder(checkpoint, dtype=torch.bfloat16)
    decoder = Decoder(loaded.config, on=Backend(torch.bfloat16, "cpu", training_kernels()))
    decoder.load_state_dict(loaded.state_dict())
    found = []
    for domain, file in enumerate(files):
        for part in groups(beginnings(file, tokens)):
            batch = Batch.of(part)
            targets_T = torch.cat([torch.tensor([*ids[1:], IGNORE]) for ids in part])
            with torch.no_grad():
                hidden_TD = decoder(batch, want=Want(logits="none", hidden=True)).hidden_TD
                losses_T = token_losses(hidden_TD, decoder.head.weight.dense(), targets_T).double()
            pieces = losses_T.split([len(ids) for ids in part])
            found += [[domain, float(p.sum()), len(p) - 1] for p in pieces]
    return found


def beginnings(path: Path, tokens: int) -> list[list[int]]:
    """The first tokens of documents, until there are enough."""
    from tenth.data.token_file import TokenFile

    file, found, count = TokenFile(path), list[list[int]](), 0
    for number in range(file.documents):
        if count >= tokens:
            break
        ids = [int(token) for token in file.document(number)[:LONGEST]]
        if len(ids) > 1:
            found.append(ids)
            count += len(ids)
    return found


def groups(documents: Sequence[list[int]]) -> list[list[list[int]]]:
    """Documents in order, in groups of at most so many tokens."""
    made: list[list[list[int]]] = [[]]
    for ids in documents:
        if made[-1] and sum(map(len, made[-1])) + len(ids) > AT_ONCE:
            made.append([])
        made[-1].append(ids)
    return made


@dataclass(frozen=True)
class Loss:
    """Mean loss of a token (nats), and how much more it is than the dense model's, with half its 95 % interval."""

    loss: float
    added: float
    half: float
    documents: int


def compared(mine: Sequence[Sequence[float]], dense: Sequence[Sequence[float]], domain: int | None) -> Loss:
    """A model against the dense one on the same documents, of a domain or all.

    The interval is that of a mean over tokens with documents as clusters (`mean_loss`), of the differences.
    """
    same = len(mine) == len(dense) and all((a[0], a[2]) == (b[0], b[2]) for a, b in zip(mine, dense, strict=True))
    if not same:
        raise SystemExit("the models were judged on different documents: remove OUT/measured")
    pairs = [(a, b) for a, b in zip(mine, dense, strict=True) if domain is None or a[0] == domain]
    tokens = [a[2] for a, _ in pairs]
    added = mean_loss([a[1] - b[1] for a, b in pairs], tokens)
    loss = sum(a[1] for a, _ in pairs) / sum(tokens)
    return Loss(loss, added.loss, added.high - added.loss, len(pairs))


def mean_over_seeds(tables: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Document losses of several seeds, document by document."""
    return [[rows[0][0], statistics.mean(r[1] for r in rows), rows[0][2]] for rows in zip(*tables, strict=True)]


# ---- speed


def speeds(models: Mapping[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Decode speed of each model and its ratio to `dense` within a round: medians and ranges."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name in list(models) if number % 2 == 0 else list(models)[::-1]:
            taken[name].append(decode_speed(models[name]))
            print(f"speed {number + 1}/{rounds} {name}: {taken[name][-1]:.1f} tok/s", file=sys.stderr, flush=True)
    return {name: summed_up(values, taken["dense"]) for name, values in taken.items()}


def summed_up(mine: Sequence[float], dense: Sequence[float]) -> dict[str, float]:
    """Medians and ranges of speeds, and of their ratios within rounds."""
    ratios = [a / b for a, b in zip(mine, dense, strict=True)]
    found = {}
    for name, values in (("tok_s", mine), ("ratio", ratios)):
        found |= {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return found


def decode_speed(model: Path) -> float:
    """One sequence, 64 tokens, by `tenth bench`."""
    import subprocess

    words = ["bench", str(model), "--prompt", "1", "--generate", "64", "--depth", "0", "--batch", "1", "--repeat", "3"]
    done = subprocess.run([sys.executable, "-m", "tenth", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tenth bench {model}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    runs = json.loads(done.stdout)["runs"]
    return next(float(run["tok_s"]) for run in runs if run["kind"] == "decode" and run["tokens"] == 64)


def speed_name(arm: Arm) -> str:
    """Speed depends on the shape alone: pruned layers have one of their own."""
    return f"{'prune' if arm.split == 'prune' else 'coactivation'}-{arm.ratio}"


# ---- all together


DOMAINS = {"all": None, **{name: number for number, name in enumerate(HELD_OUT)}}


def gathered(out: Path) -> dict[str, Any]:
    """Figures of everything that was judged."""
    dense = json.loads((out / "measured" / "dense.json").read_text())
    found: dict[str, Any] = {"dense": all_domains(dense, dense), "arms": [], "differences": []}
    for stage, ratio in itertools.product(("carved", "healed"), RATIOS):
        tables = {split: judged(out, stage, split, ratio) for split in SPLITS}
        for split in (split for split in SPLITS if tables[split]):
            losses = all_domains(mean_over_seeds(tables[split]), dense)
            seeds = [{d: compared(t, dense, n).added for d, n in DOMAINS.items()} for t in tables[split]]
            entry = {"stage": stage, "split": split, "ratio": ratio, "losses": losses, "seeds": seeds}
            found["arms"].append(entry | {"speed": speed_name(Arm(split, ratio, 0))})
        ours = tables["coactivation"]
        for split in (split for split in ("prune", "random") if ours and tables[split]):
            losses = all_domains(mean_over_seeds(ours), mean_over_seeds(tables[split]))
            seeds = [compared(a, b, None).added for a, b in zip(ours, tables[split], strict=False)]
            found["differences"].append(
                {"stage": stage, "ratio": ratio, "from": split, "losses": losses, "seeds": vars(mean_of(seeds))}
            )
    path = out / "speed.json"
    found["speeds"] = json.loads(path.read_text()) if path.exists() else {}
    return found


def judged(out: Path, stage: str, split: str, ratio: str) -> list[list[list[float]]]:
    """The document losses of an arm, seed by seed, as far as they are there."""
    paths = [out / "measured" / f"{stage}-{a.name}.json" for a in arms() if (a.split, a.ratio) == (split, ratio)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def all_domains(mine: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """One model against another, all together and by domain."""
    return {name: vars(compared(mine, other, number)) for name, number in DOMAINS.items()}


def table(found: Mapping[str, Any]) -> str:
    """All figures as Markdown."""
    domains = list(found["dense"])
    rows = [
        [
            "model",
            "active",
            "healed",
            "decode tok/s (range)",
            "x dense",
            *(f"loss added, {d}" for d in domains),
            "seeds",
        ]
    ]
    cells = [f"0 (loss {found['dense'][d]['loss']:.3f})" for d in domains]
    rows.append(["dense", "100 %", "", *speed_cells(found, "dense"), *cells, ""])
    for arm in found["arms"]:
        cells = [f"{arm['losses'][d]['added']:+.3f} ± {arm['losses'][d]['half']:.3f}" for d in domains]
        seeds = ", ".join(f"{seed['all']:+.3f}" for seed in arm["seeds"]) if len(arm["seeds"]) > 1 else ""
        healed = "yes" if arm["stage"] == "healed" else "no"
        rows.append(
            [SPLITS[arm["split"]], f"{arm['ratio']} %", healed, *speed_cells(found, arm["speed"]), *cells, seeds]
        )
    return markdown(rows)


def differences(found: Mapping[str, Any]) -> str:
    """Carved less its controls as Markdown: on the same documents, and over seeds where there are several."""
    rows = [["carved less", "active", "healed", *(f"loss, {d}" for d in DOMAINS), "over seeds (t)"]]
    for entry in found["differences"]:
        cells = [f"{loss['added']:+.3f} ± {loss['half']:.3f}" for loss in entry["losses"].values()]
        mean = Mean(**entry["seeds"])
        healed = "yes" if entry["stage"] == "healed" else "no"
        seeds = f"{mean:+.3f}" if mean.count > 1 else ""
        rows.append([SPLITS[entry["from"]], f"{entry['ratio']} %", healed, *cells, seeds])
    return markdown(rows)


def speed_cells(found: Mapping[str, Any], name: str) -> list[str]:
    """Two cells of a model's speed; empty where it was not measured."""
    speed = found["speeds"].get(name)
    if not speed:
        return ["", ""]
    return [f"{speed['tok_s']:.1f} ({speed['tok_s_min']:.1f}-{speed['tok_s_max']:.1f})", f"{speed['ratio']:.2f}"]


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Loss added against decode speed, a panel for each domain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels, tok_s = list(found["dense"]), found["speeds"]["dense"]["tok_s"]
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 5), layout="constrained", sharey=True
    )
    for axes, domain in zip(all_axes, panels, strict=True):
        for number, split in enumerate(SPLITS):
            for stage in ("carved", "healed"):
                chosen = [a for a in found["arms"] if (a["split"], a["stage"]) == (split, stage)]
                draw(axes, [a for a in chosen if a["speed"] in found["speeds"]], found["speeds"], domain, number)
        dense = found["dense"][domain]
        axes.plot(1, 0, "k*", markersize=14, label="dense", clip_on=False)
        axes.axhline(math.log(1.15), color="grey", linewidth=0.8)
        axes.annotate("perplexity 15 % above dense", (1, math.log(1.15)), fontsize=8, va="bottom")
        title = f"{domain}: dense perplexity {math.exp(dense['loss']):.1f}, {dense['documents']} documents"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlabel=f"decode speed over dense ({tok_s:.0f} tok/s), 8 bits, one sequence")
        axes.set_yscale("symlog", linthresh=0.2, linscale=0.5)
        lowest, highest = least_and_most(found, domain)
        axes.set_ylim(min(-0.05, 1.1 * lowest), 1.3 * highest)  # matplotlib leaves room for negative losses
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
        axes.grid(alpha=0.25)
    all_axes[0].set_ylabel("held-out loss above dense, nats a token (95 %)")
    figure.legend(*all_axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def least_and_most(found: Mapping[str, Any], domain: str) -> tuple[float, float]:
    """The ends of all intervals of a domain."""
    losses = [arm["losses"][domain] for arm in found["arms"]]
    return min(loss["added"] - loss["half"] for loss in losses), max(loss["added"] + loss["half"] for loss in losses)


def draw(
    axes: Any, chosen: Sequence[Mapping[str, Any]], speed: Mapping[str, Mapping[str, float]], domain: str, number: int
) -> None:
    """One way at all ratios, before (open marks, dotted) or after healing; seeds are dots."""
    if not chosen:
        return
    chosen = sorted(chosen, key=lambda arm: float(arm["ratio"]))
    healed, colour = chosen[0]["stage"] == "healed", COLOURS[number]
    x = [speed[arm["speed"]]["ratio"] for arm in chosen]
    reach = [
        [abs(speed[a["speed"]][f"ratio_{end}"] - speed[a["speed"]]["ratio"]) for a in chosen] for end in ("min", "max")
    ]
    losses = [arm["losses"][domain] for arm in chosen]
    look = {"linestyle": "-" if healed else ":", "markerfacecolor": colour if healed else "white", "capsize": 2}
    label = f"{SPLITS[chosen[0]['split']]}, {'healed' if healed else 'not healed'}"
    added, half = [loss["added"] for loss in losses], [loss["half"] for loss in losses]
    axes.errorbar(x, added, half, reach, fmt=MARKS[number], color=colour, label=label, **look)
    for arm, place, loss in zip(chosen, x, losses, strict=True):
        axes.annotate(f"{arm['ratio']} %", (place, loss["added"]), (5, 4), textcoords="offset points", fontsize=7)
        if len(arm["seeds"]) > 1:
            axes.plot(
                [place] * len(arm["seeds"]), [seed[domain] for seed in arm["seeds"]], ".", color="black", markersize=3
            )


# ---- the program


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", type=Path, help="the folder that lab_corpus.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens of each healing")
    parser.add_argument("--judged", type=int, default=30_000, help="held-out tokens of each domain")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of speed")
    parser.add_argument("--most", type=int, help="stop behind so many arms, the most telling ones")
    parser.add_argument("--chats", type=Path, help="token file of chats to heal on; made where it is not given")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, which share the cores")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="put into the healing recipe")
    parser.add_argument("--speed-only", action="store_true", help="measure speeds again, and nothing else")
    parser.add_argument("--judge", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.lab, options.out = options.lab.absolute(), options.out.absolute()
    options.chats = options.chats and options.chats.absolute()
    if not (options.lab / "text").is_dir():
        parser.error(f"{options.lab}: has no texts; python bench/lab_corpus.py {options.lab} makes them")
    return options


def main() -> None:
    """Do what is missing, then write figures, table and picture."""
    options = parsed()
    if options.judge:
        files = [options.out / "data" / f"{name}.tokens" for name in HELD_OUT]
        write_json(options.to, document_losses(options.judge, files, options.judged))
        return
    lab, chosen = Laboratory(options), arms()[: options.most]
    lab.prepare()
    settings = {"tokens": options.tokens, "judged": options.judged, "set": options.set}
    settle(options.out, settings, [lab.chats, *sorted((options.out / "data").glob("*.tokens"))])
    if not options.speed_only:
        lab.judge("dense", DENSE)
        side_by_side((partial(lab.carry_out, arm) for arm in chosen), options.jobs)
    if options.speed_only or not (options.out / "speed.json").exists():
        shapes = {speed_name(arm): arm for arm in chosen if arm.split != "random" and arm.seed == 0}
        models = {name: lab.packed(name, lab.carve(arm)) for name, arm in shapes.items()}
        write_json(options.out / "speed.json", speeds({"dense": lab.packed("dense", DENSE), **models}, options.rounds))
    found = gathered(options.out)
    write_json(options.out / "carve.json", found)
    said = f"{table(found)}\n\n{differences(found)}"
    (options.out / "carve.md").write_text(said + "\n")
    picture(found, options.out / "carve.png")
    print(said)


if __name__ == "__main__":
    main()
