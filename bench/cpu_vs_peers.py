"""tenth on the processor beside llama.cpp and ik_llama.cpp: one table of medians, ranges, ratios and bandwidth.

The programs take turns on models of one shape, each in its best setting, and a probe of the memory's bandwidth runs
between them: a shared machine's speed changes from minute to minute, so a ratio is taken within a round, then the
median over rounds. A round is slow below 55 GB/s of the probe and fast above 65.

The peers are one folder: `llama/bin` and `ik/bin` with llama-bench and llama-batched-bench, the probe, and two GGUF
files of the shape. The packed model is `tenth synth qwen3-30b-a3b OUT --layers 12`.

usage: python bench/cpu_vs_peers.py MODEL [--rows decode,depth,prefill,batch] [--against ik_llama.cpp,llama.cpp]
       [--rounds 5] [--out FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROWS = ("decode", "depth", "prefill", "batch")
STEPS, DEEP_STEPS, DEPTHS, PROMPTS = 64, 32, (1024, 4096), (512, 2048)
BATCHES, BATCH_PROMPT = (1, 4, 8, 16), 64
SLOW, FAST = 55.0, 65.0  # GB/s of the probe
PEERS = ("ik_llama.cpp", "llama.cpp")
ENGINES = ("tenth", *PEERS)
PLACES = {
    "llama": "llama/bin",
    "ik": "ik/bin",
    "probe": "bandwidth_probe",
    "q4_0": "q30b-12L-Q4_0.gguf",
    "q4_k": "q30b-12L-Q4_K.gguf",
}


@dataclass(frozen=True)
class Figure:
    """One speed; tenth says more of its own."""

    tok_s: float
    bytes_per_token: float | None = None
    limit: float | None = None  # the share of its own limit: of the walked bytes, or of the peaks


@dataclass(frozen=True)
class Taken:
    """A figure with where it belongs, and the probe's mean around it."""

    what: str
    engine: str
    round: int
    probe_gb_s: float
    figure: Figure


def said_by(command: Iterable[str | Path], errors: bool = False) -> str:
    """A program's standard output, and standard error where asked; ends this one where it fails.

    It runs where its logs are in nobody's way.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        last = (done.stderr.strip() or "nothing on standard error").splitlines()[-1]
        sys.exit(f"{' '.join(words)}: ended with {done.returncode}: {last}")
    return done.stdout + done.stderr if errors else done.stdout


def deep(depth: int) -> str:
    return f"decode {DEEP_STEPS} at depth {depth}"


def together(batch: int) -> str:
    return f"decode of {batch} sequences"


def figures_of(row: str) -> list[str]:
    """The figures that every engine has for a row."""
    return {
        "decode": [f"decode {STEPS}"],
        "depth": [deep(depth) for depth in DEPTHS],
        "prefill": [f"prefill {tokens}" for tokens in PROMPTS],
        "batch": [together(batch) for batch in BATCHES],
    }[row]


def complete(engine: str, row: str, figures: dict[str, Figure]) -> dict[str, Figure]:
    """The figures of a row as they were asked for; ends the program where an engine did not give one."""
    for what in figures_of(row):
        if what not in figures:
            given = ", ".join(figures) or "nothing"
            sys.exit(f"{engine}: row {row}: {what!r} did not come back from its programs, but {given}")
    return {what: figures[what] for what in figures_of(row)}


class Tenth:
    """Our own program, on a packed model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._model, self._options = options.model, options
        self.bits = self.parameters = 0.0

    def measure(self, row: str) -> dict[str, Figure]:
        one = ("--depth", "0", "--batch", "1")
        if row == "prefill":
            return {k: v for p in PROMPTS for k, v in self._run("--prompt", str(p), "--generate", "1", *one).items()}
        if row == "decode":
            return self._run("--prompt", "1", "--generate", str(STEPS), *one)
        depths, batches = (DEPTHS, (1,)) if row == "depth" else ((BATCH_PROMPT,), BATCHES)
        many = ("--depth", ",".join(map(str, depths)), "--batch", ",".join(map(str, batches)))
        return self._run("--prompt", "1", "--generate", str(DEEP_STEPS), *many)

    def _run(self, *arguments: str) -> dict[str, Figure]:
        o = self._options
        command = [sys.executable, "-m", "tenth", "bench", self._model, "--backend", "cpu", "--json", *arguments]
        report = json.loads(said_by([*command, "--threads", str(o.threads), "--repeat", str(o.repeat)]))
        self.bits = report["bits_per_weight"]
        self.parameters = report["weights_gb"] * 8e9 / self.bits
        return {
            name: Figure(run["tok_s"], run["bytes_per_token"], run["bandwidth_fraction"] or run["peak_fraction"])
            for run in report["runs"]
            if (name := _name_of(run)) is not None
        }


def _name_of(run: dict[str, int | str]) -> str | None:
    """The name of a run of ours; None for those that come with it and are not compared."""
    tokens, depth, batch = int(run["tokens"]), int(run["depth"]), int(run["batch"])
    if run["kind"] == "prefill":
        return f"prefill {tokens}" if tokens in PROMPTS else None
    if depth == BATCH_PROMPT:
        return together(batch)
    if depth:
        return deep(depth)
    return f"decode {tokens}" if tokens == STEPS else None


class Peer:
    """llama-bench and llama-batched-bench of one of the two, with the best settings for each row."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self._ik, self._options = name == PEERS[0], options
        self._bin = options.ik if self._ik else options.llama

    def model(self, row: str) -> Path:
        """llama.cpp reads prompts fastest in Q4_K as it is, and decodes fastest in Q4_0 repacked."""
        return Path(self._options.q4_k if row == "prefill" and not self._ik else self._options.q4_0)

    def measure(self, row: str) -> dict[str, Figure]:
        if row == "batch":
            return self._batched()
        command: list[str | Path] = [self._bin / "llama-bench", "-m", self.model(row), "-o", "json"]
        command += ["-t", str(self._options.threads), "-r", str(self._options.repeat)]
        tests = json.loads(said_by([*command, *self._settings(row)]))
        return {self._name(test): Figure(test["avg_ts"]) for test in tests}

    def _settings(self, row: str) -> list[str]:
        best = ["-rtr", "1"] if self._ik else {"prefill": ["--repack", "0"], "depth": ["-fa", "0"]}.get(row, [])
        if row == "prefill":
            return [*best, "-p", ",".join(map(str, PROMPTS)), "-n", "0"]
        if row == "decode":
            return [*best, "-p", "0", "-n", str(STEPS)]
        if self._ik:  # it has no -d: generation behind a prompt is a test of its own
            return [*best, "-p", "0", "-n", "0", *(w for d in DEPTHS for w in ("-gp", f"{d},{DEEP_STEPS}"))]
        return [*best, "-p", "0", "-n", str(DEEP_STEPS), "-d", ",".join(map(str, DEPTHS))]

    def _name(self, test: dict[str, int]) -> str:
        if depth := test.get("n_depth") or (test["n_prompt"] if test["n_gen"] else 0):
            return deep(depth)
        return f"decode {test['n_gen']}" if test["n_gen"] else f"prefill {test['n_prompt']}"

    def _batched(self) -> dict[str, Figure]:
        room = max(BATCHES) * (BATCH_PROMPT + DEEP_STEPS)
        command: list[str | Path] = [self._bin / "llama-batched-bench", "-m", self.model("batch")]
        command += ["-t", str(self._options.threads), "-c", str(room), "-b", "2048", "-ub", "512", "-fa", "off"]
        command += ["-npp", str(BATCH_PROMPT), "-ntg", str(DEEP_STEPS), "-npl", ",".join(map(str, BATCHES))]
        return batched(said_by([*command, *(["-rtr"] if self._ik else [])], errors=True))  # ik writes its table there


def batched(printed: str) -> dict[str, Figure]:
    """The decoding speeds that llama-batched-bench prints, in one table among other lines."""
    # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | ...
    lines = [line.strip("| ").split("|") for line in printed.splitlines() if re.match(r"\|\s*\d+ \|", line)]
    return {together(int(cells[2])): Figure(float(cells[7])) for cells in lines}


def probed(program: Path) -> float:
    """The median that the probe prints, GB/s."""
    found = re.search(r"median ([\d.]+)", said_by([program]))
    if found is None:
        sys.exit(f"{program}: printed no median")
    return float(found[1])


def take(options: argparse.Namespace, engines: dict[str, Tenth | Peer]) -> list[Taken]:
    """All rounds, row by row: the engines alternate, with a probe before, between and after them."""
    taken = []
    for row in options.rows:
        for number in range(options.rounds):
            order = list(engines) if number % 2 == 0 else list(engines)[::-1]
            before = probed(options.probe)
            for name in order:
                figures = complete(name, row, engines[name].measure(row))
                after = probed(options.probe)
                taken += [Taken(k, name, number, (before + after) / 2, f) for k, f in figures.items()]
                print(f"{row} {number + 1}/{options.rounds} {name}: probe {before:.1f}-{after:.1f}", file=sys.stderr)
                before = after
    return taken


def phase(probe: float) -> str:
    return "slow" if probe < SLOW else "fast" if probe > FAST else "between"


def summarise(taken: list[Taken], bits: Callable[[str, str], float]) -> list[dict[str, Any]]:
    """A line for each figure: all rounds, and where they were in different phases each phase too."""
    lines = []
    for what in dict.fromkeys(t.what for t in taken):
        mine = [t for t in taken if t.what == what]
        means = {n: statistics.mean(t.probe_gb_s for t in mine if t.round == n) for n in {t.round for t in mine}}
        phases = {n: phase(mean) for n, mean in means.items()}
        lines.append(_line(what, "all", mine, bits))
        for p in sorted(set(phases.values())) if len(set(phases.values())) > 1 else ():
            lines.append(_line(what, p, [t for t in mine if phases[t.round] == p], bits))
    return lines


def _line(what: str, phase: str, taken: list[Taken], bits: Callable[[str, str], float]) -> dict[str, Any]:
    by = {e: {t.round: t for t in taken if t.engine == e} for e in ENGINES}
    by = {engine: rounds for engine, rounds in by.items() if rounds}
    line: dict[str, Any] = {"what": what, "phase": phase, "rounds": len(by["tenth"])}
    line["probe_gb_s"] = statistics.median(t.probe_gb_s for t in taken)
    ours = by["tenth"]
    moved = statistics.median(t.figure.bytes_per_token or 0.0 for t in ours.values())
    for engine, rounds in by.items():
        speeds = [t.figure.tok_s for t in rounds.values()]
        entry = {"tok_s": statistics.median(speeds), "tok_s_min": min(speeds), "tok_s_max": max(speeds)}
        if engine != "tenth":
            ratios = [ours[n].figure.tok_s / t.figure.tok_s for n, t in rounds.items()]
            entry["ratio"] = statistics.median(ratios)
        if moved:  # the peers move the same weights in their own number of bits
            share = bits(engine, what) * moved / 1e9
            entry["of_probe"] = statistics.median(t.figure.tok_s * share / t.probe_gb_s for t in rounds.values())
        line[engine] = entry
    limits = [t.figure.limit for t in ours.values() if t.figure.limit is not None]
    line["of_own_limit"] = statistics.median(limits) if limits else None
    return line


def table(lines: list[dict[str, Any]]) -> str:
    """The summary as markdown."""
    engines = [engine for engine in ENGINES if engine in lines[0]]
    head = ["what", "rounds", "probe GB/s", *engines, *(f"x {peer}" for peer in engines[1:]), "of its own limit"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        entries = [line[engine] for engine in engines]
        cells = [_speed(entry) for entry in entries] + [f"{entry['ratio']:.2f}" for entry in entries[1:]]
        limit = "" if line["of_own_limit"] is None else f"{line['of_own_limit']:.0%}"
        what = line["what"] if line["phase"] == "all" else f"{line['what']}, {line['phase']} phase"
        rows.append([str(what), str(line["rounds"]), f"{line['probe_gb_s']:.1f}", *cells, limit])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _speed(entry: dict[str, float]) -> str:
    share = f", {entry['of_probe']:.0%} of the probe" if "of_probe" in entry else ""
    return f"{entry['tok_s']:.1f} ({entry['tok_s_min']:.1f}-{entry['tok_s_max']:.1f}){share}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the packed model")
    parser.add_argument("--rows", default=",".join(ROWS), help="which of decode,depth,prefill,batch")
    parser.add_argument("--against", default=",".join(PEERS), help="which of ik_llama.cpp,llama.cpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of each program within a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "tenth-peers", help="their folder")
    for name, place in PLACES.items():
        parser.add_argument(f"--{name}", type=Path, help=f"instead of {place} in that folder")
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--json", type=Path, help="write every round and the summary here")
    options = parser.parse_args()
    for name, place in PLACES.items():
        if getattr(options, name) is None:
            setattr(options, name, options.peers / place)
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    options.against = options.against.split(",")
    if unknown := set(options.against) - set(PEERS):
        parser.error(f"no peer is named {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}")
    if min(options.rounds, options.repeat, options.threads) < 1:
        parser.error("rounds, repeat and threads must be at least 1")
    for name in ("model", *PLACES):
        path = getattr(options, name).absolute()
        setattr(options, name, path)
        if not path.exists():
            parser.error(f"{path}: is not there")
    return options


def main() -> None:
    """Measure, print the table, write what was asked for."""
    options = parsed()
    tenth, peers = Tenth(options), {name: Peer(options, name) for name in PEERS if name in options.against}
    taken = take(options, {"tenth": tenth, **peers})

    def bits(engine: str, what: str) -> float:
        """Bits of a weight as a share of ours."""
        if engine == "tenth":
            return 1.0
        file = peers[engine].model("prefill" if what.startswith("prefill") else "decode")
        return file.stat().st_size * 8 / tenth.parameters / tenth.bits

    lines = summarise(taken, bits)
    print(text := table(lines))
    if options.out is not None:
        options.out.write_text(text + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"summary": lines, "rounds": [asdict(t) for t in taken]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
