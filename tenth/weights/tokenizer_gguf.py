"""A byte-level BPE tokenizer rebuilt from the metadata of a GGUF file (`tokenizer.ggml.*`)."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenth.errors import TokenizerError
from tenth.weights.tokenizer_added import AddedToken
from tenth.weights.tokenizer_files import Definition, Json, settle_added

_KEY = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # 1 is a normal token and 6 a byte: both ordinary text
_TOKEN_TYPES = range(1, 7)


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is split before merging: each pattern splits what the one before it left."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    begins: bool = False  # whether a text begins with bos if the file does not say


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
)
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_MARKED_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _LINES
)
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _LINES
)

_GPT2 = PreTokenizer((_GPT2_WORDS,))
_DIGITS = PreTokenizer((r"\p{N}", _GPT2_WORDS))
_LLAMA3 = PreTokenizer((_WORDS % "{1,3}",), ignore_merges=True, begins=True)
_LLAMA3_MERGED = PreTokenizer((_WORDS % "{1,3}",))
_QWEN2 = PreTokenizer((_WORDS % "",), nfc=True)  # llama.cpp does not normalise; Qwen's own tokenizer.json does
_GPT4O = PreTokenizer((_CASED % (_SUFFIX, _SUFFIX, "{1,3}"),))
_TEKKEN = PreTokenizer((_CASED % ("", "", ""),), ignore_merges=True, begins=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _LLAMA3_MERGED,
    "smaug-bpe": _LLAMA3_MERGED,
    "glm4": _LLAMA3_MERGED,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": PreTokenizer((_WORDS % "",)),
    "qwen35": PreTokenizer((_MARKED_WORDS,), nfc=True),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "tekken": _TEKKEN,
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK)),
}


def read_metadata(metadata: Mapping[str, object], where: str) -> Definition:
    """Rebuild the tokenizer that GGUF metadata describes.

    Raises TokenizerError, naming the key, for another kind of tokenizer, for a pre-tokenizer that is not in
    `PRE_TOKENIZERS`, and for lists that do not fit together. A file that names no pre-tokenizer gets "default", as in
    llama.cpp. Tokens of type 5 (unused) and empty ones are no tokens: `unknown_ids` lists them.
    """
    pre = _pre_tokenizer(metadata, where)
    tokens, types = _tokens(metadata, where)
    vocabulary = _vocabulary(tokens, types, where)
    merges = _merges(metadata, vocabulary, where)
    ids = {name: _id(metadata, name, tokens, where) for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    specials = {name: tokens[token_id] for name, key in names.items() if (token_id := ids[key]) is not None}
    begin = ids["bos"] if _flag(metadata, "add_bos_token", pre.begins, where) else None
    document = _document(pre, vocabulary, merges)
    if begin is not None:
        document["post_processor"] = _begin_with(begin, tokens[begin])
    added = [AddedToken(i, tokens[i], special=kind != _USER_DEFINED) for i, kind in enumerate(types)
             if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and tokens[i]]  # fmt: skip
    return Definition(
        document=document,
        specials=specials,
        begins=() if begin is None else (begin,),
        ends=frozenset(token_id for key in ("eos", "eot", "eom") if (token_id := ids[key]) is not None),
        templates=_templates(metadata, where),
        where=where,
        added=settle_added(document, added, specials, where),
    )


def _pre_tokenizer(metadata: Mapping[str, object], where: str) -> PreTokenizer:
    model = metadata.get(_KEY + "model")
    if model != "gpt2":
        raise TokenizerError(f"{where}: {_KEY}model {model!r:.60} is not supported, only 'gpt2' (byte-level BPE) is")
    name = metadata.get(_KEY + "pre", "default")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(f"{where}: {_KEY}pre {name!r:.60} is not a known pre-tokenizer; known are {known}")
    return PRE_TOKENIZERS[name]


def _list(metadata: Mapping[str, object], key: str, where: str) -> list[Any]:
    value = metadata.get(key)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise TokenizerError(f"{where}: {key} must be a list, not {type(value).__name__}")
    return list(value)


def _tokens(metadata: Mapping[str, object], where: str) -> tuple[list[str], list[int]]:
    tokens = _list(metadata, _KEY + "tokens", where)
    bad = next((n for n, token in enumerate(tokens) if not isinstance(token, str)), None)
    if bad is not None or not tokens:
        raise TokenizerError(f"{where}: {_KEY}tokens must be strings, and at least one; entry {bad or 0} is not")
    if _KEY + "token_type" not in metadata:
        return tokens, [1] * len(tokens)
    types = _list(metadata, _KEY + "token_type", where)
    if len(types) != len(tokens):
        raise TokenizerError(f"{where}: {_KEY}token_type has {len(types)} entries, but there are {len(tokens)} tokens")
    bad = next((n for n, kind in enumerate(types) if isinstance(kind, bool) or kind not in _TOKEN_TYPES), None)
    if bad is not None:
        raise TokenizerError(f"{where}: {_KEY}token_type[{bad}] is {types[bad]!r:.60}, not a number from 1 to 6")
    return tokens, types


def _vocabulary(tokens: list[str], types: list[int], where: str) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _UNUSED or not token:
            continue
        if vocabulary.setdefault(token, token_id) != token_id:
            raise TokenizerError(
                f"{where}: {_KEY}tokens has {token!r:.60} twice, at {vocabulary[token]} and {token_id}"
            )
    return vocabulary


def _merges(metadata: Mapping[str, object], vocabulary: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    merges = []
    for n, merge in enumerate(_list(metadata, _KEY + "merges", where)):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{where}: {_KEY}merges[{n}] must be two tokens with a space between, not {merge!r:.60}"
            )
        missing = next((token for token in (left, right, left + right) if token not in vocabulary), None)
        if missing is not None:
            raise TokenizerError(f"{where}: {_KEY}merges[{n}] needs the token {missing!r:.60}, which is not there")
        merges.append((left, right))
    return merges


def _id(metadata: Mapping[str, object], name: str, tokens: list[str], where: str) -> int | None:
    key = f"{_KEY}{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    try:
        token_id = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        token_id = -1
    if not 0 <= token_id < len(tokens):
        raise TokenizerError(f"{where}: {key} is {value!r:.60}, not an id below {len(tokens)}")
    return token_id


def _flag(metadata: Mapping[str, object], name: str, default: bool, where: str) -> bool:
    value = metadata.get(_KEY + name, default)
    if value not in (True, False):
        raise TokenizerError(f"{where}: {_KEY}{name} must be true or false, not {value!r:.60}")
    return bool(value)


def _templates(metadata: Mapping[str, object], where: str) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    names = {key: key.removeprefix(prefix).removeprefix(".") or "default" for key in metadata
             if key == prefix or key.startswith(prefix + ".")}  # fmt: skip
    templates = {}
    for key, name in names.items():
        source = metadata[key]
        if not isinstance(source, str):
            raise TokenizerError(f"{where}: {key} must be a string, not {type(source).__name__}")
        templates[name] = source
    return templates


def _document(pre: PreTokenizer, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Json:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [*map(_split, pre.patterns), byte_level]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "ignore_merges": pre.ignore_merges, "vocab": vocabulary, "merges": merges},
    }


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _begin_with(token_id: int, text: str) -> Json:
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }
