"""Files of a hub by their size and checksum; whole downloads are in tests/stages and tests/faults."""

import hashlib
from pathlib import Path

import pytest

from lockstep.download import hub
from lockstep.download.hub import RemoteFile
from lockstep.errors import UserError

DATA = b"some bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob 10\0" + DATA).hexdigest()


@pytest.mark.parametrize(
    ("remote", "matches"),
    [
        (RemoteFile("f", 10), True),
        (RemoteFile("f", 9), False),
        (RemoteFile("f", 10, sha256=SHA256), True),
        (RemoteFile("f", 10, sha256="0" * 64), False),
        (RemoteFile("f", 10, git_blob=GIT_BLOB), True),
        (RemoteFile("f", 10, git_blob="0" * 40), False),
        (RemoteFile("f", 10, sha256="0" * 64, git_blob=GIT_BLOB), False),  # the stronger one decides
    ],
)
def test_a_file_is_compared_with_what_the_hub_promised(tmp_path: Path, remote: RemoteFile, matches: bool) -> None:
    assert not remote.matches(tmp_path / "f")
    (tmp_path / "f").write_bytes(DATA)
    assert remote.matches(tmp_path / "f") == matches


def test_wrong_files_are_removed_and_named_and_right_ones_stay(tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).write_bytes(DATA)
    files = [RemoteFile("right", 10, SHA256), RemoteFile("wrong", 10, "0" * 64), RemoteFile("absent", 10)]
    with pytest.raises(UserError, match=r"^wrong, absent arrived with wrong bytes"):
        hub.verify(files, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["right"]


def test_only_what_was_asked_for_is_kept(tmp_path: Path) -> None:
    for name in ("a/keep", "a/b/drop", "drop", "c/d/drop"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    hub.keep_only({"a/keep"}, tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/keep"]


def test_what_the_disk_cannot_hold_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    assert hub.check_room([RemoteFile("f", 2_000_000)], tmp_path).startswith("1 files, 2 MB to fetch")
    with pytest.raises(UserError, match="make room on the disk"):
        hub.check_room([RemoteFile("f", 10**18)], tmp_path)
    (tmp_path / "f").touch()  # an earlier try has allotted it
    assert hub.check_room([RemoteFile("f", 10**18)], tmp_path).startswith("1 files, 0 MB to fetch")


@pytest.mark.parametrize("name", ["../up", "a/../b", "/root", "a//b", "a\\..\\b", "line\nbreak", "half\ud800"])
def test_a_name_that_leads_elsewhere_spoils_the_whole_listing(name: str) -> None:
    repository = hub.Repository("dataset", "hub", "org/rows")
    with pytest.raises(UserError, match="no safe path: nothing was taken"):
        hub._listing(repository, [RemoteFile("good.jsonl", 1), RemoteFile(name, 1)], set, "commit")
