"""How well `tenth health` finds failures: planted ones of every strength, in models that were healthy before.

LAB is the folder of bench/health_models.py. Thresholds were chosen on set A (`--set A`) and are tested on set B. Every
model is judged on held-out text of its own set. Of each strength s, in one layer in the middle:

  copies    a share s of its experts become copies of others (one at least)
  permuted  the same, and the copies' hidden units are in another order
  near      a quarter of its experts become (1 - s) themselves + s another one, and 1 % noise
  driven    router rows gain along the mean input until a share s of the traffic beyond the fair one goes to K experts
  narrow    the model went on for s of its steps with narrow text alone, held against the model it was (`--against`)
  broad     the same with the whole mixture: what a healthy continuation looks like

Printed: detection by kind and strength, how often the layer was named and no other, the area under the ROC of each
kind's own score against the healthy models, false alarms, and models trained without balance.

usage: python bench/health_science.py LAB OUT.json [--set B] [--models 20]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from health_models import STRENGTHS, Made, planned
from science import markdown, write_json
from torch import Tensor

from tenth.data.token_file import TokenFile
from tenth.kernels.weight import DenseExpertTable
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.observe.health import Examined, choices, examine, with_reference
from tenth.observe.health_inputs import SharedInputs
from tenth.observe.health_similarity import nearest
from tenth.observe.health_verdict import judge
from tenth.observe.profiling import Part
from tenth.routing.profile import BLOCKS
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

TOKENS, WINDOW = 8192, 256
PLANTED = ("copies", "permuted", "near", "driven")
SCORES = {
    "copies": "units", "permuted": "units", "near": "units", "driven": "concentration", "narrow": "drift"
}  # fmt: skip

# ---- models and text


def windows(lab: Path, name: str) -> list[Part]:
    """Held-out text of a set, half of it code."""
    found = list[Part]()
    for kind in ("code", "prose"):
        file, left = TokenFile(lab / name / f"{kind}-held.tokens"), TOKENS // 2
        for number in range(file.documents):
            ids = file.document(number).tolist()[: min(WINDOW, left)]
            left -= len(ids)
            if ids:
                found.append(Part(ids, kind, number % BLOCKS))
    return found


def opened(lab: Path, name: str) -> Decoder:
    """A model of the laboratory."""
    with open_checkpoint(lab / "models" / name) as checkpoint:
        return load_decoder(checkpoint)


# ---- failures


@contextmanager
def kept(mlp: SparseMlp) -> Iterator[None]:
    """Puts a layer's weights back at the end."""
    before = {name: value.clone() for name, value in mlp.named_parameters()}
    try:
        yield
    finally:
        for name, value in mlp.named_parameters():
            value.copy_(before[name])


def plant(kind: str, mlp: SparseMlp, x_ND: Tensor, strength: float, dice: torch.Generator) -> None:
    """Make a failure in a layer whose experts read `x_ND`."""
    assert isinstance(mlp.experts, DenseExpertTable)
    if kind == "driven":
        drive(mlp, x_ND, strength, dice)
        return
    w13_E2FD, w2_EDF = mlp.experts.stacked()
    count = mlp.experts.num_experts
    share = 0.25 if kind == "near" else strength
    order = torch.randperm(count, generator=dice).tolist()
    chosen = order[: min(max(round(share * count), 1), count - 1)]
    for expert in chosen:
        other = order[-1] if kind != "near" else order[-1 - chosen.index(expert)]
        if kind == "near":
            for part in (w13_E2FD, w2_EDF):
                noise = torch.randn(part[0].shape, generator=dice) * part[expert].std() * 0.01
                part[expert] = (1 - strength) * part[expert] + strength * part[other] + noise
            continue
        units = mlp.experts.intermediate_size
        turned = torch.randperm(units, generator=dice) if kind == "permuted" else torch.arange(units)
        w13_E2FD[expert] = w13_E2FD[other].view(2, units, -1)[:, turned].flatten(0, 1)
        w2_EDF[expert] = w2_EDF[other][:, turned]


def drive(mlp: SparseMlp, x_ND: Tensor, strength: float, dice: torch.Generator) -> None:
    """Raise the rows of K experts along the mean input until their share of the traffic has gone so far."""
    rows_ED = mlp.router.weight_ED
    top_k = mlp.router(x_ND, "choice", None).experts_TK.shape[1]
    few = torch.randperm(len(rows_ED), generator=dice)[:top_k]
    before_ED, mean_D = rows_ED.clone(), x_ND.float().mean(0)

    def share(size: float) -> float:
        rows_ED.copy_(before_ED)
        rows_ED[few] += size * mean_D / mean_D.norm() ** 2
        return float(torch.isin(mlp.router(x_ND, "choice", None).experts_TK, few).double().mean())

    first = share(0.0)
    low, high, target = 0.0, 1.0, first + strength * (1 - first) - 1e-3
    while share(high) < target and high < 1e4:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) >= target else (middle, high)
    share(high)


# ---- scores


def scores(examined: Examined) -> dict[str, float]:
    """The largest of each measure over the layers."""
    loads = [found for found in examined.loads.values() if found is not None]
    experts = [found for found in examined.experts.values() if found is not None]
    units = [excess for found in experts if (excess := found.shared_EE) is not None]
    drift = judge(examined).drift.values()
    return {
        "dead": max(len(found.dead) for found in loads) / examined.profile.model.experts,
        "concentration": max(found.surely for found in loads),
        "effective": min(found.effective for found in loads),
        "max_violation": max(found.max_violation for found in loads),
        "entropy": max(found.router_entropy for found in loads),
        "entropy_least": min(found.router_entropy for found in loads),
        "units": max(float(nearest(excess_EE)[0].max()) for excess_EE in units),
        "cka": max(float(nearest(found.unbiased_EE)[0].max()) for found in experts if found.unbiased_EE is not None),
        "alike": max(found.median_cka for found in experts),
        "dispersion": max(found.dispersion for found in loads),
        "drift": max((found.excess for found in drift), default=math.nan),
        "agreement": min((found.agreement for found in drift if found.agreement is not None), default=math.nan),
    }


def record(made: Made, kind: str, strength: int, examined: Examined, layer: int | None = None) -> dict[str, Any]:
    """What was found of a model."""
    health = judge(examined)
    named = sorted({layer for finding in health.findings if finding.alarm for layer in finding.layers})
    found = {"model": made.name, "kind": kind, "strength": strength, "alarms": sorted(health.alarms), "layers": named}
    return found | {"layer": layer, "scores": {name: round(value, 4) for name, value in scores(examined).items()}}


def planted(made: Made, decoder: Decoder, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """A healthy model, then every failure of every strength."""
    yield record(made, made.kind, 0, examine(decoder, made.name, parts))
    layers = decoder.config.sparse_layers
    layer = layers[len(layers) // 2]
    mlp = decoder.blocks()[layer].mlp
    assert isinstance(mlp, SparseMlp)
    inputs = SharedInputs(decoder, sum(len(part.ids) for part in parts), 2048)
    with inputs.watching():
        choices(decoder, parts)
    for kind in PLANTED:
        for strength in STRENGTHS:
            dice = torch.Generator().manual_seed(made.seed * 1000 + strength)
            with torch.inference_mode(), kept(mlp):
                plant(kind, mlp, inputs.layers[layer].x_ND, strength / 100, dice)
                yield record(made, kind, strength, examine(decoder, made.name, parts), layer)


def gone_on(made: Made, lab: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """A model that went on, held against the one it was."""
    base, _, strength = made.name.rsplit("-", 2)
    first, last = opened(lab, base), opened(lab, made.name)
    before = examine(first, base, parts, weights=False).profile
    examined = examine(last, made.name, parts)
    examined = with_reference(examined, before, choices(last, parts), choices(first, parts))
    return record(made, made.kind, int(strength), examined)


# ---- tables


def area(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Under the ROC: the chance that a failure scores above a healthy model, ties halved."""
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    return sum(pairs) / len(pairs) if pairs else math.nan


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Detection, place and area by kind and strength."""
    healthy = [one for one in found if one["kind"] == "healthy"]
    rows = [["failure", *(f"{strength} %" for strength in STRENGTHS)]]
    for kind in (*PLANTED, "narrow", "broad"):
        cells = []
        for strength in STRENGTHS:
            some = [one for one in found if one["kind"] == kind and one["strength"] == strength]
            if not some:
                cells.append("")
                continue
            hits = sum(bool(one["alarms"]) for one in some)
            cell = f"{hits}/{len(some)}"
            if kind in PLANTED:
                name = SCORES[kind]
                placed = sum(one["layers"] == [one["layer"]] for one in some)
                auc = area([one["scores"][name] for one in some], [one["scores"][name] for one in healthy])
                cell += f", placed {placed}, AUC {auc:.2f}"
            cells.append(cell)
        if any(cells):
            rows.append([kind, *cells])
    return markdown(rows)


def ranges(found: Sequence[Mapping[str, Any]]) -> str:
    """What the scores of models are, by how they were made."""
    names = [name for name in found[0]["scores"] if name not in ("drift", "agreement")]
    rows = [["models", *names]]
    for kind in ("healthy", "unbalanced", "narrow", "broad"):
        some = [one["scores"] for one in found if one["kind"] == kind]
        if some:
            values = [[one[name] for one in some] for name in names]
            rows.append([f"{kind} ({len(some)})", *(f"{min(v):.2f} to {max(v):.2f}" for v in values)])
    return markdown(rows)


def told(found: Sequence[Mapping[str, Any]]) -> str:
    """All that is printed."""
    healthy = [one for one in found if one["kind"] == "healthy"]
    false = [f"{one['model']} {one['alarms']}" for one in healthy if one["alarms"]]
    lines = [table(found), "", ranges(found), "", f"false alarms: {len(false)} of {len(healthy)} {', '.join(false)}"]
    for one in found:
        if one["kind"] in ("unbalanced", "narrow", "broad"):
            drift = f"drift {one['scores']['drift']:.3f}, agreement {one['scores']['agreement']:.2f}"
            lines.append(f"{one['model']}: {', '.join(one['alarms']) or 'healthy'}; {drift}")
    return "\n".join(lines)


def main() -> None:
    """Judge every model of a set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", default="B", choices=("A", "B"))
    parser.add_argument("--models", type=int, default=20, help="healthy models that failures are planted in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = [one for one in planned() if one.set[0] == options.set and (options.lab / "models" / one.name).exists()]
    found, done = list[dict[str, Any]](), 0
    for made in there:
        parts = windows(options.lab, made.set)
        if made.start:
            found.append(gone_on(made, options.lab, parts))
            continue
        decoder = opened(options.lab, made.name)
        if made.kind == "healthy" and done < options.models:
            found += planted(made, decoder, parts)
            done += 1
        else:
            found.append(record(made, made.kind, 0, examine(decoder, made.name, parts)))
        print(made.name, file=sys.stderr, flush=True)
    write_json(options.out, found)
    print(told(found))


if __name__ == "__main__":
    main()
