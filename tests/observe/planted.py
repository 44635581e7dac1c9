"""Routing profiles of choices drawn on the spot, with experts that are known to serve a domain. E experts, T tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tenth.routing.profile import OutputSums, ProfiledModel, RoutingProfile

MODEL = ProfiledModel("cells", "9f3ac1d27be04421", (1, 2, 3, 4), 8, 2)


def drawn(
    model: ProfiledModel = MODEL,
    domains: tuple[str, ...] = ("code", "prose"),
    *,
    taste: float = 0.0,
    blocks: int = 12,
    tokens: int = 100,
    outputs: bool = True,
    groups: float = 0.0,
    seed: int = 0,
) -> RoutingProfile:
    """`tokens` tokens in each of `blocks` blocks of each domain.

    Expert i of a layer is `taste` more likely, in logits, for domain i % 8 of those there are; none where there is no
    such domain. Documents have tastes of their own, loads differ, and `groups` makes neighbours come together.
    """
    random = np.random.default_rng(seed)
    found = RoutingProfile.empty(model)
    shape = len(model.layers), model.experts
    found.outputs = OutputSums.empty(shape) if outputs else None
    ids_E = np.arange(model.experts)
    for row in range(shape[0]):
        base_E = random.normal(0, 0.4, model.experts)
        for number, domain in enumerate(domains):
            for block in range(blocks):
                logits_E = base_E + taste * (ids_E % 8 == number) + random.normal(0, 0.2, model.experts)
                topic_T = random.integers(0, max(model.experts // 4, 1), tokens)
                logits_TE = logits_E + groups * (ids_E // 4 == topic_T[:, None])
                _add(found, row, (domain, block), logits_TE + random.gumbel(size=logits_TE.shape))
    found.counts.tokens = len(domains) * blocks * tokens
    found.counts.judged_L[:] = found.counts.tokens
    found.counts.entropy_L += found.counts.judged * (0.6 + 0.2 * np.sin(np.arange(shape[0]) / 8))
    found.counts.gates_LE += found.counts.counts_LE / model.top_k
    if found.outputs is not None:
        _measure(found.outputs, found.counts.counts_LE, random)
    return found


def _add(found: RoutingProfile, row: int, key: tuple[str, int], logits_TE: npt.NDArray[np.float64]) -> None:
    experts_TK = np.argsort(-logits_TE, axis=1)[:, : found.model.top_k]
    chose_TE = np.zeros(logits_TE.shape, np.int64)
    np.put_along_axis(chose_TE, experts_TK, 1, axis=1)
    block = found._block(*key)
    block.tokens = len(logits_TE)
    block.counts_LE[row] += chose_TE.sum(0)
    found.counts.counts_LE[row] += chose_TE.sum(0)
    found.pairs_LEE[row] += chose_TE.T @ chose_TE


def _measure(outputs: OutputSums, counts_LE: npt.NDArray[np.int64], random: np.random.Generator) -> None:
    outputs.counts_LE += counts_LE
    outputs.norms_LE += counts_LE * np.exp(random.normal(0, 0.3, counts_LE.shape))
    outputs.saliency_LE += outputs.norms_LE * random.uniform(0.1, 0.2, counts_LE.shape)
    outputs.peaks_LE += (counts_LE > 0) * np.exp(random.normal(1, 0.4, counts_LE.shape)).astype(np.float32)


def collapsed(tokens: int = 1000) -> RoutingProfile:
    """All tokens go to expert 3, in the last layer they are broken, and nothing is known of the routers."""
    found = RoutingProfile.empty(replace(MODEL, name="collapsed", top_k=1))
    block = found._block("code", 0)
    block.tokens = found.counts.tokens = tokens
    found.counts.counts_LE[:-1, 3] = block.counts_LE[:-1, 3] = tokens
    found.counts.gates_LE += found.counts.counts_LE
    found.counts.broken_L[-1] = tokens
    found.pairs_LEE[:-1, 3, 3] = tokens
    found.outputs = OutputSums.empty(found.counts.counts_LE.shape)
    found.outputs.counts_LE += found.counts.counts_LE
    found.outputs.norms_LE += 2.0 * found.counts.counts_LE
    found.outputs.saliency_LE += found.counts.counts_LE
    found.outputs.peaks_LE[:-1, 3] = 3.0
    return found
