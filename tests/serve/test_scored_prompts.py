"""`/v1/completions` with `echo` and `logprobs`: tokens of the prompt are scored, as whoever compares texts asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tenth.api import Model
from tenth.serve.guards import Guards
from tenth.serve.response_cache import ResponseCache
from tests.api.tiny import tiny_model
from tests.serve.served import scripted, serving, within

URL = "/v1/completions"
TEXT = "Grüße an die 世界, " * 4
SCORED = {"echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
GREEDY = {"temperature": 0, "logprobs": 2, "max_tokens": 5}


def plain(model: Model, ids: list[int]) -> tuple[list[float], list[float]]:
    """By one pass of the network: each token's log-probability behind the first, and that of the likeliest there."""
    logprobs_TV = torch.log_softmax(model([ids]).logits_BTV[0].float(), -1)
    own = [float(logprobs_TV[at, token]) for at, token in enumerate(ids[1:])]
    return own, logprobs_TV.amax(-1)[:-1].tolist()


def test_tokens_of_the_prompt_are_scored_for_texts_and_ids(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    ids = model.tokenizer.encode(TEXT, begin=True)

    async def work() -> None:
        async with serving(model) as (_, client):
            for prompt, most in [(TEXT, 1), (ids, 1), (TEXT, 0), (ids, 0), ([TEXT, ids], 1), (TEXT, 1)]:
                answer = await client.post(URL, json={"prompt": prompt, "max_tokens": most, **SCORED})
                assert answer.status_code == 200, answer.text
                for choice in answer.json()["choices"]:
                    check(choice, most)

    def check(choice: dict[str, Any], most: int) -> None:
        told = choice["logprobs"]
        own, best = plain(model, ids)
        assert (choice["text"] == TEXT) if most == 0 else choice["text"].startswith(TEXT)
        assert choice["finish_reason"] == "length"
        assert {len(entry) for entry in told.values()} == {len(ids) + most}
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert told["token_logprobs"][1 : len(ids)] == pytest.approx(own, abs=1e-4)
        assert [max(top.values()) for top in told["top_logprobs"][1 : len(ids)]] == pytest.approx(best, abs=1e-4)
        offsets = told["text_offset"]  # a token is a byte here
        starts = [n for n, character in enumerate(TEXT) for _ in character.encode()]
        assert offsets == starts + [len(TEXT)] * most

    within(60, work())


def test_streamed_and_kept_they_are_the_same(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)

    async def work() -> None:
        cache = ResponseCache.open(str(tmp_path / "answers.db"))
        async with serving(model, guards=Guards(cache=cache)) as (_, client):
            body = {"prompt": TEXT, "max_tokens": 6, "n": 2, **SCORED}
            whole = (await client.post(URL, json=body)).json()["choices"]
            for marked in ({"cache": False}, {}):
                answer = await client.post(URL, json={**body, **marked, "stream": True})
                assert answer.headers.get("x-tenth-cache") == (None if marked else "hit")
                chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
                for number, choice in enumerate(whole):
                    own = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == number]
                    assert "".join(one["text"] for one in own) == choice["text"]
                    for name in ("tokens", "text_offset") if marked else choice["logprobs"]:  # computed anew: nearly
                        told = [entry for one in own if one["logprobs"] for entry in one["logprobs"][name]]
                        assert told == choice["logprobs"][name]
            silent = (await client.post(URL, json={**body, "max_tokens": 0})).json()["choices"]  # not the one of 1
            one = (await client.post(URL, json={**body, "max_tokens": 1})).json()["choices"]
            assert [len(found[0]["logprobs"]["tokens"]) for found in (silent, one)] == [
                len(TEXT.encode()),
                len(TEXT.encode()) + 1,
            ]
        cache.close()

    within(60, work())


def test_an_answer_alone_has_places_too_and_no_two_of_its_likeliest_have_one_name(tmp_path: Path) -> None:
    """What is no token has no text; of those the best one counts, not the last."""
    model = tiny_model(tmp_path)

    async def work() -> None:
        async with serving(model) as (_, client):
            few, many = [
                (await client.post(URL, json={"prompt": "abc", **GREEDY, "logprobs": top})).json()["choices"][0]
                for top in (1, 64)
            ]
            assert few["logprobs"]["text_offset"][0] == 0
            assert len(few["logprobs"]["text_offset"]) == len(few["logprobs"]["tokens"])
            for one, others in zip(few["logprobs"]["top_logprobs"], many["logprobs"]["top_logprobs"], strict=True):
                ((name, best),) = one.items()
                assert others[name] == max(others.values()) == pytest.approx(best, abs=1e-4)
            assert any(len(others) < 64 for others in many["logprobs"]["top_logprobs"])

    within(60, work())


def test_what_the_tokenizer_puts_in_front_is_a_token_without_a_place_in_the_text() -> None:
    """Llama's `<s>` is scored, and is no part of a prompt that was sent as a text."""
    from tenth.api.legacy_logprobs import LegacyLogprobs
    from tenth.engine.sampler import Drawn

    model = scripted(lambda _: "fine")
    ids = [model.tokenizer.token_id("<|im_start|>"), *model.tokenizer.encode("one two")]
    told = LegacyLogprobs(model.tokenizer, len("<|im_start|>")).take([Drawn(token or 0) for token in ids])
    assert told["text_offset"] == [0, 0, 3]


def test_no_tokens_without_echo_are_still_refused() -> None:
    async def work() -> None:
        async with serving(scripted(lambda _: "fine")) as (_, client):
            for body in ({"max_tokens": 0}, {"max_tokens": 0, "echo": False}, {"max_tokens": False, "echo": True}):
                assert (await client.post(URL, json={"prompt": "a", **body})).status_code == 400
            shown = await client.post(URL, json={"prompt": "a", "max_tokens": 0, "echo": True})
            assert shown.json()["choices"][0] == {
                "index": 0,
                "finish_reason": "length",
                "logprobs": None,
                "text": "a",
            }

    within(60, work())
