"""The review queue over HTTP: what is flagged, who sees and decides it, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenth.api import Model
from tenth.data.readers import TextSource
from tenth.data.token_file import TokenFile
from tenth.data.tokenize import tokenize
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.keys import new_key
from tenth.serve.limits import Limits
from tenth.serve.review_queue import ReviewOptions, Reviews, open_reviews
from tests.api.tiny import tiny_model
from tests.serve.asks import PATHS, Api, Ask
from tests.serve.proving import proving_model
from tests.serve.scraped import Scrape
from tests.serve.served import scripted, serving, within
from tests.serve.test_chat import ask, echo

CHAT, URL = "/v1/chat/completions", "/v1/reviews"
EVERY = "[[rule]]\nname = 'every'\nshare = 1.0\n"
MAIL = "jane.doe@example.org"


@asynccontextmanager
async def reviewed(
    url: str, folder: Path, rules: str = "", model: Model | None = None, keep: int = 1000, **guards: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Reviews]]:
    """A client of a server with reviews."""
    file = folder / "rules.toml"
    file.write_text(rules)
    options = ReviewOptions(url, file if rules else None, keep)
    with open_guards(GuardOptions(state=folder, **guards)) as opened, open_reviews(options) as reviews:
        assert reviews is not None
        async with serving(model or scripted(echo), guards=opened, reviews=reviews) as (_, client):
            yield client, reviews


async def waiting(client: httpx.AsyncClient, count: int, **headers: str) -> list[dict[str, Any]]:
    """The reviews that wait, as soon as there are so many."""
    for _ in range(400):
        found = (await client.get(URL, params={"limit": "200"}, headers=headers)).json()
        if found["waiting"] >= count:
            break
        await asyncio.sleep(0.01)
    assert (found["waiting"], len(found["data"])) == (count, count)
    reviews: list[dict[str, Any]] = found["data"]
    return reviews


def flag(answer: str = "4", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2+2?"}], "answer": answer, **fields}


def test_a_person_flags_and_another_decides(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(reviews_url, tmp_path) as (client, _):
            body = flag("5", reasoning="two and two", model="other", note="wrong\0!")
            made = await client.post(URL, json=body)
            assert made.status_code == 201, made.text
            review = made.json()
            assert list(review) == [
                *("key", "model", "messages", "answer", "reasons", "reasoning", "tools", "tool_calls", "confidence"),
                *("note", "correction", "state", "version", "decided", "decided_by", "id", "created"),
            ]
            assert review | {"id": "", "created": 0} == {
                "id": "",
                "created": 0,
                "state": "waiting",
                "version": 1,
                "model": "other",
                "key": "anonymous",
                "reasons": [{"kind": "person", "text": "wrong\0!"}],
                "messages": body["messages"],
                "answer": "5",
                "reasoning": "two and two",
                "tools": [],
                "tool_calls": [],
                "correction": None,
                "note": "wrong\0!",
                "confidence": None,
                "decided": None,
                "decided_by": None,
            }
            place = f"{URL}/{review['id']}"
            assert (await client.get(place)).json() == review
            answer = await client.post(place, json={"decision": "correct", "correction": "4\0\U0001f600", "seen": 1})
            assert answer.status_code == 200
            decided = answer.json()
            assert (decided["state"], decided["version"], decided["decided_by"]) == ("corrected", 2, "anonymous")
            late = await client.post(place, json={"decision": "reject", "seen": 1})
            assert (late.status_code, late.json()["error"]["code"]) == (409, "review_changed")
            assert (await client.get(place)).json() == decided
            assert (await client.get(URL)).json() == {"data": [], "has_more": False, "waiting": 0}
            assert (await client.get(URL, params={"state": "corrected,rejected"})).json()["data"] == [decided]

    within(60, work())


def test_pages(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(reviews_url, tmp_path) as (client, _):
            for number in range(7):
                await client.post(URL, json=flag(str(number)))
            first = (await client.get(URL, params={"limit": 3})).json()
            assert ([one["answer"] for one in first["data"]], first["has_more"], first["waiting"]) == (
                ["0", "1", "2"],
                True,
                7,
            )
            rest = (await client.get(URL, params={"limit": 4, "after": first["data"][-1]["id"]})).json()
            assert ([one["answer"] for one in rest["data"]], rest["has_more"]) == (["3", "4", "5", "6"], False)

    within(60, work())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", list(PATHS))
def test_answers_of_every_api_are_judged_once(tmp_path: Path, api: Api, stream: bool) -> None:
    question = Ask(api, "one", 40, n=3 if api in ("chat", "completion") else 1, stream=stream)

    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, EVERY, proving_model(tmp_path)) as (client, reviews):
            headers = {"content-type": "application/json"}
            for _ in range(2):
                answer = await client.post(PATHS[api], content=question.body(), headers=headers)
                assert answer.status_code == 200
            (review,) = await waiting(client, 1)  # equal answers to equal messages are one
            assert review["answer"] == question.text
            assert review["messages"][-1]["role"] == "user"
            assert "#one:40#" in review["messages"][-1]["content"]
            assert review["reasons"] == [{"kind": "rule", "text": "every: drawn by chance, 100 % of answers"}]
            assert (review["version"], review["confidence"], review["key"]) == (1, None, "anonymous")
            for _ in range(200):
                if reviews.flagged["rule"] == 2 * question.n:
                    break
                await asyncio.sleep(0.01)
            assert reviews.flagged["rule"] == 2 * question.n

    within(60, work())


def test_thoughts_and_calls(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Jena"}}\n</tool_call>'

    def says(text: str) -> str | None:
        return f"<think>\nhm\n</think>\n\n{call}" if text.endswith("<|im_start|>assistant\n") else None

    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, EVERY, scripted(says)) as (client, _):
            await client.post(CHAT, json=ask("Weather?", tools=[tool]))
            (review,) = await waiting(client, 1)
            assert (review["answer"], review["reasoning"], review["tools"]) == ("", "hm", [tool])
            (made,) = review["tool_calls"]
            assert made["function"] == {"name": "weather", "arguments": '{"city": "Jena"}'}
            await client.post(f"{URL}/{review['id']}", json={"decision": "approve"})
            (line,) = (await client.get(f"{URL}/export")).text.splitlines()
            said = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [made]}
            messages = [{"role": "user", "content": "Weather?"}, said]
            assert json.loads(line) == {"messages": messages, "tools": [tool], "review": review["id"]}

    within(60, work())


def test_rules_see_what_is_new_in_the_prompt(tmp_path: Path) -> None:
    rules = "[[rule]]\nname = 'magic'\nprompt = 'magic'\n"

    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, rules) as (client, reviews):
            turns = [("system", "magic"), ("user", "magic"), ("assistant", "magic"), ("user", "no")]
            messages = [{"role": role, "content": words} for role, words in turns]
            await client.post(CHAT, json={"messages": messages})
            await client.post(CHAT, json={"messages": [messages[0], messages[3]]})
            await client.post(CHAT, json={"messages": messages[:2]})
            (review,) = await waiting(client, 1)
            assert review["messages"] == messages[:2]
            assert reviews.flagged["rule"] == 1

    within(60, work())


def test_confidence_is_that_of_the_tokens_and_clients_see_none_of_it(tmp_path: Path) -> None:
    rules = "[[rule]]\nname = 'unsure'\nmean_logprob = -0.001\n"
    body = {"prompt": "Experts", "max_tokens": 24, "ignore_eos": True, "temperature": 1, "seed": 5}

    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, rules, tiny_model(tmp_path)) as (client, _):
            plain = (await client.post("/v1/completions", json=body)).json()["choices"][0]
            told = (await client.post("/v1/completions", json={**body, "logprobs": 0})).json()["choices"][0]
            assert plain["logprobs"] is None
            assert plain["text"] == told["text"]
            (review,) = await waiting(client, 1)
            mean = sum(told["logprobs"]["token_logprobs"]) / 24
            assert review["confidence"] == pytest.approx(math.exp(mean), rel=1e-4)
            assert review["reasons"][0]["kind"] == "confidence"
            assert review["reasons"][0]["text"] == f"unsure: mean log-probability {mean:.2f}, below -0.001"
            assert (review["messages"], review["answer"]) == ([{"role": "user", "content": "Experts"}], told["text"])

    within(60, work())


def test_masked_is_stored_masked(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        says = scripted(lambda text: f"to {MAIL}" if text.endswith("assistant\n") else None)
        rules = "[[rule]]\nname = 'found'\nprivacy = 'found'\n"
        async with reviewed(reviews_url, tmp_path, rules, says, privacy="mask") as (client, reviews):
            await client.post(CHAT, json=ask(f"Write to {MAIL}", stream=True))
            (review,) = await waiting(client, 1)
            assert (review["answer"], review["messages"][0]["content"]) == ("to [EMAIL]", "Write to [EMAIL]")
            made = (await client.post(URL, json=flag(MAIL, note=f"ask {MAIL}"))).json()
            assert (made["answer"], made["note"]) == ("[EMAIL]", "ask [EMAIL]")
            done = await client.post(f"{URL}/{made['id']}", json={"decision": "correct", "correction": MAIL})
            assert done.json()["correction"] == "[EMAIL]"
            packed = "".join(one.packed() for one in reviews.store.page(("waiting", "corrected"))[0])
            assert MAIL not in packed

    within(60, work())


def test_what_the_filter_refuses_is_flagged_as_far_as_it_was_shown(tmp_path: Path) -> None:
    async def work() -> None:
        says = scripted(lambda text: f"write to {MAIL} now" if text.endswith("assistant\n") else None)
        rules = "[[rule]]\nname = 'refused'\nprivacy = 'refused'\n"
        async with reviewed(f"{tmp_path}/q.db", tmp_path, rules, says, privacy="refuse") as (client, _):
            await client.post(CHAT, json=ask("Whom?"))
            (review,) = await waiting(client, 1)
            assert review["answer"] == "write to "
            assert (await client.post(URL, json=flag(MAIL))).status_code == 400
            await waiting(client, 1)

    within(60, work())


def test_keys_see_their_own_and_reviewers_all(reviews_url: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = {name: new_key(path, name, Limits(), reviews=name == "eve") for name in ("alice", "bob", "eve")}

    async def work() -> None:
        async with reviewed(reviews_url, tmp_path, EVERY, keys=path) as (client, _):

            def head(name: str) -> dict[str, str]:
                return {"authorization": f"Bearer {keys[name]}"}

            await client.post(CHAT, json=ask("Hallo"), headers=head("alice"))
            (judged,) = await waiting(client, 1, **head("alice"))
            made = (await client.post(URL, json=flag(), headers=head("bob"))).json()
            assert (judged["key"], made["key"]) == ("alice", "bob")
            assert [one["key"] for one in await waiting(client, 2, **head("eve"))] == ["alice", "bob"]
            assert await waiting(client, 1, **head("bob")) == [made]
            place, decision = f"{URL}/{judged['id']}", {"decision": "approve"}
            assert (await client.get(place)).status_code == 401
            assert (await client.get(place, headers=head("bob"))).status_code == 404
            assert (await client.post(place, json=decision, headers=head("bob"))).status_code == 404
            refused = await client.post(place, json=decision, headers=head("alice"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_a_reviewer")
            done = await client.post(place, json=decision, headers=head("eve"))
            assert (done.status_code, done.json()["decided_by"]) == (200, "eve")
            for name, lines in (("alice", 1), ("bob", 0), ("eve", 1)):
                text = (await client.get(f"{URL}/export", headers=head(name))).text
                assert len(text.splitlines()) == lines
            path.write_text(path.read_text().replace('"bob"', '"old"'))
            keys["bob"] = new_key(path, "bob", Limits())
            await waiting(client, 0, **head("bob"))  # a new key of an old name

    within(60, work())


def test_the_one_secret_reviews(tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, api_key="only-one-secret") as (client, reviews):
            head = {"x-api-key": "only-one-secret"}
            made = (await client.post(URL, json=flag(), headers=head)).json()
            done = await client.post(f"{URL}/{made['id']}", json={"decision": "reject"}, headers=head)
            assert (done.json()["key"], done.json()["decided_by"]) == ("default", "default")
            (kept,) = reviews.store.page(("rejected",))[0]
            assert kept.owner == "", "of a secret that somebody chose no hash is kept"

    within(60, work())


def test_fifty_clients_flag_and_decide(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(reviews_url, tmp_path, EVERY) as (client, _):

            async def one(number: int) -> int:
                mine = (await client.post(URL, json=flag(f"answer {number}"))).json()
                assert (await client.post(CHAT, json=ask(f"number {number}", max_tokens=50))).status_code == 200
                same = (await client.post(URL, json=flag("the same", note=f"by {number}"))).json()
                decision = {"decision": "correct", "correction": f"right {number}", "seen": mine["version"]}
                assert (await client.post(f"{URL}/{mine['id']}", json=decision)).status_code == 200
                vote = {"decision": "correct", "correction": f"of {number}", "seen": same["version"]}
                answer = await client.post(f"{URL}/{same['id']}", json=vote)
                assert answer.status_code in (200, 409), answer.text
                return answer.status_code

            statuses = await asyncio.gather(*(one(number) for number in range(50)))
            listed = (await client.get(URL, params={"state": "corrected", "limit": 200})).json()["data"]
            assert {one["correction"] for one in listed} >= {f"right {n}" for n in range(50)}
            (same,) = (one for one in listed if one["answer"] == "the same")
            assert same["version"] == len(same["reasons"]) + statuses.count(200)
            assert 1 <= statuses.count(200) < 50
            judged = await waiting(client, 50)
            assert {one["answer"] for one in judged} == {f"[number {n}]" for n in range(50)}
            for one in judged:
                assert one["answer"] == f"[{one['messages'][-1]['content']}]"

    within(100, work())


def test_the_trainer_reads_what_is_exported(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)

    async def work() -> str:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, model=model) as (client, _):
            verdicts: list[tuple[str, dict[str, str]]] = [
                ("5", {"decision": "correct", "correction": "4 \u2028 <|im_end|>"}),
                ("4", {"decision": "approve"}),
                ("6", {"decision": "reject"}),
            ]
            for answer, verdict in verdicts:
                made = (await client.post(URL, json=flag(answer))).json()
                assert (await client.post(f"{URL}/{made['id']}", json=verdict)).status_code == 200
            await client.post(URL, json=flag("7"))
            corrected = await client.get(f"{URL}/export", params={"state": "corrected"})
            assert len(corrected.text.strip().split("\n")) == 1
            answer = await client.get(f"{URL}/export")
            assert answer.headers["content-type"] == "application/jsonl"
            return answer.text

    file = tmp_path / "reviews.jsonl"
    file.write_text(within(60, work()))
    tokenize([TextSource(str(file), format="chat")], model.tokenizer, tmp_path / "reviews.tokens")
    tokens = TokenFile(tmp_path / "reviews.tokens")
    read = [model.tokenizer.decode(tokens.document(n).tolist(), skip_specials=False) for n in range(tokens.documents)]
    asked = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    end = "<|im_end|>\n<|endoftext|>"
    assert read == [f"{asked}4 \u2028 <|im_end|>{end}", f"{asked}4{end}"]
    assert list(tokens.document(0)).count(258) == 2, "what a person wrote is no control token"


BAD: list[tuple[dict[str, Any], int, str]] = [
    (flag() | {"messages": []}, 400, "messages must be a list"),
    (flag() | {"messages": "hello"}, 400, "messages must be a list"),
    (flag() | {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role is 'wizard'"),
    (flag() | {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content must be a string"),
    (flag() | {"messages": [{"role": "user", "contents": "x"}]}, 400, "messages[0].content must be"),
    ({"messages": [{"role": "user", "content": "x"}]}, 400, "answer is missing"),
    (flag() | {"answer": ["x"]}, 400, "answer must be a text"),
    (flag(" \n"), 400, "answer is missing"),
    (flag() | {"answers": "x"}, 400, "a review has no 'answers'"),
    (flag() | {"note": "x" * 10_001}, 400, "note has 10,001 characters"),
    (flag("x" * 1_100_000), 400, "answer has 1,100,000 characters"),
    (flag("\0" * 200_000), 413, "a review must be smaller than 1,048,576 bytes"),
    (flag() | {"messages": [{"role": "user", "content": "x" * 100_000}] * 12}, 413, "a review must be smaller"),
]


def test_flags_that_are_none(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(reviews_url, tmp_path) as (client, _):
            for body, status, words in BAD:
                answer = await client.post(URL, json=body)
                assert answer.status_code == status, answer.text
                assert answer.json()["error"]["message"].startswith(words)
            half = json.dumps(flag("\ud83d")).encode()
            answer = await client.post(URL, content=half, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
            assert await waiting(client, 0) == []

    within(60, work())


def test_questions_and_decisions_that_are_none(reviews_url: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(reviews_url, tmp_path) as (client, _):
            made = (await client.post(URL, json=flag())).json()
            for query in (
                "limit=0",
                "limit=201",
                "limit=x",
                "limit=%C2%B2",
                "state=open",
                "state=",
                "after=1",
                "x=1",
                "limit=1&limit=2",
            ):
                assert (await client.get(f"{URL}?{query}")).status_code == 400, query
            for query in ("state=waiting", "limit=3"):
                assert (await client.get(f"{URL}/export?{query}")).status_code == 400, query
            for name in ("1", "rev_%00", "rev_" + "0" * 24, "../x", "%ff", "'; --", "x" * 3000):
                for answer in (
                    await client.get(f"{URL}/{name}"),
                    await client.post(f"{URL}/{name}", json={"decision": "approve"}),
                ):
                    assert answer.status_code == 404, (name, answer.text)
            bad: list[dict[str, Any]] = [
                {},
                {"decision": "maybe"},
                {"decision": "correct", "correction": " \n"},
                {"decision": "approve", "correction": ""},
                {"decision": ["approve"]},
                {"decision": "correct"},
                {"decision": "correct", "correction": ""},
                {"decision": "correct", "correction": 4},
                {"decision": "correct", "correction": "x" * 200_000},
                {"decision": "approve", "correction": "x"},
                {"decision": "approve", "seen": "1"},
                {"decision": "approve", "seen": True},
                {"decision": "approve", "seem": 1},
            ]
            for body in bad:
                assert (await client.post(f"{URL}/{made['id']}", json=body)).status_code == 400, body
            for number in (0, -1, 2, 10**30):
                answer = await client.post(f"{URL}/{made['id']}", json={"decision": "approve", "seen": number})
                assert answer.status_code == 409
            assert (await client.get(f"{URL}/{made['id']}")).json() == made

    within(60, work())


def test_without_reviews_the_answer_says_what_to_do() -> None:
    async def work() -> None:
        async with serving(scripted(echo)) as (_, client):
            for answer in (await client.get(URL), await client.post(URL, json=flag()), await client.get(f"{URL}/x")):
                assert answer.status_code == 404
                assert answer.json()["error"]["message"] == (
                    "this server keeps no reviews: `tenth serve --reviews FILE` does"
                )

    within(60, work())


def test_what_is_counted(tmp_path: Path) -> None:
    async def work() -> None:
        async with reviewed(f"{tmp_path}/q.db", tmp_path, EVERY) as (client, _):
            await client.post(CHAT, json=ask("Hallo"))
            (review,) = await waiting(client, 1)
            await client.post(URL, json=flag())
            await client.post(f"{URL}/{review['id']}", json={"decision": "reject"})
            scrape = await Scrape.of(client)
            assert scrape("tenth_reviews_flagged_total", kind="rule") == 1
            assert scrape("tenth_reviews_flagged_total", kind="person") == 1
            assert scrape("tenth_reviews_decided_total", decision="reject") == 1
            assert scrape("tenth_reviews_lost_total") == scrape("tenth_reviews_errors_total") == 0

    within(60, work())
