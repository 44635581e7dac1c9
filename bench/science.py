"""What the scientific drivers share: processes that are not run twice, intervals of few seeds, colours, tables."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenth.train.evaluate import student

# beside the colours, which the colour-blind can tell apart too
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half its 95 % interval by Student's t; that of a single one is unknown (nan)."""

    value: float
    half: float
    count: int

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}}" if math.isnan(self.half) else f"{self.value:{form}} ± {self.half:{form}}"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean over seeds with its interval."""
    if len(values) < 2:
        return Mean(values[0] if values else math.nan, math.nan, len(values))
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(statistics.mean(values), half, len(values))


def carried_out(what: str, command: Sequence[str | Path], log: Path) -> None:
    """Run a program; what it prints goes to `log`. Ends this one where it fails, telling its last words."""
    started = time.perf_counter()
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        code = subprocess.run([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        last = (log.read_text().strip() or "nothing").splitlines()[-1]
        sys.exit(f"{what}: ended with {code}: {last} (more in {log})")
    print(f"{what}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def side_by_side(work: Iterable[Callable[[], None]], jobs: int) -> None:
    """Do all of it, `jobs` at a time; SystemExit with the first failure, when what had begun has ended."""
    os.environ["OMP_NUM_THREADS"] = str(threads_each(jobs))  # for the processes that it starts
    with ThreadPoolExecutor(jobs) as pool:
        done = [pool.submit(piece) for piece in work]
        try:
            for future in as_completed(done):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` processes: two with a thread each do more than one with two."""
    return max((os.cpu_count() or 1) // jobs, 1)


def settle(out: Path, settings: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Note in OUT what decides its results; what was made with other settings or texts is not to be mixed with them."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
    now, path = json.loads(json.dumps({**settings, **digests})), out / "settings.json"
    if not path.exists():
        write_json(path, now)
    elif (then := json.loads(path.read_text())) != now:
        name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
        sys.exit(f"{out}: was begun with {name} {then.get(name)}, now it is {now.get(name)}: choose another folder")


def write_json(path: Path, value: Any) -> None:
    """All or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
