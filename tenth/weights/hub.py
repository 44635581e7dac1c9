"""Models by hub name: found, downloaded, listed and removed in the standard Hugging Face cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tenth.errors import MachineError, ModelNotFoundError

# What a model is made of; pickles, other frameworks' files and pictures stay where they are.
_PARTS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
_NEVER = ("original/*", "*/*")


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
    def patterns(self) -> list[str]:
        """The files to fetch."""
        return list(_PARTS) if self.kind is None else [f"*{self.kind}*.gguf"]


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
    path = Path(name).expanduser()
    if path.exists():
        return path
    hub_name = HubName.parse(name)
    if hub_name is None or name.endswith((".gguf", ".safetensors")):
        raise ModelNotFoundError(f"{name}: no such file or folder, and not a hub name of the form owner/name")
    return cached(hub_name) or pull(hub_name)


def cached(name: HubName) -> Path | None:
    """The snapshot in the cache, or its GGUF file; None where there is none that is whole."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name.repo, revision=name.revision, local_files_only=True, cache_dir=constants.HF_HUB_CACHE
        )
    except LocalEntryNotFoundError:
        return None
    return _usable(Path(folder), name)


def pull(name: HubName) -> Path:
    """Download into the cache, with progress bars; a part that is there already is not fetched again."""
    from huggingface_hub import snapshot_download

    with _hub_errors(name.repo):
        folder = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=name.patterns, ignore_patterns=list(_NEVER)
        )
    found = _usable(Path(folder), name)
    if found is None:
        wanted = f"a .gguf file of kind {name.kind}" if name.kind else "config.json with safetensors"
        raise ModelNotFoundError(f"{name.repo}: the hub has no {wanted} there")
    return found


def _usable(folder: Path, name: HubName) -> Path | None:
    if name.kind is None:
        return folder if (folder / "config.json").exists() and any(folder.glob("*.safetensors")) else None
    files = sorted(path for path in folder.glob("*.gguf") if fnmatch(path.name.lower(), f"*{name.kind.lower()}*"))
    return files[0] if files else None


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The hub client's many errors, as one line of ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ModelNotFoundError(f"{repo}: is gated; accept its terms on the hub and set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ModelNotFoundError(
            f"{repo}: the hub knows no such model or revision (private ones need HF_TOKEN)"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ModelNotFoundError(
            f"{repo}: not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise ModelNotFoundError(f"{repo}: the hub refused: {str(error).splitlines()[0][:200]}") from None
    except OSError as error:
        raise MachineError(f"{repo}: the download failed: {str(error)[:200]}") from None


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
