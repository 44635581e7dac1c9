"""The other views in a real browser: the map moves, reviews are judged, reports are opened, keys are asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenth.observe.profile_text import compared, shown
from tenth.serve.guards import Guards
from tenth.serve.keys import Keys
from tenth.serve.limits import Limiter
from tests.console import stage
from tests.console.contract import Contract
from tests.console.stage import looking
from tests.observe.planted import drawn
from tests.serve.real import Server

QUESTION = [{"role": "user", "content": "What boils at 90 degrees?"}]
MAP = "document.querySelector('canvas.map').toDataURL()"
STATE = "document.querySelector('.view:not([hidden]) .feed-state').dataset.state"


@contextmanager
def generating(url: str) -> Iterator[None]:
    """Another client that has the model speak."""
    body = {"messages": [{"role": "user", "content": "a story"}], "stream": True, "max_tokens": 500}
    thread = threading.Thread(target=lambda: httpx.post(url + "/v1/chat/completions", json=body, timeout=60))
    thread.start()
    try:
        yield
    finally:
        thread.join(60)


def test_the_map_moves_while_another_client_generates(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url + "/#/experts") as look:
        look.until(f"{STATE} === 'live'")
        with generating(served[0].url):
            look.page.wait_for_timeout(600)
            seen = {look.page.evaluate(MAP) for _ in range(5) if look.page.wait_for_timeout(250) is None}
        assert len(seen) >= 3
        look.page.wait_for_timeout(1500)
        still = {look.page.evaluate(MAP) for _ in range(3) if look.page.wait_for_timeout(300) is None}
        assert len(still) == 1
        assert look.complaints == []


def test_the_cursor_of_the_map_says_what_is_there(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url + "/#/experts") as look:
        look.until(f"{STATE} === 'live'")
        look.page.locator("canvas.map").focus()
        for key in ("ArrowDown", "ArrowDown", "Shift+ArrowRight", "ArrowRight"):
            look.page.keyboard.press(key)
        said = look.page.locator("[aria-live=polite].offstage").inner_text()
        share = float(served[1].counts_LE[2, 9] / served[1].counts_LE[2].sum())
        assert said.startswith("Layer 2, expert 9: ")
        assert f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%" in said
        assert look.page.get_by_role("heading", name="Layer 2").is_visible()
        look.page.keyboard.press("m")
        assert look.page.get_by_role("button", name="Last minutes").get_attribute("aria-pressed") == "true"


def lookers(contract: Contract, wanted: int, look: stage.Looking) -> bool:
    """Whether so many streams are open, or soon will be."""
    return any(contract.lookers == wanted or look.page.wait_for_timeout(30) for _ in range(100))


HIDE = """(how) => {
  Object.defineProperty(document, "visibilityState", { value: how, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_nobody_streams_what_nobody_sees(browser: Any, served: tuple[Server, Contract]) -> None:
    """The stream ends with the view, and while the tab is hidden; both come back."""
    with looking(browser, served[0].url + "/#/load") as look:
        assert lookers(served[1], 1, look)
        look.page.keyboard.press("5")
        assert lookers(served[1], 0, look)
        look.page.keyboard.press("3")
        assert lookers(served[1], 1, look)
        look.page.evaluate(HIDE, "hidden")
        assert lookers(served[1], 0, look)
        look.page.evaluate(HIDE, "visible")
        assert lookers(served[1], 1, look)


def test_load_shows_requests(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url + "/#/load") as look:
        look.page.get_by_text("No request is at work.").wait_for()
        with generating(served[0].url):
            look.page.get_by_role("cell", name="chatcmpl-00000000").wait_for()
            assert "of 20 GB/s" in look.page.locator(".cards").inner_text()
        assert look.complaints == []


def test_reviews_are_judged_by_keys(browser: Any, served: tuple[Server, Contract]) -> None:
    contract = served[1]
    contract.reviews.clear()
    for answer in ("ethanol", "iron", "water at 3000 m"):
        contract.add(messages=QUESTION, answer=answer, reasons=[{"kind": "rule", "text": "names a number"}])
    with looking(browser, served[0].url + "/#/reviews") as look:
        look.page.get_by_text("3 waiting").wait_for()
        look.page.keyboard.press("j")
        look.page.keyboard.press("r")
        look.page.get_by_text("2 waiting").wait_for()
        look.page.keyboard.press("k")
        look.page.keyboard.press("c")
        look.page.get_by_label("Corrected answer").fill("Water, at 3000 m.")
        look.page.keyboard.press("Control+Enter")
        look.page.get_by_text("1 waiting").wait_for()
        look.page.keyboard.press("a")
        look.page.get_by_text("Nothing waits for a review.").wait_for()
        states = [(one["state"], one["correction"]) for one in contract.reviews]
        assert states == [("corrected", "Water, at 3000 m."), ("rejected", None), ("approved", None)]
        with look.page.expect_download() as download:
            look.page.get_by_role("button", name="Export JSONL").click()
        lines = Path(download.value.path()).read_text().splitlines()
        assert [json.loads(line)["messages"] for line in lines] == [QUESTION, QUESTION]
        assert look.complaints == []


def test_a_conflict_is_explained(browser: Any, served: tuple[Server, Contract]) -> None:
    served[1].reviews.clear()
    review = served[1].add(messages=QUESTION, answer="x")
    with looking(browser, served[0].url + "/#/reviews") as look:
        look.page.get_by_text("1 waiting").wait_for()
        review |= {"version": 2, "note": "mine"}
        look.page.keyboard.press("a")
        look.page.get_by_text("Somebody else has changed this review").wait_for()
        assert review["state"] == "waiting"
        look.page.keyboard.press("a")
        look.page.get_by_text("Nothing waits for a review.").wait_for()
        assert review["state"] == "approved"


def test_an_answer_is_flagged(browser: Any, served: tuple[Server, Contract]) -> None:
    served[1].reviews.clear()
    with looking(browser, served[0].url) as look:
        look.send("how high")
        look.wait_answered()
        look.page.get_by_role("button", name="Flag for review").click()
        look.page.get_by_label("What is wrong with it?").fill("too short")
        look.page.get_by_role("button", name="Flag", exact=True).click()
        look.page.get_by_text("The answer is in the queue").wait_for()
        (review,) = served[1].reviews
        assert review["messages"] == [{"role": "user", "content": "how high"}]
        assert (review["answer"], review["model"]) == ("You said: how high.", "scripted")
        assert review["reasons"][0]["text"] == "too short"
        assert look.complaints == []


def test_reports_are_opened_from_files(browser: Any, served: tuple[Server, Contract], tmp_path: Path) -> None:
    one, other = drawn(blocks=2), drawn(taste=1.0, blocks=2)
    (tmp_path / "profile.json").write_text(shown(one, json=True))
    (tmp_path / "compare.json").write_text(compared(one, other, json=True))
    (tmp_path / "verify.json").write_text(json.dumps(PARITY))
    bad = {"none.json": "no json", "other.json": "[1, 2]", "broken.json": json.dumps({**PARITY, "gate": {"bars": 3}})}
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    with looking(browser, served[0].url + "/#/reports") as look:
        asked = list[str]()
        look.page.on("request", lambda request: asked.append(request.method))
        files = [str(tmp_path / name) for name in ("profile.json", "compare.json", "verify.json", *bad)]
        look.page.locator("#report-file").set_input_files(files)
        look.page.get_by_role("heading", name="verify.json").wait_for()
        assert look.page.locator(".report").count() == 3
        text = look.page.locator(".reports").inner_text()
        assert "cells" in text
        assert "rounding: mean KL 0.0001 nats" in text
        assert "Not passed" in text
        assert [line.split(":")[0] for line in look.page.locator(".bad-words").all_inner_texts()[:3]] == list(bad)
        assert set(asked) <= {"GET"}  # nothing is sent anywhere
        assert look.complaints == []


PARITY: dict[str, Any] = {
    "a": {"name": "a", "format": "safetensors", "backend": "native", "dtype": "bfloat16", "parameters": 10**9},
    "b": {"name": "b", "format": "packed", "backend": "native", "dtype": "int8", "parameters": 10**9},
    "corpus": {"files": ["c"], "documents": 1, "windows": 2, "tokens": 100, "context": 50},
    "positions": 98,
    "perplexity": {"a": 9.0, "b": 9.1, "ratio": 1.011},
    "kl": {"mean": 0.0001, "low": None, "high": None, "p50": 0.0001, "p99": 0.001, "max": 0.002},
    "top1": 0.99,
    "routing": {"mean": 0.98, "min": 0.95, "min_layer": 1, "layers": [{"layer": 0, "agreement": 0.99}]},
    "replayed": None,
    "layers": [{"layer": 0, "error": 0.01, "parts": {"experts": 0.01}, "worst_expert": None}],
    "greedy": None,
    "questions": None,
    "kl_histogram": {"edges": [0, 1e-4, 1e-3], "counts": [50, 48]},
    "kl_by_place": [],
    "notes": ["nothing was left out"],
    "verdict": {"kind": "rounding", "text": "rounding: mean KL 0.0001 nats", "damaged": []},
    "gate": {"passed": False, "bars": [{"name": "min_top1", "bar": 0.999, "value": 0.99, "passed": False}]},
}


def test_a_key_is_asked_for_and_kept(browser: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wrong one is asked for again; the right one is sent with every request, and is gone with the tab."""
    limiter = Limiter(tmp_path / "limits.db")
    guards = Guards(keys=Keys.of_secret("right-key-of-enough-length"), limiter=limiter)
    with stage.page_server(monkeypatch, guards=guards) as (running, _), looking(browser, running.url) as look:
        for key in ("wrong", "right-key-of-enough-length"):
            look.page.get_by_label("Key", exact=True).fill(key)
            look.page.get_by_role("button", name="Use this key").click()
            if key == "wrong":
                look.page.get_by_text("does not take the key in use").wait_for()
        look.page.locator("#status").get_by_text("scripted").wait_for()
        look.send("hello")
        look.page.get_by_text("You said: hello.").wait_for()
        kept = look.page.evaluate("[sessionStorage.getItem('tenth.key'), JSON.stringify(localStorage)]")
        assert "right-key" in kept[0]
        assert "right-key" not in kept[1]
        assert all("401" in one for one in look.complaints)
    limiter.close()


def test_without_the_other_parts_it_says_so(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage.page_server(monkeypatch, contract=False) as (running, _), looking(browser, running.url) as look:
        for name, called, words in (
            ("experts", "live", "no live feed"),
            ("load", "live", "no live feed"),
            ("reviews", "reviews", "--reviews"),
        ):
            look.page.route(f"**/v1/{called}*", lambda route: route.fulfill(status=404))
            look.page.evaluate(f"location.hash = '#/{name}'")
            look.page.locator(".view:not([hidden]) .notice").get_by_text(words).wait_for()
        look.page.keyboard.press("1")
        look.send("hello")
        look.page.get_by_text("You said: hello.").wait_for()
