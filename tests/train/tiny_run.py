"""A run small enough for any test: a few thousand parameters, text of this repository's own words, one thread."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tenth.train.corpus import Corpus
from tenth.train.recipe import Recipe
from tenth.train.recipe_reader import read_recipe
from tenth.train.run_setup import Learner, open_learner
from tenth.train.trainer import Trainer
from tenth.train.training_run import Outcome, train
from tests.api.tiny import write_tokenizer

MOE = {"num_experts": 4, "top_k": 2, "intermediate_size": 16}
SHAPE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "context_length": 64,
    "qk_norm": True,
    "moe": MOE,
}
STAGE = {"steps": 6, "length": 32, "rows": 2, "batch_tokens": 128, "warmup": 1}


def write_corpus(folder: Path, documents: int = 40, seed: int = 0) -> None:
    """A folder `code`, `prose.jsonl` and `held.jsonl` of made-up sentences, and a tokenizer of bytes."""
    draw = random.Random(seed)
    words = "expert router token gate loss step layer weight batch norm shared dense sparse".split()

    def text() -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randrange(4, 16)))

    (folder / "code").mkdir()
    for number in range(documents):
        (folder / "code" / f"{number}.py").write_text(f"{text()} = {text()}")
    for name in ("prose", "held"):
        lines = [f'{{"text": "{text()}.", "kind": "{kind}"}}' for kind in ("a", "b") for _ in range(documents)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")


def raw_recipe(folder: Path, **sections: Any) -> dict[str, Any]:
    """A recipe as TOML gives it; sections are laid over the ones here, key by key."""
    raw: dict[str, Any] = {
        "model": {"shape": SHAPE, "tokenizer": str(folder / "tokenizer")},
        "run": {"out": str(folder / "run"), "threads": 1},
        "source": [{"path": str(folder / "code")}, {"path": str(folder / "prose.jsonl"), "weight": 0.5}],
        "stage": [STAGE],
        "optimizer": {"lr": 3e-3},
        "precision": {"compute": "float32"},
        "checkpoint": {"every": 3},
        "evaluation": {
            "every": 3,
            "tokens": 512,
            "source": [{"path": str(folder / "held.jsonl"), "domain_key": "kind"}],
        },
        "log": {"tensorboard": False},
    }
    for name, section in sections.items():
        own = raw.get(name, {})
        laid_over = isinstance(section, Mapping) and isinstance(own, Mapping)
        raw[name] = {**own, **section} if laid_over else section
    return raw


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    """The same, read; the corpus is written where it is missing."""
    if not (folder / "held.jsonl").exists():
        write_corpus(folder)
    return read_recipe(raw_recipe(folder, **sections), "test")


def silent(_: str) -> Any:
    return lambda done, total: None


def trainer_of(recipe: Recipe) -> tuple[Trainer, Learner]:
    """A trainer in the recipe's folder, without a log."""
    torch.set_num_threads(1)
    folder = Path(recipe.run.out)
    learner = open_learner(recipe, silent)
    corpus = Corpus(recipe, folder / "data", learner.tokenizer, learner.decoder.config.vocab_size, silent)
    return Trainer(recipe, folder, learner, corpus), learner


def run(recipe: Recipe, **options: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    """Carry a recipe out; its outcome and the records it told."""
    told: list[dict[str, Any]] = []
    outcome = train(recipe, report=silent, told=lambda record: told.append(dict(record)), **options)
    return outcome, told
