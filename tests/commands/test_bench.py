"""`tenth bench`: figures with their limits, for scripts and for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tenth.commands import app
from tenth.kernels.cpu.machine import built
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.save import save_model
from tests.api.tiny import tiny_tokenizer

if not built():
    pytest.skip("the native kernels are not built", allow_module_level=True)

REPORT = {
    "model": str,
    "backend": str,
    "kv": str,
    "load_s": float,
    "first_token_s": float,
    "rss_gb": float,
    "weights_gb": float,
    "bits_per_weight": float,
    "read_gb_s": float,
    "disk_gb_s": type(None),
    "int8_gops": float,
    "float_gops": float,
    "runs": list,
    "expert_cache": type(None),
}
RUN = {"kind": str, "tokens": int, "depth": int, "batch": int, "tok_s": float, "tok_s_min": float, "tok_s_max": float}
DECODE = ("bytes_per_token", "read_gb_s", "bandwidth_fraction")
SHORT = ("--prompt", "20", "--generate", "9", "--repeat", "2", "--threads", "1")


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "100"})


def _report(*arguments: str | Path) -> dict[str, Any]:
    done = _invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert list(report) == list(REPORT)
    for run in report["runs"]:
        assert list(run) == [*RUN, *DECODE, "peak_fraction", "disk"]
        assert run["disk"] is None
        assert {key: type(run[key]) for key in RUN} == RUN
        assert 0 < run["tok_s_min"] <= run["tok_s"] <= run["tok_s_max"]
    return report


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "packed"
    done = CliRunner().invoke(app, ["synth", "tiny-moe", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_json_of_a_packed_model(packed: Path) -> None:
    report = _report(packed, *SHORT, "--depth", "16,0,40", "--batch", "1,3", "--chunk", "8")
    assert {key: type(value) for key, value in report.items()} == REPORT
    assert report["backend"].startswith("cpu (")
    assert 0 < report["load_s"] < report["first_token_s"]
    facts = json.loads(CliRunner().invoke(app, ["show", str(packed), "--json"]).stdout)
    assert report["weights_gb"] == pytest.approx(facts["weights_bytes"] / 1e9, rel=1e-4)
    assert report["bits_per_weight"] == pytest.approx(facts["bits_per_weight"], rel=1e-4)
    assert report["rss_gb"] > 0.05
    kinds = [(run["kind"], run["tokens"], run["depth"], run["batch"]) for run in report["runs"]]
    prompts = [("prefill", 20, depth, 1) for depth in (0, 16, 40)]
    assert kinds == [*prompts, *(("decode", 9, depth, 1) for depth in (0, 16, 40)), ("decode", 9, 0, 3)]
    for run in report["runs"]:
        if run["kind"] == "prefill":
            assert all(run[key] is None for key in DECODE)
            assert 0 < run["peak_fraction"] < 1
        else:
            assert all(run[key] > 0 for key in DECODE)
            assert run["peak_fraction"] is None


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_bytes_of_a_step(packed: Path, kv: str) -> None:
    """A deeper step reads more of the cache; three sequences share the matrices that all of them need."""
    report = _report(packed, *SHORT, "--depth", "0,256", "--batch", "1,3", "--kv", kv)
    assert report["kv"] == kv
    alone, deep, shared = (run["bytes_per_token"] for run in report["runs"] if run["kind"] == "decode")
    # what is read of the cache grows with the place in the run, by the same at both depths; int8 has a scale a head
    token, size = preset("tiny-moe").kv_bytes_per_token(), preset("tiny-moe").head_dim
    token = token if kv == "bf16" else token * (size + 4) // (2 * size)
    assert deep - alone == pytest.approx(256 * token, rel=0.1)
    assert alone / 3 < shared < alone
    assert alone < report["weights_gb"] * 1e9


def test_the_smallest_batch_is_measured_at_all_depths(packed: Path) -> None:
    report = _report(packed, *SHORT, "--depth", "4,0", "--batch", "3,2,2")
    decodes = [(run["depth"], run["batch"]) for run in report["runs"] if run["kind"] == "decode"]
    assert decodes == [(0, 2), (4, 2), (0, 3)]


def test_the_reference_has_no_limits(packed: Path) -> None:
    report = _report(packed, *SHORT, "--depth", "0", "--batch", "1,2", "--backend", "reference")
    assert report["backend"] == "reference"
    assert [report[key] for key in ("read_gb_s", "int8_gops", "float_gops")] == [None] * 3
    for run in report["runs"]:
        assert all(run[key] is None for key in (*DECODE, "peak_fraction"))
        assert run["tok_s"] > 0


def test_a_dense_model_of_floats(tmp_path: Path) -> None:
    config = replace(preset("tiny-moe"), moe=None, sparse_layers=(), intermediate_size=64, model_type="qwen3")
    save_model(initialise(Decoder(config), 0), tmp_path / "dense", tokenizer=tiny_tokenizer(tmp_path))
    report = _report(tmp_path / "dense", *SHORT, "--depth", "0", "--batch", "1")
    assert report["backend"] == "reference"
    assert report["bits_per_weight"] == 32.0
    assert report["weights_gb"] == pytest.approx(config.parameters.total * 4 / 1e9, rel=1e-4)


def test_the_table(packed: Path) -> None:
    done = _invoke(packed, *SHORT, "--depth", "0", "--batch", "1,2")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{packed}  cpu (")
    assert lines[1].startswith("  weights  0.00 GB, ")
    assert " s, first token after " in lines[2]
    assert lines[3].startswith("  limits   reads ")
    assert lines[4].split() == "tokens depth batch tok/s range MB a token of the limit".split()
    assert [line.split()[:4] for line in lines[5:]] == [
        ["prefill", "20", "0", "1"],
        ["decode", "9", "0", "1"],
        ["decode", "9", "0", "2"],
    ]
    assert lines[5].rstrip().endswith("% of the peaks")
    assert all(line.rstrip().endswith(" GB/s") for line in lines[6:])
    reference = _invoke(packed, *SHORT, "--depth", "0", "--batch", "1", "--backend", "reference").stdout
    assert "limits   not measured" in reference
    assert "%" not in reference


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("depth is '0,x', it must be numbers with commas between", ["--depth", "0,x"]),
        ("batch is '', it must be numbers with commas between", ["--batch", ""]),
        ("depth is 0, -1, it must be at least 0", ["--depth", "0,-1"]),
        ("batch is 1, 0, it must be at least 1", ["--batch", "1,0"]),
        ("prompt is 0, it must be at least 1", ["--prompt", "0"]),
        ("generate is 0, it must be at least 1", ["--generate", "0"]),
        ("repeat is 0, it must be at least 1", ["--repeat", "0"]),
        ("chunk is 0, it must be at least 1", ["--chunk", "0"]),
        ("do not fit the model's context of 512", ["--depth", "500"]),
        (
            "900000000 sequences of 9 tokens: keys and values of 8,100,000,000 tokens need",
            ["--depth", "0", "--batch", "900000000"],
        ),
        ("000 sequences of 9 tokens: keys and values of", ["--batch", "1" + "0" * 24]),
        ("threads are not to be had", ["--threads", "5000"]),
        ("0 threads are not to be had: this process may use 1 to", ["--threads", "0", "--backend", "reference"]),
        ("backend is 'gpu', it must be one of", ["--backend", "gpu"]),
        ("kv is 'int4', it must be one of bf16, int8", ["--kv", "int4"]),
    ],
)
def test_bad_options_are_one_line(words: str, options: list[str], packed: Path) -> None:
    done = _invoke(packed, *SHORT, "--depth", "0", "--batch", "1", *options)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("tenth: ")
    assert words in done.stderr


def test_models_that_are_not_there(tmp_path: Path) -> None:
    done = _invoke(tmp_path / "nothing")
    assert done.exit_code == 2
    assert "no such file or folder" in done.stderr


def test_whole_requests(packed: Path) -> None:
    load = ("--prompt", "20", "--generate", "9", "--threads", "1")
    done = _invoke(packed, *load, "--concurrency", "1,3", "--rate", "500", "--requests", "6", "--json")
    assert done.exit_code == 0, done.output
    one, three, arriving = json.loads(done.stdout)
    assert [report["settings"]["concurrency"] for report in (one, three, arriving)] == [1, 3, None]
    for report in (one, three, arriving):
        assert report["tok_s"] == pytest.approx(6 * 9 / report["seconds"], rel=1e-3)
        for name in ("first_token", "between_tokens", "whole"):
            assert 0 < report[name]["p50"] <= report[name]["p90"] <= report[name]["p99"] <= report["seconds"]
    table = _invoke(packed, *load, "--concurrency", "2").stdout.splitlines()
    assert table[0].split()[:5] == "load requests in out tok/s".split()
    assert table[1].split()[:7] == "2 at a time 8 20 9".split()
    for words, said in (
        (("--concurrency", "0"), "concurrency is 0, it must be at least 1"),
        (("--concurrency", "x"), "must be numbers with commas"),
        (("--rate", "0"), "rate is 0.0, it must be above 0"),
        (("--rate", "1", "--depth", "5"), "--depth does nothing with --concurrency or --rate"),
        (("--requests", "5"), "--requests does nothing with runs of single steps"),
    ):
        refused = _invoke(packed, *load, *words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert said in refused.stderr
