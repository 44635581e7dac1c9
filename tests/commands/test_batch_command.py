"""`tenth batch`: as typed."""

from __future__ import annotations

import json
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
    assert "0 answered, 6 were there" in "".join(again.stdout.splitlines())
    for arguments, said in (
        ([str(source), str(source)], "is the input"),
        ([str(tmp_path / "none.jsonl"), str(out)], "none.jsonl: No such file or directory"),
    ):
        refused = CliRunner().invoke(app, ["batch", *arguments])
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.split())
