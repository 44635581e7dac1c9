"""Whatever the description allows, and much that it does not, is answered without an error of ours (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # here, not within a stack that is deep already
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tenth.serve.live import PATH as LIVE
from tenth.serve.review_queue import ReviewOptions, open_reviews
from tests.serve.real import Server, server
from tests.serve.served import scripted


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = scripted(lambda text: "ok" if text[-1:] != "k" else None, context=512)
    folder = tmp_path_factory.mktemp("reviews")
    with open_reviews(ReviewOptions(f"{folder}/q.db")) as reviews, server(model, pages=256, reviews=reviews) as found:
        yield found


def check(case: Any) -> None:
    answer = case.call(timeout=30)
    assert answer.status_code < 500, answer.text
    assert answer.headers["x-request-id"]
    if answer.status_code >= 400:
        anthropic = case.path.startswith("/v1/messages")
        fields = {"message", "type"} if anthropic else {"message", "type", "param", "code"}
        assert set(answer.json()["error"]) == fields


def try_all(running: Server, examples: int) -> int:
    """So many bodies for each operation, and as many that its description forbids; how many operations there were."""
    described: Any = schemathesis.openapi.from_url(running.url + "/openapi.json")
    described = described.exclude(path=LIVE)  # takes nothing, and does not end
    count = 0
    for found in described.get_all_operations():
        operation = found.ok()
        modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.method == "post" else [])]
        for mode in modes:
            relaxed = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
            relaxed(given(case=operation.as_strategy(generation_mode=mode))(check))()
        count += 1
    return count


def test_no_error_is_ours(running: Server) -> None:
    assert try_all(running, 3) >= 17


@pytest.mark.slow
def test_no_error_is_ours_in_many_tries(running: Server) -> None:
    try_all(running, 150)
