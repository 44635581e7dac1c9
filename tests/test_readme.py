"""README and docs tell the truth: the tree is drawn from docstrings, the examples run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.bundled import bundled_gguf
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.save import save_model
from tests.test_imports import ORDER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree() -> str:
    """The folders of `tenth/` with the first half-line of their docstrings, in the order of the imports."""
    lines = ["tenth/"]
    for part in ORDER:
        path = ROOT / "tenth" / part
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if source.exists():
            summary = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n")[0].rstrip(".")
            name = part + "/" if path.is_dir() else part + ".py"
            lines.append(f"  {name:<11}{summary[0].lower() + summary[1:]}")
    return "\n".join(lines)


def test_the_tree_is_drawn_from_the_docstrings() -> None:
    drawn = re.search(r"```\n(tenth/\n.*?)\n```", README, re.DOTALL)
    assert drawn is not None
    assert drawn[1] == tree(), f"README should show:\n{tree()}"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts with the vocabulary of the default model."""
    with open_checkpoint(bundled_gguf()) as checkpoint:
        tokenizer, vocab_size = checkpoint.tokenizer(), checkpoint.config.vocab_size
    config = replace(preset("tiny-moe"), vocab_size=vocab_size)
    folder = tmp_path_factory.mktemp("models") / "sparse"
    save_model(initialise(Decoder(config), 0), folder, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("file", ["README.md", "docs/python.md"])
def test_python_examples_run(file: str, kind: str, sparse: Path, tmp_path: Path) -> None:
    """All blocks of a file, one after the other in one process, in an empty folder, on a dense and a sparse model."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    assert blocks
    model = "default-dense" if kind == "dense" else str(sparse)
    code = "\n".join(blocks).replace('load("default"', f'load("{model}"')
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    if file == "docs/python.md":
        assert run.stdout.count("torch.Size([8, 2]) torch.Size([8, 2]) torch.Size([8, 8])") == (
            2 if kind == "sparse" else 0
        )
        assert (tmp_path / "moe" / "config.json").exists()


def test_the_reader_in_the_docs_reads_what_we_write(tmp_path: Path) -> None:
    """The example of docs/packed.md, and its values beside ours."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "packed.md").read_text(), re.DOTALL)
    compared = """
from tenth.weights.checkpoint import open_checkpoint
with open_checkpoint(folder) as checkpoint:
    for name, tensor in checkpoint.packed.index.tensors.items():
        data, entry = read(name)
        if len(tensor.formats) == 1:
            ours = checkpoint.packed.matrix(name).dense().numpy()
            assert (int4_g32(data, *entry["shape"]) == ours).all()
"""
    code = "\n".join([*blocks, compared])
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("['int4-g32'] 0.0")


def test_commands_in_the_readme_exist() -> None:
    from tenth.commands import COMMANDS

    named = set(re.findall(r"^tenth ([a-z]+)", README, re.MULTILINE))
    assert named
    assert named <= set(COMMANDS)


def test_lower_bounds_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in [*project["dependencies"], *extras]:
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\w.]+(; .+)?", line), line


def test_files_a_project_has() -> None:
    for name in ("LICENSE", "CHANGELOG.md", "docs/structure.md", "docs/log.md", "Makefile", ".ci/run"):
        assert (ROOT / name).stat().st_size > 50
    assert "Apache License" in (ROOT / "LICENSE").read_text()
