"""Domain specialisation against chance and against token identity, on routers whose truth is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenth.errors import RequestError
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.specialisation import LayerSpecialisation, specialisation

EXPERTS, TOP_K, VOCABULARY = 8, 2, 40
DOCUMENTS, LENGTH = 60, 100


def _text(seed: int, apart: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Domains, token ids and documents; with `apart` 1 the domains have no token in common, with 0 the same ones."""
    generator = torch.Generator().manual_seed(seed)
    documents_T = torch.arange(DOCUMENTS).repeat_interleave(LENGTH)
    domains_T = documents_T % 2
    tokens_T = torch.randint(VOCABULARY // 2, documents_T.shape, generator=generator)
    own_T = torch.rand(documents_T.shape, generator=generator) < apart
    return domains_T, tokens_T + own_T * domains_T * (VOCABULARY // 2), documents_T


def _record(logits_TE: Tensor, seed: int) -> Routing:
    """Choices drawn with these preferences (Gumbel's way of drawing without replacement)."""
    generator = torch.Generator().manual_seed(seed)
    uniform_TE = torch.rand(logits_TE.shape, generator=generator).clamp(1e-9, 1 - 1e-9)
    experts_TK = (logits_TE - (-uniform_TE.log()).log()).topk(TOP_K).indices
    return Routing({3: LayerRouting(EXPERTS, experts_TK, torch.full(experts_TK.shape, 0.5))})


def _measure(logits_TE: Tensor, text: tuple[Tensor, Tensor, Tensor], seed: int = 0) -> LayerSpecialisation:
    (measured,) = specialisation(_record(logits_TE, seed), *text, permutations=200, seed=1).values()
    return measured


def test_shares_are_those_of_the_definition() -> None:
    text = _text(0)
    logits_TE = torch.randn(DOCUMENTS * LENGTH, EXPERTS, generator=torch.Generator().manual_seed(5))
    measured, record = _measure(logits_TE, text), _record(logits_TE, 0)
    for domain in (0, 1):
        chosen = record.layers[3].experts_TK[text[0] == domain]
        for expert in range(EXPERTS):
            share = float((chosen == expert).any(1).double().mean())
            assert float(measured.shares_ED[expert, domain]) == pytest.approx(share, abs=1e-12)
    assert measured.shares_ED.sum(0).tolist() == pytest.approx([TOP_K, TOP_K])
    # phi^2 from the table of counts, stated another way: chi^2 / n
    q_ED = measured.shares_ED / TOP_K / 2
    expected_ED = q_ED.sum(1, keepdim=True) * q_ED.sum(0, keepdim=True)
    assert measured.observed.value == pytest.approx(float(((q_ED - expected_ED) ** 2 / expected_ED).sum()))


def test_a_router_that_sees_nothing_is_within_chance() -> None:
    text = _text(1)
    measured = [_measure(torch.zeros(DOCUMENTS * LENGTH, EXPERTS), text, seed) for seed in range(8)]
    assert all(m.coverage == 1 for m in measured)
    assert sum(m.observed.value > m.observed.high for m in measured) <= 2
    assert sum(m.residual.value > m.residual.high for m in measured) <= 2
    assert abs(sum(m.observed.excess for m in measured)) / 8 < 0.5 * measured[0].observed.chance
    inside = [(m.low_ED <= m.shares_ED) & (m.shares_ED <= m.high_ED) for m in measured]
    assert torch.stack(inside).double().mean() > 0.85


def test_documents_not_tokens_are_exchanged() -> None:
    """A router that prefers something in each document, whatever its domain is: chi^2 over tokens would be fooled."""
    text = _text(2)
    taste_SE = torch.randn(DOCUMENTS, EXPERTS, generator=torch.Generator().manual_seed(3))
    measured = _measure(taste_SE[text[2]], text)
    over_tokens = (EXPERTS - 1) / (DOCUMENTS * LENGTH * TOP_K)  # what chi^2 / n is by chance, tokens independent
    assert measured.observed.value > 5 * over_tokens
    assert measured.observed.p > 0.02
    assert measured.residual.p > 0.02


def test_what_tokens_explain_leaves_nothing() -> None:
    """Experts go by token id alone, and domains have their own ids: specialised, and fully explained."""
    text = _text(4, apart=0.8)
    taste_VE = 2 * torch.randn(VOCABULARY, EXPERTS, generator=torch.Generator().manual_seed(6))
    measured = _measure(taste_VE[text[1]], text)
    assert measured.observed.p < 0.01
    assert measured.expected.value == pytest.approx(measured.observed.value, rel=0.1)
    assert abs(measured.residual.excess) < 0.02 * measured.observed.value
    assert (measured.expected_ED - measured.shares_ED).abs().max() < 0.03


def test_what_tokens_do_not_explain_is_left_over() -> None:
    """The same tokens in both domains, and experts go by domain."""
    text = _text(7)
    taste_DE = torch.zeros(2, EXPERTS)
    taste_DE[0, :2], taste_DE[1, 2:4] = 1.5, 1.5
    measured = _measure(taste_DE[text[0]], text)
    assert measured.residual.p < 0.01
    assert measured.residual.excess == pytest.approx(measured.observed.excess, rel=0.1)
    assert measured.expected.value < 0.01 * measured.observed.value
    assert bool((measured.shares_ED[:2, 0] > measured.high_ED[:2, 0]).all())
    assert bool((measured.shares_ED[2:4, 0] < measured.low_ED[2:4, 0]).all())


def test_rare_tokens_are_not_judged() -> None:
    domains_T, tokens_T, documents_T = _text(8)
    rare_T = torch.arange(len(tokens_T)) % 4 == 0
    tokens_T = torch.where(rare_T, 1000 + torch.arange(len(tokens_T)), tokens_T)
    measured = _measure(torch.zeros(len(tokens_T), EXPERTS), (domains_T, tokens_T, documents_T))
    assert measured.coverage == 0.75
    only_rare = _measure(torch.zeros(len(tokens_T), EXPERTS), (domains_T, torch.arange(len(tokens_T)), documents_T))
    assert only_rare.coverage == only_rare.residual.value == only_rare.expected.value == 0
    assert only_rare.observed.p == 1  # nothing was judged, chance says the same


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_padding_and_names_of_ids_do_not_matter(seed: int) -> None:
    domains_T, tokens_T, documents_T = _text(seed)
    short = slice(0, 8 * LENGTH)
    domains_T, tokens_T, documents_T = domains_T[short], tokens_T[short], documents_T[short]
    record = _record(torch.randn(8 * LENGTH, EXPERTS, generator=torch.Generator().manual_seed(seed)), seed)
    plain = specialisation(record, domains_T, tokens_T, documents_T, 10)[3]
    padded = Routing.join([record, record.select(slice(0, 7))])
    nothing = torch.full((7,), -1)
    other = specialisation(
        padded,
        torch.cat([domains_T, nothing]),
        torch.cat([3 * tokens_T + 5, nothing]),
        torch.cat([documents_T * 2, nothing]),
        10,
    )[3]
    assert torch.equal(plain.shares_ED, other.shares_ED)
    assert plain.residual == other.residual


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_T": torch.zeros(5, dtype=torch.int64)}, "tokens must be one int64 id for each"),
        ({"domains_T": torch.zeros(6)}, "domains must be one int64 id"),
        ({"domains_T": torch.tensor([0, 1, 0, 0, 1, 1])}, "a document has tokens of two domains"),
        ({"domains_T": torch.tensor([0, 0, 0, 0, 0, 0])}, "two domains or more"),
        ({"domains_T": torch.tensor([0, 0, 2, 2, 2, 2])}, "1 of them without any"),
        ({"domains_T": torch.full((6,), -1)}, "no token has a domain"),
        ({"permutations": 0}, "permutations is 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given_ = {
        "domains_T": torch.tensor([0, 0, 1, 1, 0, 0]),
        "tokens_T": torch.arange(6),
        "documents_T": torch.tensor([0, 0, 1, 1, 2, 2]),
        "permutations": 5,
    }
    record = _record(torch.zeros(6, EXPERTS), 0)
    assert specialisation(record, **given_)[3].coverage == 0  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        specialisation(record, **(given_ | change))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no sparse layer"):
        specialisation(Routing({}), **given_)  # type: ignore[arg-type]
