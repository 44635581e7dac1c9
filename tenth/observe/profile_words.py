"""What stands above each picture of a routing profile, and the line that sums it up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tenth.files import printable
from tenth.observe.profile_view import ProfileView
from tenth.routing.counts import Floats


@dataclass(frozen=True, slots=True)
class Caption:
    """A picture's title, and the sentence that says what it shows and how to read it."""

    title: str
    says: str


CAPTIONS = {
    "loads": Caption(
        "Load of every expert",
        "Tokens sent to each expert over the mean of its layer: pale cells carry their fair share, orange ones more, "
        "blue ones less, and crossed ones got nothing.",
    ),
    "curves": Caption(
        "Load curves",
        "Each layer's experts from the busiest to the idlest, with their share of the layer's work: the nearer a line "
        "lies to the dashed one, the better the layer is balanced.",
    ),
    "layers": Caption(
        "Routers by layer",
        "Router entropy is how undecided the router is about a token, load entropy how evenly work spreads (1 is "
        "even), MaxVio by how much the busiest expert exceeds the mean (0 is even).",
    ),
    "strength": Caption(
        "Domain specialisation by layer",
        "How differently domains use a layer's experts (phi², 0 is alike); inside the grey band it is what exchanging "
        "documents between domains gives by chance.",
    ),
    "served": Caption(
        "Who serves what",
        "Experts coloured by the domain that uses them at least twice as much as others do, and more than chance "
        "gives, the stronger the more exclusively; pale cells have no preference.",
    ),
    "tops": Caption(
        "The most specialised experts",
        "Of each expert's work the part for each domain in percent, were there equally many tokens of every domain: a "
        "bright cell in a dark column is an expert of one domain.",
    ),
    "graph": Caption(
        "Experts that work together",
        "Lines join experts that tokens choose together more often than their loads explain, the thicker the more "
        "often; discs grow with load, and experts that are alike sit side by side.",
    ),
    "matrix": Caption(
        "Similarity of experts",
        "Every pair of a layer's experts, ordered so that groups stand as squares on the diagonal. Lift: orange pairs "
        "come together more often than their loads explain, blue ones less often.",
    ),
    "norms": Caption("Norm of outputs", "Mean length of what each expert adds, on a logarithmic scale."),
    "saliency": Caption(
        "Saliency",
        "Mean of gate times length of output over the tokens that chose the expert: pruning begins with the darkest.",
    ),
    "peaks": Caption(
        "Peaks and super experts",
        "The largest component of any output of each expert; circles mark super experts, "
        "whose loss a model may not survive.",
    ),
}
NO_OUTPUTS = "Not drawn: the profile was made without measuring outputs."


def summary(view: ProfileView) -> list[tuple[str, str]]:
    """Names and values of the line above the pictures."""
    profile, model, counts = view.profile, view.profile.model, view.profile.counts
    domains = [f"{printable(name, 40)} {short(block.tokens)}" for name, block in profile.by_domain().items()]
    lines = [
        ("model", printable(model.name)),
        ("version", printable(model.version, 12)),
        ("tokens", short(counts.tokens)),
        ("domains", ", ".join(domains[:8]) + (f" and {len(domains) - 8} more" if domains[8:] else "") or "none"),
        ("layers × experts", f"{len(model.layers)} × {model.experts}"),
        ("top-k", str(model.top_k)),
        ("mean MaxVio", _mean(counts.max_violation_L)),
        ("mean load entropy", _mean(counts.load_entropy_L)),
        ("mean router entropy", _mean(counts.router_entropy_L)),
        ("dead experts", f"{int(counts.dead_L.sum())} of {counts.dead_L.size * model.experts}"),
    ]
    return lines


def short(number: float) -> str:
    """A count in few letters."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def supers_line(view: ProfileView) -> str:
    """Names the super experts, or who may be one where nobody looked at the stream."""
    outputs, layers = view.profile.outputs, view.profile.model.layers
    if outputs is None or not view.supers:
        return "No super experts."
    found = [f"L{layers[row]}E{expert} ({short(float(outputs.peaks_LE[row, expert]))})" for row, expert in view.supers]
    more = f" and {len(found) - 12} more" if found[12:] else ""
    few = " Of fewer than 200 experts the largest always passes." if outputs.peaks_LE.size < 200 else ""
    unsure = " Whether the stream behind them has massive activations a profile does not tell; `tenth health` does."
    return f"Super experts (layer, expert, peak): {', '.join(found[:12])}{more}.{few}{unsure * (view.massive is None)}"


def _mean(values_L: Floats) -> str:
    known = values_L[np.isfinite(values_L)]
    return f"{known.mean():.3f}" if known.size else "unknown"
