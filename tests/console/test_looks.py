"""How the page looks and behaves for everybody: accessibility, phones, languages, colours, keys, speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenth.observe.profile_text import shown
from tests.console.contract import Contract
from tests.console.stage import looking
from tests.console.test_views import PARITY, QUESTION
from tests.observe.planted import drawn
from tests.serve.real import Server

VIEWS = ("chat", "experts", "load", "reviews", "reports")
MOST_PAINT_MS = 300
PHONE = {"viewport": {"width": 375, "height": 812}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def axe() -> str:
    why = "axe is not installed (pip install axe-playwright-python)"
    found = pytest.importorskip("axe_playwright_python", reason=why)
    return (Path(found.__file__).parent / "axe.min.js").read_text()


def fill(look: Any, view: str, contract: Contract, folder: Path) -> None:
    """Have something to show in a view."""
    look.page.evaluate(f"location.hash = '#/{view}'")
    if view == "chat":
        look.send("rich")
        look.page.get_by_text("You said: rich.").wait_for()
        look.wait_answered()
    elif view in ("experts", "load"):
        look.until("document.querySelector('.view:not([hidden]) .feed-state').dataset.state === 'live'")
    elif view == "reviews":
        look.page.locator(".review-row").first.wait_for()
    else:
        (folder / "profile.json").write_text(shown(drawn(blocks=2), json=True))
        (folder / "verify.json").write_text(json.dumps(PARITY))
        look.page.locator("#report-file").set_input_files([folder / "profile.json", folder / "verify.json"])
        look.page.get_by_role("heading", name="verify.json").wait_for()


def reviewed(contract: Contract) -> None:
    contract.reviews.clear()
    reasons = [{"kind": "confidence", "text": "below 0.5"}]
    contract.add(messages=QUESTION, answer="**water**", reasoning="hm", confidence=0.4, reasons=reasons)
    contract.add(messages=QUESTION, answer="x")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, served: tuple[Server, Contract], scheme: str, tmp_path: Path) -> None:
    script = axe()
    reviewed(served[1])
    with looking(browser, served[0].url, color_scheme=scheme, bypass_csp=True) as look:
        look.page.evaluate(script)
        for view in VIEWS:
            fill(look, view, served[1], tmp_path)
            assert violations(look) == [], view
        look.page.keyboard.press("?")
        assert violations(look) == []


def violations(look: Any) -> list[str]:
    found = look.page.evaluate("axe.run(document)")["violations"]
    nodes = [(one["id"], node) for one in found for node in one["nodes"]]
    return [f"{name}: {node['html'][:160]} {node['failureSummary'][:200]}" for name, node in nodes]


def test_a_phone_scrolls_down_alone(browser: Any, served: tuple[Server, Contract], tmp_path: Path) -> None:
    reviewed(served[1])
    with looking(browser, served[0].url, **PHONE) as look:
        for view in VIEWS:
            fill(look, view, served[1], tmp_path)
            sizes = "[document.documentElement.scrollWidth, innerWidth, document.querySelector('.view:not([hidden])')"
            assert look.page.evaluate(f"{sizes}.scrollWidth]") == [375, 375, 375], view
            small = "all => all.filter(one => one.getBoundingClientRect().height < 40).length"
            assert look.page.locator("#tabs a").evaluate_all(small) == 0
        assert look.complaints == []


def test_chinese_by_the_browser_and_by_a_button(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url, locale="zh-CN") as look:
        assert look.page.evaluate("document.documentElement.lang") == "zh"
        assert look.page.locator("#tabs a").all_inner_texts() == ["对话", "专家", "负载", "审核", "报告"]
        look.page.get_by_role("button", name="English interface").click()
        assert look.page.locator("#tabs a").first.inner_text() == "Chat"
        look.page.reload()
        assert look.page.locator("#tabs a").first.inner_text() == "Chat"
        assert look.page.get_by_placeholder("Write a message").is_visible()


def test_colours_by_the_system_and_by_a_button(browser: Any, served: tuple[Server, Contract]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    with looking(browser, served[0].url, color_scheme="dark") as look:
        dark = look.page.evaluate(colour)
        look.page.get_by_role("button", name="Light or dark").click()
        assert look.page.evaluate(colour) == "rgb(255, 255, 255)" != dark
        look.page.reload()
        assert look.page.evaluate(colour) == "rgb(255, 255, 255)"


def test_keys_lead_everywhere(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url) as look:
        look.page.get_by_label("Write a message").focus()
        look.page.keyboard.press("Alt+3")
        assert look.page.evaluate("location.hash") == "#/load"
        look.page.evaluate("document.activeElement.blur()")
        look.page.keyboard.press("4")
        assert look.page.evaluate("location.hash") == "#/reviews"
        look.page.keyboard.press("?")
        look.page.get_by_label("Single keys work outside of fields").uncheck()
        look.page.keyboard.press("Escape")
        look.page.keyboard.press("1")
        assert look.page.evaluate("location.hash") == "#/reviews"
        look.page.reload()
        look.page.keyboard.press("Tab")
        assert look.page.evaluate("document.activeElement.id") == "skip"
        look.page.keyboard.press("Enter")
        assert look.page.evaluate("document.activeElement.id") == "main"


def test_the_first_paint_is_quick(browser: Any, served: tuple[Server, Contract]) -> None:
    """The best of five, each in a fresh context with nothing kept."""
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
    times = list[float]()
    for _ in range(5):
        with looking(browser, served[0].url) as look:
            look.until(f"({paint}) > 0")
            times.append(look.page.evaluate(paint))
            got = "performance.getEntriesByType('resource').reduce((sum, one) => sum + one.decodedBodySize, 0)"
            assert 100_000 < look.page.evaluate(got) < 400_000
    assert min(times) < MOST_PAINT_MS, times
