"""The page before the real thing: a sparse model with its own routing, a queue on the disk, a server that is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.tiny import tiny_model
from tests.cluster.clustered import Clustered
from tests.commands.test_serve_command import begun
from tests.console.stage import looking
from tests.console.test_views import MAP, STATE

RULES = "[[rule]]\nname = 'asks who works'\nprompt = 'works here'\n"
Opened = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("real")
    tiny_model(found, context=2048).save(found / "tiny")
    (found / "rules.toml").write_text(RULES)
    return found


def options(folder: Path, queue: Path) -> list[str]:
    return ["--reviews", str(queue / "reviews.db"), "--review-rules", str(folder / "rules.toml")]


def alone(folder: Path, queue: Path) -> Opened:
    """`tenth serve`, which is killed behind its use."""

    @contextmanager
    def opened() -> Iterator[str]:
        with begun(str(folder / "tiny"), "--state", str(queue), *options(folder, queue)) as (_, url):
            yield url

    return opened


def many(folder: Path, queue: Path) -> Opened:
    """`tenth cluster` of two replicas."""

    @contextmanager
    def opened() -> Iterator[str]:
        cluster = Clustered(folder / "tiny", queue, *options(folder, queue))
        try:
            yield cluster.url
        finally:
            cluster.close()

    return opened


KINDS = [
    alone,
    pytest.param(many, marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="Ray")]),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_person_and_a_rule_flag_is_judged_and_outlives_the_server(
    browser: Any, folder: Path, tmp_path: Path, kind: Callable[[Path, Path], Opened]
) -> None:
    opened = kind(folder, tmp_path)
    with opened() as url, looking(browser, url) as look:
        map_moves(look, url)
        look.page.keyboard.press("1")
        look.page.get_by_label("Max tokens").fill("24")
        look.send("Who works here?")
        look.wait_answered()
        answer = only(url, "waiting")["answer"]  # kept by the rule, as it was told
        look.page.get_by_role("button", name="Flag for review").click()
        look.page.get_by_label("What is wrong with it?").fill("no words")
        look.page.get_by_role("button", name="Flag", exact=True).click()
        look.page.get_by_text("The answer is in the queue").wait_for()
        flagged = only(url, "waiting")
        assert [one["kind"] for one in flagged["reasons"]] == ["rule", "person"]
        look.page.keyboard.press("Escape")
        look.page.evaluate("location.hash = '#/reviews'")
        look.page.get_by_text("1 waiting").wait_for()
        look.page.keyboard.press("a")
        look.page.get_by_text("Nothing waits for a review.").wait_for()
        assert look.complaints == []
    with opened() as url, looking(browser, url + "/#/reviews") as look:
        look.page.get_by_text("Nothing waits for a review.").wait_for()
        kept = only(url, "approved")
        assert (kept["id"], kept["answer"]) == (flagged["id"], answer)
        with look.page.expect_download() as download:
            look.page.get_by_role("button", name="Export JSONL").click()
        (line,) = Path(download.value.path()).read_text().splitlines()
        messages = json.loads(line)["messages"]
        assert [(one["role"], one["content"]) for one in messages] == [
            ("user", "Who works here?"),
            ("assistant", answer),
        ]
        assert look.complaints == []


def map_moves(look: Any, url: str) -> None:
    """While another client generates it is not the same for long."""
    look.page.evaluate("location.hash = '#/experts'")
    look.until(f"{STATE} === 'live'")
    with talking(url):
        seen = {look.page.evaluate(MAP) for _ in range(6) if look.page.wait_for_timeout(700) is None}
    assert len(seen) >= 4


@contextmanager
def talking(url: str) -> Iterator[None]:
    """Another client, that asks again whenever it is answered."""
    enough = threading.Event()

    def talk() -> None:
        body = {"prompt": "Others", "max_tokens": 300, "temperature": 1.0, "ignore_eos": True}
        for seed in count():
            if enough.is_set():
                return
            httpx.post(url + "/v1/completions", json={**body, "seed": seed}, timeout=60).raise_for_status()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(talk)
        try:
            yield
        finally:
            enough.set()
    asked.result()


def only(url: str, state: str) -> dict[str, Any]:
    (found,) = httpx.get(url + "/v1/reviews", params={"state": state}, timeout=20).json()["data"]
    return dict(found)
