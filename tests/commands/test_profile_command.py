"""`tenth profile` of a running server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tenth.commands import app
from tenth.routing.profile_file import read_profile
from tests.api.tiny import tiny_model
from tests.serve.real import server


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_server_is_asked_without_packages_of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tiny_model(tmp_path)) as running:
        monkeypatch.setitem(sys.modules, "httpx", None)  # it comes with the tests alone
        done = invoke(running.url + "/v1/", "-o", tmp_path / "p")
        assert done.exit_code == 0, done.output
        assert read_profile(tmp_path / "p").model.experts == 8
    done = invoke("http://127.0.0.1:9", "-o", tmp_path / "q")
    assert done.exit_code == 2
    assert "tenth: http://127.0.0.1:9/v1/routing/profile: cannot be reached: " in done.stderr
    assert not (tmp_path / "q").exists()
