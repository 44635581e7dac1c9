"""What is wrong with a layer, in words. E experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenth.observe.health import Examined
from tenth.observe.health_drift import LayerDrift
from tenth.observe.health_experts import LayerExperts
from tenth.observe.health_loads import LayerLoads


def dead_words(found: LayerLoads, count: int) -> str:
    """Which experts have no work."""
    return f"{len(found.dead)} of {count} experts get next to no work ({numbered(found.dead)})"


def full_words(found: LayerLoads, examined: Examined) -> str:
    """How many tokens go to the busiest expert."""
    model = examined.profile.model
    fair = model.top_k / model.experts
    return f"expert {found.busiest} is chosen by {found.top_share:.0%} of the tokens, fair is {fair:.0%}"


def uneven_words(found: LayerLoads, count: int) -> str:
    """How many experts would do the work evenly."""
    return f"the work of {count} experts is spread as over {found.effective * count:.1f}"


def unsure_words(found: LayerLoads) -> str:
    """A router with equal scores."""
    return f"it chooses, but hardly weighs: its scores are nearly equal (entropy {found.router_entropy:.4f} of 1)"


def certain_words(found: LayerLoads) -> str:
    """A router with one score."""
    return f"it gives all weight to one expert (entropy {found.router_entropy:.4f} of 1)"


def copied_words(experts: LayerExperts, found: Mapping[int, int]) -> str:
    """Experts that have a double (expert to double, rising), and the first pair of them."""
    assert experts.unbiased_EE is not None
    similar_EE, (first, second) = experts.shared_EE, next(iter(found.items()))
    shared = "" if similar_EE is None else f"{max(float(similar_EE[first, second]), 0):.0%} of their units in common, "
    cka = float(experts.unbiased_EE[first, second])
    return (
        f"{len(found)} of {len(experts.norms_E)} experts have a double ({numbered(list(found))}); "
        f"{first} and {second} have {shared}CKA of outputs {cka:.2f}"
    )


def alike_words(experts: LayerExperts) -> str:
    """A layer whose experts are all the same."""
    return f"all experts answer alike (median CKA of two {experts.median_cka:.2f})"


def silent_words(experts: LayerExperts) -> str:
    """Experts that hardly answer."""
    return f"experts {numbered(experts.silent)} answer with next to nothing"


def moved_words(found: LayerDrift) -> str:
    """How far loads are from the reference's."""
    return f"its load has moved by {found.divergence:.3f} bits, chance alone by {found.chance:.3f}"


def lost_words(found: LayerDrift) -> str:
    """How often routers agree."""
    return f"both routers make the same choice in {found.saturation:.0%} of the cases"


def pair_words(found: LayerLoads) -> str:
    """Two experts that go together."""
    one, other = found.together
    return f"experts {one} and {other} go together for {found.co_activation:.0%} of the tokens of either"


def numbered(numbers: Sequence[int], most: int = 8) -> str:
    """Rising numbers as ranges: `0-3, 7, 9-12`; of many ranges the first ones."""
    ranges = list[list[int]]()
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    shown = ", ".join("-".join(map(str, one)) for one in ranges[:most])
    left = sum(one[-1] - one[0] + 1 for one in ranges[most:])
    return f"{shown} and {left} more" if left else shown
