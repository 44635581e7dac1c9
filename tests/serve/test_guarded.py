"""The guards in the server: whose key it is, what it may use, what models see and clients are shown, what is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenth.api.bodies import Asked
from tenth.errors import RequestError
from tenth.serve.guards import GuardOptions, Guards, open_guards
from tenth.serve.keys import new_key
from tenth.serve.limits import Limits
from tenth.serve.logs import JsonLines
from tenth.serve.privacy import Privacy
from tenth.serve.readings import Reading, Readings
from tenth.serve.service import ServeOptions
from tests.api.tiny import tiny_model
from tests.serve.served import scripted, serving, within
from tests.serve.test_chat import ask, echo, events

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
MAIL = "jane.doe@example.org"


class Noting:
    """A model's answers, and the prompts that it was shown."""

    def __init__(self, answer: Any = echo) -> None:
        self.answer, self.prompts = answer, list[str]()

    def __call__(self, text: str) -> str | None:
        answer: str | None = self.answer(text)
        if answer is not None:
            self.prompts.append(text)
        return answer


@asynccontextmanager
async def guarded(tmp_path: Path, says: Any = echo, **options: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    with open_guards(replace(GuardOptions(state=tmp_path), **options)) as guards:
        async with serving(scripted(says, identity="one"), guards=guards) as found:
            yield found


def keyed(tmp_path: Path, **limits: Any) -> tuple[Path, dict[str, dict[str, str]]]:
    path = tmp_path / "keys.toml"
    made = {name: new_key(path, name, Limits(**limits)) for name in ("alice", "bob")}
    return path, {name: {"authorization": f"Bearer {key}"} for name, key in made.items()}


# ---- keys and limits


def test_every_path_but_two_needs_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tenth")
    path, headers = keyed(tmp_path)

    async def work() -> None:
        async with guarded(tmp_path, keys=path) as (_, client):
            described = (await client.get("/openapi.json", headers=headers["bob"])).json()
            assert len(described["paths"]) >= 12
            for place, operations in described["paths"].items():
                for method in operations:
                    bare = await client.request(method, place.replace("{name}", "x"), json={})
                    assert bare.status_code == (200 if place in ("/health", "/ready") else 401), place
                    form = bare.json()
                    if place.startswith(MESSAGES):
                        assert form["error"]["type"] == "authentication_error"
                    elif bare.status_code == 401:
                        assert form["error"]["code"] == "invalid_api_key"
            assert (await client.get("/nothing")).status_code == 401
            assert (await client.get("/nothing", headers=headers["alice"])).status_code == 404
            answer = await client.post(CHAT, json=ask("Hallo"), headers=headers["alice"])
            assert answer.status_code == 200

    within(60, work())
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    assert [line.get("key") for line in lines if line["path"] == CHAT and line["status"] == 200] == ["alice"]
    assert not any("sk-tenth" in json.dumps(line) for line in lines)


def test_refusals_are_logged_with_the_name_of_the_key_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tenth")
    path, headers = keyed(tmp_path, requests_per_minute=1, tokens_per_minute=1500)
    wrong = {"authorization": "Bearer sk-tenth-which-is-not-one"}

    async def work() -> None:
        async with guarded(tmp_path, keys=path) as (_, client):
            large = ask("Hallo", max_tokens=2000)
            for who, body in ((headers["alice"], ask("Hallo")),) * 2 + ((headers["bob"], large), (wrong, large)):
                await client.post(CHAT, json=body, headers=who)

    within(60, work())
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    found = [(line["status"], line.get("key"), line.get("error")) for line in lines]
    assert found[0] == (200, "alice", None)
    assert found[1][:2] == (429, "alice")
    assert "requests" in found[1][2]
    assert found[2][:2] == (429, "bob")
    assert "tokens" in found[2][2]
    assert found[3] == (401, None, "no valid key")
    assert "sk-tenth" not in json.dumps(lines)


def test_keys_do_not_share_the_prefix_cache(tmp_path: Path) -> None:
    path, headers = keyed(tmp_path)

    async def cached(client: httpx.AsyncClient, name: str) -> int:
        answer = await client.post(CHAT, json=ask("the same words " * 30), headers=headers[name])
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def work() -> None:
        async with guarded(tmp_path, keys=path) as (_, client):
            assert await cached(client, "alice") == 0
            assert await cached(client, "alice") > 50
            assert await cached(client, "bob") == 0

    within(60, work())


def test_tokens_are_set_aside_charged_and_kept_over_a_restart(tmp_path: Path) -> None:
    path, headers = keyed(tmp_path, tokens_per_day=300)
    spent = 0

    async def work() -> None:
        nonlocal spent
        async with guarded(tmp_path, keys=path) as (_, client):
            wide = await client.post(CHAT, json=ask("Hallo", max_tokens=1000), headers=headers["alice"])
            assert (wide.status_code, wide.json()["error"]["code"]) == (429, "insufficient_quota")
            assert "retry-after" not in wide.headers  # it never fits
            for stream in (False, True):
                usage = {"stream_options": {"include_usage": True}} if stream else {}
                body = ask("Hallo", max_tokens=100, stream=stream, **usage)
                answer = await client.post(CHAT, json=body, headers=headers["alice"])
                assert answer.status_code == 200
                last = json.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
                spent += last["usage"]["total_tokens"]

    async def again() -> None:
        async with guarded(tmp_path, keys=path) as (_, client):
            room = 300 - spent - 20  # tokens of the prompt
            fits = await client.post(CHAT, json=ask("Hallo", max_tokens=room + 40), headers=headers["alice"])
            assert fits.status_code == 429
            assert f"{spent} are used" in fits.json()["error"]["message"]
            other = await client.post(CHAT, json=ask("Hallo", max_tokens=room + 40), headers=headers["bob"])
            assert other.status_code == 200
            unsaid = await client.post(CHAT, json=ask("Hallo"), headers=headers["bob"])
            assert unsaid.status_code == 429  # 1,024 are set aside
            vectors = await client.post("/v1/embeddings", json={"input": "x " * 400}, headers=headers["alice"])
            assert vectors.status_code == 429

    within(60, work())
    within(60, again())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keys": Path("keys.toml"), "api_key": "12345678"}, "two sorts of keys"),
        ({"keys": Path("no.toml")}, "no.toml"),
        ({"api_key": "short"}, "must be 8 to 512"),
        ({"api_key": ""}, "the API key is empty"),
        ({"cache": "on", "cache_seconds": float("nan")}, "must be more than 0"),
        ({"privacy": "on"}, "privacy is 'on', it must be one of off, mask, refuse"),
        ({"privacy_names": True}, "--privacy is off"),
        ({"cache": "onn"}, "--response-cache is 'onn', it must be"),
        ({"cache": "redis://:x@[bad"}, "address"),
    ],
)
def test_guards_that_cannot_be_had(tmp_path: Path, options: dict[str, Any], error: str) -> None:
    with pytest.raises(Exception, match=error), open_guards(GuardOptions(state=tmp_path, **options)):
        pass


# ---- privacy


def private(answer: str) -> Any:
    def says(text: str) -> str | None:
        return answer if text.endswith(("<|im_start|>assistant\n", "</think>\n\n")) else None

    return says


def data(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


BODIES = {
    CHAT: ask(f"I am {MAIL}"),
    TEXT: {"prompt": f"I am {MAIL}<|im_start|>assistant\n"},
    RESPONSES: {"input": f"I am {MAIL}"},
    MESSAGES: {"model": "default", "max_tokens": 200, "messages": [{"role": "user", "content": f"I am {MAIL}"}]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", BODIES)
def test_addresses_are_masked_in_and_out(tmp_path: Path, place: str, stream: bool) -> None:
    thought = f"<think>\nit is {MAIL}\n</think>\n\n" if place in (CHAT, RESPONSES) else ""
    says = Noting(private(f"{thought}Write to {MAIL}, or call +49 30 901820 today."))

    async def work() -> None:
        async with guarded(tmp_path, says, privacy="mask") as (_, client):
            answer = await client.post(place, json={**BODIES[place], "max_tokens": 200, "stream": stream} | _as(place))
            assert answer.status_code == 200, answer.text
            assert MAIL not in answer.text
            assert "jane" not in answer.text
            assert "901820" not in answer.text
            told = _texts(answer.text) if stream else answer.text
            assert "Write to [EMAIL], or call [PHONE] today." in told
            assert not thought or "it is [EMAIL]" in told

    within(60, work())
    assert says.prompts
    assert all("I am [EMAIL]" in prompt for prompt in says.prompts if "I am" in prompt)


def _as(place: str) -> dict[str, Any]:
    if place != RESPONSES:
        return {}
    return {"max_output_tokens": 200, "max_tokens": None}


def _texts(stream: str) -> str:
    """All texts of a stream's events, one behind the other."""
    found = ""
    for event in data(stream):
        delta = event.get("delta")
        if isinstance(delta, str):
            found += delta
        elif isinstance(delta, dict):
            found += delta.get("text", "") + delta.get("thinking", "")
        for choice in event.get("choices", ()):
            part = choice.get("delta", choice)
            found += (part.get("content") or "") + part.get("reasoning", "") + choice.get("text", "")
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", BODIES)
def test_where_finds_are_refused_nothing_of_them_is_shown(tmp_path: Path, place: str, stream: bool) -> None:
    says = private(f"Hello there. Write to {MAIL} today, and not tomorrow.")

    async def work() -> None:
        async with guarded(tmp_path, says, privacy="refuse") as (service, client):
            refused = await client.post(place, json=BODIES[place])
            assert refused.status_code == 400
            assert "EMAIL" in refused.json()["error"]["message"]
            assert MAIL not in refused.text
            body = json.loads(json.dumps(BODIES[place]).replace(MAIL, "Jane"))
            answer = await client.post(place, json={**body, "max_tokens": 200, "stream": stream} | _as(place))
            assert answer.status_code == 200
            assert "jane" not in answer.text
            assert "tomorrow" not in answer.text
            assert ("refusal" if place == MESSAGES else "content_filter") in answer.text
            assert "Hello there." in (_texts(answer.text) if stream else answer.text)
            assert not service.jobs

    within(60, work())


@pytest.mark.parametrize(("mode", "arguments"), [("mask", {"to": "[EMAIL]", "n": 7}), ("refuse", {})])
@pytest.mark.parametrize("stream", [False, True])
def test_arguments_of_calls_stay_json(tmp_path: Path, mode: str, arguments: Any, stream: bool) -> None:
    call = f'<tool_call>\n{{"name": "weather", "arguments": {{"to": "{MAIL}", "n": 7}}}}\n</tool_call>'

    async def work() -> None:
        async with guarded(tmp_path, private(f"I will. {call}"), privacy=mode) as (_, client):
            answer = await client.post(CHAT, json=ask("go", tools=[WEATHER], stream=stream))
            assert MAIL not in answer.text
            if stream:
                choices = [event["choices"][0] for event in data(answer.text)]
                calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
                told = "".join(call["function"]["arguments"] for call in calls)
                reason = choices[-1]["finish_reason"]
            else:
                (choice,) = answer.json()["choices"]
                told = choice["message"]["tool_calls"][0]["function"]["arguments"]
                reason = choice["finish_reason"]
                assert choice["message"]["content"] == "I will. "
            assert json.loads(told) == arguments
            assert reason == ("tool_calls" if mode == "mask" else "content_filter")
            message = {"model": "default", "max_tokens": 100, "messages": ask("go")["messages"]}
            tool = {"name": "weather", "input_schema": {"type": "object"}}
            theirs = await client.post(MESSAGES, json={**message, "tools": [tool]})
            assert theirs.json()["content"][-1]["input"] == arguments

    within(60, work())


def test_identifiers_of_calls_come_back_as_they_were(tmp_path: Path) -> None:
    """A conversation goes on: what the filter would make of an id must not part results from their calls."""
    says = Noting(private("done"))

    async def work() -> None:
        async with guarded(tmp_path, says, privacy="mask") as (_, client):
            for ids in (
                ["call_0123456789abcdef01234567", "call_76543210fedcba9876543210"],
                ["toolu_01A09q90qw90lq917835lq9"],
            ):
                calls = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for i in ids]
                results = [{"role": "tool", "tool_call_id": i, "content": f"result of {n}"} for n, i in enumerate(ids)]
                messages = [*ask("go")["messages"], {"role": "assistant", "tool_calls": calls}, *results]
                answer = await client.post(CHAT, json={"messages": messages, "tools": [WEATHER]})
                assert answer.status_code == 200, answer.text

    within(60, work())


@pytest.mark.parametrize("field", [{"logprobs": True}, {"top_logprobs": 2, "logprobs": True}])
def test_what_goes_around_the_filter_is_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    async def work() -> None:
        async with guarded(tmp_path, privacy="mask") as (_, client):
            assert (await client.post(CHAT, json=ask("Hallo", **field))).status_code == 400
            assert (await client.post(TEXT, json={"prompt": [1, 2, 3]})).status_code == 400
            assert (await client.post("/detokenize", json={"tokens": [1, 2, 3]})).status_code == 400
            masked = await client.post("/tokenize", json={"prompt": f"a {MAIL} b"})
            plain = await client.post("/tokenize", json={"prompt": "a [EMAIL] b"})
            assert masked.json() == plain.json()

    within(60, work())


# ---- kept answers


def test_a_kept_answer_serves_every_form(tmp_path: Path) -> None:
    says = Noting()

    async def work() -> None:
        async with guarded(tmp_path, says, cache="on") as (service, client):
            first = await client.post(CHAT, json=ask("Hallo", temperature=0, max_tokens=200))
            assert first.headers["x-tenth-cache"] == "miss"
            assert "tenth_cached" not in first.json()["usage"]
            computed = len(says.prompts)
            second = await client.post(CHAT, json=ask("Hallo", temperature=0, max_tokens=200))
            assert second.headers["x-tenth-cache"] == "hit"
            assert second.json()["choices"] == first.json()["choices"]
            assert second.json()["id"] != first.json()["id"]
            usage = second.json()["usage"]
            assert usage.pop("tenth_cached") is True
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
            body = ask("Hallo", temperature=0, max_tokens=200, stream=True, stream_options={"include_usage": True})
            *chunks, last, done = await events(client, CHAT, body)
            assert done == "[DONE]"
            assert last["usage"]["tenth_cached"] is True
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            assert text == "[Hallo]"
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            message = {"model": "default", "max_tokens": 200, "temperature": 0, **ask("Hallo")}
            theirs = await client.post(MESSAGES, json={**message, "thinking": {"type": "adaptive"}})
            if theirs.headers["x-tenth-cache"] == "hit":  # the same tokens
                assert theirs.json()["usage"]["input_tokens"] == 0
            assert theirs.json()["content"][-1]["text"] == "[Hallo]"
            assert len(says.prompts) <= computed + 1
            assert not service.jobs
            assert service.admission.answers == 0

    within(60, work())


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"seed": 0}, True),
        ({"temperature": 0.5}, False),
        ({"cache": True, "temperature": 0.5}, True),
        ({"cache": False, "temperature": 0}, False),
        ({"cache": None, "temperature": 0.5}, False),
        ({"temperature": 0, "max_tokens": 3}, True),
        ({"temperature": 0, "n": 3}, True),
        ({"temperature": 0, "logprobs": True, "top_logprobs": 2}, True),
        ({"temperature": 0, "stop": "al"}, True),
    ],
)
def test_which_answers_are_kept(tmp_path: Path, fields: dict[str, Any], kept: bool) -> None:
    async def work() -> None:
        async with guarded(tmp_path, cache="on") as (_, client):
            answers = [await client.post(CHAT, json=ask("Hallo", **fields)) for _ in range(2)]
            assert [one.headers.get("x-tenth-cache") for one in answers] == (["miss", "hit"] if kept else [None] * 2)
            assert not kept or answers[0].json()["choices"] == answers[1].json()["choices"]
            wrong = await client.post(CHAT, json=ask("Hallo", cache=1))
            assert wrong.json()["error"]["message"] == "cache is 1, it must be true or false"
            other = await client.post(CHAT, json=ask("Hello", **fields))
            assert other.headers.get("x-tenth-cache") != "hit"

    within(60, work())


def test_many_prompts_of_one_request_are_kept_together(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path, private("yes"), cache="on") as (_, client):
            prompts = [f"{word}<|im_start|>assistant\n" for word in "abc"]
            body = {"prompt": prompts, "temperature": 0, "n": 2, "echo": True}
            answers = [await client.post(TEXT, json=body) for _ in range(2)]
            assert [one.headers["x-tenth-cache"] for one in answers] == ["miss", "hit"]
            assert answers[0].json()["choices"] == answers[1].json()["choices"]
            assert [one["text"] for one in answers[1].json()["choices"]][::2] == [f"{one}yes" for one in prompts]

    within(60, work())


@pytest.mark.parametrize("shared", [False, True])
def test_kept_answers_never_cross_keys_unless_shared(tmp_path: Path, shared: bool) -> None:
    path, headers = keyed(tmp_path)
    body = ask("Hallo", temperature=0)

    async def work() -> None:
        async with guarded(tmp_path, keys=path, cache="on", cache_shared=shared) as (_, client):
            marks = [(await client.post(CHAT, json=body, headers=headers[n])).headers["x-tenth-cache"] for n in headers]
            assert marks == ["miss", "hit" if shared else "miss"]

    within(60, work())


def test_equal_questions_at_once_are_computed_once_and_a_hit_charges_nothing(tmp_path: Path) -> None:
    path, headers = keyed(tmp_path, tokens_per_day=1000)
    says = Noting(lambda text: None if (answer := echo(text)) is None else answer + " word" * 60)

    async def work() -> None:
        async with guarded(tmp_path, says, keys=path, cache="on") as (service, client):
            body = ask("Hallo", temperature=0, max_tokens=300)
            posts = [client.post(CHAT, json={**body, "stream": i % 2 == 0}, headers=headers["alice"]) for i in range(8)]
            answers = await asyncio.gather(*posts)
            assert [one.status_code for one in answers] == [200] * 8
            assert sorted(one.headers["x-tenth-cache"] for one in answers) == ["hit"] * 7 + ["miss"]
            stats = service.guards.cache.stats()
            assert (stats.hits, stats.stored) == (7, 1)

    within(60, work())
    assert len([prompt for prompt in says.prompts if "Hallo" in prompt]) == 1


def test_what_was_not_brought_to_its_end_is_not_kept(tmp_path: Path) -> None:
    """A client that leaves in the middle, and one that waits for the same answer."""
    body = ask("Hallo", temperature=0, max_tokens=2000)
    says = Noting(lambda text: None if (answer := echo(text)) is None else answer + " word" * 500)

    async def work() -> None:
        async with guarded(tmp_path, says, cache="on") as (service, client):
            leaving = asyncio.create_task(client.post(CHAT, json=body))
            while not service.jobs:
                await asyncio.sleep(0.001)
            waiting = asyncio.create_task(client.post(CHAT, json=body))
            await asyncio.sleep(0.02)
            leaving.cancel()
            answer = await waiting
            assert answer.headers["x-tenth-cache"] == "miss"
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
            assert service.guards.cache.stats().stored == 1
            assert not service.jobs

    within(60, work())


def test_kept_answers_outlive_the_server_and_belong_to_the_model_and_the_filter(tmp_path: Path) -> None:
    async def mark(privacy: str = "off", identity: str = "one") -> str:
        with open_guards(GuardOptions(state=tmp_path, cache="on", privacy=privacy)) as guards:
            async with serving(scripted(echo, identity=identity), guards=guards) as (_, client):
                answer = await client.post(CHAT, json=ask("Hallo", temperature=0))
                return str(answer.headers["x-tenth-cache"])

    marks = [within(60, mark()), within(60, mark()), within(60, mark("mask")), within(60, mark(identity="two"))]
    assert marks == ["miss", "hit", "miss", "miss"]


def test_guards_are_off_unless_asked_for(tmp_path: Path) -> None:
    with open_guards(GuardOptions(state=tmp_path / "state")) as guards:
        assert guards == Guards(privacy=guards.privacy)
        assert isinstance(guards.privacy, Privacy)
        assert not guards.privacy.on
    assert not (tmp_path / "state").exists()


def test_bodies_that_come_again_are_read_once_and_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Asked.read_all
    count = 0

    def counted(*arguments: Any) -> list[Asked]:
        nonlocal count
        count += 1
        return read(*arguments)

    monkeypatch.setattr(Asked, "read_all", counted)

    async def work() -> None:
        async with guarded(tmp_path, cache="on") as (_, client):
            for words in ("Hallo", "Hello", "Hallo", "Hallo"):
                for stream in (False, True):
                    answer = await client.post(CHAT, json=ask(words, temperature=0, stream=stream))
                    assert f"[{words}]" in (_texts(answer.text) if stream else answer.text)
            assert count == 4
            wrong = [await client.post(CHAT, json=ask("Hallo", temperature=-1)) for _ in range(2)]
            assert [one.status_code for one in wrong] == [400, 400]

    within(60, work())


def test_readings_forget() -> None:
    readings = Readings("{{ messages }}", most=2)
    for number in (1, 2, 1, 3):
        key, _ = readings.find("chat.completion", {"seed": number})
        readings.keep(key, Reading([]))
    found = [readings.find("chat.completion", {"seed": number})[1] for number in (1, 2, 3)]
    assert found == [Reading([]), None, Reading([])]
    key, _ = readings.find("chat.completion", {"user": "x" * 40_000})
    readings.keep(key, Reading([]))
    assert readings.find("chat.completion", {"user": "x" * 40_000})[1] is None
    today = Readings("{{ strftime_now('%d') }}")
    today.keep(today.find("chat.completion", {})[0], Reading([]))
    assert today.find("chat.completion", {})[1] is None


def test_a_dead_engine_is_told_by_health_and_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with guarded(tmp_path) as (service, client):
            assert (await client.get("/health")).json() == {"status": "alive", "phase": "ready"}

            def step(_: Any) -> None:
                raise SystemExit("out of luck")

            monkeypatch.setattr(type(service.engine.engine), "step", step)
            answer = await client.post(CHAT, json=ask("Hallo"))
            assert answer.status_code == 503
            for path in ("/health", "/ready"):
                told = await client.get(path)
                assert (told.status_code, told.json()["status"]) == (503, "failed")
            assert "out of luck" not in answer.text + (await client.get("/health")).text  # it may be another's
            assert (await client.post(CHAT, json=ask("Hallo"))).status_code == 503

    within(60, work())


def test_a_new_key_of_an_old_name_finds_nothing_of_the_old_ones(tmp_path: Path) -> None:
    body = ask("Hallo", temperature=0)

    async def mark() -> str:
        path, headers = keyed(tmp_path)
        async with guarded(tmp_path, keys=path, cache="on") as (_, client):
            answers = [await client.post(CHAT, json=body, headers=headers["alice"]) for _ in range(2)]
            assert answers[1].headers["x-tenth-cache"] == "hit"
        path.unlink()
        return str(answers[0].headers["x-tenth-cache"])

    assert [within(60, mark()), within(60, mark())] == ["miss", "miss"]


def test_who_has_a_key_cannot_go_ahead_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, headers = keyed(tmp_path)
    seen = list[int]()

    async def work() -> None:
        async with guarded(tmp_path, keys=path) as (service, client):
            submit = service.engine.submit

            def noted(request: Any) -> Any:
                seen.append(request.priority)
                return submit(request)

            monkeypatch.setattr(service.engine, "submit", noted)
            for priority in (-5, 3):
                await client.post(CHAT, json=ask("Hallo", priority=priority), headers=headers["alice"])

    within(60, work())
    assert seen == [0, 3]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(RequestError, match=r"drain is .*, it must be a number that is not negative"):
        ServeOptions(drain_seconds=seconds)


def test_a_turn_that_comes_too_late_is_given_back(tmp_path: Path) -> None:
    """The client leaves in the moment in which its turn comes: the next one must not wait for it."""
    body = ask("Hallo", temperature=0, max_tokens=500)
    says = Noting(lambda text: None if (answer := echo(text)) is None else answer + " word" * 60)

    async def work() -> None:
        async with guarded(tmp_path, says, cache="on") as (service, client):
            for pause in (0.0, 0.001, 0.005, 0.02, 0.05):
                asked = {**body, "seed": int(pause * 1000)}
                first = asyncio.create_task(client.post(CHAT, json=asked))
                while not service.jobs:
                    await asyncio.sleep(0.001)
                second = asyncio.create_task(client.post(CHAT, json=asked))
                await asyncio.sleep(pause)
                first.cancel()
                await asyncio.sleep(0)
                second.cancel()
                await asyncio.gather(first, second, return_exceptions=True)
                assert (await asyncio.wait_for(client.post(CHAT, json=asked), 20)).status_code == 200

    within(90, work())


@pytest.mark.parametrize("thinks", [False, True])
def test_what_a_chat_has_kept_serves_messages_unless_thoughts_are_left_out(tmp_path: Path, thinks: bool) -> None:
    model = scripted(echo) if thinks else tiny_model(tmp_path)

    async def work() -> None:
        with open_guards(GuardOptions(state=tmp_path, cache="on")) as guards:
            async with serving(model, guards=guards) as (_, client):
                said = ask("Hallo", max_tokens=8, temperature=0)
                chat = await client.post(CHAT, json=said | {"enable_thinking": False})
                message = await client.post(
                    MESSAGES, json={k: said[k] for k in ("messages", "max_tokens", "temperature")}
                )
                assert message.status_code == 200, message.text
                assert chat.headers["x-tenth-cache"] == "miss"
                assert message.headers["x-tenth-cache"] == ("miss" if thinks else "hit")
                text = "".join(block["text"] for block in message.json()["content"])
                assert text == chat.json()["choices"][0]["message"]["content"]

    within(60, work())
