"""The laboratory's text: three domains to learn from, and text first published in 2026 to be judged by.

Python code and C++ headers come from wheels, English prose from the documents in source distributions, all of pinned
versions from 2024; nothing of them is installed. Held-out text is code and prose of packages that first appeared in
2026, without near-duplicates of anything to learn from; held-out C++ is a package of its own, treated alike. Small
models learn with a tokenizer of 8,192 tokens made from the same text.

Written into OUT: `text/*.jsonl` (keys text, source), `tokenizer/`, and a token file for each: code, prose, cpp,
code-2026, prose-2026, cpp-held-out. What is there already is kept, so a broken download can be gone on with.

usage: python bench/lab_corpus.py OUT [--megabytes 8] [--held-out 0.8] [--vocab 8192]
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tenth.data.duplicates import near_duplicates
from tenth.data.readers import TextSource
from tenth.data.tokenize import documents_of, tokenize
from tenth.data.train_tokenizer import train_tokenizer
from tenth.weights.save import new_folder
from tenth.weights.tokenizer import Tokenizer

CODE = (
    "sympy==1.13.3",
    "networkx==3.4.2",
    "twisted==24.11.0",
    "dask==2024.12.1",
    "distributed==2024.12.1",
    "nltk==3.9.1",
    "pylint==3.3.2",
    "ansible-core==2.18.1",
    "hypothesis==6.122.3",
    "pygments==2.18.0",
    "docutils==0.21.2",
    "bokeh==3.6.2",
    "sphinx==8.1.3",
    "celery==5.4.0",
    "django==5.1.4",
    "textual==1.0.0",
)
PROSE = (
    "django==5.1.4",
    "celery==5.4.0",
    "sphinx==8.1.3",
    "docutils==0.21.2",
    "pyramid==2.0.2",
    "pytest==8.3.4",
    "twisted==24.11.0",
    "scrapy==2.12.0",
    "hypothesis==6.122.3",
    "buildbot==4.2.0",
)
CPP = ("pythran==0.17.0", "nanobind==2.4.0")
CPP_HELD_OUT = ("pybind11==2.13.6",)
# wheels of pure Python, first versions (but for the first seven, whose days of first upload bench/quality.py has),
# each with the month it was uploaded
NEW = {
    "datex==0.2.0": "2026-07",
    "detangle==0.1.0": "2026-09",
    "foliot==0.2.0": "2026-09",
    "geomlib-advanced==0.2.0": "2026-04",
    "isochron==0.1.0": "2026-03",
    "jsonsax==0.1.0": "2026-06",
    "chitin==0.1.2": "2026-05",
    "dhow==0.1.0": "2026-08",
    "gamekit==0.1.0": "2026-10",
    "cryptoarithmetic==0.1.0": "2026-10",
    "looker-cst==0.1.0": "2026-10",
    "rater-agreement==0.1.0": "2026-08",
    "slick-framework==0.1.0": "2026-10",
    "actantial==0.1.0": "2026-06",
    "py-marathon-utils==0.1.0": "2026-05",
    "rovingbandit==0.1.0": "2026-07",
    "reliably-metrics==0.1.0": "2026-06",
    "syntel-mining==0.1.0": "2026-09",
    "localediff==0.1.0": "2026-06",
    "hermetic-sandbox==0.1.0": "2026-07",
    "larzstate==0.1.0": "2026-07",
    "gds-interchange==0.1.0": "2026-04",
    "skydiscover==0.1.0": "2026-02",
    "analogsim==0.1.0": "2026-08",
    "hookie==0.1.0": "2026-10",
    "nifreeze==0.1.0": "2026-02",
    "libsize==0.1.0": "2026-10",
    "handanim==0.1.0": "2026-06",
    "pyrcn==0.1.0": "2026-07",
    "sith-chem==0.1.0": "2026-08",
    "saudi-law-tools==0.1.0": "2026-08",
    "ase-uhal==0.1.0": "2026-03",
    "embedding-dedupe==0.1.0": "2026-04",
    "socket-lm==0.1.0": "2026-09",
    "pastebox==0.1.0": "2026-07",
    "maolang==0.1.0": "2026-09",
    "rsdiff==0.1.0": "2026-10",
}
ENDINGS = {"code": (".py",), "prose": (".rst", ".md", ".txt"), "cpp": (".h", ".hpp", ".hh", ".cpp")}
SHORTEST, LONGEST = 500, 40_000  # characters of a file: none outweighs the others
SIMILAR = 0.5  # of runs of five words: more is a near-duplicate


@dataclass(frozen=True)
class Part:
    """A token file: its domain, and the packages it comes from; `sources` asks for source distributions."""

    name: str
    domain: str
    packages: tuple[str, ...]
    sources: bool = False
    learned: bool = True


PARTS = (
    Part("code", "code", CODE),
    Part("prose", "prose", PROSE, sources=True),
    Part("cpp", "cpp", CPP),
    Part("code-2026", "code", tuple(NEW), learned=False),
    Part("prose-2026", "prose", tuple(NEW), learned=False),
    Part("cpp-held-out", "cpp", CPP_HELD_OUT, learned=False),
)


# ---- files of packages


def download(package: str, folder: Path, source: bool) -> Path:
    """The file of a package, fetched unless it is there."""
    name, version = package.split("==")
    stem, ending = name.replace("-", "_").lower(), ".tar.gz" if source else ".whl"

    def found() -> list[Path]:
        files = (
            path for path in folder.glob(f"*{ending}") if path.name.lower().replace("-", "_").startswith(stem + "_")
        )
        return [path for path in files if f"-{version}" in path.name]

    if not found():
        kind = ["--no-binary=:all:"] if source else ["--only-binary=:all:", "--python-version=3.13"]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, "-d", str(folder), package]
        print(" ".join(command[2:]), file=sys.stderr)
        subprocess.run(command, check=True)
    return found()[0]


def files_of(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in order of the names; a wheel's own description is README.md."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith(".dist-info/METADATA"):
                    yield "README.md", described(wheel.read(name).decode("utf-8", "replace")).encode()
                elif ".dist-info/" not in name:
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in sorted((m for m in source.getmembers() if m.isfile()), key=lambda m: m.name):
            file = source.extractfile(member)
            if file is not None and member.size < 1 << 20:
                yield member.name, file.read()


def described(metadata: str) -> str:
    """The long description in a wheel's metadata."""
    return str(email.parser.Parser().parsestr(metadata).get_payload())


def wanted(name: str, domain: str, packages_documents: bool) -> bool:
    """Whether a file is text of the domain: prose of source distributions lies in folders of documents."""
    parts = [part.lower() for part in PurePosixPath(name).parts]
    if not name.endswith(ENDINGS[domain]) or {"locale", "locales", "_vendor"} & set(parts):
        return False
    if domain == "prose":
        listed = parts[-1] in ("requirements.txt", "top_level.txt", "sources.txt", "license.txt", "authors.txt")
        return not listed and (not packages_documents or bool({"docs", "doc", "documentation"} & set(parts[:-1])))
    return True


def texts_of(archive: Path, domain: str) -> list[str]:
    """The documents of a package: long enough, cut at the end of a line where they are too long."""
    found = []
    for name, data in files_of(archive):
        if not wanted(name, domain, archive.suffix != ".whl"):
            continue
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if len(text) >= SHORTEST:
            found.append(shortened(text))
    return found


def shortened(text: str) -> str:
    """Whole lines up to the longest a document may be."""
    return text if len(text) <= LONGEST else text[: text.rfind("\n", 0, LONGEST) + 1] or text[:LONGEST]


# ---- choice


def drawn(packages: dict[str, list[str]], characters: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts with their packages, drawn without order; each package gives at most its share, equal texts come once."""
    order, seen = random.Random(seed), set[bytes]()
    share, chosen = characters // max(len(packages), 1), list[tuple[str, str]]()
    spare = list[tuple[str, str]]()
    for package, texts in packages.items():
        left = share
        for text in order.sample(texts, len(texts)):
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            if left > 0:
                chosen.append((text, package))
                left -= len(text)
            else:
                spare.append((text, package))
    missing = characters - sum(len(text) for text, _ in chosen)  # small packages leave room
    for text, package in order.sample(spare, len(spare)):
        if missing <= 0:
            break
        chosen.append((text, package))
        missing -= len(text)
    order.shuffle(chosen)
    return chosen


def without_duplicates(held_out: list[tuple[str, str]], learned: Iterable[str]) -> list[tuple[str, str]]:
    """Held-out texts that resemble nothing to learn from, and none of which half was in those before them."""
    texts = [text for text, _ in held_out]
    bad = {found.index for found in near_duplicates(texts, learned, SIMILAR)}
    kept, seen = list[tuple[str, str]](), set[bytes]()
    for number, (text, package) in enumerate(held_out):
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 20]
        marks = {hashlib.sha256("\n".join(lines[at : at + 3]).encode()).digest() for at in range(len(lines))}
        if number not in bad and 2 * len(marks & seen) < len(marks):
            kept.append((text, package))
        seen |= marks
    return kept


# ---- the folder


def write_texts(out: Path, megabytes: float, held_out: float) -> None:
    """All parts as JSON lines; held-out ones behind those they are compared with."""
    learned: list[str] = []
    for part in sorted(PARTS, key=lambda part: not part.learned):
        path = out / "text" / f"{part.name}.jsonl"
        if path.exists():
            learned += [json.loads(line)["text"] for line in path.read_text().splitlines()] if part.learned else []
            continue
        packages = {p: texts_of(download(p, out / "packages", part.sources), part.domain) for p in part.packages}
        chosen = drawn(packages, int((megabytes if part.learned else held_out) * 1e6))
        if part.learned:
            learned += [text for text, _ in chosen]
        else:
            before = len(chosen)
            chosen = without_duplicates(chosen, learned)
            print(f"{part.name}: {before - len(chosen)} of {before} documents were near-duplicates", file=sys.stderr)
        write_lines(path, chosen)


def write_lines(path: Path, texts: Iterable[tuple[str, str]]) -> None:
    """Texts and their packages as JSON lines, all or none."""
    lines = (json.dumps({"text": text, "source": package}) for text, package in texts)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def write_tokens(out: Path, vocabulary: int) -> None:
    """The tokenizer, from what is learned, and a token file of each part."""
    if not (out / "tokenizer").exists():
        sources = [TextSource(str(out / "text" / f"{part.name}.jsonl")) for part in PARTS if part.learned]
        with new_folder(out / "tokenizer") as place:
            train_tokenizer(documents_of(sources), vocabulary).save(place)
    tokenizer = Tokenizer.from_folder(out / "tokenizer")
    for part in PARTS:
        path = out / f"{part.name}.tokens"
        if not path.exists():
            tally = tokenize(
                [TextSource(str(out / "text" / f"{part.name}.jsonl"), domain=part.domain)], tokenizer, path
            )
            share = tally.text_bytes / tally.tokens
            print(f"{path}: {tally.documents:,} documents, {tally.tokens:,} tokens, {share:.2f} bytes each")


def main() -> None:
    """Download, choose, learn a vocabulary, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=8.0, help="text of each domain")
    parser.add_argument("--held-out", type=float, default=0.8, help="megabytes of each held-out domain at most")
    parser.add_argument("--vocab", type=int, default=8192)
    options = parser.parse_args()
    for folder in ("packages", "text"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    write_texts(options.out, options.megabytes, options.held_out)
    write_tokens(options.out, options.vocab)


if __name__ == "__main__":
    main()
