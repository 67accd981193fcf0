"""Models and data sets from the Hugging Face Hub and ModelScope: resumable, and verified file by file.

A download has two steps: `look_up` lists what a repository holds, `fetch` brings it. Between
them the caller can refuse the list, and say how much will come.
"""

import contextlib
import glob
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lockstep.artifacts import manifest
from lockstep.errors import UserError

Filter = Callable[[Iterable[str]], set[str]]

PLACES = {"hub": "the Hub", "modelscope": "ModelScope"}
KINDS = {"model": "model", "dataset": "data set"}
# Other ways to the same thing, for the message after a network error.
INSTEAD = {
    ("model", "hub"): "try --model.source modelscope, --model.source local, or --config configs/demo.yaml",
    ("model", "modelscope"): "try --model.source hub, --model.source local, or --config configs/demo.yaml",
    ("dataset", "hub"): "try --data.source modelscope, or files of your own with --data.train_file",
    ("dataset", "modelscope"): "try --data.source hub, or files of your own with --data.train_file",
}
NO_NAME = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a file's name: what cannot be written, or shown


@dataclass(frozen=True)
class Repository:
    """What the user's settings name: a model or a data set, where, and which revision of it."""

    kind: Literal["model", "dataset"]
    source: str  # hub or modelscope
    id: str
    revision: str | None = None

    def hint(self, setting: str) -> str:
        """The setting to look at, for a message about a data set; those about a model name it already."""
        return f": check --data.{setting}" if self.kind == "dataset" else ""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its hub describes it: path, size in bytes, and sha256 or git's blob id."""

    path: str
    size: int
    sha256: str | None = None
    git_blob: str | None = None

    def matches(self, file: Path) -> bool:
        """Whether a downloaded file has the bytes that the hub promised."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.sha256:
            return manifest.sha256_of(file) == self.sha256
        if self.git_blob:
            data = file.read_bytes()
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.git_blob
        return True


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        names: of all its files.
        files: those that are to be downloaded.
    """

    names: frozenset[str]
    files: tuple[RemoteFile, ...]
    commit: str


def look_up(repository: Repository, choose: Filter) -> Listing:
    """What a repository holds, and of it the files whose names `choose` returns.

    Raises:
        UserError: no such repository or revision, no right to read it, no network, or a file
            name that leads out of the folder.
    """
    return (_list_hub if repository.source == "hub" else _list_modelscope)(repository, choose)


def fetch(repository: Repository, listing: Listing, work: Path) -> None:
    """Download a listing's files into `work`, where an earlier try may have left a part of them.

    Raises:
        UserError: the network failed, or a file has other bytes than the hub promised.
    """
    names = {file.path for file in listing.files}
    (_fetch_hub if repository.source == "hub" else _fetch_modelscope)(repository, listing, names, work)
    verify(listing.files, work)
    keep_only(names, work)


def check_room(files: Iterable[RemoteFile], work: Path) -> str:
    """How much there is to download, for the user; refuses what the disk cannot hold. Raises UserError."""
    files = list(files)
    total = sum(file.size for file in files if not (work / file.path).exists())
    free = shutil.disk_usage(work).free
    if total * 1.05 > free:
        raise UserError(f"{total / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free: make room on the disk")
    return f"{len(files)} files, {total / 1e6:,.0f} MB to fetch, {free / 1e6:,.0f} MB free"


def verify(files: Iterable[RemoteFile], work: Path) -> None:
    """Compare every file with the hub's size and checksum; a wrong one is removed and named. Raises UserError."""
    wrong = [file.path for file in files if not file.matches(work / file.path)]
    for name in wrong:
        (work / name).unlink(missing_ok=True)
    if wrong:
        raise UserError(f"{', '.join(wrong)} arrived with wrong bytes and was removed: run again to fetch it anew")


def keep_only(names: set[str], work: Path) -> None:
    """Remove what was not asked for: notes that a library keeps, and what an earlier, killed try left."""
    for path in sorted(work.rglob("*"), reverse=True):  # the files of a folder before the folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(work).as_posix() not in names:
            path.unlink()


def unreachable(place: str, instead: str, error: object) -> UserError:
    """A network error as one line, with another way to what was asked for."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{place} did not deliver ({reason}): run again to resume, or {instead}")


def _listing(repository: Repository, files: list[RemoteFile], choose: Filter, commit: str) -> Listing:
    """Names come from a stranger: one that leads out of the folder spoils the whole listing."""
    for name in sorted(file.path for file in files):
        parts = name.replace("\\", "/").split("/")
        if {"", ".", ".."}.intersection(parts) or NO_NAME.search(name):
            raise UserError(f"{repository.id} lists a file {name!r}, which is no safe path: nothing was taken")
    chosen = choose(file.path for file in files)
    return Listing(frozenset(f.path for f in files), tuple(f for f in files if f.path in chosen), commit)


@contextlib.contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kind, id = repository.kind, repository.id
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{id} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{id} has no revision {repository.revision!r}{repository.hint('revision')}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the Hub has no {KINDS[kind]} {id!r} (or it is private and HF_TOKEN is not set){repository.hint('id')}"
        ) from error
    except HFValidationError as error:
        raise UserError(f"--{'model' if kind == 'model' else 'data'}.id: {error}") from error
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise unreachable(PLACES["hub"], INSTEAD[kind, "hub"], error) from error


def _list_hub(repository: Repository, choose: Filter) -> Listing:
    import huggingface_hub

    with _hub_errors(repository):
        api = huggingface_hub.HfApi()
        ask: Callable[..., Any] = api.model_info if repository.kind == "model" else api.dataset_info
        info = ask(repository.id, revision=repository.revision, files_metadata=True, timeout=30)
    files = []
    for entry in info.siblings or ():
        sha256 = entry.lfs.sha256 if entry.lfs else None
        files.append(RemoteFile(entry.rfilename, entry.size or 0, sha256, entry.blob_id))
    return _listing(repository, files, choose, str(info.sha))


def _fetch_hub(repository: Repository, listing: Listing, names: set[str], work: Path) -> None:
    import huggingface_hub

    with _hub_errors(repository):
        huggingface_hub.snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=listing.commit,
            local_dir=work,
            max_workers=4,
            allow_patterns=[glob.escape(name) for name in sorted(names)],
        )


@contextlib.contextmanager
def _modelscope_errors(repository: Repository) -> Iterator[None]:
    import requests
    from modelscope_hub.errors import AuthenticationError, HubError, NotExistError, PermissionDeniedError

    kind, id, revision = repository.kind, repository.id, repository.revision or "master"
    try:
        yield
    except NotExistError as error:
        hint = repository.hint("id and --data.revision")
        raise UserError(f"ModelScope has no {KINDS[kind]} {id!r} with revision {revision!r}{hint}") from error
    except (AuthenticationError, PermissionDeniedError) as error:
        raise UserError(
            f"ModelScope does not let you read {id}: accept its terms there and set MODELSCOPE_API_TOKEN"
        ) from error
    except (HubError, requests.RequestException, OSError) as error:
        raise unreachable(PLACES["modelscope"], INSTEAD[kind, "modelscope"], error) from error


def _list_modelscope(repository: Repository, choose: Filter) -> Listing:
    """ModelScope names each file's last commit; the newest among the chosen files stands for the repository's."""
    from modelscope_hub import HubApi

    revision = repository.revision or "master"
    with _modelscope_errors(repository):
        answer = HubApi().legacy.list_repo_files(repository.id, repository.kind, revision=revision)
    entries = {entry["Path"]: entry for entry in answer if entry.get("Type") != "tree"}
    files = [
        RemoteFile(name, int(entry.get("Size") or 0), entry.get("Sha256") or None) for name, entry in entries.items()
    ]
    listing = _listing(repository, files, choose, revision)
    by_date = sorted((entries[file.path] for file in listing.files), key=lambda entry: entry.get("CommittedDate") or 0)
    commit = by_date[-1].get("Revision") if by_date else None
    return replace(listing, commit=str(commit or revision))


def _fetch_modelscope(repository: Repository, listing: Listing, names: set[str], work: Path) -> None:
    from modelscope_hub.compat.snapshot_download import snapshot_download

    # its patterns are lists with commas between
    patterns = [glob.escape(name).replace(",", "?") for name in sorted(names)]
    with _modelscope_errors(repository):
        snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision or "master",
            local_dir=str(work),
            allow_patterns=patterns,
        )
