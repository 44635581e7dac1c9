"""The recipes of the laboratory: what they say of themselves, and how their weights start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tenth.model.huggingface_export import exportable_as
from tenth.train.recipe_reader import bundled_recipes, load_recipe
from tenth.train.run_setup import open_learner


def test_the_twin_costs_what_the_mixture_does() -> None:
    assert {"small-moe", "small-dense"} <= set(bundled_recipes())
    sparse, dense = (load_recipe(name) for name in ("small-moe", "small-dense"))
    assert sparse.model.shape is not None
    assert dense.model.shape is not None
    assert sparse.model.shape.moe is not None
    assert (sparse.model.shape.moe.num_experts, sparse.model.shape.vocab_size) == (64, 8192)
    count = sparse.model.shape.parameters
    assert 23e6 < count.total < 27e6
    assert count.mlp > 0.75 * count.total
    assert count.active_mlp == dense.model.shape.parameters.active_mlp
    assert sparse.model.shape.flops_per_token(256) == pytest.approx(dense.model.shape.flops_per_token(256), rel=0.02)
    # nothing else differs
    assert (sparse.stage, sparse.source, sparse.optimizer) == (dense.stage, dense.source, dense.optimizer)
    assert sparse.evaluation == dense.evaluation
    for recipe in (sparse, dense):
        assert recipe.model.shape is not None
        exportable_as(recipe.model.shape, recipe.model.shape.model_type)


def test_embeddings_start_wider() -> None:
    whole = load_recipe("small-dense")
    assert whole.model.shape is not None
    shape = replace(whole.model.shape, num_layers=1, vocab_size=512)

    def start(**model: float) -> dict[str, torch.Tensor]:
        recipe = replace(whole, model=replace(whole.model, shape=shape, tokenizer="", **model))
        learner = open_learner(recipe, lambda _: lambda done, total: None)
        return learner.start

    wide, plain = start(init_embedding_std=1.0), start(init_embedding_std=0.0)
    assert float(wide["embedding.values_OI"].std()) == pytest.approx(1.0, rel=0.02)
    assert float(plain["embedding.values_OI"].std()) == pytest.approx(whole.model.init_std, rel=0.02)
    assert all(torch.equal(wide[name], plain[name]) for name in plain if name != "embedding.values_OI")
