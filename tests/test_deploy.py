"""The files in deploy/: what they say to the command is right, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from configparser import RawConfigParser
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenth.commands import serve_command
from tests.commands.test_config_file import probe

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
INSTALLED = "/opt/tenth/bin/tenth"


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with all of its lines."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last_stage() -> dict[str, str]:
    """What the image itself is told, by instruction."""
    every = steps()
    start = max(number for number, (name, _) in enumerate(every) if name == "FROM")
    return dict(every[start:])


class Unit(RawConfigParser):
    """A unit, whose names may come several times: the last counts, as it does for those that are asked here."""

    def __init__(self) -> None:
        super().__init__(strict=False)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def service() -> dict[str, str]:
    unit = Unit()
    unit.read(DEPLOY / "tenth.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    return dict(unit["Service"])


def taken(arguments: list[str]) -> dict[str, Any]:
    """What `tenth serve` makes of them."""
    noting, found = probe()
    result = CliRunner().invoke(noting, arguments, env={"TENTH_API_KEY": None})
    assert result.exit_code == 0, (result.output, result.exception)
    return found


def configured() -> dict[str, Any]:
    """What the service's command gets, of the file in this folder."""
    program, command, *arguments = shlex.split(service()["ExecStart"])
    assert (program, command) == (INSTALLED, "serve")
    assert arguments == ["--config", "/etc/tenth/serve.toml"]
    return taken(["--config", str(DEPLOY / "serve.toml")])


def test_the_unit_and_its_options_go_together() -> None:
    unit, options = service(), configured()
    assert int(unit["TimeoutStopSec"]) >= options["drain"] + 10  # and the time to close what is left
    assert options["state"] == Path("/var/lib") / unit["StateDirectory"]
    assert (options["model"], options["host"], options["log"]) == ("default", "127.0.0.1", "json")
    assert (unit["DynamicUser"], unit["Restart"], unit["KillMode"]) == ("yes", "on-failure", "mixed")
    assert unit["EnvironmentFile"].startswith("-/etc/tenth/")
    assert options["api_key"] is None  # everybody may read the file


def test_limits_of_the_example_are_no_larger_than_those_unsaid() -> None:
    options = configured()
    unsaid = {name: one.default for name, one in signature(serve_command.command).parameters.items()}
    for name in ("max_num_seqs", "max_queue", "timeout", "drain"):
        assert 0 < options[name] <= unsaid[name]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "tenth.service"
    path.write_text((DEPLOY / "tenth.service").read_text().replace(INSTALLED, sys.executable))
    verify = ["systemd-analyze", "verify", "--man=no", str(path)]
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    path.write_text(path.read_text().replace("ProtectClock=yes", "ProtectClok=yes"))  # it would say so
    assert "ProtectClok" in subprocess.run(verify, capture_output=True, text=True, check=False).stderr


def test_the_image_calls_the_command_so_that_signals_arrive() -> None:
    image = last_stage()
    entry, rest = json.loads(image["ENTRYPOINT"]), json.loads(image["CMD"])
    assert entry[:2] == ["tenth", "serve"]
    options = taken([*entry[2:], *rest])
    assert (options["host"], options["port"], options["model"]) == ("0.0.0.0", int(image["EXPOSE"]), "default")
    other = taken([*entry[2:], "owner/name", "--host", "127.0.0.1"])  # as `docker run IMAGE owner/name ...` gives them
    assert (other["host"], other["model"]) == ("127.0.0.1", "owner/name")


def test_the_image_has_no_compiler_and_no_rights() -> None:
    image = last_stage()
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image["USER"])
    assert json.loads(image["VOLUME"]) == ["/models", "/state"]
    assert "HF_HOME=/models" in image["ENV"]
    assert "g++" not in str(image)
    built = [words for name, words in steps() if name == "ARG" and words.startswith("TORCH_INDEX")]
    assert built == ["TORCH_INDEX"]  # no index is ours to choose
    addresses = set(re.findall(r"\w+://([\w.]+)", (DEPLOY / "Dockerfile").read_text()))
    assert addresses == {"127.0.0.1"}


def copied() -> list[str]:
    found = [words.split() for name, words in steps() if name == "COPY" and "--from" not in words]
    return [source for *sources, _ in found for source in sources]


def test_what_is_copied_is_there_and_in_the_context() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    for source in copied():
        assert (ROOT / source).exists(), source
    assert kept == set(copied())
    assert rules.index("*") < min(rules.index(rule) for rule in rules if rule.startswith("!"))
    assert rules.index("**/*.so") > max(rules.index(rule) for rule in rules if rule.startswith("!"))  # the last counts


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check(status: int | None, healthy: bool) -> None:
    asked = list[str]()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    _, arguments = last_stage()["HEALTHCHECK"].split("CMD ")
    python, *rest = json.loads(arguments)
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in rest)]
        proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        found = subprocess.run(command, env=proxied, capture_output=True, timeout=30, check=False)
        if status is not None:
            server.shutdown()
    assert (found.returncode == 0) == healthy
    assert asked == ([] if status is None else ["/health"])


def test_options_in_the_text_exist() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    runs = re.findall(r"^docker run \.\.\. .*?\btenth (.*?)(?: {2,}#.*)?$", text, re.M)
    assert len(runs) == 2
    for words in runs:
        taken(shlex.split(words.replace("/etc/serve.toml", str(DEPLOY / "serve.toml"))))


@pytest.mark.slow
def test_a_wheel_is_built_of_what_is_copied(tmp_path: Path) -> None:
    """As the image's first stage does, for the portable instruction set alone."""
    here, out = tmp_path / "source", tmp_path / "wheels"
    here.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, here / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, here / name)
    sets = ["-C", "cmake.define.TENTH_SETS="]
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", *sets]
    subprocess.run([*build, "--wheel-dir", str(out), str(here)], check=True, timeout=900)
    (wheel,) = out.iterdir()
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    assert fnmatch(names, "*tenth/kernels/cpu/_native*.so*")
    for part in ("tenth/commands/serve_command.py", "tenth/serve/app.py", "entry_points.txt"):
        assert part in names
