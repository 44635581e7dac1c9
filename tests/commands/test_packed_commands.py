"""Packed models on the command line: `synth`, `show`, `check`, and what other commands say of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tenth.commands import app
from tests.api.tiny import write_tokenizer


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80"})


def _refused(words: str, *arguments: str | Path) -> None:
    done = _invoke(*arguments)
    assert done.exit_code == 2, done.output
    lines = done.stderr.rstrip("\n").split("\n")
    assert words in lines[-1], done.stderr
    assert lines[-1].startswith("tenth: ")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "synthetic"
    done = _invoke("synth", "tiny-moe", out, "--layers", "2")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}: 158,592 parameters, 0.00 GB, ")
    assert "bits a weight, no tokenizer" in done.stdout
    return out


def test_show(synthetic: Path) -> None:
    facts = json.loads(_invoke("show", synthetic, "--json").stdout)
    sizes = facts["bytes_by_format"]
    assert set(sizes) == {"int4-g16-s4", "fp32"}
    assert sum(sizes.values()) == facts["weights_bytes"]
    assert facts["bits_per_weight"] == pytest.approx(facts["weights_bytes"] * 8 / facts["parameters_total"], abs=1e-4)
    assert 4.3 < facts["bits_per_weight"] < 5.5  # 64 columns share what 256 do in wide models
    assert facts["notes"][0] == f"packed at {synthetic}"
    text = _invoke("show", synthetic).stdout
    assert f"0.00 GB packed, {facts['bits_per_weight']:.2f} bits a weight: int4-g16-s4 0.00 GB, fp32 0.00 GB" in text


def test_check(synthetic: Path, tmp_path: Path) -> None:
    done = _invoke("check", synthetic)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{synthetic}: ")
    assert done.stdout.endswith("all as written\n")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in synthetic.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    path = copy / "layer-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    data[len(data) // 2] ^= 128
    path.write_bytes(data)
    done = _invoke("check", copy)
    assert done.exit_code == 2
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: tensor 'layers.1.mlp.") for line in lines[:2])
    assert all(line.endswith("is damaged: these are not the bytes that were written") for line in lines[:2])
    assert lines[2].startswith(f"{copy}: damaged: 2 of ")
    path.write_bytes(data[:-1])
    _refused("beyond the", "check", copy)


def test_check_of_what_has_no_hashes(tmp_path: Path) -> None:
    _refused("is gguf, which has no hashes; packed models have", "check", "default-dense")
    _refused("no such file or folder", "check", tmp_path / "nothing")


def test_a_model_without_a_tokenizer_says_so(synthetic: Path) -> None:
    for command in (["chat", "-p", "x"], ["run", "-p", "x"]):
        _refused("has no tokenizer, as models of `tenth synth`: it takes no text", *command, synthetic)


def test_a_packed_model_with_a_tokenizer_runs_and_chats(synthetic: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in synthetic.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    write_tokenizer(copy)
    for command in (["run"], ["chat"]):
        done = _invoke(*command, copy, "-p", "Hello", "-n", "5", "--seed", "3", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["tokens"] == 5
        assert [layer["layer"] for layer in json.loads(done.stdout)["experts"]] == [1]
    _refused("computed with in float32, not bfloat16", "run", copy, "-p", "x", "--dtype", "bfloat16")
    _refused("save the model that they were made from", "export", copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_leaves_nothing_half_written(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tenth", "synth", "qwen3-30b-a3b", "--layers", "4", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(tmp_path.rglob("config.json")):
            time.sleep(0.02)
        assert not (tmp_path / "out").exists()
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode in (129, 130, 143)
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("bits is 5, it must be one of 4, 8, 16, 32", ["--bits", "5"]),
        ("--bits and --format say the same", ["--bits", "4", "--format", "int4-g32"]),
        ("no packed format is named 'q4'", ["--format", "q4"]),
        ("no packed format is named ''", ["--format", ""]),
        ("int4-g32-k does not divide a width of 64", ["--format", "int4-g32-k"]),
        ("layers is 0, it must lie between 1 and the 3", ["--layers", "0"]),
        ("seed is -1", ["--seed", "-1"]),
    ],
)
def test_options_that_make_no_model_are_refused(words: str, options: list[str], tmp_path: Path) -> None:
    _refused(words, "synth", "tiny-moe", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_other_arguments_that_are_refused(tmp_path: Path) -> None:
    _refused("no preset is named 'nothing'", "synth", "nothing", tmp_path / "out")
    (tmp_path / "file").touch()
    _refused("not an empty folder", "synth", "tiny-moe", tmp_path)


@pytest.mark.parametrize(("bits", "name"), [("8", "int8-g32"), ("16", "bf16"), ("32", "fp32")])
def test_other_bits(bits: str, name: str, tmp_path: Path) -> None:
    assert _invoke("synth", "tiny-moe", tmp_path / "out", "--bits", bits).exit_code == 0
    assert name in json.loads(_invoke("show", tmp_path / "out", "--json").stdout)["bytes_by_format"]
