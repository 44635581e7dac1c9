"""`tenth batch`: as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenth.commands import app
from tests.api.tiny import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder).save(folder / "tiny")
    return folder / "tiny"


def _texts(path: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["custom_id"], line["response"]["body"]["choices"][0]["text"]) for line in lines if line["response"]]


def test_a_file_of_requests(saved: Path, tmp_path: Path) -> None:
    requests = [{"prompt": f"{n}", "max_tokens": 3} for n in range(5)] + [{"prompt": "x", "max_tokens": 900}]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, requests)))
    words = ["batch", str(source), str(out), "--model", str(saved), "--at-once", "2", "--context", "64"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"{out}: 5 answered, 1 failed; 15 tokens generated" in "".join(done.stdout.splitlines())
    assert len(out.read_text().splitlines()) == 6
    for draft in ("lookup", "suffix", str(saved)):
        drafted = tmp_path / "drafted.jsonl"
        drafted.unlink(missing_ok=True)
        assert CliRunner().invoke(app, [words[0], words[1], str(drafted), *words[3:], "--draft", draft]).exit_code == 0
        answers = [sorted(_texts(path)) for path in (out, drafted)]
        assert answers[0] == answers[1]
    again = CliRunner().invoke(app, words)
    assert "0 answered, 1 failed, 5 were there" in "".join(again.stdout.splitlines())
    for arguments, said in (
        ([str(source), str(source)], "is the input"),
        ([str(source), str(tmp_path), "--model", "none"], "is no regular file"),
        ([str(source), str(out), "--model", "none", "--kv", "int3"], "kv is 'int3'"),
        ([str(source), str(out), "--model", "none"], "is of another model or with other options"),
        ([*words[1:5], "--context", "100000000000"], "--context is 100,000,000,000, the model's is 512"),
        ([*words[1:5], "--at-once", "1000000000"], "ask for less room"),
        ([*words[1:5], "--memory", "1GB"], "memory"),
        ([str(tmp_path / "none.jsonl"), str(out)], "none.jsonl: No such file or directory"),
    ):
        refused = CliRunner().invoke(app, ["batch", *arguments])
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.split())


def test_a_full_disk_is_one_line_and_what_was_written_stays(saved: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps({"prompt": f"{n}", "max_tokens": 3}) for n in range(8)))
    words = ["batch", str(source), str(out), "--model", str(saved), "--at-once", "1", "--context", "64"]
    full = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, -1)); sys.argv[1:] = {words!r}; "
    command = [sys.executable, "-c", full + "from tenth.commands import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("File too large")
    there = sum(line.endswith("}") for line in out.read_text().splitlines())
    assert 0 < there < 8
    again = CliRunner().invoke(app, words)
    assert f"{8 - there} answered, {there} were there" in "".join(again.stdout.splitlines())
    assert sorted(name for name, _ in _texts(out)) == sorted({name for name, _ in _texts(out)})
    assert len(_texts(out)) == 8


def test_fewer_experts_as_typed(saved: Path, tmp_path: Path) -> None:
    """`run` and `batch` agree; what cannot be is refused before a model is loaded, or in a line by the model."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "ab", "max_tokens": 6}))
    few = ["--max-experts", "1", "--expert-mass", "0.9"]
    assert CliRunner().invoke(app, ["batch", str(source), str(out), "--model", str(saved), *few]).exit_code == 0
    run = ["run", str(saved), "-p", "ab", "-n", "6", "-t", "0", "--json"]
    limited, whole = (json.loads(CliRunner().invoke(app, [*run, *more]).stdout)["text"] for more in (few, []))
    assert _texts(out)[0][1] == limited != whole
    for arguments, said in (
        (["run", "no-such-model", "-p", "x", "--expert-mass", "1.5"], "expert_mass is 1.5, it must be above 0"),
        (["bench", "no-such-model", "--max-experts", "0"], "max_experts is 0, it must be a whole number"),
        (["batch", str(source), str(out), "--model", "no-such-model", "--expert-mass", "0"], "expert_mass is 0.0"),
        ([*run, "--max-experts", "3"], "max_experts is 3, this model has 2 experts at work on a token"),
    ):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2, arguments
        assert said in " ".join(refused.stderr.split())
