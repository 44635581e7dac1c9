"""`tenth plot` tells a profile from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tenth.commands import app
from tenth.routing.profile_file import write_profile
from tests.observe.planted import drawn


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_a_profile_is_drawn_beside_itself_or_where_it_is_said(tmp_path: Path) -> None:
    write_profile(drawn(), tmp_path / "p.profile")
    done = invoke("plot", tmp_path / "p.profile")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'p.html'}\n")
    assert (tmp_path / "p.html").read_text("utf-8").startswith("<!doctype html>")
    done = invoke("plot", tmp_path / "p.profile", "-o", tmp_path / "p.svg")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'p.svg'}\n")
    assert "<svg" in (tmp_path / "p.svg").read_text("utf-8")


def test_what_is_neither(tmp_path: Path) -> None:
    write_profile(drawn(), tmp_path / "p.profile")
    (tmp_path / "text").write_text("text")
    for arguments, message in (
        ([tmp_path / "none"], "cannot be read"),
        ([tmp_path / "text"], "is no routing profile"),
        ([tmp_path / "p.profile", tmp_path], "a profile is drawn by itself, runs are folders"),
        ([tmp_path], "is no run: it has no log.jsonl"),
    ):
        done = invoke("plot", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.profile", "text"]
