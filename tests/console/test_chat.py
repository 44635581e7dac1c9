"""A chat in a real browser: typed, answered, stopped, continued, asked again; and what a hostile model may not do."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.console import stage
from tests.console.contract import Contract
from tests.console.stage import SAYINGS, STORY, looking
from tests.serve.real import Server

HOSTILE = """\
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3"></svg>

[press](javascript:window.hacked=4) [data](data:text/html,<script>window.hacked=5</script>) ![x](https://evil.example/x.png)
[good](https://good.example/?a=1&b=2) <a href="javascript:window.hacked=6">raw</a> <iframe srcdoc="<b>x</b>"></iframe>

```html"><script>window.hacked=7</script>
<script>window.hacked = 8</script>
```

<style>body { display: none }</style><form action="https://evil.example"><input name=a></form>

| a | b |
|---|---|
| <img src=x onerror=alert(1)> | `<b>` |
"""
GREETING = "Good morning! " + "What may be done for you on this day? " * 8
SAYINGS |= {"hostile": HOSTILE, "good morning": GREETING.strip()}


def test_a_chat_is_typed_and_answered(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url) as look:
        look.send("good morning")
        look.page.get_by_text("Good morning!").wait_for()
        look.wait_answered()
        meta = look.page.locator(".turn.assistant .meta").inner_text()
        assert re.search(r"^\d+ tokens · [\d.,]+ tokens/s · first after .+ · prompt \d+ \(\d+ cached\)$", meta), meta
        look.page.reload()
        assert look.page.locator(".conversation").inner_text() == "good morning"
        look.page.locator(".conversation").click()
        assert look.last_answer() == GREETING.strip()
        assert look.complaints == []


def test_an_answer_is_stopped_and_continued(browser: Any, served: tuple[Server, Contract]) -> None:
    """What was said and what follows are one text, without a word lost or said twice."""
    with looking(browser, served[0].url) as look:
        look.send("a story, please")
        look.page.get_by_text("word20 ").wait_for()
        look.page.keyboard.press("Escape")
        look.wait_answered()
        stopped = look.last_answer()
        assert STORY.startswith(stopped)
        assert len(stopped) < len(STORY) / 2
        assert "stopped" in look.page.locator(".meta").inner_text()
        look.page.wait_for_timeout(300)
        assert look.last_answer() == stopped
        look.page.get_by_role("button", name="Continue").click()
        look.until(f"document.querySelector('.prose').innerText.length > {len(stopped) + 200}")
        look.page.keyboard.press("Escape")
        look.wait_answered()
        longer = look.last_answer()
        assert len(longer) > len(stopped) + 200
        assert STORY.startswith(longer)
        assert look.complaints == []


def test_answers_are_asked_for_again_and_questions_edited(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url) as look:
        look.send("first")
        look.wait_answered()
        look.page.get_by_role("button", name="Answer again").click()
        look.page.get_by_text("2 / 2").wait_for()
        look.page.get_by_role("button", name="Answer before").click()
        look.page.get_by_text("1 / 2").wait_for()
        look.send("second")
        look.page.get_by_text("You said: second.").wait_for()
        look.wait_answered()
        look.page.locator(".turn.user").first.hover()
        look.page.get_by_role("button", name="Edit and send again").first.click()
        look.page.locator(".edit textarea").fill("third")
        look.page.get_by_role("button", name="Send again", exact=True).click()
        look.page.get_by_text("You said: third.").wait_for()
        look.wait_answered()
        assert look.page.locator(".turn").count() == 2
        assert look.complaints == []


def test_parameters_are_sent_and_what_cannot_be_is_not(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url) as look:
        sent = list[dict[str, Any]]()
        look.page.on("request", lambda one: "chat/completions" in one.url and sent.append(json.loads(one.post_data)))
        look.page.get_by_label("System prompt").fill("Be brief.")
        look.page.get_by_label("Temperature").fill("0.7")
        look.page.get_by_label("Top-p").fill("7")
        look.page.get_by_label("Seed").fill("11")
        look.page.get_by_label("Thinking", exact=True).select_option("off")
        look.send("hello")
        look.wait_answered()
        body = sent[0]
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
        assert (body["temperature"], body["seed"], body["enable_thinking"]) == (0.7, 11, False)
        assert "top_p" not in body
        assert look.complaints == []


def test_hostile_markdown_does_nothing(browser: Any, served: tuple[Server, Contract]) -> None:
    with looking(browser, served[0].url) as look:
        asked = list[str]()
        look.page.on("request", lambda one: asked.append(one.url))
        look.send("hostile")
        look.page.locator(".prose table").wait_for()
        look.wait_answered()
        prose = look.page.locator(".turn.assistant .prose")
        assert prose.locator("script, img, svg:not(.icon), iframe, style, form, input, object").count() == 0
        links = prose.locator("a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
        assert links == ["https://evil.example/x.png", "https://good.example/?a=1&b=2"]
        assert "<script>window.hacked = 1</script>" in prose.inner_text()  # shown, as it was said
        hooks = "all => all.flatMap(one => one.getAttributeNames()).filter(name => name.startsWith('on'))"
        assert prose.locator("*").evaluate_all(hooks) == []
        assert look.page.evaluate("window.hacked") is None
        assert all(url.startswith(served[0].url) for url in asked)
        assert look.complaints == []


def test_growing_markdown_is_the_whole_one(browser: Any, served: tuple[Server, Contract]) -> None:
    """Drawn piece by piece, whatever the pieces are, a text comes out as if it were drawn at once."""
    with looking(browser, served[0].url) as look:
        same = look.page.evaluate(GROW, HOSTILE + RICH)
        assert same is True
        assert look.complaints == []


def test_a_long_answer_stays_quick(browser: Any, served: tuple[Server, Contract]) -> None:
    """20,000 pieces cost about what ten times 2,000 do, and the last piece no more than the first ones."""
    with looking(browser, served[0].url) as look:
        short, long, last = look.page.evaluate(PACE)
        assert long < 30 * short + 500, (short, long)
        assert last < 100, last


RICH = """
# Title

A paragraph with **bold**, *slanted*, `code` and ~~gone~~.
Setext
---
- one
- two

  still two
    1. deep
- [x] done

> quoted
> more

```python
def f():
    return "```"
```
~~~
tilde
~~~
| a | b |
|---|--:|
| 1 | 2 |

last
"""
IMPORT = """
  const build = document.querySelector("script[type=module]").src.replace(/main\\.js$/, "markdown.js");
  const { GrowingMarkdown, markdown } = await import(build);
  const plain = (element) => {
    const copy = element.cloneNode(true);
    for (const tail of copy.querySelectorAll(".tail")) tail.remove();
    for (const code of copy.querySelectorAll("code")) code.textContent = code.textContent;
    return copy.innerHTML;
  };
"""
GROW = f"""async (text) => {{{IMPORT}
  const wanted = plain(markdown(text));
  for (const size of [1, 2, 3, 7, 19, 50]) {{
    const element = document.createElement("div");
    const growing = new GrowingMarkdown(element);
    for (let at = 0; at < text.length; at += size) {{
      growing.text += text.slice(at, at + size);
      growing.draw();
    }}
    growing.finish();
    if (plain(element) !== wanted) return [size, plain(element), wanted];
  }}
  return true;
}}"""
PACE = f"""async () => {{{IMPORT}
  const run = (count) => {{
    const growing = new GrowingMarkdown(document.createElement("div"));
    const begin = performance.now();
    for (let at = 0; at < count; at += 1) {{
      growing.text += at % 12 ? "word " : at % 60 ? "\\n\\n" : "\\n\\n```python\\nx = 1\\n```\\n\\n";
      growing.draw();
    }}
    return [performance.now() - begin, growing.cost];
  }};
  run(500);
  const [short] = run(2000);
  const [long, last] = run(20000);
  return [short, long, last];
}}"""


def test_errors_are_said_in_words(browser: Any, served: tuple[Server, Contract]) -> None:
    """A full server, one that breaks off in the middle, one that is gone: each is told, and can be tried again."""
    with looking(browser, served[0].url) as look:
        full = {"error": {"message": "the server is full", "type": "x", "param": None, "code": "queue_full"}}
        answer = {"status": 429, "headers": {"retry-after": "2"}, "content_type": "application/json"}
        look.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer, body=json.dumps(full)))
        look.send("hello")
        look.page.get_by_text("The server is full.").wait_for()
        retry = look.page.locator(".problem button")
        assert retry.is_disabled()
        look.page.unroute("**/v1/chat/completions")
        look.page.get_by_role("button", name="Try again", exact=True).click()
        look.page.get_by_text("You said: hello.").wait_for()

        chunk = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'
        broken = chunk + 'data: {"error": {"message": "the engine failed", "code": null}}\n\ndata: [DONE]\n\n'
        stream = {"status": 200, "content_type": "text/event-stream"}
        look.page.route("**/v1/chat/completions", lambda route: route.fulfill(**stream, body=broken))
        look.send("again")
        look.page.get_by_text("the engine failed").wait_for()
        assert look.last_answer() == "Half"
        look.page.unroute("**/v1/chat/completions")
        look.page.route("**/v1/chat/completions", lambda route: route.abort())
        look.send("gone")
        look.page.get_by_text("The server cannot be reached.").wait_for()
        assert all("Failed to load resource" in one for one in look.complaints)  # what was made to fail, and no more


def test_the_thought_is_folded_and_timed(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def thinks(prompt: str) -> str | None:
        return "<think>\nfirst this\n</think>\n\nthen that"

    with stage.page_server(monkeypatch, thinks) as (running, _), looking(browser, running.url) as look:
        look.send("think")
        look.page.get_by_text("Thought for").wait_for()
        look.wait_answered()
        assert look.last_answer() == "then that"
        assert not look.page.locator(".thought").is_visible()
        look.page.locator(".think summary").click()
        assert look.page.locator(".thought").inner_text() == "first this"
        assert look.complaints == []
