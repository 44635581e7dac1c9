"""Numbers of requests and options that must lie within bounds."""

from __future__ import annotations

from tenth.errors import RequestError


def within(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """RequestError unless it is a number from `low` to `high`; with `above` not `low` itself."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (above and value == low):  # NaN is not within anything
        bounds = f"above {low:g}, up to {high:g}" if above else f"between {low:g} and {high:g}"
        raise RequestError(f"{name} is {value!r:.40}, it must lie {bounds}")


def whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """RequestError unless it is a whole number from `low` to `high`, or without end."""
    if type(value) is not int or value < low or (high is not None and value > high):  # not isinstance: True is none
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} is {value!r:.40}, it must be a whole number {bounds}")
