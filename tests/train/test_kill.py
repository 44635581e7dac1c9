"""A run that is killed again and again learns what one that was left alone does: bit for bit, step by step.

The fast test forks its runs from one process that has imported everything, the slow one starts the real command.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tenth.data.token_writer import TokenWriter
from tenth.train.run_checkpoint import RunCheckpoints
from tenth.train.run_log import read_log

EVERY = 4
RECIPE = f"""
[model.shape]
model_type = "tenth"
vocab_size = 97
hidden_size = 16
intermediate_size = 32
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_dim = 8
context_length = 64
moe = {{ num_experts = 8, top_k = 2, intermediate_size = 8, expert_bias = true, score = "sigmoid" }}

[run]
out = "alone"
seed = 3
threads = 1

[[source]]
path = ["a.tokens"]
name = "a"
weight = 2

[[source]]
path = ["b.tokens"]
name = "b"

[[stage]]
name = "first"
steps = 20
length = 32
rows = 2
batch_tokens = 128
warmup = 5

[[stage]]
name = "long"
steps = 20
length = 64
rows = 1
batch_tokens = 128
rope_theta = 50000.0
weights = {{ a = 1.0, b = 3.0 }}

[balance]
kind = "global"
bias_rate = 1e-3
z_weight = 1e-3
noise = 0.1
capacity = "load"

[checkpoint]
every = {EVERY}
keep = 2

[evaluation]
every = 10
tokens = 300

[[evaluation.source]]
path = ["held_out.tokens"]

[log]
tensorboard = false
"""
SPEED = {"seconds", "tok_s", "mfu", "flops", "time"}  # what may differ between two runs


class Life(Protocol):
    """One process of a run."""

    def code(self) -> int | None:
        """How it ended, or None."""

    def kill(self) -> None:
        """SIGKILL, and wait."""


Start = Callable[[list[str], Path], Life]


class Command:
    """`tenth train`, as a user starts it."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._told = (folder / "told.txt").open("w")
        command = [sys.executable, "-m", "tenth", *arguments]
        self._process = subprocess.Popen(command, cwd=folder, stdout=self._told, stderr=subprocess.STDOUT)

    def code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._told.close()


FORKS = """
import json, os, sys
import tenth.commands.train_command, tenth.train.training_run
from tenth.commands import main
for line in sys.stdin:
    kind, value = json.loads(line)
    if kind == "start":
        arguments, folder = value
        if (pid := os.fork()) == 0:
            os.chdir(folder)
            told = os.open("told.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(told, stream)
            sys.argv = ["tenth", *arguments]
            main()
            os._exit(0)
        print(pid, flush=True)
    else:
        pid, status = os.waitpid(value, os.WNOHANG if kind == "look" else 0)
        print(os.waitstatus_to_exitcode(status) if pid else "alive", flush=True)
"""


class Forks:
    """Starts runs by fork: a second of imports once."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *question: object) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return self._server.stdout.readline().strip()

    def start(self, arguments: list[str], folder: Path) -> Life:
        return Fork(self, int(self.ask("start", [arguments, str(folder)])))

    def close(self) -> None:
        self._server.communicate()


@dataclass
class Fork:
    """One of its children."""

    server: Forks
    pid: int
    ended: int | None = None

    def code(self) -> int | None:
        if self.ended is None and (answer := self.server.ask("look", self.pid)) != "alive":
            self.ended = int(answer)
        return self.ended

    def kill(self) -> None:
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self.ended = int(self.server.ask("wait", self.pid))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


# ---- what a run left


def _records(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of its log, without how fast it was: floats are written so that their bits come back."""
    path = out / "log.jsonl"
    lines = read_log(path) if path.exists() else []
    return {
        (line["kind"], line["step"]): {name: value for name, value in line.items() if name not in SPEED}
        for line in lines
    }


def _last_step(out: Path) -> int:
    return max((step for _, step in _records(out)), default=0)


def _log_file(out: Path) -> int:
    path = out / "log.jsonl"
    return path.stat().st_ino if path.exists() else 0


def _partial(out: Path) -> list[Path]:
    return list(out.glob("checkpoints/.step-*"))


def _prepare(folder: Path, steps: int, threads: int) -> None:
    """Token files and the recipe."""
    for seed, (name, documents) in enumerate({"a": 300, "b": 200, "held_out": 20}.items()):
        draw = random.Random(seed)
        with TokenWriter(folder / f"{name}.tokens", 97) as writer:
            for _ in range(documents):
                ids = [draw.randrange(97) for _ in range(draw.randint(3, 60))]
                writer.add(ids, draw.choice(("code", "prose")))
            writer.finish()
    recipe = RECIPE.replace("steps = 20", f"steps = {steps}").replace("threads = 1", f"threads = {threads}")
    (folder / "recipe.toml").write_text(recipe)


def _to_the_end(start: Start, folder: Path, out: str) -> None:
    life = start(["train", "recipe.toml", "--quiet", "--set", f"run.out={out}"], folder)
    while (code := life.code()) is None:
        time.sleep(0.02)
    life.kill()
    assert code == 0, (folder / "told.txt").read_text()


def _wait_for(life: Life, seen: Callable[[], object]) -> None:
    """Until something is there, or the run has ended."""
    until = time.monotonic() + 120
    while not seen() and life.code() is None:
        assert time.monotonic() < until, "nothing came for two minutes"
        time.sleep(0.001)


def _killed(start: Start, folder: Path, moment: str, draw: random.Random) -> tuple[bool, bool]:
    """Start the run, kill it; whether it was at work still, and whether a checkpoint was being written."""
    out = folder / "killed"
    whole, before = RunCheckpoints(out / "checkpoints", 1).steps(), _log_file(out)
    life = start(["train", "recipe.toml", "--quiet", "--set", "run.out=killed"], folder)
    if moment == "start":
        time.sleep(draw.uniform(0, 3))
    else:
        begin = whole[-1] if whole else 0
        # a run that goes on replaces the log by what lies before its checkpoint
        _wait_for(life, lambda: _log_file(out) != before and _last_step(out) > begin)
        if moment == "checkpoint":
            _wait_for(life, lambda: _partial(out))
        else:
            time.sleep(draw.uniform(0, 1))
    alive = life.code() is None
    life.kill()
    if not alive:
        assert life.code() == 0, (folder / "told.txt").read_text()
    return alive, bool(_partial(out))


def _check(folder: Path, where: str) -> None:
    """What the killed run logged is what the other one did; and what it can go on from is not far behind."""
    alone, killed = _records(folder / "alone"), _records(folder / "killed")
    for key, record in killed.items():
        assert record == alone[key], f"{where}: {key}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a broken checkpoint would be passed over with a warning
        latest = RunCheckpoints(folder / "killed" / "checkpoints", 1).latest() or 0
    # the last one is awaited when the next is begun, behind the line of its step
    assert _last_step(folder / "killed") - latest <= 2 * EVERY, where


def _same_end(folder: Path) -> None:
    alone, killed = folder / "alone", folder / "killed"
    assert _records(killed) == _records(alone)
    assert not _partial(killed)
    for name in ("model/model.safetensors", f"checkpoints/step-{_last_step(alone):08d}/tensors.safetensors"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), name


def test_three_kills(forks: Forks, tmp_path: Path) -> None:
    _prepare(tmp_path, 14, threads=1)
    _to_the_end(forks.start, tmp_path, "alone")
    assert len([kind for kind, _ in _records(tmp_path / "alone") if kind == "step"]) == 28
    draw, caught = random.Random(0), []
    for moment in ("checkpoint", "anywhere", "checkpoint"):
        caught.append(_killed(forks.start, tmp_path, moment, draw))
        _check(tmp_path, moment)
    assert any(partial for _, partial in caught)
    _to_the_end(forks.start, tmp_path, "killed")
    _same_end(tmp_path)


def _files(out: Path) -> dict[Path, tuple[int, int]]:
    found = {path: path.stat() for path in out.rglob("*")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_a_run_at_work_is_left_alone(forks: Forks, tmp_path: Path) -> None:
    _prepare(tmp_path, 6, threads=1)
    _to_the_end(forks.start, tmp_path, "alone")
    out = tmp_path / "alone"
    with RunCheckpoints(out / "checkpoints", 1) as checkpoints:
        checkpoints.take()
        before = _files(out)
        for choice in ("--resume", "--fresh"):
            life = forks.start(["train", "recipe.toml", choice], tmp_path)
            _wait_for(life, lambda: False)
            assert life.code() == 2
            assert "another run writes its checkpoints here" in (tmp_path / "told.txt").read_text()
            assert _files(out) == before


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    """At random instants, a third of them while a checkpoint is written, some before the first step."""
    _prepare(tmp_path, 150, threads=2)
    _to_the_end(Command, tmp_path, "alone")
    draw, alive, partial, ends = random.Random(50), 0, 0, 0
    while alive < 50:
        moment = draw.choice(("anywhere", "anywhere", "anywhere", "checkpoint", "checkpoint", "start"))
        killed, left = _killed(Command, tmp_path, moment, draw)
        _check(tmp_path, f"kill {alive}, {moment}")
        alive, partial = alive + killed, partial + left
        if not killed:  # it got to its end: the next one begins anew
            _same_end(tmp_path)
            shutil.rmtree(tmp_path / "killed")
            ends += 1
    _to_the_end(Command, tmp_path, "killed")
    _same_end(tmp_path)
    print(f"{alive} kills, {partial} in the middle of a checkpoint, {ends + 1} runs to their end")
    assert partial >= 10
