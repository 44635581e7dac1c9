"""`/infill`: what the model fills in, whole and streamed, and the prompt that it was shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.tiny import tiny_model
from tests.serve.served import scripted, serving, within
from tests.serve.test_chat import events

GAP = {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\nprint(add(1, 2))", "temperature": 0, "n_predict": 60}
SHOWN = "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\nprint(add(1, 2))<|fim_middle|>"
BEFORE = "<|repo_name|>repository\n<|file_sep|>one.py\nONE = 1\n<|file_sep|>two.py\nTWO = 2\n<|file_sep|>current\n"
FILLED = "return a + b"


def fill(text: str) -> str | None:
    answers = {
        SHOWN: FILLED,
        SHOWN + "return ": "a + b",
        f"{BEFORE}{SHOWN}": "return ONE",
    }
    return answers.get(text, "nothing of what was expected")


async def filled(client: Any, **fields: Any) -> Any:
    answer = await client.post("/infill", json={**GAP, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


OTHERS = [{"filename": "one.py", "text": "ONE = 1"}, {"filename": "two.py", "text": "TWO = 2"}]
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({}, FILLED, "eos"),
    ({"n_predict": -1}, FILLED, "eos"),
    ({"prompt": "return "}, "a + b", "eos"),
    ({"input_extra": OTHERS}, "return ONE", "eos"),
    ({"stop": [" +"]}, "return a", "word"),
    ({"n_predict": 2}, "return a", "limit"),
    ({"n_predict": 0}, "", "limit"),
]


@pytest.mark.parametrize(("fields", "content", "end"), CASES)
def test_what_stands_in_the_gap(fields: dict[str, Any], content: str, end: str) -> None:
    async def work() -> None:
        async with serving(scripted(fill)) as (_, client):
            whole = await filled(client, **fields)
            assert (whole["content"], whole["stop_type"], whole["stop"]) == (content, end, True)
            assert whole["stopping_word"] == (" +" if end == "word" else "")
            assert whole["tokens_evaluated"] == whole["timings"]["prompt_n"] + whole["tokens_cached"]
            assert whole["tokens_predicted"] == whole["timings"]["predicted_n"] > 0
            if fields.get("n_predict") != 0:
                *parts, last = await events(client, "/infill", {**GAP, **fields, "stream": True})
                assert "".join(part["content"] for part in parts) == content
                assert not any(part["stop"] for part in parts)
                assert (last["stop"], last["stop_type"], last["content"]) == (True, end, "")
                assert last["tokens_cached"] > 0  # the prompt has just been there

    within(30, work())


def test_a_prompt_that_was_only_shown_is_found_again() -> None:
    async def work() -> None:
        async with serving(scripted(fill)) as (_, client):
            assert (await filled(client, n_predict=0))["tokens_cached"] == 0
            again = await filled(client)
            assert again["tokens_cached"] == again["tokens_evaluated"] - 1
            assert again["content"] == FILLED

    within(30, work())


def test_only_the_fields_that_were_asked_for() -> None:
    async def work() -> None:
        async with serving(scripted(fill)) as (_, client):
            names = ["content", "timings/prompt_n", "stop", "not/there"]
            found = await filled(client, response_fields=names)
            assert set(found) == {"content", "timings/prompt_n", "stop"}
            assert (found["content"], found["stop"]) == (FILLED, True)

    within(30, work())


def test_a_model_without_tokens_for_gaps_says_so_in_the_words_that_were_sent(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tiny_model(tmp_path)) as (_, client):
            for path, field in (("/infill", "input_suffix"), ("/v1/completions", "suffix")):
                body = {"prompt": "a", field: "b"}
                error = (await client.post(path, json=body)).json()["error"]
                assert error["message"].startswith(f"{field}: the model has no tokens for fill-in-the-middle")
                assert error["param"] == field

    within(30, work())
