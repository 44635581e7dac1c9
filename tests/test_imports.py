"""The rule of the house: imports flow down; and importing does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tenth

ROOT = Path(tenth.__file__).parent
# each part may import from those before it; `tenth` itself holds the version and lazy names
ORDER = (
    "errors",
    "files",
    "routing",
    "kernels",
    "model",
    "weights",
    "quantize",
    "engine",
    "data",
    "train",
    "observe",
    "api",
    "serve",
    "apps",
    "cluster",
    "commands",
)
# and beyond that: no part may import these, though they come before it
FORBIDDEN = {"data": {"engine"}, "train": {"engine"}}


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
        found |= {name.split(".")[1] for name in names if name.startswith("tenth.")}
    return found


def test_imports_flow_down() -> None:
    modules = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name == "errors.py"]
    assert len(modules) > 50
    for path in modules:
        part = _part(path)
        allowed = set(ORDER[: ORDER.index(part) + 1]) - FORBIDDEN.get(part, set())
        assert _imports(path) <= allowed, f"{path} imports {_imports(path) - allowed}"


def test_every_folder_is_in_the_table() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= set(ORDER)


def test_import_does_no_work() -> None:
    heavy = ("torch", "tokenizers", "jinja2", "rich", "numpy")
    code = f"import sys, tenth; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    for name in tenth.__all__:
        assert getattr(tenth, name) is not None


def test_errors_are_drawn_in_their_tree() -> None:
    from tenth import errors

    drawing = errors.__doc__ or ""
    for name in errors.__all__:
        assert f" {name} " in drawing.replace("\n", " ") or drawing.split("\n")[2].startswith(name)
        assert issubclass(getattr(errors, name), errors.TenthError)
