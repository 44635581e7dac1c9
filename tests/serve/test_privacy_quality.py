"""The filter's precision and recall on labelled examples, kind by kind and locale by locale."""

from __future__ import annotations

import pytest

pytest.importorskip("faker")

from tests.bench_scripts import script


def test_precision_and_recall() -> None:
    scores = script("privacy_quality").measure(each=20, seed=7)
    for (kind, locale), score in scores.items():
        print(f"{kind:<8}{locale:<8}precision {score.precision:.3f}  recall {score.recall:.3f}")
    for kind in {kind for kind, _ in scores}:
        right, missed, false = (
            sum(getattr(s, name) for (k, _), s in scores.items() if k == kind) for name in ("right", "missed", "false")
        )
        assert right / (right + false) >= 0.95, kind
        assert right / (right + missed) >= 0.9, kind
    for score in scores.values():
        assert score.recall >= 0.8, score.samples  # 20 examples each: the bars hold for all locales of a kind together
