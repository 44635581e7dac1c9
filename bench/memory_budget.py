"""A packed model within a budget of memory, against the same files mapped, both under one hard limit on memory.

Each measurement is a process of its own in a memory cgroup of its own: what it holds, its share of the page cache
included, cannot exceed the limit; it would be killed. Files of the model are dropped from the page cache before. Both
ways are shown the same tokens (of a text, or drawn), a prompt and then one after the other, and must give the same
bits. Ways take turns; before each the disk is asked for experts at random, so many at a time as the cache asks for.

A model of random weights routes without any locality: its hit rate is the share of experts that there are slots for,
and it says what the disk allows, not how well a policy of keeping experts does.

usage: python bench/memory_budget.py MODEL --memory 8GB [--limit 8.6GB] [--text FILE] [--rounds 3] [--json OUT.json]
       python bench/memory_budget.py MODEL --probe     what the disk gives, by readers and bytes of a read
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = 500_000_000
"""Bytes above the budget that the limit leaves where none is given: Python, torch, keys and values, activations."""

PAGE = 4096


# ---- a hard limit


class MemoryGroup:
    """A memory cgroup below the one of this process: what joins it is killed rather than exceed `limit` bytes.

    SystemExit where this process may not make one.
    """

    def __init__(self, limit: int, root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> None:
        text = Path("/proc/self/cgroup").read_text() if membership is None else membership
        parent, names = _memory_cgroup(root, text)
        self.folder = parent / f"tenth-bench-{os.getpid()}"
        self._limit, self._peak = names
        try:
            self.folder.mkdir()
            (self.folder / self._limit).write_text(str(limit))
        except OSError as error:
            self.close()
            raise SystemExit(
                f"{parent}: no memory cgroup can be made here ({error.strerror}): run as root, or in a scope of your "
                "own (systemd-run --user --scope -p Delegate=yes)"
            ) from None

    @property
    def members(self) -> Path:
        """The file that a process writes its number to, to join."""
        return self.folder / "cgroup.procs"

    def peak(self) -> int:
        """The most bytes that its members have held, page cache included."""
        return int((self.folder / self._peak).read_text())

    def close(self) -> None:
        """Its members have ended."""
        with suppress(OSError):
            self.folder.rmdir()


def _memory_cgroup(root: Path, membership: str) -> tuple[Path, tuple[str, str]]:
    """The folder of the cgroup that counts this process's memory; its files for the limit and the peak."""
    lines = [line.split(":", 2) for line in membership.splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):  # version 1
            return root / "memory" / path.lstrip("/"), ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
    unified = next((path for _, controllers, path in lines if not controllers), "/")
    return root / unified.lstrip("/"), ("memory.max", "memory.peak")


# ---- one process


def child(options: argparse.Namespace) -> None:
    """Join the group, load, show the tokens; figures as JSON."""
    Path(options.join).write_text(str(os.getpid()))
    import torch

    from tenth.kernels.choice import choose_kernels
    from tenth.observe.sequences import Sequences
    from tenth.weights.budget import expert_cache
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.load import load_decoder

    beside = status_bytes("VmHWM")
    start = time.perf_counter()
    with open_checkpoint(Path(options.model)) as checkpoint:
        kernels = choose_kernels("cpu", packed=True, head_dim=checkpoint.config.head_dim, threads=options.threads)
        decoder = load_decoder(checkpoint, kernels=kernels, memory=options.memory)
    loaded = time.perf_counter() - start
    tokens = torch.tensor([json.loads(Path(options.tokens).read_text())])
    sequences, cache = Sequences(decoder, 1, tokens.shape[1]), expert_cache(decoder)
    logits: list[str] = []

    def show(first: int, last: int) -> float:
        begun = time.perf_counter()
        out = sequences.show(tokens[:, first:last], first)
        took = time.perf_counter() - begun
        assert out.logits_NV is not None
        logits.append(hashlib.sha256(out.logits_NV.numpy().tobytes()).hexdigest())
        return took

    marks = [_mark(cache)]
    prompt = show(0, options.prompt)
    marks.append(_mark(cache))
    at = options.prompt
    while at < options.prompt + options.warmup:
        show(at, at := at + 1)
    marks.append(_mark(cache))
    steps: list[float] = []
    while at < tokens.shape[1] and sum(steps) < options.seconds:
        steps.append(show(at, at := at + 1))
    marks.append(_mark(cache))
    figures = {
        "load_s": loaded,
        "prompt_tok_s": options.prompt / prompt,
        "steps_s": steps,
        "resident_beside": beside,
        "resident": status_bytes("VmHWM"),
        "anonymous": status_bytes("RssAnon"),
        "logits": logits,
        "slots": None if cache is None else [cache.slots, cache.experts, cache.slot_bytes],
        "why_indirect": None if cache is None else cache.indirect,
        "all": _between(marks[0], marks[-1]),
        "decode": _between(marks[2], marks[3]),
    }
    print(json.dumps(figures))


def _mark(cache: Any) -> dict[str, float]:
    """The process's own count of bytes read from disks, and what the cache says."""
    now: dict[str, float] = {"read_bytes": proc_count(Path("/proc/self/io"), "read_bytes")}
    if cache is not None:
        s = cache.statistics
        asked = s.hits + s.late + s.misses
        now |= {"cache_bytes": s.bytes_read, "reads": s.reads, "stalled_s": s.stalled_seconds, "hits": s.hits}
        now |= {"asked": asked, "late": s.late, "predicted": s.predicted, "right": s.right, "ahead": s.ahead}
    return now


def _between(first: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    return {name: last[name] - first[name] for name in last}


def proc_count(file: Path, name: str) -> int:
    """A number of a file in /proc."""
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name}:"))


def status_bytes(name: str) -> int:
    """Bytes of memory of this process."""
    return proc_count(Path("/proc/self/status"), name) * 1024


# ---- the disk


def direct_reads(places: Sequence[tuple[Path, int, int]], readers: int, seconds: float) -> float:
    """Bytes a second that the disk gives to so many readers of places (file, offset, bytes) at random."""
    files = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path in {path for path, _, _ in places}}
    end, done = time.perf_counter() + seconds, [0] * readers

    def read(number: int) -> None:
        chance = random.Random(time.time_ns() + number)
        buffer = mmap.mmap(-1, max(_pages(size) for _, _, size in places))
        while time.perf_counter() < end:
            path, offset, size = chance.choice(places)
            done[number] += os.preadv(files[path], [memoryview(buffer)[: _pages(size)]], offset)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(readers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    for file in files.values():
        os.close(file)
    return sum(done) / took


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def expert_places(model: Path) -> list[tuple[Path, int, int]]:
    """Where a packed model's experts lie: file, offset, bytes."""
    from tenth.weights.checkpoint import open_checkpoint

    with open_checkpoint(model) as checkpoint:
        assert checkpoint.packed is not None, f"{model} is not packed"
        infos, tensors = checkpoint.packed.source.tensors, checkpoint.packed.index.tensors
        return [
            (infos[name].where, infos[name].offset, infos[name].nbytes)
            for name, tensor in tensors.items()
            if len(tensor.formats) == 3
        ]


def probe(options: argparse.Namespace) -> None:
    """The disk by readers and bytes of a read."""
    places = expert_places(options.model)
    whole = max(size for _, _, size in places)
    print(f"| readers | {' | '.join(f'{whole / part / 1e6:.2f} MB' for part in (4, 2, 1))} |\n|---|---|---|---|")
    for readers in (1, 2, 4, 8, 16, 32):
        speeds = []
        for part in (4, 2, 1):
            pieces = [(path, offset, _pages(size // part)) for path, offset, size in places]
            speeds.append(direct_reads(pieces, readers, options.seconds) / 1e9)
        print(f"| {readers} | {' | '.join(f'{speed:.2f} GB/s' for speed in speeds)} |", flush=True)


# ---- both ways in turn


def compare(options: argparse.Namespace) -> None:
    """Measure, print, and leave the figures as JSON."""
    from tenth.weights.budget import memory_bytes

    budget = memory_bytes(options.memory)
    limit = budget + PROGRAM if options.limit is None else memory_bytes(options.limit)
    places = expert_places(options.model)
    options.tokens = Path(f"/tmp/tenth-memory-{os.getpid()}.json")
    options.tokens.write_text(json.dumps(tokens_of(options)))
    rounds: list[dict[str, Any]] = []
    try:
        for number in range(options.rounds):
            ways = options.ways if number % 2 == 0 else options.ways[::-1]
            for way in ways:
                disk = direct_reads(places, 4, 1.5)
                drop_cached(Path(options.model))
                one = measured(options, budget if way == "budget" else None, limit)
                rounds.append({"way": way, "round": number, "disk": disk} | one)
                print(line_of(rounds[-1]), flush=True)
    finally:
        options.tokens.unlink()
    same = same_bits([one["logits"] for one in rounds])
    report: dict[str, Any] = {"model": str(options.model), "memory": budget, "limit": limit, "same_bits": same}
    report["ways"] = {way: summary([one for one in rounds if one["way"] == way], budget) for way in options.ways}
    print(table_of(report))
    if options.json:
        options.json.write_text(json.dumps(report | {"rounds": rounds}))


def tokens_of(options: argparse.Namespace) -> list[int]:
    """Tokens of a text by the model's tokenizer, or drawn evenly."""
    from tenth.weights.checkpoint import open_checkpoint

    count = options.prompt + options.warmup + options.generate
    with open_checkpoint(options.model) as checkpoint:
        if options.text is None:
            return random.Random(0).choices(range(checkpoint.config.vocab_size), k=count)
        tokens: list[int] = list(checkpoint.tokenizer().encode(options.text.read_text()))
    if len(tokens) < count:
        raise SystemExit(f"{options.text}: has {len(tokens)} tokens, {count} are shown")
    return tokens[:count]


def drop_cached(model: Path) -> None:
    """Ask the system to forget what it holds of a model's files."""
    for path in model.glob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measured(options: argparse.Namespace, memory: int | None, limit: int) -> dict[str, Any]:
    """One process under the limit; `killed` where it exceeded it."""
    group = MemoryGroup(limit)
    given = {name: getattr(options, name) for name in ("tokens", "prompt", "warmup", "seconds")}
    given |= {"join": group.members, "memory": memory, "threads": options.threads}
    command = [sys.executable, __file__, str(options.model), "--child"]
    for name, value in given.items():
        command += [] if value is None else [f"--{name}", str(value)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == -9:
            return {"killed": True, "peak": group.peak()}
        if done.returncode:
            raise SystemExit(f"the process that measures has ended with {done.returncode}")
        return {"peak": group.peak()} | json.loads(done.stdout.splitlines()[-1])
    finally:
        group.close()


def same_bits(runs: Sequence[Sequence[str]]) -> bool:
    """Whether logits are the same, step by step, as far as two runs both went."""
    whole = max(runs, key=len)
    return all(list(run) == list(whole[: len(run)]) for run in runs)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """A quarter of all values, half, three quarters."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summary(runs: Sequence[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Figures of a way over its rounds: medians, the most that was resident, quartiles of all steps."""
    steps = [step for run in runs for step in run["steps_s"]]
    decode = {name: sum(run["decode"][name] for run in runs) for name in runs[0]["decode"]}
    done: dict[str, Any] = {
        "tok_s": statistics.median(len(run["steps_s"]) / sum(run["steps_s"]) for run in runs),
        "tok_s_quartiles": [1 / step for step in quartiles(steps)][::-1],
        "prompt_tok_s": statistics.median(run["prompt_tok_s"] for run in runs),
        "resident": max(run["resident"] for run in runs),
        "resident_beside": min(run["resident_beside"] for run in runs),
        "cgroup_peak": max(run["peak"] for run in runs),
        "read_mb_a_token": decode["read_bytes"] / len(steps) / 1e6,
        "disk_gb_s": statistics.median(run["disk"] for run in runs) / 1e9,
        "read_gb_s": decode["read_bytes"] / sum(steps) / 1e9,
    }
    if runs[0]["slots"] is None:
        return done
    slots, experts, slot_bytes = runs[0]["slots"]
    return done | {
        "slots": slots,
        "experts": experts,
        "cache_bytes": slots * slot_bytes,
        "of_the_model_at_most": done["resident"] - done["resident_beside"],
        "counted_of_read_bytes": decode["cache_bytes"] / decode["read_bytes"] if decode["read_bytes"] else None,
        "hit_rate": decode["hits"] / decode["asked"],
        "late_rate": decode["late"] / decode["asked"],
        "right_rate": decode["right"] / decode["predicted"] if decode["predicted"] else None,
        "ahead_rate": decode["ahead"] / decode["reads"] if decode["reads"] else None,
        "stalled_share": decode["stalled_s"] / sum(steps),
    }


def line_of(one: dict[str, Any]) -> str:
    """A round in a line."""
    if "killed" in one:
        return f"{one['round']} {one['way']}: killed at the limit"
    steps = one["steps_s"]
    return (
        f"{one['round']} {one['way']}: {len(steps) / sum(steps):.2f} tokens/s ({len(steps)}), prompt "
        f"{one['prompt_tok_s']:.1f}, read {one['decode']['read_bytes'] / len(steps) / 1e6:,.0f} MB a token, resident "
        f"{one['resident'] / 1e9:.2f} GB, cgroup {one['peak'] / 1e9:.2f} GB, disk {one['disk'] / 1e9:.2f} GB/s"
    )


_ROWS = (
    ("decode, tokens/s", "tok_s", "{:.2f}"),
    ("quartiles of steps", "tok_s_quartiles", "{0[0]:.2f}, {0[1]:.2f}, {0[2]:.2f}"),
    ("prompt, tokens/s", "prompt_tok_s", "{:.1f}"),
    ("read, MB a token", "read_mb_a_token", "{:,.0f}"),
    ("read, GB/s while decoding", "read_gb_s", "{:.2f}"),
    ("the disk, GB/s (4 readers of experts, alone)", "disk_gb_s", "{:.2f}"),
    ("bytes that the cache counts, of read_bytes", "counted_of_read_bytes", "{:.4f}"),
    ("experts there when asked for", "hit_rate", "{:.1%}"),
    ("experts on their way", "late_rate", "{:.1%}"),
    ("predictions right", "right_rate", "{:.1%}"),
    ("reads that were ahead", "ahead_rate", "{:.1%}"),
    ("time that steps waited", "stalled_share", "{:.1%}"),
    ("resident at most (VmHWM), bytes", "resident", "{:,}"),
    ("of that before the model was opened", "resident_beside", "{:,}"),
    ("of the model", "of_the_model_at_most", "{:,}"),
    ("cgroup at most, page cache included, bytes", "cgroup_peak", "{:,}"),
)


def table_of(report: dict[str, Any]) -> str:
    """Figures of both ways, and what they come to."""
    ways = report["ways"]
    lines = [f"\n| {report['model']} | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for text, key, form in _ROWS:
        cells = [form.format(one[key]) if one.get(key) is not None else "" for one in ways.values()]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    lines.append(
        f"\nlimit {report['limit']:,} bytes, budget {report['memory']:,}; the same bits: {report['same_bits']}"
    )
    if len(ways) == 2:
        lines.append(f"{ways['budget']['tok_s'] / ways['map']['tok_s']:.2f} times the map's speed")
    return "\n".join(lines)


def main() -> None:
    """Compare, probe, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", help="the budget, such as 8GB")
    parser.add_argument("--limit", help="of the process, both ways; without: the budget and 0.5 GB")
    parser.add_argument("--text", type=Path, help="a text whose tokens are shown; without: drawn ones")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=16, help="steps before those that count")
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=30, help="of decoding in a round, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["budget", "map"], choices=["budget", "map"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", action="store_true")
    for hidden in ("--join", "--tokens"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        options.memory = None if options.memory is None else int(options.memory)
        child(options)
    elif options.probe:
        probe(options)
    elif options.memory is None:
        parser.error("--memory is missing")
    else:
        compare(options)


if __name__ == "__main__":
    main()
