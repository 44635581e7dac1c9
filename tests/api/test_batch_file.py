"""Files of requests: the answers are those of single calls, an interrupted run goes on, bad lines say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenth.api import Model
from tenth.api.answer_events import whole_of
from tenth.api.batch_file import Totals, check_out, read_lines, run_batch, settings_digest
from tenth.api.bodies import Asked
from tenth.engine.engine import EngineOptions
from tenth.engine.sampler import Drawn
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.thinking import Thinking
from tenth.errors import FileFormatError, RequestError
from tenth.weights.tokenizer import Tokenizer
from tests.api.tiny import tiny_model

CHAT = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model"))


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(model: Model, source: Path, out: Path, at_once: int = 3, settings: str = "") -> Totals:
    engine = model.engine(EngineOptions(30, 16, SchedulerOptions(wait=0)))
    return run_batch(model, engine, read_lines(source), out, at_once=at_once, settings=settings)


def answers(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def choices(line: dict[str, Any]) -> list[dict[str, Any]]:
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    found: list[dict[str, Any]] = line["response"]["body"]["choices"]
    return found


def test_answers_are_those_of_single_calls(model: Model, tmp_path: Path) -> None:
    chat = {"messages": CHAT, "max_tokens": 12, "temperature": 0.9, "seed": 4, "n": 2, "model": "mine"}
    url = {"method": "POST", "url": "/v1/chat/completions"}
    requests = [
        {"custom_id": "chat", **url, "body": chat},
        {"prompt": "abc", "max_tokens": 20, "logprobs": 2, "echo": True},
        {"custom_id": "long", "body": {"prompt": "abc", "max_completion_tokens": 5000}},
        {"custom_id": "wrong", "body": {"prompt": "abc", "temprature": 1}},
        {"custom_id": "told", "body": {"messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 1}},
    ]
    totals = run(model, write(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    assert set(found) == {"chat", "line-2", "long", "wrong", "told"}
    assert (totals.done, totals.failed, totals.skipped) == (3, 2, 0)
    single = [model.chat(CHAT, max_tokens=12, temperature=0.9, seed=seed) for seed in (4, 5)]
    for choice, one in zip(choices(found["chat"]), single, strict=True):
        assert (choice["message"], choice["finish_reason"]) == (
            {"role": "assistant", "content": one.text},
            one.finish_reason,
        )
    body = found["chat"]["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "mine")
    generated = sum(len(one.tokens) for one in single)
    prompt = single[0].prompt_tokens
    usage = {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage == {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    (plain,) = choices(found["line-2"])
    assert plain["text"] == "abc" + model.generate("abc", max_tokens=20).text
    assert len(plain["logprobs"]["token_logprobs"]) == 3 + 20
    # what is no token has no text, and may be among the likeliest: then two have one name
    assert {len(top) for top in plain["logprobs"]["top_logprobs"][1:]} <= {1, 2}
    (told,) = choices(found["told"])
    for one in told["logprobs"]["content"]:
        assert one["logprob"] <= one["top_logprobs"][0]["logprob"] <= 0
    assert "the cache holds 480" in found["long"]["error"]["message"]
    assert "named 'temprature'" in found["wrong"]["error"]["message"]


def test_stop_strings_end_one_answer_and_not_its_neighbour(model: Model, tmp_path: Path) -> None:
    text = model.generate("abc", max_tokens=40).text
    stop = text[7:10]
    body = {"prompt": "abc", "max_tokens": 40}
    source = write(tmp_path / "in.jsonl", [{**body, "stop": stop, "logprobs": 0}, body])
    run(model, source, tmp_path / "out.jsonl")
    stopped, free = (choices(answers(tmp_path / "out.jsonl")[f"line-{n}"])[0] for n in (1, 2))
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert (free["text"], free["finish_reason"]) == (text, "length")
    told = "".join(stopped["logprobs"]["tokens"])  # they cover the stop string
    assert told[: len(stopped["text"])] == stopped["text"]
    assert stop in told
    assert stop not in "".join(stopped["logprobs"]["tokens"][:-1])


def test_tokens_that_came_behind_a_stop_string_are_not_told(model: Model) -> None:
    """Guesses that hold come several at a time: an answer does not depend on that."""
    asked = Asked.read(model, "text_completion", {"prompt": "a", "stop": "END", "logprobs": 1})
    drawn = [Drawn(token, -1.0) for token in model.tokenizer.encode("so END more")]
    alone, together = asked.events()[0], asked.events()[0]
    one_by_one = whole_of([event for one in drawn for event in alone.push([one])])
    at_once = whole_of(together.push(drawn))
    assert one_by_one.drawn == at_once.drawn == drawn[:6]
    assert one_by_one.content == at_once.content == "so "


def test_a_prompt_of_ids_is_echoed_as_text(model: Model, tmp_path: Path) -> None:
    ids = [*model.tokenizer.encode("aé b"), 257]
    body = {"prompt": ids, "max_tokens": 4, "echo": True}
    far = {**body, "prompt": [1, 99999]}
    run(model, write(tmp_path / "in.jsonl", [body, {**body, "echo": False}, far]), tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    echoed, plain = (choices(found[f"line-{n}"])[0]["text"] for n in (1, 2))
    assert echoed == "aé b<|im_start|>" + plain
    assert "99999" in found["line-3"]["error"]["message"]


def test_an_interrupted_run_goes_on(model: Model, tmp_path: Path) -> None:
    requests = [{"custom_id": f"r{n}", "body": {"prompt": f"{n} and", "max_tokens": 4 + n}} for n in range(9)]
    source = write(tmp_path / "in.jsonl", requests)
    run(model, source, tmp_path / "whole.jsonl")
    whole = answers(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # cut off in the middle of a line
    totals = run(model, source, out)
    assert (totals.done, totals.skipped) == (5, 4)
    for name, line in answers(out).items():
        assert choices(line) == choices(whole[name])
    assert run(model, source, out).skipped == 9
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 9
    write(source, [*requests[:3], {"custom_id": "r3", "body": {"prompt": "other"}}])
    before = out.read_bytes()
    with pytest.raises(FileFormatError, match="the answer to 'r3' is to another request"):
        run(model, source, out)
    assert out.read_bytes() == before


def test_what_failed_is_done_again(model: Model, tmp_path: Path) -> None:
    """An error is no answer: mended or not, the request is asked anew, and has one line in the end."""
    good = [{"custom_id": f"r{n}", "body": {"prompt": f"{n}", "max_tokens": 3}} for n in range(3)]
    bad = {"custom_id": "bad", "body": {"prompt": "x", "max_tokens": 3, "temperature": -1}}
    source, out = write(tmp_path / "in.jsonl", [good[0], bad, *good[1:]]), tmp_path / "out.jsonl"
    assert (run(model, source, out).failed, run(model, source, out).failed) == (1, 1)
    first = answers(out)
    assert "temperature is -1" in first["bad"]["error"]["message"]
    with out.open("ab") as file:
        file.write(b'{"id": "batch-')  # and an interruption
    write(source, [good[0], {"custom_id": "bad", "body": {"prompt": "x", "max_tokens": 3}}, *good[1:]])
    totals = run(model, source, out)
    assert (totals.done, totals.failed, totals.skipped) == (1, 0, 3)
    assert choices(answers(out)["bad"])
    assert {name: line for name, line in answers(out).items() if name != "bad"} == {
        name: line for name, line in first.items() if name != "bad"
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_answers_of_another_model_are_not_mixed(model: Model, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1}]), tmp_path / "out.jsonl"
    mine, other = settings_digest("one", kv="bf16"), settings_digest("one", kv="int8")
    assert settings_digest(str(tmp_path)) == settings_digest(f"{tmp_path}/../{tmp_path.name}") != mine != other
    run(model, source, out, settings=mine)
    assert run(model, source, out, settings=mine).skipped == 1
    for call in (
        lambda: run(model, source, out, settings=other),
        lambda: check_out(source, out, read_lines(source), other),
    ):
        with pytest.raises(FileFormatError, match="'line-1' is of another model or with other options: write to a new"):
            call()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2: is not JSON"),
        ("[1]\n", "line 1: must be an object"),
        ('{"custom_id": "a", "body": {"prompt": "a"}}\n\n' * 2, "line 3: custom_id 'a' is line 1's"),
        ('{"custom_id": 3, "body": {"prompt": "a"}}', "custom_id that is a text"),
        ('{"url": "/v1/images", "body": {"prompt": "a"}}', "url is '/v1/images'"),
        ('{"body": {"prompt": "a"}, "bdy": 1}', "'bdy' is none of"),
        ('{"body": {"prompt": "a"}, "url": ["x"]}', "url is \\['x'\\], it must be one of"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: is nested too deep"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(lines)
    with pytest.raises(FileFormatError, match=words):
        read_lines(path)


def test_ids_and_labels_that_no_text_has_come_back_as_they_were(model: Model, tmp_path: Path) -> None:
    body = {"prompt": "a", "max_tokens": 1, "model": "half \ud800"}
    source, out = write(tmp_path / "in.jsonl", [{"custom_id": "\udc00", "body": body}]), tmp_path / "out.jsonl"
    run(model, source, out)
    (found,) = answers(out).values()
    assert (found["custom_id"], found["response"]["body"]["model"]) == ("\udc00", "half \ud800")
    assert run(model, source, out).skipped == 1


def test_other_files_are_not_overwritten(model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1}])
    with pytest.raises(RequestError, match="is the input"):
        check_out(source, tmp_path / "in.jsonl", [], "")
    for bad, words in (
        (tmp_path, "no regular file"),
        (Path("/dev/full"), "no regular file"),
        (tmp_path / "a/b", "no folder"),
    ):
        with pytest.raises(RequestError, match=words):
            check_out(source, bad, [], "")
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    with pytest.raises(FileFormatError, match="line 1: is no answer of a batch"):
        run(model, source, other)
    assert other.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": CHAT, "max_tokens": "many"}, "max_tokens"),
        ({"messages": CHAT, "n": 1.5}, "n is 1.5, it must be a whole number"),
        ({"messages": CHAT, "top_logprobs": 2}, "top_logprobs goes with logprobs"),
        ({"messages": CHAT, "logprobs": 2}, "logprobs is 2, it must be true or false"),
        ({"messages": CHAT, "logit_bias": {"x": 1}}, "logit_bias has 'x': 1"),
        ({"messages": CHAT, "logit_bias": {"1": 101}}, "logit_bias must lie between"),
        ({"messages": CHAT, "logit_bias": {"1": 10**400}}, "logit_bias must lie between"),
        ({"messages": CHAT, "logit_bias": {"9" * 5000: 1}}, "it must be a token id with a number"),
        ({"messages": "hello"}, "messages must be a list of objects"),
        ({"messages": [1, 2]}, "messages must be a list of objects"),
        ({"prompt": CHAT}, "it must be a text or a list of token ids"),
        ({"prompt": "a", "max_tokens": 9, "structured_outputs": {"regex": "(a{1000}){1000}"}}, "cannot go on"),
        ({"messages": CHAT, "thinking_token_budget": 5}, "no <think> and </think>"),
        ({"messages": CHAT, "chat_template_kwargs": 5}, "must be an object"),
        ({"messages": CHAT, "response_format": "json"}, "its type must be text, json_object or json_schema"),
        ({"messages": CHAT, "response_format": {"type": "json_schema"}}, "needs"),
        ({"messages": CHAT, "structured_outputs": {"regex": "(", "json": {}}}, "one of json, regex, choice"),
        ({"messages": CHAT, "max_tokens": 5, "structured_outputs": {"regex": "("}}, "regex grammar"),
        ({"messages": CHAT, "structured_outputs": {"python": 1}}, "python is 1, it must be true or false"),
        ({"messages": CHAT, "structured_outputs": "x"}, "structured_outputs must be an object with one of"),
        ({"prompt": [-1]}, "token id -1 in prompt is outside the vocabulary"),
        ({"prompt": {"a": 1}}, "prompt is {'a': 1}, it must be a text"),
        ({}, "prompt is missing"),
    ],
)
def test_bodies_that_cannot_be(model: Model, tmp_path: Path, body: dict[str, Any], words: str) -> None:
    lines = [
        {"custom_id": "bad", "body": {k: v for k, v in body.items() if k != "url"}},
        {"prompt": "a", "max_tokens": 1},
    ]
    totals = run(model, write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    assert words in found["bad"]["error"]["message"]
    assert (totals.done, totals.failed) == (1, 1)


def test_thinking_is_apart_from_the_answer(model: Model) -> None:
    from tenth.api.answer_text import AnswerText

    ids = model.tokenizer.encode
    thinking = Thinking(300, 301, begun=True)
    text = AnswerText(model.tokenizer, ["END"], thinking, frozenset({258}))
    pieces = [text.push([token]) for token in [*ids("END of é"), 301, *ids("so: ü EN"), *ids("D more"), 258]]
    pieces.append(text.finish())
    assert "".join(piece.reasoning for piece in pieces) == "END of é"
    assert "".join(piece.content for piece in pieces) == "so: ü "
    assert text.stopped == "END"


def test_answers_that_must_look_like_something(model: Model, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    bodies: list[dict[str, Any]] = [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object", **schema}},
            }
        },
        {"structured_outputs": {"choice": ["left", "right"]}},
        {"structured_outputs": {"regex": "[0-9]{4}", "json": None, "python": False}},
        {"structured_outputs": {"json_object": False, "choice": None}},
        {"response_format": {"type": "text"}},
    ]
    source = write(tmp_path / "in.jsonl", [{"prompt": "abc", "max_tokens": 90, **body} for body in bodies])
    run(model, source, tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    schemed, chosen, matched, off, free = (choices(found[f"line-{n}"])[0]["text"] for n in range(1, 6))
    assert json.loads(schemed)["a"] in (1, 22)
    assert chosen in ("left", "right")
    assert len(matched) == 4
    assert matched.isdecimal()
    assert off == free == model.generate("abc", max_tokens=90).text


def test_tags_of_thinking_in_the_prompt(tmp_path: Path) -> None:
    """The prompt may have opened a thought, closed it again, or leave that to the model; many models have no tags."""
    from tenth.api.answer_text import thinking_of

    assert thinking_of(tiny_model(tmp_path).tokenizer, [1, 2]) is None
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"] += [
        {"id": 259 + n, "content": tag, **plain} for n, tag in enumerate(("<think>", "</think>"))
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for prompt, begun in (([1, 2], False), ([1, 259, 2], True), ([259, 1, 260, 2], False), ([259, 260, 259], True)):
        thinking = thinking_of(tokenizer, prompt, 7, "Enough.\n</think>\n\n")
        assert thinking is not None
        assert (thinking.open_id, thinking.close_id, thinking.budget, thinking.begun) == (259, 260, 7, begun)
        assert tokenizer.decode(thinking.stop_ids) == "Enough.\n</think>\n\n"
        assert thinking.stop_ids.count(260) == 1


def test_fewer_experts_of_a_request(model: Model, tmp_path: Path) -> None:
    """Bodies say it by the names that `generate` has; what cannot be is that line's error."""
    base = {"prompt": "abc", "max_tokens": 12}
    few = {"expert_mass": 0.5, "max_experts": 1}
    requests = [
        {"custom_id": "whole", "body": base},
        {"custom_id": "few", "body": {**base, **few}},
        {"custom_id": "chat", "body": {"messages": CHAT, "max_tokens": 12, "max_experts": 1}},
        {"custom_id": "much", "body": {**base, "max_experts": 99}},
        {"custom_id": "none", "body": {**base, "expert_mass": 0}},
    ]
    out = tmp_path / "out.jsonl"
    run(model, write(tmp_path / "in.jsonl", requests), out)
    found = answers(out)
    assert choices(found["whole"])[0]["text"] == model.generate("abc", max_tokens=12).text
    assert choices(found["few"])[0]["text"] == model.generate("abc", max_tokens=12, **few).text
    assert choices(found["chat"])[0]["message"]["content"] == model.chat(CHAT, max_tokens=12, max_experts=1).text
    assert choices(found["few"])[0]["text"] != choices(found["whole"])[0]["text"]
    assert "max_experts is 99, this model has 2 experts" in str(found["much"])
    assert "expert_mass is 0, it must be above 0 and at most 1" in str(found["none"])
