"""The `tokenizers` library behind a tokenizer: kinds supported, and a twin without added tokens."""

import json
from collections.abc import Iterator

import tokenizers

from tenth.errors import TokenizerError
from tenth.weights.tokenizer_bytes import byte_alphabet
from tenth.weights.tokenizer_files import Json, merged_tokens

_METASPACE_DECODERS = {"Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"}


def leaves(part: object) -> Iterator[Json]:
    """Walk over the parts of a normalizer, pre-tokenizer or decoder, which may be sequences of sequences."""
    if not isinstance(part, dict):
        return
    members = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    if members is None:
        yield part
    for member in members or []:
        yield from leaves(member)


def is_byte_level(document: Json, where: str) -> bool:
    """Tell byte-level BPE (True) from Metaspace BPE (False). Any other kind is a TokenizerError that names it."""
    decoders = [str(leaf.get("type")) for leaf in leaves(document.get("decoder"))]
    before = [str(leaf.get("type")) for key in ("normalizer", "pre_tokenizer") for leaf in leaves(document.get(key))]
    if decoders == ["ByteLevel"]:
        if "ByteLevel" in before:
            return True
    elif decoders and set(decoders) <= _METASPACE_DECODERS and {"Metaspace", "Replace"} & set(before):
        return False
    raise TokenizerError(
        f"{where}: decoder {'+'.join(decoders) or None} with pre-tokenizer {'+'.join(before) or None} is not "
        "supported; byte-level BPE and Metaspace BPE with byte fallback are"
    )


def strips_space(document: Json) -> bool:
    """Whether a decode drops the space that the tokenizer itself put before the text."""
    for leaf in leaves(document.get("decoder")):
        if leaf.get("type") == "Metaspace":
            return bool(leaf.get("prepend_scheme", "always") != "never")
        if leaf.get("type") == "Strip":
            return bool(leaf.get("start"))
    return False


def without_added(document: Json) -> Json:
    """Give the same tokenizer without its added tokens, so that it can never produce one of their ids.

    Merges that would make or use such a token go too. The characters of the byte alphabet stay whatever they are
    called: a text could not be encoded without them.
    """
    model = document["model"]
    gone = {token["content"] for token in document["added_tokens"]} - byte_alphabet().keys()
    merges = model["merges"]
    if gone & merged_tokens(merges):
        merges = [(a, b) for a, b in merges if not gone & {a, b, a + b}]
    vocabulary = {text: token_id for text, token_id in model["vocab"].items() if text not in gone}
    unknown = None if model.get("unk_token") in gone else model.get("unk_token")
    plain = model | {"vocab": vocabulary, "merges": merges, "unk_token": unknown}
    return document | {"model": plain, "added_tokens": [], "post_processor": None}


def after_the_first(document: Json) -> Json:
    """Give the same tokenizer for text in mid-prompt: some kinds put a space before the first word only."""
    splitter = json.loads(json.dumps(document.get("pre_tokenizer")))
    for leaf in leaves(splitter):
        if leaf.get("prepend_scheme") == "first":
            leaf["prepend_scheme"] = "never"
    return document | {"pre_tokenizer": splitter}


def build(document: Json, where: str) -> tokenizers.Tokenizer:
    """Build a `tokenizers.Tokenizer`. What the library refuses is a TokenizerError."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[-200:]
        raise TokenizerError(f"{where}: the tokenizers library cannot build this tokenizer: {reason}") from None
