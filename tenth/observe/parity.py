"""The parity of two models: the gate for replacing one that is served. docs/verify.md says what each figure means."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenth.errors import MachineError, RequestError
from tenth.observe.parity_corpus import Corpus, Question
from tenth.observe.parity_gate import Gate
from tenth.observe.parity_greedy import Agreement, answers_of, pass_rate
from tenth.observe.parity_layers import LayerFindings, routing_form, run_by_layer
from tenth.observe.parity_parts import NotFinite, PartErrors, parts_in_order
from tenth.observe.parity_positions import divergence, interval, perplexity
from tenth.observe.parity_sides import Side, shared_vocabulary
from tenth.observe.parity_verdict import damages, not_finite, verdict

Progress = Callable[[int, int], None]
Report = dict[str, Any]

_BINS = 40  # of the histogram of divergences
_PLACES = 32  # stretches of a window


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """`share` of each window is probed: layers on A's input, and B with A's routing.

    Of `greedy_prompts` beginnings of documents `greedy_tokens` tokens are generated (0: none), of each question up to
    `answer_tokens`.
    """

    share: float = 1 / 16
    greedy_prompts: int = 8
    greedy_tokens: int = 48
    answer_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RequestError(f"the share of a window to probe is {self.share}, it must lie above 0, up to 1")
        for name, least in (("greedy_prompts", 0), ("greedy_tokens", 0), ("answer_tokens", 1)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} is {getattr(self, name)}, it must be at least {least}")


def verify(
    a: Side,
    b: Side,
    corpus: Corpus,
    options: VerifyOptions | None = None,
    *,
    questions: Sequence[Question] = (),
    gate: Gate | None = None,
    report: Callable[[str], Progress] | None = None,
) -> Report:
    """Measure two models on a corpus; JSON by the names of docs/verify.md. RequestError where vocabularies differ.

    NaN and infinity in a model are a verdict, not an error.
    """
    options, report = options or VerifyOptions(), report or _silent
    vocabulary = shared_vocabulary(a, b)
    found = empty_report(a.facts(), b.facts(), corpus)
    start = time.perf_counter()
    try:
        findings = run_by_layer(
            a, b, corpus.windows, vocabulary, share=options.share, progress=report("layer by layer")
        )
    except NotFinite as error:
        found["verdict"] = not_finite(str(error))
    else:
        _fill(found, a, b, findings)
        found["seconds"]["layers"] = round(time.perf_counter() - start, 2)
        _answers(found, (a, b), corpus, options, questions, report)
        ends = findings.ends.relative()
        found["embedding_error"], found["head_error"] = ends.get("embedding"), ends.get("head")
        found["verdict"] = verdict(found, damages(found["layers"], ends))
    return judged(found, gate)


def judged(found: Report, gate: Gate | None) -> Report:
    """With the gate's judgement; a model that is not finite passes none."""
    if gate is not None:
        found["gate"] = gate.judge(found)
        found["gate"]["passed"] &= found["verdict"]["kind"] != "not_finite"
    return found


def passed(found: Report) -> bool:
    """Whether the command ends with 0."""
    gate = found["gate"]
    return found["verdict"]["kind"] != "not_finite" and (gate is None or bool(gate["passed"]))


def empty_report(a: dict[str, object], b: dict[str, object], corpus: Corpus) -> Report:
    """All names, nothing measured yet."""
    return {
        "a": a,
        "b": b,
        "corpus": {
            "files": list(corpus.files),
            "documents": corpus.documents,
            "windows": len(corpus.windows),
            "tokens": corpus.tokens,
            "context": max(map(len, corpus.windows)),
        },
        "positions": 0,
        "perplexity": {"a": None, "b": None, "ratio": None},
        "kl": dict.fromkeys(("mean", "low", "high", "p50", "p99", "max")),
        "top1": None,
        "routing": None,
        "replayed": None,
        "layers": [],
        "embedding_error": None,
        "head_error": None,
        "greedy": None,
        "questions": None,
        "server": None,
        "kl_histogram": None,
        "kl_by_place": None,
        "notes": [],
        "verdict": None,
        "gate": None,
        "seconds": {},
    }


def _fill(found: Report, a: Side, b: Side, findings: LayerFindings) -> None:
    positions = findings.positions
    found["positions"] = len(positions.kl_N)
    found["kl"] = divergence(positions.kl_N, findings.window_N)
    found["top1"] = float(positions.same_N.mean())
    ours, theirs = perplexity(positions.loss_a_N), perplexity(positions.loss_b_N)
    ratio = math.exp(min(float((positions.loss_b_N - positions.loss_a_N).mean()), 700.0))
    found["perplexity"] = {"a": ours, "b": theirs, "ratio": ratio}
    found["kl_histogram"], found["kl_by_place"] = _histogram(findings), _by_place(findings)
    found["layers"] = [_layer(index, errors) for index, errors in sorted(findings.parts.items())]
    _fill_routing(found, a, b, findings)


def _fill_routing(found: Report, a: Side, b: Side, findings: LayerFindings) -> None:
    notes = found["notes"]
    if a.config.moe is None or b.config.moe is None:
        which = [name for name, side in (("A", a), ("B", b)) if side.config.moe is None]
        notes.append(f"{' and '.join(which)} {'is' if len(which) == 1 else 'are'} dense: no routing is compared")
    elif routing_form(a) != routing_form(b):
        notes.append("experts, how many work, or layers with routers differ: routing cannot be compared")
    if (a.config.num_layers, a.config.hidden_size) != (b.config.num_layers, b.config.hidden_size):
        notes.append("layers or widths differ: no layer of one can take the other's input")
    if findings.agreement:
        layers = [{"layer": index, "agreement": share} for index, share in sorted(findings.agreement.items())]
        worst = min(layers, key=lambda layer: layer["agreement"])
        mean = sum(layer["agreement"] for layer in layers) / len(layers)
        found["routing"] = {"mean": mean, "min": worst["agreement"], "min_layer": worst["layer"], "layers": layers}
    if findings.replayed is not None and len(findings.replayed.kl_N):
        with_a, plain = findings.replayed, findings.plain
        found["replayed"] = {
            "positions": len(with_a.kl_N),
            "kl_mean": float(with_a.kl_N.mean()),
            "kl_p99": float(np.quantile(with_a.kl_N, 0.99)),
            "top1": float(with_a.same_N.mean()),
            "plain_kl_mean": float(plain.kl_N.mean()),
            "plain_kl_p99": float(np.quantile(plain.kl_N, 0.99)),
            "plain_top1": float(plain.same_N.mean()),
        }


def _layer(index: int, errors: PartErrors) -> Report:
    relative = errors.relative()
    worst = errors.worst_expert()
    return {
        "layer": index,
        "error": relative["layer"],
        "parts": {part: relative[part] for part in parts_in_order(relative)},
        "router_agreement": errors.agreement,
        "worst_expert": None if worst is None else worst[0],
        "worst_expert_ratio": None if worst is None else worst[1],
    }


def _histogram(findings: LayerFindings) -> Report:
    """Counts of KL over edges that rise by equal factors; what is below the first edge is in the first bin."""
    kl_N = findings.positions.kl_N
    top = max(float(kl_N.max()), 1e-9)
    low = min(max(float(np.quantile(kl_N, 0.005)), top * 1e-6), top / 10)
    edges = np.geomspace(low, top, _BINS + 1)
    counts, _ = np.histogram(np.clip(kl_N, edges[0], edges[-1]), edges)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}


def _by_place(findings: LayerFindings) -> list[Report]:
    """The mean KL by how many tokens of the window came before, with its interval over windows."""
    place_N, kl_N = findings.place_N, findings.positions.kl_N
    size = max(-(-int(place_N.max() + 1) // _PLACES), 1)
    stretches = []
    for start in range(0, int(place_N.max()) + 1, size):
        inside = (place_N >= start) & (place_N < start + size)
        low, high = interval(kl_N[inside], findings.window_N[inside])
        stretches.append(
            {"from": start, "to": start + size - 1, "mean": float(kl_N[inside].mean()), "low": low, "high": high}
        )
    return stretches


def _answers(
    found: Report,
    sides: tuple[Side, Side],
    corpus: Corpus,
    options: VerifyOptions,
    questions: Sequence[Question],
    report: Callable[[str], Progress],
) -> None:
    """Greedy agreement and pass rates; a model that does not fit into memory as a whole is noted instead."""
    prompts = corpus.prompts[: options.greedy_prompts] if options.greedy_tokens else []
    if not prompts and not questions:
        return
    start, given = time.perf_counter(), []
    for side in sides:
        answers = answers_of(side, prompts, options.greedy_tokens, questions, options.answer_tokens, report)
        if isinstance(answers, MachineError):
            found["notes"].append(f"no answers were generated: {side.name}: {answers}")
            return
        given.append(answers)
    if prompts:
        found["greedy"] = Agreement.of(given[0][0], given[1][0]).facts(options.greedy_tokens)
    if questions:
        a, b = (pass_rate(side, questions, answers) for side, (_, answers) in zip(sides, given, strict=True))
        found["questions"] = {"count": len(questions), "a": a, "b": b, "drop": a - b}
    found["seconds"]["answers"] = round(time.perf_counter() - start, 2)


def _silent(_: str) -> Progress:
    return lambda done, total: None
