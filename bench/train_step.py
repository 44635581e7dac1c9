"""A training step of a Qwen3-MoE: ours beside `transformers` with torch, and what the measures of balance cost.

12 layers, width 512, 64 experts of 256 of which 8 work, 8,192 words, 8 rows of 512 tokens; AdamW, clipping, balance
loss; float32 and bfloat16. Both sides start from the same weights and learn from the same batch, each step of each must
have the other's loss. They take turns in processes of their own, with a probe of the memory's bandwidth around each
where one is there: a shared machine's speed changes from minute to minute, so a ratio is taken within a round, then
the median over rounds.

The peer runs in every setting that is named: `EXPERTS:KEEP` of train_step_peer.py. Settings differ in soundness:
bfloat16 weights without float32 copies lose updates that are too small for them, so `same` is no basis of the ratio in
bfloat16; it is shown for comparison. The ratio is against the fastest setting of the others, in the median.

Left out, for they cannot run here: `batched_mm` copies an expert's weights for each token that chose it, 17 GB a layer
in bfloat16; `deepgemm` and `sonicmoe` are for CUDA.

usage: python bench/train_step.py [--rows float32,bfloat16,overhead] [--rounds 5] [--out FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROWS = ("float32", "bfloat16", "overhead")
PEERS = {
    "float32": ("grouped_mm:same",),
    "bfloat16": ("grouped_mm:master", "grouped_mm:autocast", "grouped_mm:same"),
}
UNSOUND = {"bfloat16": ("same",)}
TENTH = "tenth"
WARM_UP = 2  # steps
TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-3}  # of losses, relative
CHECKED = (0, 1, 4)  # before any step, behind one, behind five (the last one where there are fewer)


@dataclass(frozen=True)
class Taken:
    """One process: seconds of its timed steps, all its losses, the probe's mean around it (GB/s)."""

    row: str
    engine: str
    round: int
    seconds: float
    processor_seconds: float
    losses: tuple[float, ...]
    tokens: int
    mfu: float | None
    probe_gb_s: float | None

    @property
    def tok_s(self) -> float:
        """Tokens a second, by the median of the steps."""
        return self.tokens / self.seconds


def settle(folder: Path, options: argparse.Namespace) -> None:
    """The weights and the batch that both sides start from: Zipf's tokens, each row a document."""
    import torch
    from safetensors.torch import save_file

    from tenth.data.token_writer import TokenWriter
    from tenth.model.config import ModelConfig, MoeConfig, RopeConfig
    from tenth.model.decoder import Decoder, initialise
    from tenth.weights.save import save_model

    config = ModelConfig(
        "qwen3_moe",
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=0,
        num_layers=options.layers,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        context_length=4096,
        rope=RopeConfig(1e6),
        qk_norm=True,
        moe=MoeConfig(64, 8, 256),
        sparse_layers=tuple(range(options.layers)),
    )
    (folder / "shape.json").write_text(json.dumps(asdict(config)))
    save_model(initialise(Decoder(config), 0), folder / "model")
    words_V = 1 / (torch.arange(config.vocab_size) + 3.0)
    tokens_T = torch.multinomial(words_V, 8 * 512, True, generator=torch.Generator().manual_seed(1))
    save_file({"tokens_BT": tokens_T.view(8, 512)}, folder / "batch.safetensors")
    with TokenWriter(folder / "batch.tokens", config.vocab_size) as writer:
        for row_T in tokens_T.view(8, 512):
            writer.add(row_T.numpy(), "step")
        writer.finish()


# ---- processes


def said_by(command: Sequence[str | Path]) -> str:
    """A program's standard output; ends this one where it fails."""
    words = [str(word) for word in command]
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or "nothing on standard error").splitlines()[-1]
        sys.exit(f"{' '.join(words)}: ended with {done.returncode}: {last}")
    return done.stdout


def program(engine: str, row: str, folder: Path, options: argparse.Namespace) -> list[str | Path]:
    """The command that trains one engine; `engine` is ours or a setting of the peer."""
    here = Path(__file__).parent
    steps = ["--steps", str(WARM_UP + options.steps), "--threads", str(options.threads)]
    if engine == TENTH:
        return [sys.executable, here / "train_step_tenth.py", folder, "--dtype", row, *steps]
    experts, keep = engine.split(":")
    peer = [sys.executable, here / "train_step_peer.py", folder, "--dtype", row, *steps]
    return [*peer, "--experts", experts, "--keep", keep]


def probed(program: Path | None) -> float | None:
    """The median that the probe prints, GB/s; None without a probe."""
    if program is None:
        return None
    found = re.search(r"median ([\d.]+)", said_by([program]))
    if found is None:
        sys.exit(f"{program}: printed no median")
    return float(found[1])


def figure(row: str, engine: str, number: int, printed: str, probe: float | None) -> Taken:
    """What a process printed, without the steps that warm up."""
    said = json.loads(printed.strip().splitlines()[-1])
    return Taken(
        row,
        engine,
        number,
        statistics.median(said["seconds"][WARM_UP:]),
        statistics.median(said["processor_seconds"][WARM_UP:]),
        tuple(said["losses"]),
        said["tokens"],
        statistics.median(said["mfu"][WARM_UP:]) if "mfu" in said else None,
        probe,
    )


def take(row: str, engines: Sequence[str], folder: Path, options: argparse.Namespace) -> list[Taken]:
    """All rounds of a row: engines take turns in changing order, with a probe before, between and after them."""
    taken = []
    for number in range(options.rounds):
        before = probed(options.probe)
        for engine in engines if number % 2 == 0 else engines[::-1]:
            printed = said_by(program(engine, row, folder, options))
            after = probed(options.probe)
            mean = None if before is None or after is None else (before + after) / 2
            taken.append(figure(row, engine, number, printed, mean))
            print(f"{row} {number + 1}/{options.rounds} {engine}: {taken[-1].tok_s:.0f} tok/s", file=sys.stderr)
            before = after
    return taken


# ---- sums


def sound(row: str, engine: str) -> bool:
    """Whether a setting of the peer keeps small updates."""
    return engine.split(":")[-1] not in UNSOUND.get(row, ())


def loss_gaps(taken: Sequence[Taken]) -> dict[str, float]:
    """The largest relative gap of each sound peer's losses to ours: as they begin, behind one step and behind five."""
    ours = next(t for t in taken if t.engine == TENTH).losses
    gaps: dict[str, float] = {}
    for t in taken:
        if t.engine != TENTH and sound(t.row, t.engine):
            at = {min(step, len(ours) - 1, len(t.losses) - 1) for step in CHECKED}
            gap = max(abs(t.losses[n] - ours[n]) / ours[n] for n in at)
            gaps[t.engine] = max(gap, gaps.get(t.engine, 0.0))
    return gaps


def summarise(row: str, taken: Sequence[Taken]) -> dict[str, Any]:
    """Medians, ranges, ratios within rounds, the peer's best sound setting, gaps of losses."""
    engines = list(dict.fromkeys(t.engine for t in taken))
    speeds = {e: {t.round: t.tok_s for t in taken if t.engine == e} for e in engines}
    line: dict[str, Any] = {"row": row, "rounds": len(speeds[TENTH]), "loss_gaps": loss_gaps(taken)}
    for engine, rounds in speeds.items():
        figures = list(rounds.values())
        entry = {"tok_s": statistics.median(figures), "tok_s_min": min(figures), "tok_s_max": max(figures)}
        mine = [t for t in taken if t.engine == engine]
        entry["processor_tok_s"] = statistics.median(t.tokens / t.processor_seconds for t in mine)
        if engine != TENTH:
            ratios = [speeds[TENTH][n] / speed for n, speed in rounds.items()]
            entry |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        line[engine] = entry
    probes = [t.probe_gb_s for t in taken if t.probe_gb_s is not None]
    line["probe_gb_s"] = [min(probes), statistics.median(probes), max(probes)] if probes else None
    line["mfu"] = statistics.median(t.mfu for t in taken if t.mfu is not None)
    peers = [e for e in engines if e != TENTH and sound(row, e)]
    line["best_peer"] = max(peers, key=lambda e: line[e]["tok_s"]) if peers else None
    return line


def overhead(said: dict[str, Any]) -> tuple[float, float, float]:
    """The share that measured steps cost more than their unmeasured neighbours: median over pairs, and quartiles."""
    seconds, measured = said["seconds"][WARM_UP:], said["measured"][WARM_UP:]
    shares = []
    for at in range(0, len(seconds) - 1, 2):
        pair = dict(zip(measured[at : at + 2], seconds[at : at + 2], strict=True))
        if len(pair) == 2:
            shares.append(pair[True] / pair[False] - 1)
    low, middle, high = statistics.quantiles(shares, n=4)
    return low, middle, high


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Speeds as Markdown."""
    head = ["type", "program", "tok/s (range)", "tenth is faster by (range)", "loss differs by", "MFU", "probe GB/s"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        probe = "" if line["probe_gb_s"] is None else "{:.0f} ({:.0f}-{:.0f})".format(*sorted_probe(line["probe_gb_s"]))
        for engine in (name for name, entry in line.items() if isinstance(entry, dict) and "tok_s" in entry):
            entry = line[engine]
            ratio = (
                "" if engine == TENTH else f"{entry['ratio']:.2f} ({entry['ratio_min']:.2f}-{entry['ratio_max']:.2f})"
            )
            gap = f"{line['loss_gaps'][engine]:.1e}" if engine in line["loss_gaps"] else ""
            name = engine + ("" if engine == TENTH or sound(line["row"], engine) else " (not sound)")
            name += " (best)" if engine == line["best_peer"] else ""
            speed = f"{entry['tok_s']:.0f} ({entry['tok_s_min']:.0f}-{entry['tok_s_max']:.0f})"
            rows.append([line["row"], name, speed, ratio, gap, f"{line['mfu']:.0%}" if engine == TENTH else "", probe])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sorted_probe(probe: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, largest."""
    return probe[1], probe[0], probe[2]


def check_losses(line: dict[str, Any]) -> None:
    """End the program where the two sides did not compute the same."""
    for engine, gap in line["loss_gaps"].items():
        if gap > TOLERANCE[line["row"]]:
            sys.exit(f"{line['row']}: losses of tenth and {engine} differ by {gap:.1e}, more than rounding explains")


# ---- the program


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which of float32,bfloat16,overhead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each process")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps with and without measures of balance")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="run the library's loop over experts too")
    parser.add_argument(
        "--peers", type=Path, default=Path.home() / ".cache" / "tenth-peers", help="folder of the probe"
    )
    parser.add_argument("--probe", type=Path, help="instead of bandwidth_probe in that folder; left out if not there")
    parser.add_argument("--out", type=Path, help="write the tables here too")
    parser.add_argument("--json", type=Path, help="write every round and the summary here")
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    if min(options.rounds, options.steps, options.threads, options.layers) < 1 or options.pairs < 2:
        parser.error("rounds, steps, layers and threads must be at least 1, pairs at least 2")
    found = options.peers / "bandwidth_probe"
    options.probe = options.probe or (found if found.exists() else None)
    return options


def overheads(folder: Path, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """What measures of balance cost in a step of bfloat16, alone and with the loss."""
    found = {}
    for what in ("statistics", "loss"):
        steps = ["--steps", str(WARM_UP + 2 * options.pairs), "--threads", str(options.threads), "--alternate", what]
        command = [sys.executable, Path(__file__).parent / "train_step_tenth.py", folder, "--dtype", "bfloat16", *steps]
        low, middle, high = overhead(json.loads(said_by(command).strip().splitlines()[-1]))
        found[what] = {"median": middle, "quartiles": [low, high], "pairs": options.pairs}
        quartiles = f"{low:+.1%} to {high:+.1%}, quartiles of {options.pairs} pairs"
        say(f"balance, {what}: {middle:+.1%} of the step ({quartiles})")
    return found


def main() -> None:
    """Measure, print the table, write what was asked for."""
    options = parsed()
    printed: list[str] = []

    def say(text: str) -> None:
        print(text)
        printed.append(text)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settle(folder, options)
        taken, lines = [], []
        for row in (row for row in options.rows if row in PEERS):
            engines = [TENTH, *PEERS[row], *(["eager:same"] if options.eager else [])]
            rounds = take(row, engines, folder, options)
            lines.append(summarise(row, rounds))
            check_losses(lines[-1])
            taken += rounds
        if lines:
            say(table(lines))
        costs = overheads(folder, options, say) if "overhead" in options.rows else {}
    if options.out:
        options.out.write_text("\n".join(printed) + "\n")
    if options.json:
        report = {"rounds": [asdict(t) for t in taken], "summary": lines, "overhead": costs}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
