"""`gate.toml`: the bars that a model must keep to take another's place."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tenth.errors import RequestError

Report = Mapping[str, Any]

_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Measure:
    """What a bar is held against: where a report has it, and the least and largest bar that make sense."""

    value: Callable[[Report], float | None]
    most: float
    least: float = 0.0


def _at(*keys: str) -> Callable[[Report], float | None]:
    def value(report: Report) -> float | None:
        found: Any = report
        for key in keys:
            found = None if found is None else found[key]
        return None if found is None else float(found)

    return value


def _worst_layer(report: Report) -> float | None:
    return max((layer["error"] for layer in report["layers"]), default=None)


_ANY = float("inf")
MEASURES: Mapping[str, Measure] = {
    "max_kl_mean": Measure(_at("kl", "mean"), _ANY),
    "max_kl_p99": Measure(_at("kl", "p99"), _ANY),
    "min_top1": Measure(_at("top1"), 1.0),
    "max_perplexity_ratio": Measure(_at("perplexity", "ratio"), _ANY),
    "min_routing_agreement": Measure(_at("routing", "mean"), 1.0),
    "min_routing_agreement_layer": Measure(_at("routing", "min"), 1.0),
    "max_replayed_kl_mean": Measure(_at("replayed", "kl_mean"), _ANY),
    "max_layer_error": Measure(_worst_layer, _ANY),
    "min_greedy_agreement": Measure(_at("greedy", "agreement"), 1.0),
    "min_pass_rate": Measure(_at("questions", "b"), 1.0),
    "max_pass_rate_drop": Measure(_at("questions", "drop"), 1.0),
}
"""Every key of a gate. `max_` bars hold up to their value, `min_` bars from theirs on."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Bars by name."""

    bars: Mapping[str, float]

    def judge(self, report: Report) -> dict[str, Any]:
        """Each bar beside its value; one whose value could not be measured does not pass."""
        found = []
        for name, bar in self.bars.items():
            value = MEASURES[name].value(report)
            good = value is not None and (value <= bar if name.startswith("max_") else value >= bar)
            found.append({"name": name, "bar": bar, "value": value, "passed": good})
        return {"passed": all(one["passed"] for one in found), "bars": found}


def read_gate(path: Path) -> Gate:
    """A gate's file; RequestError that names file and key where it cannot be read, for unknown keys and odd values."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise RequestError(f"{path}: is larger than {_LARGEST:,} bytes, it is no gate")
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: is no TOML: {error}") from None
    if not table:
        raise RequestError(f"{path}: has no bars; there are: {', '.join(MEASURES)}")
    return Gate({key: _bar(path, key, value) for key, value in table.items()})


def _bar(path: Path, key: str, value: object) -> float:
    measure = MEASURES.get(key)
    if measure is None:
        near = get_close_matches(key, MEASURES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(MEASURES)}"
        raise RequestError(f"{path}: no bar is named {key!r:.60} ({hint})")
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or not measure.least <= number <= measure.most:
        right = f"between {measure.least:g} and {measure.most:g}" if measure.most != _ANY else "0 or more"
        raise RequestError(f"{path}: {key} is {value!r:.40}, it must be a number {right}")
    return number
