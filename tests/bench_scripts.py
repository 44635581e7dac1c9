"""Scripts of `bench/` as modules, for their tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))  # they share modules


def script(name: str) -> Any:
    """A script as a module; its dataclasses look for it among the modules."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
