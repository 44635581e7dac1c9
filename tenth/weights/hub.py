"""Models by hub name: found, downloaded, listed and removed in the standard Hugging Face cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tenth.errors import MachineError, ModelNotFoundError
from tenth.model.json_reader import read_json

# What a model is made of; pickles, other frameworks' files, folders and pictures stay where they are.
_SMALL = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
_WEIGHTS = ("*.safetensors",)
_NEVER = ("*/*",)
# as in `safetensors_file` and `packed_index`, which would import torch: `tenth list` and `tenth pull` do without
_SINGLE, _INDEX, _PACKED = "model.safetensors", "model.safetensors.index.json", "packed.json"


@dataclass(frozen=True, slots=True)
class HubName:
    """`owner/name`, `owner/name@revision`, `owner/name:Q4_K_M` (the .gguf files of that kind)."""

    repo: str
    revision: str | None = None
    kind: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """None where the text is not of that form."""
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?", text)
        if match is None or ".." in text or "--" in match[1]:
            return None
        return cls(match[1], match[2], match[3])

    @property
    def patterns(self) -> list[tuple[str, ...]]:
        """The files to fetch, in steps: a folder that holds the last step's holds the others' too."""
        if self.kind is None:
            return [_SMALL, _WEIGHTS]
        return [tuple(f"*{kind}*.gguf" for kind in (self.kind, self.kind.lower(), self.kind.upper()))]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One model in the cache: its hub name, bytes on disk, when it was last used (seconds since 1970), and where."""

    name: str
    nbytes: int
    last_used: float
    path: Path


def find(name: str) -> Path:
    """A model's path: the name itself where it is one, else what the cache holds under it, else a download.

    ModelNotFoundError where there is nothing, or the cache has nothing and `HF_HUB_OFFLINE` is set.
    """
    path = existing(name)
    if path is not None:
        return path
    hub_name = HubName.parse(name)
    if hub_name is None or name.endswith((".gguf", ".safetensors")):
        raise ModelNotFoundError(f"{name}: no such file or folder, and not a hub name of the form owner/name")
    return cached(hub_name) or pull(hub_name)


def existing(name: str) -> Path | None:
    """The name as a path where there is something; ModelNotFoundError where that cannot be told."""
    if not name:
        raise ModelNotFoundError("the model's name is empty; give a path, a hub name or `default`")
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:  # too long, not permitted, ~ of a stranger
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelNotFoundError(f"{name:.200}: cannot be looked up: {reason}") from None


def cached(name: HubName) -> Path | None:
    """The snapshot in the cache, or its GGUF file; None where there is none that is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _hub_errors(name.repo):
            # no patterns: whether the folder is whole is judged here, for whoever filled it
            folder = snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return None
    return _usable(Path(folder), name)


def pull(name: HubName) -> Path:
    """Download into the cache, with progress bars; a file that is there already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision, folder = name.revision, Path()
    try:
        for patterns in name.patterns:
            with _hub_errors(name.repo):
                folder = Path(
                    snapshot_download(
                        name.repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_NEVER)
                    )
                )
            revision = folder.name  # the commit: all steps see the same one
    except LocalEntryNotFoundError:
        raise ModelNotFoundError(
            f"{name.repo}: not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from None
    found = _usable(folder, name)
    if found is None:
        wanted = f".gguf file of kind {name.kind}" if name.kind else "config.json with safetensors"
        hint = "" if name.kind else " (name a .gguf by its kind, as in owner/name:Q4_K_M)"
        raise ModelNotFoundError(f"{name.repo}: the hub has no {wanted} there{hint}")
    return found


def _usable(folder: Path, name: HubName) -> Path | None:
    """What to load from a snapshot; None where a part of it is missing."""
    if name.kind is None:
        return folder if (folder / "config.json").exists() and _has_weights(folder) else None
    files = sorted(path for path in folder.glob("*.gguf") if fnmatch(path.name.lower(), f"*{name.kind.lower()}*"))
    if not files or (part := re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", files[0].name)) is None:
        return files[0] if files else None
    names = (f"{part[1]}-{number:05d}-of-{part[2]}.gguf" for number in range(1, int(part[2]) + 1))
    return files[0] if all((folder / name).exists() for name in names) else None


def _has_weights(folder: Path) -> bool:
    if (folder / _PACKED).exists():
        files = read_json(folder / _PACKED).get("files")
        return isinstance(files, dict) and all((folder / str(file)).exists() for file in files)
    index = folder / _INDEX
    if (folder / _SINGLE).exists() or not index.exists():
        return (folder / _SINGLE).exists()
    shards = read_json(index).get("weight_map")
    return isinstance(shards, dict) and all((folder / str(shard)).exists() for shard in shards.values())


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The hub client's many errors, as one line of ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError:
        raise  # not the hub's: the caller knows whether that is an error
    except errors.GatedRepoError:
        raise ModelNotFoundError(f"{repo}: is gated; accept its terms on the hub and set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ModelNotFoundError(
            f"{repo}: the hub knows no such model or revision (private ones need HF_TOKEN)"
        ) from None
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repo}: is not a hub name: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise ModelNotFoundError(f"{repo}: the hub refused: {_first_line(error)}") from None
    except Exception as error:  # the client's HTTP library, and so the kind of its errors, differs by version
        raise MachineError(f"{repo}: the download failed: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def list_cached() -> list[CachedModel]:
    """All models in the cache, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = [
        CachedModel(r.repo_id, r.size_on_disk, r.last_accessed, r.repo_path) for r in repos if r.repo_type == "model"
    ]
    return sorted(models, key=lambda model: model.name.lower())


def remove(name: HubName) -> int:
    """Delete a model (all its revisions, or the one named) from the cache; returns the bytes freed."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        info = scan_cache_dir()
    except CacheNotFound:
        raise ModelNotFoundError(f"{name.repo}: not in the cache, which is empty") from None
    revisions = [
        revision.commit_hash
        for repo in info.repos
        if repo.repo_id == name.repo and repo.repo_type == "model"
        for revision in repo.revisions
        if name.revision is None or name.revision in (revision.commit_hash, *revision.refs)
    ]
    if not revisions:
        raise ModelNotFoundError(f"{name.repo}: not in the cache (`tenth list` shows what is)")
    strategy = info.delete_revisions(*revisions)
    strategy.execute()
    return strategy.expected_freed_size
