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

from tenth.errors import MachineError, RequestError
from tenth.model.batch import Batch
from tenth.observe.parity import Report, VerifyOptions, empty_report, judged
from tenth.observe.parity_corpus import Corpus, Question
from tenth.observe.parity_gate import Gate
from tenth.observe.parity_greedy import Agreement, answers_of, pass_rate
from tenth.observe.parity_parts import NotFinite, check_finite, run_layer
from tenth.observe.parity_positions import Positions, divergence, perplexity
from tenth.observe.parity_server import Generated, Server, Spelling, Told
from tenth.observe.parity_sides import Side
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
    spelling = Spelling(side.tokenizer)
    prompts = corpus.prompts[: options.greedy_prompts] if options.greedy_tokens else []
    generated = _complete(server, prompts, options.greedy_tokens, spelling, report("greedy: the server"))
    _check_spelling(generated, server, spelling)
    method, windows, told = _told(server, corpus, prompts, generated, spelling, report("probabilities: the server"))
    found["server"] = {"side": "b" if server_is_b else "a", "method": method, "positions": len(told)}
    found["notes"] += _notes(method)
    try:
        if told:
            _fill(found, told, _local(side, windows, told, report("layer by layer")), method, server_is_b=server_is_b)
    except NotFinite as error:
        found["verdict"] = not_finite(str(error).replace(" of A ", f" of {'A' if server_is_b else 'B'} "))
        return judged(found, gate)
    _answers(found, side, server, prompts, generated, options, questions, spelling, report, server_is_b=server_is_b)
    found["verdict"] = verdict(found, [])
    return judged(found, gate)


def _notes(method: str) -> list[str]:
    known = "of prompts" if method != "generated" else "of its own answers alone, on which both are compared"
    return [
        f"the server tells log-probabilities {known}, of a few tokens each: KL takes all others as one, so that it is "
        "at most the true one",
        "routing and layers cannot be measured at an address"
        + ("; nor can perplexity on the corpus, at this server" if method == "generated" else ""),
    ]


def _complete(
    server: Server, prompts: Sequence[Sequence[int]], tokens: int, spelling: Spelling, progress: Progress
) -> list[Generated]:
    found = []
    for number, prompt in enumerate(prompts, 1):
        found.append(server.complete(prompt, tokens, spelling))
        progress(number, len(prompts))
    return found


def _check_spelling(generated: Sequence[Generated], server: Server, spelling: Spelling) -> None:
    tokens = [text for one in generated for text in one.tokens]
    if tokens and 2 * sum(text not in spelling for text in tokens) > len(tokens):
        raise RequestError(
            f"{server.address}: most of its tokens are none of the other model's: parity needs one vocabulary"
        )


def _told(
    server: Server,
    corpus: Corpus,
    prompts: Sequence[Sequence[int]],
    generated: Sequence[Generated],
    spelling: Spelling,
    progress: Progress,
) -> tuple[str, list[list[int]], list[Told]]:
    """What is told of the corpus, where the server tells it, else of its own answers; with the windows it is about."""
    first = server.of_prompt(corpus.windows[0], spelling)
    if first is not None:
        method, _ = first
        told = list[Told]()
        for number, window in enumerate(corpus.windows):
            again = first if number == 0 else server.of_prompt(window, spelling)
            for place, logprobs in enumerate(() if again is None else again[1]):
                if (target := window[place + 1]) in logprobs:
                    told.append(Told(number, place, target, logprobs, max(logprobs, key=lambda t: logprobs[t])))
            progress(number + 1, len(corpus.windows))
        return method, corpus.windows, told
    windows, told = [], []
    for number, (prompt, answer) in enumerate(zip(prompts, generated, strict=True)):
        ids = list(prompt)
        for token, logprobs, best in answer.told:
            if token is None:  # what follows would be of another prompt
                break
            told.append(Told(number, len(ids) - 1, token, logprobs, best))
            ids.append(token)
        windows.append(ids)
    return "generated", windows, told


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
    found: Report, told: Sequence[Told], own: Sequence[dict[str, Any]], method: str, *, server_is_b: bool
) -> None:
    kl, same, losses = [], [], []
    for one, mine in zip(told, own, strict=True):
        pair = (mine["top"], one.logprobs) if server_is_b else (one.logprobs, mine["top"])
        kl.append(coarse_divergence(*pair))
        same.append(one.best is not None and one.best == mine["best"])
        losses.append([-side[one.target] for side in pair])
    loss = np.array(losses)
    positions = Positions(np.array(kl), np.array(same), loss[:, 0], loss[:, 1])
    found["positions"] = len(kl)
    found["kl"] = divergence(positions, np.array([one.window for one in told]))
    found["top1"] = float(positions.same_N.mean())
    if method != "generated":
        a, b = perplexity(positions.loss_a_N), perplexity(positions.loss_b_N)
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


def _answers(
    found: Report,
    side: Side,
    server: Server,
    prompts: Sequence[list[int]],
    generated: Sequence[Generated],
    options: VerifyOptions,
    questions: Sequence[Question],
    spelling: Spelling,
    report: Callable[[str], Progress],
    *,
    server_is_b: bool,
) -> None:
    if not prompts and not questions:
        return
    answers = answers_of(side, prompts, options.greedy_tokens, questions, options.answer_tokens, report)
    if isinstance(answers, MachineError):
        found["notes"].append(f"no answers were generated: {side.name}: {answers}")
        return
    assert side.tokenizer is not None, "checked"
    ends = {side.tokenizer.token_bytes(token).decode(errors="replace") for token in side.end_ids}
    if prompts:
        mine = [[side.tokenizer.token_bytes(t).decode(errors="replace") for t in answer] for answer in answers[0]]
        theirs = [one.tokens for one in generated]
        without = [[[text for text in answer if text not in ends] for answer in each] for each in (mine, theirs)]
        found["greedy"] = Agreement.of(*without).facts(options.greedy_tokens)
    if questions:
        asked = _complete(
            server, [question.ids for question in questions], options.answer_tokens, spelling, report("questions")
        )
        own = pass_rate(side, questions, answers[1])
        other = sum(q.passes(one.text) for q, one in zip(questions, asked, strict=True)) / len(questions)
        a, b = (own, other) if server_is_b else (other, own)
        found["questions"] = {"count": len(questions), "a": a, "b": b, "drop": a - b}
