"""`tenth quantize` and `tenth pack` as people meet them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tenth
from tenth.commands import app
from tests.api.tiny import tiny_model
from tests.weights.models import raw_config, write_folder, write_gguf


def _invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80"})


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tenth", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "80"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "source"
    (folder.parent / "tokenizer").mkdir()
    tiny_model(folder.parent / "tokenizer").save(folder)
    return folder


def test_quantize_prints_what_it_wrote_and_the_model_answers(source: Path, tmp_path: Path) -> None:
    done = _run("quantize", source, tmp_path / "out", "--bits", "8", "--head-bits", "16")
    assert done.returncode == 0
    assert done.stderr == "quantising ...\n"
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = {line[0]: line[1:] for line in lines[1:-1]}
    assert set(rows) == {"int8-g32", "bf16", "total"}
    for weights, size, unit, bits, error in rows.values():
        assert re.fullmatch(r"[\d,]+", weights)
        assert (float(size) > 0, unit) == (True, "MB")
        assert 8 < float(bits) <= 16
        assert 0 < float(error) < 1e-4  # bfloat16 rounds the source's float32
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'out'}: {rows['total'][0]} weights at ")
    assert tenth.load(tmp_path / "out").generate("Hello", max_tokens=3).finish_reason in ("length", "stop")
    shown = json.loads(_invoke("show", tmp_path / "out", "--json").stdout)
    assert shown["notes"][0] == f"packed at {tmp_path / 'out'}"


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        ([], {"int4-g16-s4", "int8-g32"}),
        (["--asymmetric", "--embedding-bits", "4", "--head-bits", "4"], {"int4-g32-min"}),
        # the tiny model's experts are 32 wide
        (["--group", "64", "--embedding-bits", "32", "--head-bits", "32"], {"int4-g64", "int4-g32", "fp32"}),
    ],
)
def test_options_choose_the_formats(options: list[str], formats: set[str], source: Path, tmp_path: Path) -> None:
    done = _invoke("quantize", source, tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    index = json.loads((tmp_path / "out" / "packed.json").read_text())
    assert {name for entry in index["tensors"].values() for name in entry["formats"]} == formats
    assert _invoke("check", tmp_path / "out").exit_code == 0


def test_pack_takes_a_gguf_over(tmp_path: Path) -> None:
    raw = raw_config("qwen3_moe")
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), "Q4_0", tokenizer=True)
    done = _invoke("pack", tmp_path / "model.gguf", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"^ *int4-g32 .* 4\.504 +exact *$", done.stdout, re.MULTILINE)
    assert _invoke("check", tmp_path / "out").exit_code == 0
    assert not any((tmp_path / "theirs").glob("packed.json"))


def test_mistakes_are_one_line(source: Path, tmp_path: Path) -> None:
    raw = raw_config("llama")
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), "Q5_0", tokenizer=True)
    out = tmp_path / "out"
    for arguments, needle in (
        (["quantize", source, out, "--bits", "5"], "bits is 5, it must be one of 4, 8"),
        (["quantize", source, out, "--group", "16"], "group is 16, it must be one of 32, 64, 128"),
        (["quantize", source, source], "exists and is not an empty folder"),
        (["quantize", tmp_path / "nothing", out], "nothing"),
        (["pack", tmp_path / "model.gguf", out], "--requantize rounds it to int8-g32"),
        (["pack", tmp_path / "theirs", out], "tokenizer"),
    ):
        done = _invoke(*arguments)
        assert done.exit_code == 2
        assert needle in done.stderr
        assert done.stderr.splitlines()[-1].startswith("tenth: ")
        assert "Traceback" not in done.stderr
        assert not out.exists()
    assert _invoke("pack", tmp_path / "model.gguf", out, "--requantize").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tenth", "quantize", "default-dense", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".tenth-*/layer-00000.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, err) == (b"", b"quantising ...\n")
    assert list(tmp_path.iterdir()) == []
