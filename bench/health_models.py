"""Small mixtures of experts that `health_science.py` judges: trained from text that is part of every installation.

Set A chooses thresholds, set B tests them; they share neither text, tokenizer, shape nor seed. A learns from the
standard library: three models from its modules and the language reference, three (A2) from its packages and their
docstrings. B learns from torch and numpy, and their docstrings. Some models go on with a narrow text, which was not in
their mixture: A with `tkinter` or `idlelib`, B with the tables of `encodings`.

A model is healthy by how it was made, before it is looked at: trained on the whole mixture, with a balance loss or
loss-free biases, to the end of its schedule. Models trained without either are kept apart, and so are those that went
on learning. What is in OUT already is not done again.

usage: python bench/health_models.py OUT [--steps 400] [--limit N]
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenth.data.readers import TextSource
from tenth.data.tokenize import documents_of, tokenize
from tenth.data.train_tokenizer import train_tokenizer
from tenth.train.recipe_reader import read_recipe
from tenth.train.training_run import train
from tenth.weights.save import new_folder
from tenth.weights.tokenizer import Tokenizer

STRENGTHS = (1, 5, 10, 20, 50, 100)  # percent
VOCABULARY, LONGEST, SHORTEST = 1024, 4000, 300
LIBRARY = Path(sysconfig.get_paths()["stdlib"])

# ---- text


def modules() -> Iterator[str]:
    """The library's modules: A's code."""
    yield from (path.read_text(errors="ignore") for path in sorted(LIBRARY.glob("*.py")))


def reference() -> Iterator[str]:
    """The language reference: A's prose."""
    from pydoc_data.topics import topics

    yield from (str(text) for _, text in sorted(topics.items()))


def packages() -> Iterator[str]:
    """The modules of the library's packages: A2's code."""
    apart = {"test", "tests", "site-packages", "encodings", "tkinter", "pydoc_data", "idlelib", "lib2to3", "turtledemo"}
    for path in sorted(LIBRARY.glob("*/**/*.py")):
        if not apart & set(path.relative_to(LIBRARY).parts):
            yield path.read_text(errors="ignore")


def installed() -> Iterator[str]:
    """Modules of torch and numpy, one in eight: B's code."""
    for name in ("numpy", "torch"):
        found = find_spec(name)
        assert found is not None
        assert found.origin is not None
        for path in sorted(Path(found.origin).parent.glob("**/*.py"))[::8]:
            yield path.read_text(errors="ignore")


def docstrings(texts: Iterator[str]) -> Iterator[str]:
    """Those of modules, a module's in one document."""
    for text in texts:
        try:
            tree = ast.parse(text)
        except SyntaxError:  # of a newer Python
            continue
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        yield "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))


def folder(name: str) -> Iterator[str]:
    """The modules of one package of the library."""
    yield from (path.read_text(errors="ignore") for path in sorted((LIBRARY / name).glob("**/*.py")))


TEXTS: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "A": {"code": modules, "prose": reference, "narrow": lambda: folder("tkinter")},
    "A2": {"code": packages, "prose": lambda: docstrings(packages()), "narrow": lambda: folder("idlelib")},
    "B": {"code": installed, "prose": lambda: docstrings(installed()), "narrow": lambda: folder("encodings")},
}


def pieces(texts: Iterator[str], characters: int) -> list[str]:
    """Whole lines of documents, none too long, in an order of chance."""
    found = []
    for text in texts:
        for at in range(0, len(text), LONGEST):
            piece = text[at : at + LONGEST]
            if len(piece) >= SHORTEST:
                found.append(piece)
    random.Random(0).shuffle(found)
    kept, size = list[str](), 0
    for piece in found:
        if size >= characters:
            break
        kept.append(piece)
        size += len(piece)
    return kept


def write_texts(out: Path, name: str, characters: int = 2_000_000) -> None:
    """The texts of a set as token files: a tenth of each is held out, and never learned from."""
    place = out / name
    place.mkdir(parents=True, exist_ok=True)
    for kind, texts in TEXTS[name].items():
        if not (place / f"{kind}.jsonl").exists():
            found = pieces(texts(), characters)
            held = max(len(found) // 10, 1)
            for part, some in ((f"{kind}-held", found[:held]), (kind, found[held:])):
                (place / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    if not (place / "tokenizer").exists():
        with new_folder(place / "tokenizer") as partial:
            learned = [TextSource(str(place / f"{kind}.jsonl")) for kind in ("code", "prose")]
            train_tokenizer(documents_of(learned), VOCABULARY).save(partial)
    tokenizer = Tokenizer.from_folder(place / "tokenizer")
    for path in sorted(place.glob("*.jsonl")):
        if not path.with_suffix(".tokens").exists():
            tokenize([TextSource(str(path), domain=path.stem)], tokenizer, path.with_suffix(".tokens"))


# ---- models


@dataclass(frozen=True)
class Shape:
    """Widths of a small model."""

    hidden: int
    layers: int
    experts: int
    top_k: int
    width: int

    def raw(self, free: bool) -> dict[str, Any]:
        """As recipes give it."""
        moe: dict[str, Any] = {"num_experts": self.experts, "top_k": self.top_k, "intermediate_size": self.width}
        return {
            "model_type": "tenth" if free else "qwen3_moe",
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_layers": self.layers,
            "num_heads": self.hidden // 32,
            "num_kv_heads": 1,
            "head_dim": 32,
            "context_length": 512,
            "qk_norm": True,
            "moe": moe | ({"expert_bias": True, "score": "sigmoid"} if free else {}),
        }


@dataclass(frozen=True)
class Made:
    """A model to train: of which set, healthy or not by definition."""

    name: str
    set: str
    shape: Shape
    seed: int
    balance: str = "global"
    start: str = ""
    narrow: bool = False
    share: float = 1.0

    @property
    def kind(self) -> str:
        """Healthy, trained without balance, or going on."""
        if self.start:
            return "narrow" if self.narrow else "broad"
        return "unbalanced" if self.balance == "none" else "healthy"


SHAPES = {"A": Shape(128, 3, 16, 2, 128), "A2": Shape(96, 4, 32, 4, 48)}
WIDE, COARSE = Shape(160, 2, 24, 3, 80), Shape(128, 3, 8, 2, 192)  # of B
BALANCES = ("global", "micro", "free")
_BALANCE: dict[str, dict[str, Any]] = {
    "global": {"kind": "global", "weight": 1e-2},
    "micro": {"kind": "micro", "weight": 1e-2},
    "free": {"kind": "none", "bias_rate": 3e-3},
    "none": {"kind": "none"},
}


def going_on(base: Made) -> list[Made]:
    """A model that goes on with narrow text, and one with the whole mixture, for as many percent of its steps."""
    found = []
    for word in ("narrow", "broad"):
        before, done = base.name, 0
        for strength in STRENGTHS:
            name = f"{base.name}-{word}-{strength}"
            share = (strength - done) / 100
            found.append(Made(name, base.set, base.shape, base.seed, "none", before, word == "narrow", share))
            before, done = name, strength
    return found


def planned() -> list[Made]:
    """All models, in the order in which they are most use if time runs out."""
    base = [Made(f"A-{seed}", "A", SHAPES["A"], seed, BALANCES[seed]) for seed in range(3)]
    fine = [Made(f"A-fine-{n}", "A2", SHAPES["A2"], 100 + n, BALANCES[n % 3]) for n in range(3)]
    none = [Made(f"A-none-{n}", text, SHAPES[text], 50 + n, "none") for n, text in enumerate(("A", "A2"))]
    wide = [Made(f"B-wide-{n}", "B", WIDE, 400 + n, BALANCES[n % 3]) for n in range(10)]
    coarse = [Made(f"B-coarse-{n}", "B", COARSE, 200 + n, BALANCES[n % 3]) for n in range(10)]
    alone = [Made(f"B-none-{n}", "B", (WIDE, COARSE)[n % 2], 300 + n, "none") for n in range(4)]
    healthy = [made for pair in zip(wide, coarse, strict=True) for made in pair]
    chosen = [*base, *fine, *going_on(base[0]), *going_on(fine[0]), *none]
    return [*chosen, *healthy[:6], *going_on(wide[0]), *healthy[6:], *alone, *going_on(coarse[0])]


def recipe_of(made: Made, out: Path, steps: int) -> dict[str, Any]:
    """What trains a model."""
    place, free = out / made.set, made.balance == "free"
    kinds = ("narrow",) if made.narrow else ("code", "prose")
    start: dict[str, Any] = {"from": str(out / "models" / made.start)} if made.start else {
        "shape": made.shape.raw(free), "init_std": made.shape.hidden**-0.5, "init_embedding_std": 1.0,
        "tokenizer": str(place / "tokenizer"),
    }  # fmt: skip
    count = max(round(steps * made.share), 1)
    schedule = {"schedule": "constant"} if made.start else {"schedule": "cosine", "warmup": min(25, count // 10)}
    return {
        "model": start,
        "run": {"out": str(out / "runs" / made.name), "threads": 1, "seed": made.seed, "export_dtype": "float32"},
        "source": [{"path": str(place / f"{kind}.tokens"), "name": kind} for kind in kinds],
        "stage": [{"steps": count, "length": 256, "rows": 2, "batch_tokens": 1024, **schedule}],
        "optimizer": {"lr": 1e-3 if made.start else 3e-3},
        "balance": _BALANCE[made.balance],
        "checkpoint": {"every": 0},
        "evaluation": {
            "every": 0,
            "tokens": 8192,
            "source": [{"path": str(place / f"{kind}-held.tokens")} for kind in ("code", "prose")],
        },
        "log": {"tensorboard": False, "every": 20},
    }


def make(made: Made, out: Path, steps: int) -> None:
    """Train a model, unless that was done."""
    place = out / "models" / made.name
    if place.exists():
        return
    began, losses = time.perf_counter(), list[str]()

    def told(record: dict[str, Any]) -> None:
        if record["kind"] == "evaluation":
            losses.append(" ".join(f"{k} {v:.2f}" for k, v in record.items() if isinstance(v, float)))

    run = out / "runs" / made.name
    train(read_recipe(recipe_of(made, out, steps), made.name), choice="fresh",
          report=lambda _: lambda done, total: None, told=told)  # fmt: skip
    place.parent.mkdir(parents=True, exist_ok=True)
    (run / "model").rename(place)
    shutil.rmtree(run)
    print(f"{made.name}: {time.perf_counter() - began:.0f} s {losses[-1:]}", file=sys.stderr, flush=True)


def main() -> None:
    """Write the texts, train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--limit", type=int, help="only the first so many models")
    options = parser.parse_args()
    for name in TEXTS:
        write_texts(options.out, name)
    for made in planned()[: options.limit]:
        make(made, options.out, options.steps)


if __name__ == "__main__":
    main()
