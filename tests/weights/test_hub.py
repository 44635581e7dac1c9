"""Models by hub name: pulled from a hub on this machine into a cache of the test's own, by the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tenth
from tenth.errors import ModelNotFoundError
from tenth.kernels.packed import PackedFormat
from tenth.weights import save
from tenth.weights.hub import HubName, find
from tenth.weights.synthetic import write_synthetic
from tests.api.tiny import tiny_model
from tests.model.configs import theirs
from tests.weights.fake_hub import FakeHub, Repo, fake_hub
from tests.weights.models import raw_config, write_gguf
from tests.weights.packed_models import SMALL

# what a real repository has beside its model, and what must stay there
STRANGERS = {
    "pytorch_model.bin": b"\x80\x02pickle",
    "training_args.bin": b"\x80\x02pickle",
    "consolidated.00.pth": b"\x80\x02pickle",
    "optimizer.pt": b"\x80\x02pickle",
    "scheduler.pkl": b"\x80\x02pickle",
    "tf_model.h5": b"h5",
    "flax_model.msgpack": b"flax",
    "picture.png": b"png",
    "modeling_tiny.py": b"raise SystemExit",
    "original/params.json": b"{}",
    "onnx/model.safetensors": b"other weights",
    ".gitattributes": b"x",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in several shards."""
    root = tmp_path_factory.mktemp("hub")
    whole = save._SHARD_BYTES
    save._SHARD_BYTES = 300_000
    try:
        tiny_model(root).save(root / "tiny")
    finally:
        save._SHARD_BYTES = whole
    shards = sorted(path.name for path in (root / "tiny").glob("*.safetensors"))
    assert len(shards) >= 2
    return {path.name: path.read_bytes() for path in sorted((root / "tiny").iterdir())} | {"README.md": b"# Tiny"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos["owner/tiny"] = Repo({"main": files | STRANGERS})
        yield hub


class Cache:
    """A cache that is empty at first, and the commands upon it."""

    def __init__(self, home: Path, hub: FakeHub) -> None:
        self.home = home
        self._hub = hub

    def tenth(self, *arguments: str, online: bool = True) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HTTP"))}
        own = {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self._hub.url,
            "HF_HUB_OFFLINE": "0" if online else "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "tenth", *arguments]
        return subprocess.run(command, capture_output=True, env=kept | own, text=True, timeout=60)

    def done(self, *arguments: str, online: bool = True) -> str:
        """Standard output of a command that succeeds."""
        result = self.tenth(*arguments, online=online)
        assert result.returncode == 0, (result.stdout, result.stderr)
        return result.stdout

    def refused(self, *arguments: str, online: bool = True) -> str:
        """The line of a command that is refused."""
        result = self.tenth(*arguments, online=online)
        assert result.returncode == 2, (result.stdout, result.stderr)
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("tenth: ")]
        assert len(lines) == 1
        assert result.stderr.endswith(lines[0] + "\n")
        return lines[0]

    def files(self) -> set[str]:
        """Names of all files in the cache's snapshots."""
        return {path.name for path in self.home.rglob("*") if "snapshots" in path.parts and path.is_file()}


@pytest.fixture
def cache(tmp_path: Path, hub: FakeHub) -> Cache:
    return Cache(tmp_path / "home", hub)


def test_the_life_of_a_model_in_the_cache(cache: Cache, hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = Path(cache.done("pull", "owner/tiny").strip())
    assert folder.is_relative_to(cache.home)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert hub.fetched() == set(files)  # neither pickles nor anything else of the strangers'
    assert cache.files() == set(files)

    hub.forget()
    assert cache.done("pull", "owner/tiny").strip() == str(folder)
    assert hub.fetched() == set()
    assert hub.served == {}

    (entry,) = [entry for entry in json.loads(cache.done("list", "--json")) if not entry["name"].startswith("default")]
    assert entry["name"] == "owner/tiny"
    assert entry["bytes"] == sum(map(len, files.values()))
    assert folder.is_relative_to(entry["path"])
    (line,) = [line for line in cache.done("list").splitlines() if "owner/tiny" in line]
    assert entry["path"] in line

    hub.forget()
    facts = json.loads(cache.done("show", "owner/tiny", "--json", online=False))
    assert facts["notes"][0] == f"safetensors at {folder}"
    answer = json.loads(cache.done("run", "owner/tiny", "-p", "Hello", "-n", "5", "--json"))
    assert answer["text"] == tiny_model(tmp_path).generate("Hello", max_tokens=5).text
    assert hub.requests == []  # what is here needs no hub

    assert cache.refused("rm", "owner/other", "--yes").startswith("tenth: owner/other: not in the cache")
    assert cache.refused("rm", "owner/tiny@v9", "--yes").startswith("tenth: owner/tiny: not in the cache")
    assert cache.tenth("rm", "owner/tiny").returncode == 1  # nobody said yes
    assert cache.files() == set(files)
    assert cache.done("rm", "owner/tiny", "--yes") == f"{entry['bytes'] / 1e9:.2f} GB freed\n"
    assert cache.files() == set()
    assert "owner/tiny" not in cache.done("list")
    assert "not in the cache" in cache.refused("rm", "owner/tiny", "--yes")


def test_a_model_is_fetched_when_it_is_first_named(cache: Cache, hub: FakeHub, files: dict[str, bytes]) -> None:
    assert json.loads(cache.done("show", "owner/tiny", "--json"))["layers"] == 3
    assert hub.fetched() == set(files)


def test_revisions_are_apart(cache: Cache, hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.repos["owner/tiny"].revisions["v2"] = files | {"README.md": b"# Second"}
    first, second = cache.done("pull", "owner/tiny").strip(), cache.done("pull", "owner/tiny@v2").strip()
    assert first != second
    assert (Path(second) / "README.md").read_bytes() == b"# Second"
    assert hub.served["config.json"] == len(files["config.json"])  # equal files are fetched once
    assert json.loads(cache.done("show", "owner/tiny@v2", "--json", online=False))["notes"][0].endswith(second)
    cache.done("rm", "owner/tiny@v2", "--yes")
    assert not Path(second).exists()
    assert (Path(first) / "README.md").read_bytes() == b"# Tiny"


def test_a_line_that_breaks_once_does_no_harm(cache: Cache, hub: FakeHub, files: dict[str, bytes]) -> None:
    name = max(files, key=lambda file: len(files[file]))
    hub.cut[name], hub.stays_broken = 1000, False
    folder = Path(cache.done("pull", "owner/tiny").strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert len([path for method, path, _ in hub.requests if method == "GET" and path.endswith(name)]) == 2


def test_a_download_that_failed_is_completed_by_the_next(cache: Cache, hub: FakeHub, files: dict[str, bytes]) -> None:
    name = max(files, key=lambda file: len(files[file]))
    hub.cut[name] = len(files[name]) // 2  # half of it, then the line is cut, then the server is out of order
    assert cache.refused("pull", "owner/tiny").startswith("tenth: owner/tiny: the ")
    assert hub.served[name] == len(files[name]) // 2
    assert name not in cache.files()
    # the part that is there is not taken for the model
    assert "not in the cache, and the hub cannot be reached" in cache.refused("show", "owner/tiny", online=False)
    complete = cache.files()
    assert "config.json" in complete
    hub.cut.clear()
    hub.forget()
    folder = Path(cache.done("pull", "owner/tiny").strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert hub.fetched() == set(files) - complete  # of a file that was not whole, the client may take up the part
    assert len(cache.done("run", "owner/tiny", "-p", "Hello", "-n", "5", online=False)) > 1


def test_weights_come_last_so_that_a_model_with_weights_is_whole(cache: Cache, hub: FakeHub) -> None:
    hub.cut["tokenizer.json"] = 0
    assert cache.refused("pull", "owner/tiny").startswith("tenth: owner/tiny: the ")
    assert not any(file.endswith(".safetensors") for file in hub.fetched() | cache.files())
    hub.cut.clear()
    cache.done("show", "owner/tiny")
    assert "tokenizer.json" in cache.files()


@pytest.mark.parametrize("lost", ["config.json", "shard", "index"])
def test_a_snapshot_with_a_hole_is_not_taken_for_the_model(
    cache: Cache, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    folder = Path(cache.done("pull", "owner/tiny").strip())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.home / "hub"))
    assert find("owner/tiny") == folder
    shards = [file for file in files if file.endswith(".safetensors")]
    (folder / {"config.json": lost, "shard": shards[0], "index": "model.safetensors.index.json"}[lost]).unlink()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        find("owner/tiny")


def test_a_packed_model_in_the_cache(
    cache: Cache, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_synthetic(tmp_path / "packed", SMALL, PackedFormat.parse("int4-g32"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()}
    hub.repos["owner/packed"] = Repo({"main": files})
    folder = Path(cache.done("pull", "owner/packed").strip())
    assert {path.name for path in folder.iterdir()} == set(files)
    assert "all as written" in cache.done("check", "owner/packed", online=False)
    assert "owner/packed" in cache.done("list")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.home / "hub"))
    assert find("owner/packed") == folder
    (folder / "layer-00001.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        find("owner/packed")


def test_what_the_hub_refuses_is_told(cache: Cache, hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.repos["owner/gated"] = Repo({"main": files}, gated=True)
    hub.repos["owner/empty"] = Repo({"main": {"README.md": b"x"} | STRANGERS})
    hub.repos["owner/half"] = Repo({"main": {n: d for n, d in files.items() if "-00001-" not in n}})
    assert cache.refused("pull", "owner/none") == (
        "tenth: owner/none: the hub knows no such model or revision (private ones need HF_TOKEN)"
    )
    assert cache.refused("run", "owner/none", "-p", "x").startswith("tenth: owner/none: the hub knows no such model")
    assert "the hub knows no such model or revision" in cache.refused("pull", "owner/tiny@v9")
    assert "owner/gated: is gated; accept its terms on the hub" in cache.refused("pull", "owner/gated")
    assert "owner/empty: the hub has no config.json with safetensors there" in cache.refused("pull", "owner/empty")
    assert "owner/half: the hub has no config.json with safetensors there" in cache.refused("pull", "owner/half")
    assert "owner/tiny: the hub has no .gguf file of kind Q8_0 there" in cache.refused("pull", "owner/tiny:Q8_0")
    assert not any(file.endswith((".bin", ".pt", ".pth", ".pkl")) for file in hub.fetched() | cache.files())


def test_without_a_hub(cache: Cache, hub: FakeHub) -> None:
    for command in (["pull"], ["show"], ["run", "-p", "x"]):
        line = cache.refused(*command, "owner/tiny", online=False)
        assert line == ("tenth: owner/tiny: not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)")
    assert hub.requests == []
    folder = cache.done("pull", "owner/tiny")
    hub.forget()
    assert cache.done("pull", "owner/tiny", online=False) == folder
    assert len(cache.done("run", "owner/tiny", "-p", "Hello", "-n", "3", online=False)) > 1
    assert hub.requests == []


def test_a_hub_that_does_not_answer(cache: Cache, hub: FakeHub) -> None:
    hub.url = "http://127.0.0.1:9"  # the port of `discard`, where nothing listens
    assert "not in the cache, and the hub cannot be reached" in cache.refused("pull", "owner/tiny")


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    raw = raw_config("llama")
    write_gguf(path, raw, theirs(raw), "Q8_0")
    return path.read_bytes()


@pytest.mark.parametrize("written", ["Q8_0", "q8_0"])
def test_a_kind_picks_the_gguf_of_that_kind(
    cache: Cache, hub: FakeHub, gguf_bytes: bytes, files: dict[str, bytes], written: str
) -> None:
    kinds = {f"tiny-{kind}.gguf": b"x" for kind in ("Q4_K_M", "Q4_K_S", "f16", "IQ2_XS")}
    hub.repos["owner/many"] = Repo({"main": kinds | {f"tiny-{written}.gguf": gguf_bytes} | files})
    path = Path(cache.done("pull", "owner/many:Q8_0").strip())
    assert path.name == f"tiny-{written}.gguf"
    assert hub.fetched() == {path.name}
    assert path.read_bytes() == gguf_bytes
    facts = json.loads(cache.done("show", "owner/many:q8_0", "--json", online=False))
    assert facts["notes"][0] == f"gguf at {path}"
    assert "no .gguf file of kind Q6_K" in cache.refused("pull", "owner/many:Q6_K")


def test_all_parts_of_a_gguf_are_needed(cache: Cache, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {f"tiny-Q8_0-{n:05d}-of-00003.gguf": b"x" * n for n in (1, 2, 3)}
    hub.repos["owner/parts"] = Repo({"main": parts | {"other-Q4_0-00002-of-00003.gguf": b"other"}})
    path = Path(cache.done("pull", "owner/parts:Q8_0").strip())
    assert path.name == "tiny-Q8_0-00001-of-00003.gguf"
    assert hub.fetched() == set(parts)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.home / "hub"))
    assert find("owner/parts:Q8_0") == path
    path.with_name("tiny-Q8_0-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        find("owner/parts:Q8_0")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/name", HubName("owner/name")),
        ("Qwen/Qwen3-30B-A3B", HubName("Qwen/Qwen3-30B-A3B")),
        ("a.b_c/d-e.1", HubName("a.b_c/d-e.1")),
        ("owner/name@main", HubName("owner/name", "main")),
        ("owner/name@refs/pr/5", HubName("owner/name", "refs/pr/5")),
        ("owner/name:Q4_K_M", HubName("owner/name", None, "Q4_K_M")),
        ("owner/name@v1.0:IQ2_XS", HubName("owner/name", "v1.0", "IQ2_XS")),
        *(
            (text, None)
            for text in (
                "",
                "owner",
                "owner/",
                "/name",
                "owner/name/more",
                "/etc/passwd",
                "../name",
                "owner/..",
                "owner/a..b",
                "owner/name@../../x",
                "owner/name:../x",
                "owner/name:*",
                "owner/na--me",
                "ow--ner/name",
                "owner/na me",
                "owner/name\n",
                "owner/name@",
                "owner/name:",
                "owner/name:Q8_0@main",
                "owner\\name/x",
                "~/name",
                "https://huggingface.co/owner/name",
            )
        ),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name


@pytest.mark.parametrize("name", ["owner/-x", "owner/x.", ".owner/x", "owner/" + "x" * 200, "owner/x.git"])
def test_names_that_the_hub_would_not_have_are_refused(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        find(name)


def test_a_path_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/owner") == tmp_path / "owner"


def test_a_model_by_its_hub_name_in_python(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache.done("pull", "owner/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.home / "hub"))
    options: dict[str, Any] = {"max_tokens": 5}
    assert tenth.load("owner/tiny").generate("Hi", **options).tokens == (
        tiny_model(tmp_path).generate("Hi", **options).tokens
    )
