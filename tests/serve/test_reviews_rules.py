"""Rules that flag answers: what they find, how long they may take, and files that are none."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from tenth.errors import ConfigError
from tenth.serve.review import Reason
from tenth.serve.review_rules import PATTERN_SECONDS, Rules, Seen, mean_of, read_rules, worst_window


def rules_of(tmp_path: Path, text: str, seed: int = 0) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return Rules(read_rules(path)._rules, random.Random(seed).random)


def said(rules: Rules, **fields: object) -> list[str]:
    seen = Seen(**{"prompt": "", "answer": "", "finish": "stop", **fields})  # type: ignore[arg-type]
    return [reason.text for reason in rules.reasons(seen)]


ALL = """
[[rule]]
name = "as an AI"
answer = '(?i)as an (ai|language) model'
[[rule]]
name = "doses"
prompt = '\\d+ ?mg'
[[rule]]
name = "cut"
finish = "length"
[[rule]]
name = "cut doses"
prompt = 'mg'
finish = ["length", "content_filter"]
[[rule]]
name = "refused"
privacy = "refused"
[[rule]]
name = "found"
privacy = "found"
"""


def test_each_rule_finds_what_it_names(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, ALL)
    assert len(rules) == 6
    assert not rules.scored
    assert said(rules, prompt="hello", answer="hello") == []
    assert said(rules, answer="Well, As an AI model I") == ["as an AI: the answer has 'As an AI model'"]
    assert said(rules, prompt="as an ai model") == []
    assert said(rules, prompt="500 mg?", finish="length") == [
        "doses: the prompt has '500 mg'",
        "cut: it ended by length",
        "cut doses: it ended by length; the prompt has 'mg'",
    ]
    assert said(rules, finish="content_filter", finds={"PHONE": 1, "EMAIL": 2}) == [
        "refused: the privacy filter ended it",
        "found: the privacy filter found EMAIL, PHONE",
    ]


SCORED = """
[[rule]]
name = "unsure"
mean_logprob = -1.0
[[rule]]
name = "unsure somewhere"
worst_logprob = -2
window = 3
"""


def test_low_confidence(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SCORED)
    assert rules.scored
    assert said(rules) == said(rules, logprobs=[-1.0, -1.0]) == []
    assert said(rules, logprobs=[-0.5, -1.75]) == ["unsure: mean log-probability -1.12, below -1"]
    found = Rules(rules._rules).reasons(Seen("", "", "stop", [0.0] * 10 + [-2, -1, -4] + [0.0] * 10))
    words = "unsure somewhere: mean log-probability -2.33 over 3 tokens from token 11, below -2"
    assert found == (Reason("confidence", words),)
    assert "over 2 tokens from token 1," in said(rules, logprobs=[-3.0, -3.0])[1]


def test_the_worst_window_is_the_worst_of_all() -> None:
    draw = random.Random(1)
    for _ in range(200):
        values = [-draw.random() for _ in range(draw.randrange(1, 30))]
        width = draw.randrange(1, 35)
        least = min(width, len(values))
        means = [sum(values[at : at + least]) / least for at in range(len(values) - least + 1)]
        worst = worst_window(values, width)
        assert worst is not None
        assert worst[0] == pytest.approx(min(means))
        assert means[worst[1]] == pytest.approx(min(means))
    assert worst_window([], 3) is mean_of([]) is None


def test_a_share_is_drawn_of_those_that_hold(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, '[[rule]]\nname = "spot"\nshare = 0.1\nfinish = "stop"\n')
    count = sum(bool(said(rules)) for _ in range(4000))
    assert 330 < count < 470
    assert not any(said(rules, finish="length") for _ in range(100))


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a+)+$"])
def test_a_pattern_that_would_take_for_ever_is_bounded_and_others_go_on(tmp_path: Path, pattern: str) -> None:
    """With `re` the first of them takes longer than the age of the universe, and no other thread gets a turn."""
    rules = rules_of(tmp_path, f"[[rule]]\nname = 'slow'\nanswer = '{pattern}'\n")
    pauses, over = list[float](), threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not over.is_set():
            time.sleep(0.001)
            last, before = time.monotonic(), last
            pauses.append(last - before)

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.monotonic()
    words = said(rules, answer="a" * 5000 + "!")
    seconds = time.monotonic() - begun
    over.set()
    thread.join()
    assert words == ["slow: the answer takes the pattern longer than 0.25 s"]
    assert PATTERN_SECONDS <= seconds < 3
    assert len(pauses) > 20, "Python's lock was free meanwhile"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"there may be 1 to 100|tables \[\[rule\]\]"),
        ("rule = 3", r"tables \[\[rule\]\]"),
        ("[[rule]]\nname = 'a'\nshare = 1\n[other]\n", r"nothing else: other"),
        ("[[rule]]\nshare = 1", "the name of a"),
        ("[[rule]]\nname = ''\nshare = 1", "the name of a"),
        ("[[rule]]\nname = 'a'", "rule 'a': says nothing that must hold"),
        ("[[rule]]\nname = 'a'\nanswers = 'x'", r"rule 'a': a rule has no 'answers' \(there are: name, answer"),
        ("[[rule]]\nname = 'a'\nanswer = '('", "rule 'a': answer is no regular expression: missing"),
        ("[[rule]]\nname = 'a'\nanswer = 3", "rule 'a': answer must be a regular expression"),
        ("[[rule]]\nname = 'a'\nfinish = 'end'", "finish is 'end', it must hold some of stop, length"),
        ("[[rule]]\nname = 'a'\nfinish = []", "finish is"),
        ("[[rule]]\nname = 'a'\nfinish = [[1]]", "finish is"),
        ("[[rule]]\nname = 'a'\nprivacy = 'mask'", "must be one of found, refused"),
        ("[[rule]]\nname = 'a'\nprivacy = [1]", "must be one of found, refused"),
        ("[[rule]]\nname = 'a'\nmean_logprob = 0.5", "must be a number below 0"),
        ("[[rule]]\nname = 'a'\nmean_logprob = nan", "must be a number below 0"),
        ("[[rule]]\nname = 'a'\nmean_logprob = -inf", "must be a number below 0"),
        ("[[rule]]\nname = 'a'\nmean_logprob = true", "must be a number below 0"),
        ("[[rule]]\nname = 'a'\nworst_logprob = -1", "worst_logprob and window"),
        ("[[rule]]\nname = 'a'\nworst_logprob = -1\nwindow = 0", "window is 0, it must be a whole number"),
        ("[[rule]]\nname = 'a'\nworst_logprob = -1\nwindow = 2.0", "window is 2.0"),
        ("[[rule]]\nname = 'a'\nshare = 0", "share is 0, it must be a number above 0"),
        ("[[rule]]\nname = 'a'\nshare = 1.01", "share is 1.01"),
        ("[[rule]]\nname = 'a'\nshare = 1\n" * 2, "two rules have the name 'a'"),
        ("".join(f"[[rule]]\nname = 'a{n}'\nshare = 1\n" for n in range(101)), "there are 101 rules"),
        ("[[rule]\n", "is no TOML"),
        ("x = '\udcff'", "is no TOML"),
        (f"x = {'9' * 5000}", "is no TOML"),
        ("x = " + "[" * 5000, "is no TOML"),
        ("#" * (1 << 20) + "\n", "is larger than 1,048,576 bytes"),
    ],
)
def test_files_that_are_none_name_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=complaint) as error:
        read_rules(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
