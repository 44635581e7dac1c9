"""A server of a scripted model with the page, and a browser that looks at it; without one, tests are skipped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tenth.api import Model
from tenth.engine.scripted import ScriptedModel
from tenth.serve import runner
from tenth.serve.app import create_app
from tenth.serve.guards import Guards
from tenth.serve.service import ServeOptions
from tests.console.contract import Contract
from tests.serve.real import Server, server
from tests.serve.served import END, VOCABULARY, said
from tests.weights.vocabularies import qwen

STORY = " ".join(f"word{number}" for number in range(1500))
SECONDS = 8_000  # milliseconds that something may take on a machine that is busy


def browser_path() -> str:
    """The system's Chromium; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    path = browser_path()
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield running
        finally:
            running.close()


def paced_model(answers: Callable[[str], str | None], pause: float = 0.003) -> Model:
    """A model that answers so, a token each few milliseconds."""
    script = said(answers)

    def paced(seen: Sequence[int]) -> int | None:
        time.sleep(pause)
        return script(seen)

    decoder: Any = ScriptedModel(VOCABULARY, [paced], END, margin=40.0, context_length=16384)
    return Model(decoder, qwen())


def answer_to(prompt: str) -> str | None:
    """What the model of most tests says: a story goes on where it was stopped, other things are said at once."""
    asked, _, begun = prompt.rpartition("<|im_start|>assistant\n")
    begun = begun.replace("<think>\n\n</think>\n\n", "")
    question = asked.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    if "story" in question:
        return STORY[len(begun) :]
    return SAYINGS.get(question, f"You said: {question}.")


SAYINGS: dict[str, str] = {}
"""Answers by question, for tests that need a certain one."""


@contextmanager
def page_server(
    monkeypatch: pytest.MonkeyPatch,
    answers: Callable[[str], str | None] = answer_to,
    *,
    contract: bool = True,
    guards: Guards | None = None,
    pause: float = 0.003,
) -> Iterator[tuple[Server, list[Contract]]]:
    """A server with the page; with `contract` what other parts of the console are built on is there too."""
    made = list[Contract]()

    def create(service: Any, door: Any = None) -> Any:
        if guards is not None:
            service.guards = guards
        app = create_app(service, door)
        if not contract:
            return app
        made.append(Contract(app))
        return made[0]

    monkeypatch.setattr(runner, "create_app", create)
    with server(paced_model(answers, pause), ServeOptions(names=("scripted",)), pages=2000) as running:
        yield running, made


@dataclass
class Looking:
    """A page, and what it has complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def send(self, text: str) -> None:
        self.page.get_by_label("Write a message").fill(text)
        self.page.keyboard.press("Enter")

    def until(self, question: str) -> None:
        """Wait for JavaScript to be true; the policy of the page lets nobody evaluate text there but the debugger."""
        end = time.monotonic() + SECONDS / 1000
        while not self.page.evaluate(question):
            assert time.monotonic() < end, question
            time.sleep(0.02)

    def last_answer(self) -> str:
        text: str = self.page.locator(".turn.assistant .prose").last.inner_text()
        return text

    def wait_answered(self) -> None:
        self.page.get_by_role("button", name="Send", exact=True).wait_for(timeout=4 * SECONDS)


@contextmanager
def looking(browser: Any, url: str, **options: Any) -> Iterator[Looking]:
    """A fresh context with a page at `url`; whatever its console says of errors is noted."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "locale": "en-GB", **options})
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    found = Looking(page)
    page.on("console", lambda message: message.type in ("error", "warning") and found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(f"{error.name}: {error.message}"))
    try:
        page.goto(url)
        yield found
    finally:
        context.close()
