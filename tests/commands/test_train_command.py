"""`tenth train` and `tenth plot` as people meet them: a run, its end by a signal, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenth.commands import app
from tenth.train.recipe_reader import read_recipe
from tenth.train.recipe_writer import recipe_text
from tests.train.tiny_run import raw_recipe, write_corpus

SECONDS = 90.0  # until something that should happen counts as not happening


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(read_recipe(raw_recipe(tmp_path), "test")))
    return path


def test_a_run_and_its_picture(recipe: Path, tmp_path: Path) -> None:
    done = invoke("train", recipe, "--set", "stage.0.steps=4", "--set", "run.packed_bits=4")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "run"
    assert done.stdout.startswith(f"{out}: step 4, 512 tokens, held-out loss ")
    assert done.stdout.endswith(f"; the model is {out / 'model'}\n")
    assert "from the start; learning: embeddings 16,640 in 2, vectors 224 in 9, matrices" in done.stderr
    assert "step 0: held out: a 5." in done.stderr
    assert "MFU" in done.stderr
    assert invoke("check", out / "packed").exit_code == 0
    assert invoke("run", out / "packed", "-p", "expert", "-n", "3", "-t", "0").exit_code == 0
    shown = invoke("plot", out)
    assert (shown.exit_code, shown.stdout) == (0, f"{out / 'plot.png'}\n")
    assert (out / "plot.png").read_bytes()[1:4] == b"PNG"
    again = invoke("train", recipe, "--set", "stage.0.steps=6", "--set", "run.packed_bits=4", "--resume")
    assert again.exit_code == 0, again.stderr
    assert "going on behind step 4" in again.stderr
    assert again.stdout.startswith(f"{out}: step 6, 768 tokens")


def test_quiet(recipe: Path) -> None:
    done = invoke("train", recipe, "--quiet", "--set", "stage.0.steps=2")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_explain() -> None:
    done = invoke("train", "--explain")
    assert done.exit_code == 0
    for text in ("[optimizer]", "[[stage]]", "[model.shape.moe]", "rope_theta", "match_rms_adamw", "[low_rank]"):
        assert text in done.stdout
    assert "…" not in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("on_nan"))
    assert "one of stop, skip" in line
    assert '"stop"' in line


def test_refused(recipe: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([], "name a recipe: a TOML file, or one that ships"),
        ([recipe, "--resume", "--fresh"], "--resume goes on with a run, --fresh begins anew: choose one"),
        ([recipe, "--set", "optimizer.lrr=1"], f"{recipe}: [optimizer] has no key 'lrr'; did you mean 'lr'?"),
        ([recipe, "--resume"], "there is no run to go on with"),
        ([tmp_path / "none.toml"], "is no file, and no recipe of that name ships"),
    ):
        done = invoke("train", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_behind_a_step_with_a_checkpoint(
    number: int, code: int, recipe: Path, tmp_path: Path
) -> None:
    steps = ["--set", "stage.0.steps=5000", "--set", "evaluation.every=0", "--set", "checkpoint.every=0"]
    command = [sys.executable, "-m", "tenth", "train", str(recipe), *steps]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log, end = tmp_path / "run" / "log.jsonl", time.monotonic() + SECONDS
    while not log.exists() or log.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < end, process.communicate()
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    told = f"{tmp_path / 'run'}: step {last:,}, {128 * last:,} tokens; stopped, with a checkpoint: the same command"
    assert out.decode().startswith(told)
    done = invoke("train", recipe, *steps[2:], "--set", f"stage.0.steps={last + 1}")
    assert f"going on behind step {last}" in done.stderr
    assert done.exit_code == 0


def test_plot_refuses(tmp_path: Path) -> None:
    done = invoke("plot", tmp_path)
    assert done.exit_code == 2
    assert "is no run: it has no log.jsonl" in done.stderr
