"""Parity where one model is at an address: what its server tells, beside the same of the model that lies here.

N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from tenth.errors import RequestError
from tenth.model.batch import Batch
from tenth.observe.parity import Report, VerifyOptions, empty_report, judged
from tenth.observe.parity_corpus import Corpus, Question
from tenth.observe.parity_gate import Gate
from tenth.observe.parity_heard import Told, hear
from tenth.observe.parity_parts import NotFinite, check_finite, run_layer
from tenth.observe.parity_positions import divergence, perplexity
from tenth.observe.parity_remote_answers import compare_answers, completed
from tenth.observe.parity_server import Server
from tenth.observe.parity_sides import Side
from tenth.observe.parity_spelling import Spelling
from tenth.observe.parity_verdict import not_finite, verdict

Progress = Callable[[int, int], None]

_ROWS = 32  # positions whose logits are there at once
_LEAST = 1e-9  # what is left of a probability, whatever the sum of rounded ones


def verify_server(
    side: Side,
    server: Server,
    corpus: Corpus,
    options: VerifyOptions,
    *,
    server_is_b: bool,
    questions: Sequence[Question] = (),
    gate: Gate | None = None,
    report: Callable[[str], Progress],
) -> Report:
    """Measure what can be measured from outside: log-probabilities that are named, greedy answers, questions.

    RequestError where the server's tokens are not those of the model here.
    """
    facts = (side.facts(), server.facts()) if server_is_b else (server.facts(), side.facts())
    found = empty_report(*facts, corpus)
    if side.tokenizer is None:
        raise RequestError(f"{side.name}: has no tokenizer, without which a server's tokens cannot be told")
    spelling = Spelling(side.tokenizer, side.config.vocab_size)
    prompts = corpus.prompts[: options.greedy_prompts] if options.greedy_tokens else []
    generated = completed(server, prompts, options.greedy_tokens, spelling, report("greedy: the server"))
    heard = hear(server, corpus, prompts, generated, spelling, report("probabilities: the server"))
    found["server"] = {
        "side": "b" if server_is_b else "a",
        "method": heard.method,
        "positions": len(heard.told),
        "top1_positions": sum(one.best is not None for one in heard.told),
    }
    found["notes"] += [*heard.notes, "routing and layers cannot be measured at an address"]
    try:
        if heard.told:
            own = _local(side, heard.windows, heard.told, report("layer by layer"))
            _fill(found, heard.told, own, server_is_b=server_is_b, of_corpus=heard.method != "generated")
    except NotFinite as error:
        found["verdict"] = not_finite(str(error).replace(" of A ", f" of {'A' if server_is_b else 'B'} "))
        return judged(found, gate)
    compare_answers(found, side, server, prompts, generated, options, questions, spelling, report, server_is_b)
    found["verdict"] = verdict(found, [])
    return judged(found, gate)


@torch.inference_mode()
def _local(side: Side, windows: Sequence[list[int]], told: Sequence[Told], progress: Progress) -> list[dict[str, Any]]:
    """Of the positions that were told of: log-probabilities of the same ids, the likeliest id, that of the target."""
    decoder, batch = side.decoder, Batch.of(windows)
    assert batch.tokens_T is not None
    with side.by_layer.part("embedding"):
        x_TD = decoder.kernels.embed(batch.tokens_T, decoder.embedding)
    cos_sin = decoder.cos_sin(batch)
    for index, layer in enumerate(decoder.blocks()):
        with side.by_layer.part(f"layers.{index}"):
            states = run_layer(layer, x_TD, batch, cos_sin, None)
        check_finite(states, "A", index)
        x_TD = states.output_TD
        progress(index + 1, side.config.num_layers)
    starts = list(accumulate(map(len, windows), initial=0))
    rows_N = torch.tensor([starts[one.window] + one.place for one in told])
    found = list[dict[str, Any]]()
    with side.by_layer.part("norm"), side.by_layer.part("head"):
        for at in range(0, len(told), _ROWS):
            logits_NV = decoder.head(decoder.norm(x_TD[rows_N[at : at + _ROWS]])).double()
            logprobs_NV = logits_NV.log_softmax(-1)
            for one, logprobs_V in zip(told[at : at + _ROWS], logprobs_NV, strict=True):
                ids = list(one.logprobs)
                values = logprobs_V[torch.tensor(ids)].tolist()
                found.append({"top": dict(zip(ids, values, strict=True)), "best": int(logprobs_V.argmax())})
    return found


def _fill(
    found: Report, told: Sequence[Told], own: Sequence[dict[str, Any]], *, server_is_b: bool, of_corpus: bool
) -> None:
    kl, same, losses = [], [], []
    for one, mine in zip(told, own, strict=True):
        pair = (mine["top"], one.logprobs) if server_is_b else (one.logprobs, mine["top"])
        kl.append(coarse_divergence(*pair))
        same += [] if one.best is None else [one.best == mine["best"]]
        losses.append([-side[one.target] for side in pair])
    found["positions"] = len(kl)
    found["kl"] = divergence(np.array(kl), np.array([one.window for one in told]))
    found["top1"] = sum(same) / len(same) if same else None
    if of_corpus:
        a, b = (perplexity(loss_N) for loss_N in np.array(losses).T)
        found["perplexity"] = {"a": a, "b": b, "ratio": b / a}


def coarse_divergence(p: dict[int, float] | Any, q: dict[int, float] | Any) -> float:
    """KL(p||q) over named tokens and all others taken as one, from log-probabilities by id (the same ids in both).

    It is at most the true one: what is put together cannot be told apart (Cover and Thomas, 2006, 2.7).
    """
    total = sum(math.exp(p[token]) * (p[token] - q[token]) for token in p)
    rest_p, rest_q = (max(1.0 - sum(math.exp(value) for value in one.values()), 0.0) for one in (p, q))
    if rest_p > _LEAST:
        total += rest_p * math.log(rest_p / max(rest_q, _LEAST))
    return max(total, 0.0)
