"""What proposers that only read are worth: token files replayed through them as if a model had said just that.

Each document is a prompt (its first tokens, or what `code edit` asks for) and an answer. In each step a proposer drafts
up to MOST tokens; those that the answer has too count as accepted, and one more token comes from the model. A chat is
short and of a small model here; `code edit` asks for a file of Python's standard library with one name changed.

usage: python bench/draft_acceptance.py [FILE.tokens ...] [--most 8] [--documents 40] [--seed 0]
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import keyword
import random
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tenth.data.token_file import TokenFile
from tenth.engine.draft import PromptLookup, Proposer
from tenth.engine.draft_suffix import AnswerStore, SuffixMatch
from tenth.weights.bundled import bundled_gguf
from tenth.weights.checkpoint import open_checkpoint

PROMPT = 64  # tokens of a document that are given
Task = tuple[list[int], list[int]]  # prompt, answer
MAKERS: dict[str, Callable[[AnswerStore], Proposer]] = {
    "lookup 4-2": lambda store: PromptLookup(4, 2),
    "lookup 6-3": lambda store: PromptLookup(6, 3),
    "suffix": lambda store: SuffixMatch(),
    "suffix, earlier answers": lambda store: SuffixMatch(store, "all"),
}


@dataclass(slots=True)
class Replay:
    """Sums over the steps of a workload."""

    workload: str
    proposer: str
    tokens: int = 0
    steps: int = 0
    proposals: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def run(self, proposer: Proposer, task: Task, most: int) -> None:
        """One answer, drafted and compared."""
        prompt, answer = task
        begin = time.perf_counter()
        proposer.begin(prompt)
        at = 0
        while at < len(answer):
            draft = proposer.propose(min(most, len(answer) - at - 1)).tokens
            right = next((k for k, token in enumerate(draft) if token != answer[at + k]), len(draft))
            proposer.take(answer[at : at + right + 1])
            at += right + 1
            self.steps += 1
            self.proposals += bool(draft)
            self.drafted += len(draft)
            self.accepted += right
        proposer.close()
        self.tokens += len(answer)
        self.seconds += time.perf_counter() - begin

    def row(self) -> list[str]:
        """For the table."""
        return [
            self.workload,
            self.proposer,
            f"{self.tokens:,}",
            f"{self.proposals / self.steps:.0%}",
            f"{self.accepted / max(self.proposals, 1):.2f}",
            f"{self.accepted / max(self.drafted, 1):.0%}",
            f"{self.tokens / self.steps:.2f}",
            f"{self.seconds / self.steps * 1e6:.0f}",
        ]


def documents(path: Path, count: int, rng: random.Random) -> Iterator[Task]:
    """Documents of a token file, drawn at random: the beginning is the prompt."""
    file = TokenFile(path)
    for index in rng.sample(range(file.documents), min(count, file.documents)):
        tokens = file.document(index)[:4096].tolist()
        if len(tokens) > 2 * PROMPT:
            yield tokens[:PROMPT], tokens[PROMPT:]


def code_edits(count: int, rng: random.Random) -> Iterator[Task]:
    """Files of the standard library in which one identifier gets another name."""
    with open_checkpoint(bundled_gguf()) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rng.shuffle(paths)
    for path in [p for p in paths if 2_000 < p.stat().st_size < 16_000][:count]:
        source = path.read_text()
        old, new, edited = rename(source, rng)
        prompt = (
            f"```python\n{source}```\nRename `{old}` to `{new}` in this file. Answer with the whole file.\n```python\n"
        )
        yield tokenizer.encode(prompt), tokenizer.encode(edited + "```\n")


def rename(source: str, rng: random.Random) -> tuple[str, str, str]:
    """A name of the file that is used more than once, another for it, and the file with that."""
    names = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.NAME]
    counts = Counter(t.string for t in names if not keyword.iskeyword(t.string) and not hasattr(builtins, t.string))
    old = rng.choice(sorted(name for name, times in counts.items() if times > 1 and len(name) > 2))
    new = old + rng.choice(["_new", "_value", "2", "_item"])
    lines = source.splitlines(keepends=True)
    for found in reversed([t for t in names if t.string == old]):
        (row, begin), (_, end) = found.start, found.end
        lines[row - 1] = lines[row - 1][:begin] + new + lines[row - 1][end:]
    return old, new, "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workloads = {
        path.stem: list(documents(path, options.documents, random.Random(options.seed))) for path in options.files
    }
    workloads["code edit"] = list(code_edits(options.documents, random.Random(options.seed)))
    replays = []
    for workload, tasks in workloads.items():
        for name, make in MAKERS.items():
            store, replay = AnswerStore(), Replay(workload, name)
            for task in tasks:
                replay.run(make(store), task, options.most)
            replays.append(replay)
    columns = (
        "workload",
        "proposer",
        "tokens",
        "steps with a draft",
        "accepted a draft",
        "of drafted",
        "tokens a step",
    )
    table = Table(*columns, "us a step", title=f"up to {options.most} tokens a draft")
    for replay in replays:
        table.add_row(*replay.row())
    Console(width=140).print(table)
    print(json.dumps([asdict(replay) for replay in replays]))


if __name__ == "__main__":
    main()
