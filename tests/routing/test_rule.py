"""Policies on top of a rule: noise that can be repeated, a part for each layer."""

from __future__ import annotations

import torch

from tenth.routing.rule import RoutingPolicy

LOGITS = torch.zeros(2000, 16)


def test_noise_is_the_seeds_and_the_layers() -> None:
    def drawn(seed: int, layer: int) -> torch.Tensor:
        return RoutingPolicy(noise=0.5, seed=seed).at(layer).noisy(LOGITS)

    assert torch.equal(drawn(1, 3), drawn(1, 3))
    others = [drawn(1, 4), drawn(2, 3), drawn(1 + (1 << 64), 3)]
    for other in others:
        pair = torch.stack([drawn(1, 3).flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.03  # five deviations


def test_noise_has_its_deviation() -> None:
    noisy = RoutingPolicy(noise=0.5, seed=3).at(0).noisy(LOGITS + 7)
    assert abs(float(noisy.mean()) - 7) < 0.015
    assert abs(float(noisy.std()) - 0.5) < 0.01


def test_without_noise_logits_are_left_alone() -> None:
    assert RoutingPolicy(seed=3).at(0).noisy(LOGITS) is LOGITS


def test_noise_has_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    assert not RoutingPolicy(noise=1.0).at(0).noisy(logits).requires_grad


def test_each_layer_has_its_capacity() -> None:
    real_T = torch.ones(3, dtype=torch.bool)
    policy = RoutingPolicy({2: 1.5}, real_T=real_T)
    assert policy.at(2).capacity == 1.5
    assert policy.at(1).capacity is None
    assert policy.at(1).real_T is real_T
