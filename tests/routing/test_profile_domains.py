"""Domains of a profile against chance: the null is one, planted specialists are found, too little is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tenth.errors import RequestError
from tenth.routing.exchange import Exchanges
from tenth.routing.profile import Block, RoutingProfile
from tenth.routing.profile_domains import profile_domains
from tests.observe.planted import MODEL, collapsed, drawn

MANY = replace(MODEL, layers=tuple(range(150)))


def test_shares_are_counts_over_tokens() -> None:
    profile = drawn(taste=1.0)
    found = profile_domains(profile, 20)
    assert found.names == ("code", "prose")
    assert found.tokens_D.tolist() == [1200, 1200]
    for number, (_, block) in enumerate(profile.by_domain().items()):
        for row, layer in enumerate(found.layers):
            np.testing.assert_allclose(layer.shares_ED[:, number], block.counts_LE[row] / block.tokens, rtol=1e-12)
    # phi^2 from the table of counts: chi^2 / n, both domains have as many tokens
    table_ED = found.layers[0].shares_ED / MODEL.top_k / 2
    expected_ED = table_ED.sum(1, keepdims=True) * table_ED.sum(0, keepdims=True)
    value = ((table_ED - expected_ED) ** 2 / expected_ED).sum()
    assert found.layers[0].strength.value == pytest.approx(value, rel=1e-9)


def test_strength_is_that_of_the_slow_exchange() -> None:
    """Each permutation by itself, in numpy."""
    profile = drawn(taste=0.3)
    keys = sorted(profile.blocks)
    domains_S = np.array([key[0] == "prose" for key in keys]).astype(np.int64)
    exchanges = Exchanges.drawn(torch.from_numpy(domains_S), 2, 30, torch.Generator().manual_seed(7))
    counts_SE = np.stack([profile.blocks[key].counts_LE[2] for key in keys])
    slow = []
    for assigned_S in exchanges.domains_PS.numpy():
        q_DE = np.stack([counts_SE[assigned_S == d].sum(0) / (2 * 100 * (assigned_S == d).sum()) for d in (0, 1)])
        slow.append(float((0.5 * (q_DE - q_DE.mean(0)) ** 2 / q_DE.mean(0)).sum()))
    found = profile_domains(profile, 30, seed=7).layers[2].strength
    assert found.value == pytest.approx(slow[0], rel=1e-9)
    assert found.chance == pytest.approx(np.mean(slow[1:]), rel=1e-9)
    assert found.high == pytest.approx(np.quantile(slow[1:], 0.95), rel=1e-9)


def test_p_is_uniform_where_domains_mean_nothing() -> None:
    """Documents have tastes of their own, and still a router without any for domains is beyond 95 % in 5 of 100."""
    found = profile_domains(drawn(MANY, tokens=30), 200)
    p_L = np.array([layer.strength.p for layer in found.layers])
    assert abs(p_L.mean() - 0.5) < 4 * (1 / 12 / len(p_L)) ** 0.5
    assert (p_L <= 0.05).mean() < 0.05 + 4 * (0.05 * 0.95 / len(p_L)) ** 0.5
    assert np.abs(np.sort(p_L) - np.linspace(0, 1, len(p_L))).max() < 1.63 / len(p_L) ** 0.5  # Kolmogorov, 1 %
    inside = [(layer.low_ED <= layer.shares_ED) & (layer.shares_ED <= layer.high_ED) for layer in found.layers]
    assert 0.92 < np.mean(inside) < 0.98


def test_planted_specialists_are_beyond_chance() -> None:
    found = profile_domains(drawn(domains=("code", "prose", "suomi"), taste=2.0), 200)
    for number in range(3):
        assert found.beyond_LED[:, number, number].all()
        assert (found.parts_LED[:, number, number] > 0.5).all()
        assert not found.beyond_LED[:, number, (number + 1) % 3].any()
    assert all(layer.strength.p < 0.01 and layer.strength.excess > 0.1 for layer in found.layers)


def test_what_cannot_be_told_from_chance_is_refused() -> None:
    with pytest.raises(RequestError, match="two domains or more, the profile has 1"):
        profile_domains(collapsed())
    with pytest.raises(RequestError, match="two domains or more, the profile has 0"):
        profile_domains(RoutingProfile.empty(MODEL))
    with pytest.raises(RequestError, match=r"8 in 2 domains can be exchanged in 35 ways, 100 are needed"):
        profile_domains(drawn(blocks=4))
    assert len(profile_domains(drawn(blocks=5), 10).layers) == 4  # 126 ways: code is prose, prose is code


def test_an_exchange_of_names_reaches_the_same_strength() -> None:
    found = profile_domains(drawn(blocks=5, taste=3.0), 3000)
    # of 252 drawings two are the true one: itself, and itself with the names exchanged
    assert found.layers[0].strength.p == pytest.approx(2 / 252, rel=0.5)
    assert found.layers[0].strength.p > 1.3 / 252


def test_many_domains_take_as_much_memory_as_few() -> None:
    exchanges = Exchanges.drawn(torch.arange(600) % 200, 200, 80, torch.Generator().manual_seed(0))
    values_SE, tokens_S = torch.rand(600, 4, dtype=torch.float64), torch.ones(600, dtype=torch.float64)
    parts = list(exchanges.shares(values_SE, tokens_S))
    assert [len(shares) for shares, _ in parts] == [34, 34, 13]
    whole = torch.cat([shares for shares, _ in parts])
    belongs = torch.nn.functional.one_hot(exchanges.domains_PS[80], 200).T.double()
    torch.testing.assert_close(whole[80], belongs @ values_SE / 3)


def test_experts_and_layers_without_work() -> None:
    profile = drawn()
    for block in profile.blocks.values():
        block.counts_LE[0] = 0
        block.counts_LE[1, 5] = 0
    profile.blocks["empty", 0] = Block(0, np.zeros_like(profile.counts.counts_LE))
    found = profile_domains(profile, 20)
    assert found.names == ("code", "prose")
    assert (found.layers[0].strength.value, found.layers[0].strength.p) == (0, 1)
    assert np.isnan(found.parts_LED[1, 5]).all()
    assert np.isfinite(found.layers[1].strength.value)
