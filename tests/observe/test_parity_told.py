"""Servers that tell little, or what cannot be: what is left out is said, and what cannot be is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenth.errors import RequestError
from tenth.observe.http_client import Refused
from tenth.observe.parity_gate import Gate
from tests.observe.parity_models import corpus, write
from tests.observe.parity_servers import Answer, Body, measured, serving, texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parity") / "a")


@pytest.fixture(scope="module")
def names(model: Path) -> list[str]:
    return texts(model)


def told(**choice: Any) -> Answer:
    return 200, {}, {"choices": [{"text": "", **choice}]}


def content(**token: Any) -> Answer:
    return told(text="b", logprobs={"content": [{"token": "b", "logprob": -1.0, "top_logprobs": [], **token}]})


def rows(body: Body, names: list[str], **more: Any) -> Answer:
    """Of each token of a prompt that it is as likely as one other."""
    ids = body["prompt"]
    each = [{str(t): {"logprob": -0.7, "decoded_token": names[t]}, **more} for t in ids[1:]]
    return told(prompt_logprobs=[None, *each])


def of(model: Path, complete: Callable[[Body], Answer], **more: Any) -> dict[str, Any]:
    with serving(complete) as address:
        found = measured(model, address, **more)
    json.dumps(found, allow_nan=False)
    return found


def refused(model: Path, complete: Callable[[Body], Answer], **more: Any) -> str:
    with serving(complete) as address, pytest.raises(RequestError) as caught:
        measured(model, address, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- nothing is told


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": None}, {"logprobs": {"tokens": [], "token_logprobs": []}}])
def test_without_log_probabilities_nothing_is_measured(model: Path, logprobs: Any) -> None:
    gate = Gate({"min_greedy_agreement": 0.0, "min_top1": 0.0})
    found = of(model, lambda _: told(text="some words", **logprobs), gate=gate)
    assert (found["greedy"], found["top1"], found["kl"]["mean"]) == (None, None, None)
    assert found["server"] == {"side": "b", "method": None, "positions": 0, "top1_positions": 0}
    assert "the server does not tell the tokens of 2 of 2 greedy answers: no agreement" in found["notes"]
    assert "the server tells no log-probabilities: divergence could not be measured" in found["notes"]
    assert [bar["passed"] for bar in found["gate"]["bars"]] == [False, False]


def test_a_server_that_refuses_log_probabilities_answers_still(model: Path) -> None:
    found = of(model, lambda body: (422, {}, {}) if "logprobs" in body or len(body) > 4 else told(text="words"))
    assert found["greedy"] is None
    assert any(note.startswith("echo is not used: ") and "answers 422" in note for note in found["notes"])


def test_an_empty_answer_is_one(model: Path) -> None:
    assert of(model, lambda _: told())["greedy"]["agreement"] == 0


# ---- what cannot be


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            content(id=512),
            "the server names token 512, the other model's go from 0 to 511: parity needs one vocabulary",
        ),
        (content(id=-1), "the server names token -1, "),
        (content(top_logprobs=[{"id": 9000, "token": "c", "logprob": -2.0}]), "the server names token 9000, "),
        (told(logprobs={"tokens": ["token_id:777"], "token_logprobs": [-1.0]}), "the server names token 777, "),
        (content(logprob=float("nan")), "a log-probability of nan, it must lie at 0 or below"),
        (content(logprob=3), "a log-probability of 3, it must lie at 0 or below"),
        (content(logprob=[]), "log-probabilities are of a form that is not known"),
        (told(logprobs={"content": 7}), "log-probabilities are of a form that is not known"),
        (told(logprobs={"tokens": ["a"], "token_logprobs": [-1, -2]}), "of a form that is not known"),
        ((200, {}, {"choices": 5}), "its answer has no choices"),
    ],
)
def test_answers_that_cannot_be_are_refused(model: Path, answer: Answer, words: str) -> None:
    assert words in refused(model, lambda _: answer)


@pytest.mark.parametrize("spelt", [10**12, [70] * 3 + [256], [-1], [True], "b", [1.5], {}])
def test_bytes_that_are_none_are_not_made(model: Path, spelt: Any) -> None:
    """The text stands for them."""
    assert of(model, lambda _: content(bytes=spelt))["server"]["positions"] == 2


@pytest.mark.parametrize("number", ["512", "-1", "99999999999999"])
def test_ids_of_prompts_are_looked_at(model: Path, names: list[str], number: str) -> None:
    words = refused(model, lambda body: rows(body, names, **{number: {"logprob": -0.7}}), tokens=0)
    assert f"the server names token {number}, " in words


def test_log_probabilities_of_nothing(model: Path, names: list[str]) -> None:
    """What servers write for the logarithm of 0 leaves figures that JSON has."""
    found = of(model, lambda body: rows(body, names, **{"5": {"logprob": -float("inf")}}), last=False)
    assert found["kl"]["max"] < 1e5


# ---- one vocabulary, without greedy answers too


def test_prompts_tell_the_vocabulary(model: Path, names: list[str]) -> None:
    assert of(model, lambda body: rows(body, names), tokens=0)["server"]["positions"] == 6 * 63
    others = [f"{name}ly" for name in names]
    assert "parity needs one vocabulary" in refused(model, lambda body: rows(body, others), tokens=0)
    spaced = [name.strip() for name in names]
    assert of(model, lambda body: rows(body, spaced), tokens=0)["server"]["positions"] == 6 * 63


def test_echoed_tokens_are_looked_at(model: Path, names: list[str]) -> None:
    def echo(body: Body, shift: int) -> Answer:
        spelt = [names[(token + shift) % 90] for token in body["prompt"]]
        return told(
            logprobs={"tokens": spelt, "token_logprobs": [None] + [-1.0] * (len(spelt) - 1), "top_logprobs": [{}] * 64}
        )

    assert "parity needs one vocabulary" in refused(model, lambda body: echo(body, 1), tokens=0)


def test_a_vocabulary_that_nobody_spells_is_noted(model: Path) -> None:
    found = of(model, lambda body: told(prompt_logprobs=[{str(t): {"logprob": -1}} for t in body["prompt"]]), tokens=0)
    assert any("the server spells no tokens" in note for note in found["notes"])


# ---- busy, broken, and windows that are left out


def test_a_busy_server_is_waited_for(model: Path, names: list[str]) -> None:
    seen, waited = list[int](), list[float]()

    def busy(body: Body) -> Answer:
        seen.append(1)
        return (429, {"retry-after": "3"}, {}) if len(seen) % 2 else rows(body, names)

    found = of(model, busy, tokens=0, waited=waited)
    assert (found["server"]["method"], found["server"]["positions"]) == ("prompt_logprobs", 6 * 63)
    assert waited == [3.0] * 6


def test_a_server_that_stays_busy_is_an_error(model: Path) -> None:
    assert "answers 503" in refused(model, lambda _: (503, {}, {}), waited=[])


def test_an_error_of_the_server_is_told(model: Path, names: list[str]) -> None:
    """Some answer 500 to a field that they do not know."""
    broken = (500, {}, {"error": {"message": "Only no echo is supported"}})
    found = of(model, lambda body: broken if "echo" in body else content(id=names.index("b")))
    assert found["server"]["method"] == "generated"
    assert any(note.startswith("echo is not used: ") and "answers 500: Only no echo" in note for note in found["notes"])
    with serving(lambda _: broken) as address, pytest.raises(Refused, match="answers 500"):
        measured(model, address)


def test_windows_that_are_left_out_are_counted(model: Path, names: list[str]) -> None:
    second, third = (corpus().windows[n] for n in (1, 2))

    def some(body: Body) -> Answer:
        if body["prompt"] == second:
            return 500, {}, {"error": "out of memory"}
        if body["prompt"] == third:
            return told(prompt_logprobs=[None, *rows(body, names)[2]["choices"][0]["prompt_logprobs"][1:40]])
        return rows(body, names)

    found = of(model, some, tokens=0)
    assert found["positions"] == found["server"]["positions"] == 4 * 63 + 39
    assert any("1 of 6 windows are left out: " in note and "out of memory" in note for note in found["notes"])
    assert "24 positions are left out: the server tells nothing of the token there" in found["notes"]
