"""The native tests in C++ (`native/`), and how the kernels are linked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native"

pytestmark = pytest.mark.skipif(not (BUILD / "build.ninja").exists(), reason="needs the build folder of `make`")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_native_tests_pass() -> None:
    _run(shutil.which("cmake", path=Path(sys.executable).parent) or "cmake", "--build", BUILD, "--target", "drivers")
    sources = {path.stem for path in (Path(__file__).parent / "native").glob("*.cpp")}
    assert sources
    for name in sorted(sources):
        lines = _run(BUILD / "drivers" / name, "2").splitlines()
        assert lines[-1] == "0 failed"
        assert len(lines) > 1


def test_instruction_sets_share_no_code() -> None:
    """An inline function of two objects is linked once: taken from AVX-512's object, it would stop older processors."""
    objects = list(BUILD.glob("CMakeFiles/kernels.dir/**/isa_*.o"))
    assert objects
    for path in objects:
        if "isa_portable" in path.name:
            continue
        name = path.name.removeprefix("isa_").split(".")[0]
        shared = re.findall(r"^\S* +W (.*)$", _run("nm", "--demangle", path), re.MULTILINE)
        foreign = [symbol for symbol in shared if f"tenth::{name}::" not in symbol]
        assert not foreign, f"{path.name} has code that others may be linked with: {foreign}"
