"""The Python interface: every way to call a model agrees with every other, and what cannot be served is refused."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

import tenth
from tenth.api import Model, Options, Settings, load
from tenth.engine.sampler import Sampling
from tenth.errors import ConfigError, ModelNotFoundError, RequestError, TemplateError, TenthError
from tenth.model.batch import Batch
from tenth.weights.generation import GenerationDefaults
from tests.api.tiny import SPECIALS, tiny_decoder, tiny_model, tiny_tokenizer

QUESTION = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def dense() -> Model:
    """The real model; float32, so that two orders of the same sums choose the same tokens."""
    return load("default-dense", dtype=torch.float32)


@pytest.fixture
def fresh(tiny: Model, tmp_path: Path) -> Model:
    """The same weights without the past of `tiny`."""
    return tiny_model(tmp_path)


# ---- forward passes


def test_logits_have_the_shape_of_the_rows(tiny: Model) -> None:
    out = tiny([[1, 2, 3], [4, 5, 6]])
    assert out.logits_BTV.shape == (2, 3, 512)
    assert out.hidden_BTD is None
    assert out.routing is not None
    assert out.routing.num_tokens == 6
    assert list(out.routing.layers) == [1, 2]  # the first layer of this preset is dense
    for layer in out.routing.layers.values():
        assert layer.experts_TK.shape == layer.gates_TK.shape == (6, 2)
        assert layer.logits_TE is None


def test_forward_returns_what_is_asked_for(tiny: Model) -> None:
    full = tiny([[1, 2, 3]], hidden=True, routing="full")
    assert full.hidden_BTD is not None
    assert full.hidden_BTD.shape == (1, 3, 64)
    assert full.routing is not None
    assert {layer.logits_TE.shape for layer in full.routing.layers.values() if layer.logits_TE is not None} == {(3, 8)}
    assert tiny([[1, 2, 3]], routing="none").routing is None


def test_rows_do_not_see_each_other(tiny: Model) -> None:
    both = tiny([[1, 2, 3], [4, 5, 6]]).logits_BTV
    torch.testing.assert_close(both[1:], tiny([[4, 5, 6]]).logits_BTV, atol=1e-5, rtol=0)
    torch.testing.assert_close(both, tiny(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)).logits_BTV)
    # a later token changes nothing before it
    torch.testing.assert_close(both[:1, :2], tiny([[1, 2, 400]]).logits_BTV[:, :2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3],
        [[1, 2], [3]],
        [],
        [[]],
        [[[1]]],
        [["a"]],
        "text",
        None,
        [[1.0, 2.0]],
        [[True, False]],
        torch.tensor([[1.0]]),
        torch.zeros(0, 4, dtype=torch.int64),
        [[1, 512]],
        [[-1, 2]],
        [[1 << 70]],
    ],
)
def test_forward_refuses_what_are_no_rows_of_tokens(tiny: Model, tokens: Any) -> None:
    with pytest.raises(RequestError):
        tiny(tokens)


def test_forward_refuses_an_unknown_record(tiny: Model) -> None:
    with pytest.raises(RequestError, match="routing is 'some', it must be one of none, choice, full"):
        tiny([[1]], routing="some")  # type: ignore[arg-type]


# ---- generation


def test_generate_stream_and_chat_agree(tiny: Model) -> None:
    ids = tiny.encode(QUESTION)
    whole = tiny.chat(QUESTION, max_tokens=12)
    stream = tiny.stream(QUESTION, max_tokens=12)
    chunks = list(stream)
    for other in (tiny.generate(QUESTION, max_tokens=12), tiny.generate(ids, max_tokens=12), stream.result):
        assert (other.text, other.tokens, other.prompt_tokens) == (whole.text, whole.tokens, len(ids))
        assert (other.finish_reason, other.stopped_by) == (whole.finish_reason, whole.stopped_by)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    shown = [chunk.token for chunk in chunks if chunk.token is not None]
    assert shown == [token for token in whole.tokens if token not in tiny.end_ids]


def test_greedy_tokens_are_the_best_of_a_plain_forward_pass(tiny: Model) -> None:
    result = tiny.generate("Hello", max_tokens=20)
    shown = [*tiny.encode("Hello"), *result.tokens]
    logits_TV = tiny([shown]).logits_BTV[0, len(shown) - len(result.tokens) - 1 : -1]
    logits_TV[:, tiny.tokenizer.unknown_ids(512)] = -torch.inf
    assert logits_TV.argmax(-1).tolist() == list(result.tokens)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_cache_the_tokens_are_the_same(tiny: Model, seed: int) -> None:
    options: Options = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.2, "seed": seed, "max_tokens": 25}
    cached = tiny.generate("Hello", **options, routing="full")
    naive = tiny.generate("Hello", **options, routing="full", cache=False)
    assert cached.tokens == naive.tokens
    assert cached.text == naive.text


def test_streams_of_one_model_may_interleave(tiny: Model) -> None:
    prompts = ("Hello", "Hello, world", "Quite another")
    apart = [tiny.generate(prompt, max_tokens=15).tokens for prompt in prompts]
    streams = [tiny.stream(prompt, max_tokens=15) for prompt in prompts]
    for _ in zip_longest(*streams):
        pass
    assert [stream.result.tokens for stream in streams] == apart


@pytest.mark.parametrize("leave", ["close", "forget", "keep"])
def test_a_stream_that_is_left_does_no_harm(tiny: Model, fresh: Model, leave: str) -> None:
    stream = tiny.stream(QUESTION, max_tokens=30)
    first = [next(stream).token for _ in range(4)]
    held = stream if leave == "keep" else None
    if leave == "close":
        stream.close()
        assert stream.result.finish_reason == "interrupted"
        assert list(stream.result.tokens) == first
        assert list(stream) == []
    del stream
    gc.collect()
    again = [{"role": "user", "content": "Hello there, once more"}]
    assert tiny.chat(again, max_tokens=20).tokens == fresh.chat(again, max_tokens=20).tokens
    if held is not None:
        rest = [chunk.token for chunk in held if chunk.token is not None]
        whole = [token for token in fresh.chat(QUESTION, max_tokens=30).tokens if token not in tiny.end_ids]
        assert first + rest == whole


def test_an_ended_stream_gives_its_cache_back_at_once(tiny: Model) -> None:
    for options in ({"max_tokens": 3}, {"max_tokens": 40, "stop": ["o"]}, {"max_tokens": 400}):
        stream = tiny.stream("Hello, this is a prompt", **options)  # type: ignore[arg-type]
        list(stream)
        after = tiny.generate("Hello, this is a prompt, longer", max_tokens=1)
        assert after.routing is not None
        assert after.routing.num_tokens < 10  # the common part, 23 tokens, was not computed again
        assert stream.result.tokens


def test_turns_of_a_chat_equal_those_of_a_fresh_model(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    chatting = tiny_model(tmp_path / "one")
    messages: list[dict[str, str]] = []
    for turn, question in enumerate(("Hi", "And then?", "Why?", "Well")):
        messages.append({"role": "user", "content": question})
        answer = chatting.chat(messages, max_tokens=20)
        other = tiny_model(tmp_path / "two").chat(messages, max_tokens=20)
        assert answer.tokens == other.tokens
        assert answer.routing is not None
        assert other.routing is not None
        assert other.routing.num_tokens == answer.prompt_tokens + len(answer.tokens) - 1
        computed = answer.routing.num_tokens - (len(answer.tokens) - 1)
        assert computed == answer.prompt_tokens if turn == 0 else computed < answer.prompt_tokens
        messages.append({"role": "assistant", "content": answer.text})


def test_a_shorter_or_equal_prompt_after_a_longer_one(tiny: Model, fresh: Model) -> None:
    for prompt in ("Hello, world", "Hello, world", "Hello", "Jello", "Hello, world!"):
        assert tiny.generate(prompt, max_tokens=10).tokens == fresh.generate(prompt, max_tokens=10, cache=False).tokens


def test_ids_without_a_token_are_never_generated(tiny: Model) -> None:
    unknown = set(tiny.tokenizer.unknown_ids(512))
    assert unknown == set(range(259, 512))
    tokens = tiny.generate("Hello", temperature=100.0, seed=1, max_tokens=200).tokens
    # evenly drawn from 512 ids, about half would be unknown; two end ids among 259 end it early
    rounds = [tiny.generate("Hello", temperature=100.0, seed=seed, max_tokens=200).tokens for seed in range(2, 8)]
    drawn = [token for round_ in (tokens, *rounds) for token in round_]
    assert len(drawn) > 100
    assert not unknown & set(drawn)


def test_an_end_token_ends_and_is_not_shown(tiny: Model) -> None:
    assert tiny.end_ids == {256, 258}
    ended = 0
    for seed in range(8):
        result = tiny.generate("Hello", temperature=30.0, seed=seed, max_tokens=400)
        ends = [token in tiny.end_ids for token in result.tokens]
        assert not any(ends[:-1])
        assert (result.finish_reason == "stop") == ends[-1]
        assert result.stopped_by is None
        assert not any(special in result.text for special in SPECIALS)
        ended += ends[-1]
    assert ended >= 4


def test_max_tokens_and_context_bound_the_length(tiny: Model, tmp_path: Path) -> None:
    for count in (1, 2, 7):
        result = tiny.generate("Hello", max_tokens=count)
        assert (len(result.tokens), result.finish_reason) == (count, "length")
    small = tiny_model(tmp_path, context=16)
    small.end_ids = frozenset()
    result = small.generate("Hello", max_tokens=10**12)
    assert (len(result.tokens), result.finish_reason) == (11, "length")  # 5 and 11 are 16
    assert len(small.generate("x" * 15).tokens) == 1
    assert small.generate("x" * 15, cache=False).tokens == small.generate("x" * 15).tokens


def test_stop_strings_cut_the_text_and_end_it(tiny: Model) -> None:
    whole = tiny.generate("Hello", max_tokens=30)
    at = next(n for n in range(3, len(whole.text)) if whole.text[n : n + 2].isascii())
    stop = whole.text[at : at + 2]
    cut = whole.text.index(stop)
    for stops in ([stop], (stop, "never there"), stop):
        for options in ({}, {"cache": False}):
            result = tiny.generate("Hello", max_tokens=30, stop=stops, **options)  # type: ignore[arg-type]
            assert result.text == whole.text[:cut]
            assert (result.finish_reason, result.stopped_by) == ("stop", stop)
            assert result.tokens == whole.tokens[: len(result.tokens)]
            assert len(result.tokens) < 30
    chunks = list(tiny.stream("Hello", max_tokens=30, stop=[stop]))
    assert "".join(chunk.text for chunk in chunks) == whole.text[:cut]


def test_a_beginning_of_a_stop_string_is_shown_in_the_end(tiny: Model) -> None:
    whole = tiny.generate("Hello", max_tokens=30)
    result = tiny.generate("Hello", max_tokens=30, stop=[whole.text[-1] + "unsaid"])
    assert result.text == whole.text
    assert (result.finish_reason, result.stopped_by) == ("length", None)


def test_records_of_routing_have_the_size_of_what_was_computed(tiny: Model, fresh: Model) -> None:
    for cache in (True, False):
        result = fresh.generate("Hello", max_tokens=6, routing="full", cache=cache)
        assert result.routing is not None
        assert result.routing.num_tokens == 5 + len(result.tokens) - 1
        for layer in result.routing.layers.values():
            tokens = result.routing.num_tokens
            assert layer.experts_TK.shape == layer.gates_TK.shape == (tokens, 2)
            assert layer.logits_TE is not None
            assert layer.logits_TE.shape == (tokens, 8)
            assert layer.dropped_TK is not None
            assert not layer.dropped_TK.any()
            torch.testing.assert_close(layer.gates_TK.sum(-1), torch.ones(tokens))
    assert fresh.generate("Hello", max_tokens=6, routing="none").routing is None
    choice = fresh.generate("Hello", max_tokens=6).routing
    assert choice is not None
    assert all(layer.logits_TE is None for layer in choice.layers.values())


def test_the_record_is_that_of_a_forward_pass(fresh: Model) -> None:
    result = fresh.generate("Hello", max_tokens=8)
    shown = [*fresh.encode("Hello"), *result.tokens[:-1]]
    expected = fresh([shown]).routing
    assert result.routing is not None
    assert expected is not None
    for index, layer in expected.layers.items():
        assert torch.equal(result.routing.layers[index].experts_TK, layer.experts_TK)
        torch.testing.assert_close(result.routing.layers[index].gates_TK, layer.gates_TK)


def test_fields_of_a_generation(tiny: Model) -> None:
    result = tiny.generate("Hello", max_tokens=5, temperature=1.0, seed=99)
    assert (result.prompt_tokens, len(result.tokens), result.seed) == (5, 5, 99)
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0
    assert result.tokens_per_second == pytest.approx(4 / result.decode_seconds)
    assert tiny.generate("Hello", max_tokens=1).tokens_per_second == 0.0
    untouched = tiny.stream("Hello").result
    assert (untouched.text, untouched.tokens, untouched.finish_reason) == ("", (), "interrupted")
    assert untouched.routing is None


# ---- tokens guessed ahead


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_token(tiny: Model, fresh: Model, temperature: float) -> None:
    """Two turns of a chat: the second finds the first one in the cache, with drafts as without."""
    options: Options = {"max_tokens": 25, "temperature": temperature, "seed": 4}
    messages: list[dict[str, str]] = []
    for turn, question in enumerate(("Hello Hello Hello", "Once more, once more")):
        messages.append({"role": "user", "content": question})
        plain = tiny.chat(messages, **options)
        assert plain.drafts is None
        for draft in ("lookup", "suffix", tiny):
            drafted = fresh.chat(messages, draft=draft, **options)  # type: ignore[arg-type]
            assert (drafted.tokens, drafted.text) == (plain.tokens, plain.text)
            assert drafted.finish_reason == plain.finish_reason
            assert drafted.drafts is not None
            assert drafted.drafts.steps + drafted.drafts.accepted == len(plain.tokens) - 1
            assert drafted.routing is not None
            computed = drafted.routing.num_tokens - (len(drafted.tokens) - 1)
            first = turn == 0 and draft == "lookup"
            assert computed == drafted.prompt_tokens if first else computed < drafted.prompt_tokens
        messages.append({"role": "assistant", "content": plain.text})


def test_a_stream_with_drafts_may_be_left(tiny: Model, fresh: Model) -> None:
    stream = tiny.stream("Hello", draft="lookup", max_tokens=30)
    first = [next(stream).token for _ in range(5)]
    stream.close()
    assert list(stream.result.tokens) == first
    assert tiny.generate("Hello", max_tokens=30, draft="lookup").tokens == fresh.generate("Hello", max_tokens=30).tokens
    stop = fresh.generate("Hello", max_tokens=30).text[8:10]
    ended = tiny.generate("Hello", max_tokens=30, stop=stop, draft="lookup")
    assert ended.text == fresh.generate("Hello", max_tokens=30, stop=stop).text


def test_drafts_that_cannot_be_had_are_refused(tiny: Model) -> None:
    with pytest.raises(RequestError, match="draft is 'fast', it must be off, lookup, suffix or a model"):
        tiny.generate("Hello", draft="fast", max_tokens=3)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="draft lookup does nothing without a cache"):
        tiny.generate("Hello", draft="lookup", cache=False, max_tokens=3)


def test_a_seed_that_was_chosen_repeats_the_text(tiny: Model) -> None:
    first = tiny.generate("Hello", max_tokens=20, temperature=1.0)
    assert tiny.generate("Hello", max_tokens=20, temperature=1.0, seed=first.seed).tokens == first.tokens
    assert tiny.generate("Hello", max_tokens=20, temperature=1.0).seed != first.seed


# ---- what is refused


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        (),
        [1, 512],
        [-1],
        [1 << 70],
        [1, True],
        [1, 2.0],
        [1, "a"],
        ["a", "b"],
        [[1, 2]],
        [{"role": "user", "content": "x"}, 5],
        [5, {"role": "user", "content": "x"}],
        {"role": "user", "content": "x"},
        b"bytes",
        bytearray(b"bytes"),
        None,
        5,
        torch.tensor([1, 2]),
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 5}],
        [{}],
        "x" * 512,
        [1] * 512,
        [{"role": "user", "content": "x" * 512}],
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_prompts_that_cannot_be_served_are_refused(tiny: Model, prompt: Any, cache: bool) -> None:
    with pytest.raises(RequestError):
        tiny.generate(prompt, max_tokens=3, cache=cache)
    assert tiny.generate("Hello", max_tokens=1).tokens  # and the model is none the worse


def test_text_that_is_not_unicode_is_refused(tiny: Model) -> None:
    with pytest.raises(TenthError, match="surrogate"):
        tiny.generate("\ud800")


@pytest.mark.parametrize("messages", ["Hello", b"Hello", [1, 2, 3], None, [{"role": "user", "content": "x"}, "y"]])
def test_a_chat_takes_messages(tiny: Model, messages: Any) -> None:
    with pytest.raises(RequestError, match="a chat is a list of messages"):
        tiny.chat(messages)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 0.5}, "no option is named 'temprature'"),
        ({"sampling": Sampling()}, "no option is named 'sampling'"),
        ({"max_tokens": 0}, "max_tokens is 0, it must be a whole number of at least 1"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"max_tokens": 2.0}, "max_tokens is 2.0"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"max_tokens": "7"}, "max_tokens is '7'"),
        ({"max_tokens": None}, "max_tokens is None"),
        ({"routing": "all"}, "routing is 'all', it must be one of none, choice, full"),
        ({"routing": None}, "routing is None"),
        ({"cache": 1}, "cache is 1, it must be True or False"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": None}, "temperature is None"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": [""]}, "stop must be a list of strings that are not empty"),
        ({"stop": ""}, "stop must be a list of strings that are not empty"),
        ({"stop": ["a", 5]}, "stop must be a list of strings"),
        ({"stop": 5}, "stop is 5"),
        ({"stop": None}, "stop is None"),
    ],
)
def test_options_that_cannot_be_served_are_refused_by_name(tiny: Model, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny.generate("Hello", **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"template_arguments": {"messages": []}},
        {"template_arguments": {"not a name": 1}},
        {"template_arguments": {"x": object()}},
        {"tools": [5]},
        {"tools": "search"},
    ],
)
def test_arguments_that_no_template_can_take_are_refused(tiny: Model, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        tiny.chat(QUESTION, **options)


def test_names_of_options_are_those_of_the_settings() -> None:
    settings = {*Settings.__slots__, *Sampling.__slots__} - {"sampling"}
    assert set(Options.__annotations__) == settings


def test_a_model_without_a_template_continues_texts_only(tmp_path: Path) -> None:
    plain = tiny_model(tmp_path, template=None)
    assert len(plain.generate("Hello", max_tokens=3).tokens) == 3
    with pytest.raises(TemplateError, match="no chat template"):
        plain.chat(QUESTION)
    (tmp_path / "other").mkdir()
    given = Model(plain.decoder, plain.tokenizer, chat_template="{{ messages[0].content }}")
    assert given.encode([{"role": "user", "content": "abc"}]) == given.encode("abc")


# ---- defaults, loading, saving


def test_defaults_of_the_makers_are_taken_until_told_otherwise(tmp_path: Path) -> None:
    makers = GenerationDefaults(
        frozenset({7}), temperature=0.3, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.1
    )
    model = Model(tiny_decoder(), tiny_tokenizer(tmp_path), generation=makers)
    assert model.defaults.sampling == Sampling(0.3, 20, 0.8, 0.05, 1.1)
    assert model.end_ids == {7, 256, 258}
    updated = model.defaults.updated({"temperature": 0.0, "max_tokens": 5, "stop": "x"})
    assert updated.sampling == Sampling(0.0, 20, 0.8, 0.05, 1.1)
    assert (updated.max_tokens, updated.stop) == (5, ("x",))


def test_defaults_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="generation defaults: top_p is 0"):
        Model(tiny_decoder(), tiny_tokenizer(tmp_path), generation=GenerationDefaults(top_p=0.0))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", float("nan")),
        ("top_k", 1e999),
        ("top_k", 0.5),
        ("top_p", [0.9]),
        ("repetition_penalty", 10**400),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, -2]),
        ("eos_token_id", [True]),
    ],
)
def test_malformed_generation_configs_are_refused_by_file_and_key(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {key} is"):
        GenerationDefaults.from_folder(tmp_path)


def test_generation_configs_are_read_and_written(tmp_path: Path) -> None:
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults()
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    raw = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20.0, "top_p": 0.95, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(raw))
    read = GenerationDefaults.from_folder(tmp_path)
    assert read == GenerationDefaults(frozenset({1, 2, 5}), temperature=0.6, top_k=20, top_p=0.95)
    for one in (read, GenerationDefaults(frozenset({3}), temperature=0.0), GenerationDefaults()):
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / "generation_config.json").write_text(one.to_json())
        assert GenerationDefaults.from_folder(tmp_path / "again") == one
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    assert GenerationDefaults.from_folder(tmp_path).temperature == 0.0
    (tmp_path / "config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match=r"[/\\]config\.json: eos_token_id"):
        GenerationDefaults.from_folder(tmp_path)


def test_saving_and_loading_keeps_every_bit_and_setting(tiny: Model, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tiny.save(tmp_path / "saved", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    stages: list[str] = []

    def report(stage: str) -> Any:
        stages.append(stage)
        return lambda done, total: None

    again = tenth.load(tmp_path / "saved", report=report)
    assert stages == ["loading weights"]
    assert again.config == tiny.config
    assert again.decoder.dtype == torch.float32
    tokens = [[1, 2, 3, 300], [9, 8, 7, 511]]
    assert torch.equal(again(tokens).logits_BTV, tiny(tokens).logits_BTV)
    assert again.end_ids == tiny.end_ids
    assert again.defaults == tiny.defaults
    assert again.chat(QUESTION, max_tokens=10).tokens == tiny.chat(QUESTION, max_tokens=10).tokens
    assert again.notes == ()
    half = load(str(tmp_path / "saved"), dtype="bfloat16")
    assert half.decoder.dtype == torch.bfloat16
    replaced = load(tmp_path / "saved", chat_template="{{ messages[0].content }}")
    assert replaced.encode(QUESTION) == replaced.encode("Hello there")


def test_loading_refuses_what_is_not_there(tmp_path: Path) -> None:
    for name in (
        "no/such/model",
        str(tmp_path),
        str(tmp_path / "missing"),
        "nothing",
        "",
        "x" * 5000,
        "a\0b",
        "~nobody_/x",
    ):
        with pytest.raises(ModelNotFoundError):
            load(name)
    with pytest.raises(RequestError, match="dtype is 'int8', it must be auto or one of float32"):
        load("default-dense", dtype="int8")
    for device in ("gpu", "cuda:x", "meta", "cuda:99", ""):
        with pytest.raises(RequestError, match="device"):
            load("default-dense", device=device)


# ---- the real model


def test_the_real_model_answers(dense: Model) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    stream = dense.stream(messages, max_tokens=24, temperature=0.0)
    assert "Paris" in "".join(chunk.text for chunk in stream)
    assert stream.result.finish_reason == "stop"
    assert stream.result.routing is not None
    assert stream.result.routing.layers == {}
    counting = dense.generate("One, two, three, four,", max_tokens=8, temperature=0.0)
    assert counting.text.startswith(" five, six, seven")
    stopped = dense.generate("One, two, three, four,", max_tokens=8, temperature=0.0, stop=["six"])
    assert (stopped.text, stopped.stopped_by) == (" five, ", "six")
    assert counting.tokens[: len(stopped.tokens)] == stopped.tokens


def test_a_second_turn_of_the_real_model_equals_a_fresh_one(dense: Model) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    first = dense.chat(messages, max_tokens=8, temperature=0.0)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Another one?"}]
    kept = dense.chat(messages, max_tokens=8, temperature=0.0)
    other = Model(dense.decoder, dense.tokenizer).chat(messages, max_tokens=8, temperature=0.0)
    assert kept.tokens == other.tokens


def test_foreign_text_survives_the_stream(dense: Model) -> None:
    text = "Grüße, 你好, 🙂 — naïve"
    ids = dense.encode(text)
    assert dense.tokenizer.decode(ids) == text
    batch = Batch.of([ids])
    assert len(batch) == len(ids) > len(text) / 2
    pieces: Iterator[str] = map(dense.tokenizer.stream().push, ids)
    assert "".join(pieces) == text
