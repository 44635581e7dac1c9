"""A tokenizer as files: what a Hugging Face folder holds about text, read, checked and written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.errors import TokenizerError
from tenth.weights.tokenizer_added import AddedToken
from tenth.weights.tokenizer_bytes import byte_alphabet

Json = dict[str, Any]
_IDS = 1 << 22  # sixteen times the largest vocabulary published; tables are as long as the highest id
_LONGEST_ADDED = 512  # characters; every beginning and end of an added token is kept
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Definition:
    """All that defines a tokenizer. `document` is what tokenizer.json says, every added token in its vocabulary too."""

    document: Json
    specials: dict[str, str]  # "eos_token" -> its text
    begins: tuple[int, ...]  # ids that the model's own tokenizer puts before a text
    ends: frozenset[int]  # ids that the files name as ends
    templates: dict[str, str]  # "default" -> the chat template's source
    where: str
    context: int | None = None  # model_max_length
    added: tuple[AddedToken, ...] = field(default=())


def read_folder(folder: Path) -> Definition:
    """Read tokenizer.json and, where present, its companions. Anything malformed is a TokenizerError."""
    document = _read_json(folder / "tokenizer.json", required=True)
    config = _read_json(folder / "tokenizer_config.json")
    where = str(folder / "tokenizer.json")
    check_document(document, where)
    specials = _specials(_read_json(folder / "special_tokens_map.json")) | _specials(config)
    added = settle_added(document, _added_tokens(document, config, where), specials, where)
    vocabulary = document["model"]["vocab"]
    context = config.get("model_max_length")
    end = vocabulary.get(specials.get("eos_token", ""))
    return Definition(
        document=document,
        specials=specials,
        begins=_begins(document, config, specials, where),
        ends=frozenset() if end is None else frozenset({end}),
        templates=_templates(folder, config),
        where=where,
        context=context if isinstance(context, int) and 0 < context < 1 << 40 else None,
        added=added,
    )


def settle_added(
    document: Json, added: list[AddedToken], specials: Mapping[str, str], where: str
) -> tuple[AddedToken, ...]:
    """Make added tokens consistent with the vocabulary, in place, and give all of them, in order of id.

    A token named as bos, eos and so on is special even if the file forgot to say so, unless ordinary text needs it:
    some files name a byte or a word as their padding.
    """
    model, known = document["model"], {token.content for token in added}
    made = merged_tokens(model["merges"]) | byte_alphabet().keys()
    for text in dict.fromkeys(specials.values()):
        if text in model["vocab"] and text not in known | made:
            added.append(AddedToken(model["vocab"][text], text, special=True))
    owners = {token_id: text for text, token_id in model["vocab"].items()}
    for token in added:
        if len(token.content) > _LONGEST_ADDED:
            raise TokenizerError(f"{where}: added token {token.content[:40]!r}... is longer than {_LONGEST_ADDED}")
        if (
            model["vocab"].get(token.content, token.id) != token.id
            or owners.get(token.id, token.content) != token.content
        ):
            raise TokenizerError(f"{where}: added token {token.content!r} has the id {token.id}, which the vocabulary "
                                 "gives to another token")  # fmt: skip
        model["vocab"][token.content] = token.id
        owners[token.id] = token.content
    ordered = tuple(sorted(added, key=lambda token: token.id))
    document["added_tokens"] = [dict(vars(token)) for token in ordered]
    return ordered


def merged_tokens(merges: list[tuple[str, str]]) -> set[str]:
    """Give every token that a merge makes."""
    return {left + right for left, right in merges}


def check_document(document: Json, where: str) -> None:
    """Check the parts of a tokenizer.json that are used here and bring its merges into pairs."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise TokenizerError(f"{where}: model type {kind!r} is not supported, only BPE is")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary or not all(_is_id(v) for v in vocabulary.values()):
        raise TokenizerError(f"{where}: model.vocab must map tokens to ids from 0 to {_IDS - 1}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise TokenizerError(f"{where}: model.vocab gives one id to two tokens")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: model.merges must be a list of pairs of tokens")
    model["merges"] = [_pair(merge, n, where) for n, merge in enumerate(merges)]
    document["truncation"] = document["padding"] = None  # a default length of someone's training script


def _pair(merge: object, at: int, where: str) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TokenizerError(f"{where}: model.merges[{at}] must be a pair of tokens, not {merge!r:.60}")
    return parts[0], parts[1]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _IDS


def _read_json(path: Path, *, required: bool = False) -> Json:
    if not path.is_file():
        if required:
            raise TokenizerError(f"{path} does not exist; a tokenizer.json of the tokenizers library is needed")
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read as JSON: {str(error) or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _content(value: object) -> str | None:
    """Give the text of a special token, which is written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _specials(config: Json) -> dict[str, str]:
    named = {name: _content(config.get(name)) for name in SPECIAL_NAMES}
    return {name: text for name, text in named.items() if text is not None}


def _added_tokens(document: Json, config: Json, where: str) -> list[AddedToken]:
    listed = document.get("added_tokens") or []
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, list) or not isinstance(decoder, dict):
        raise TokenizerError(f"{where}: added_tokens must be a list, and added_tokens_decoder an object")
    tokens = [_added_token(entry, None, where) for entry in listed]
    known = {token.content for token in tokens}
    others = [_added_token(entry, token_id, where) for token_id, entry in decoder.items()]
    return tokens + [token for token in others if token.content not in known]


def _added_token(entry: object, key: str | None, where: str) -> AddedToken:
    if not isinstance(entry, dict) or _content(entry) is None:
        raise TokenizerError(f"{where}: added token {entry!r:.60} must be an object with `content`")
    token_id = int(key) if key is not None and key.isdecimal() else entry.get("id")
    if not isinstance(token_id, int) or not _is_id(token_id):
        raise TokenizerError(f"{where}: added token {entry['content']!r} must have an id, not {token_id!r}")
    flags = {name: bool(entry.get(name)) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(token_id, entry["content"], **flags)


def _begins(document: Json, config: Json, specials: Mapping[str, str], where: str) -> tuple[int, ...]:
    """Find what stands before a text: tokenizer_config decides if it says so, else tokenizer.json's own template."""
    vocabulary = document["model"]["vocab"]
    explicit, begin = config.get("add_bos_token"), vocabulary.get(specials.get("bos_token", ""))
    if isinstance(explicit, bool) and (begin is not None or not explicit):
        return (begin,) if explicit else ()
    texts = _processor_begins(document.get("post_processor"))
    if not all(text in vocabulary for text in texts):
        raise TokenizerError(f"{where}: post_processor begins with {texts}, which the vocabulary does not have")
    return tuple(vocabulary[text] for text in texts)


def _processor_begins(processor: object) -> list[str]:
    if not isinstance(processor, dict):
        return []
    if processor.get("type") == "Sequence":
        return [text for part in processor.get("processors") or [] for text in _processor_begins(part)]
    if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        return [str((processor.get("cls") or [""])[0])]
    texts = []
    for part in processor.get("single") or []:
        if "SpecialToken" not in part:
            break
        texts.append(str(part["SpecialToken"].get("id")))
    return texts


def _templates(folder: Path, config: Json) -> dict[str, str]:
    """Collect the chat templates; a file of its own wins over tokenizer_config, as it does in transformers."""
    found = _read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, str):
        templates = {"default": found}
    else:
        entries = found if isinstance(found, list) else []
        templates = {
            e["name"]: e["template"] for e in entries if isinstance(e, dict) and {"name", "template"} <= e.keys()
        }
    if not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise TokenizerError(f"{folder}: chat_template must be a string or a list of objects with name and template")
    try:
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            templates[path.stem] = path.read_text(encoding="utf-8")
        if (folder / "chat_template.jinja").is_file():
            templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{folder}: a chat template cannot be read: {error}") from None
    return templates


def write_folder(definition: Definition, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    config: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= definition.specials
    config["added_tokens_decoder"] = {
        str(token.id): {name: value for name, value in vars(token).items() if name != "id"}
        for token in definition.added
    }
    if definition.context is not None:
        config["model_max_length"] = definition.context
    if set(definition.templates) == {"default"}:
        config["chat_template"] = definition.templates["default"]
    elif definition.templates:
        config["chat_template"] = [{"name": n, "template": text} for n, text in definition.templates.items()]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "tokenizer.json", definition.document)
    _replace(folder / "tokenizer_config.json", config)


def _replace(path: Path, content: Json) -> None:
    """Write to a neighbour first: a full disk must not destroy what is there."""
    neighbour = path.with_name(path.name + ".part")
    neighbour.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    neighbour.replace(path)
