import json
import os
from pathlib import Path

import pytest
from support import homes

from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return homes.settle(monkeypatch, tmp_path)


def make(
    folder: Path,
    text: str = "weights",
    config: dict | None = None,
    inputs: list[Path] | None = None,
    name: str = "download",
) -> Path:
    stage = Stage(name, folder, config or {"a": {"b": 1}}, inputs or [], force=True)
    with stage.writing() as work:
        (work / "file.bin").write_text(text)
        (work / "metrics.json").write_text(str(os.urandom(4)))
    return folder


def test_equal_bytes_have_an_equal_digest_and_timings_are_no_part_of_it(home: Path) -> None:
    first = manifest.read(make(home / "models/m"))
    again = manifest.read(make(home / "models/m"))
    assert first.files["metrics.json"] != again.files["metrics.json"]
    assert first.digest == again.digest
    assert manifest.read(make(home / "models/m", "other")).digest != first.digest
    assert manifest.read(make(home / "models/m", config={"a": {"b": 2}})).digest != first.digest


@pytest.mark.parametrize("file", [filenames.PREVIEW, filenames.QUALITY])
def test_sentences_in_other_words_change_no_digest_and_older_digests_that_cover_them_hold(
    home: Path, file: str
) -> None:
    records = []
    for text in ("What will be trained", "将要训练的内容"):
        stage = Stage("data", home / "outputs/r/data", {}, [], force=True)
        with stage.writing() as work:
            (work / file).write_text(text, encoding="utf-8")
        records.append(manifest.read(stage.folder))
    assert records[0].digest == records[1].digest and records[0].files != records[1].files
    older = records[1].model_copy(update={"digest": records[1].content_digest(manifest.ONCE_VOLATILE)})
    assert older.digest != records[1].digest
    atomic.write_json(home / "outputs/r/data" / filenames.MANIFEST, older.model_dump(by_alias=True))
    assert manifest.read(home / "outputs/r/data").digest == older.digest


def test_a_folder_without_a_manifest_names_the_stage_that_makes_it(home: Path) -> None:
    with pytest.raises(UserError, match=r"models/m is missing .*run `make download` first"):
        manifest.require(home / "models/m", "download")
    (home / "models/m").mkdir(parents=True)
    with pytest.raises(UserError, match="is incomplete"):
        manifest.require(home / "models/m", "download")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "file.bin").unlink(), "file.bin is missing"),
        (lambda f: (f / "file.bin").write_text("longer than before"), "another size"),
        (lambda f: (f / "evil.py").write_text("import os"), "evil.py does not belong there"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "not a regular file"),
        (lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
        (
            lambda f: (f / "manifest.json").write_text("\udcff".encode("utf-8", "surrogateescape").decode("latin-1")),
            "is damaged",
        ),
    ],
)
def test_what_was_changed_is_named(home: Path, harm, says: str) -> None:
    folder = make(home / "models/m")
    harm(folder)
    with pytest.raises(UserError, match=says):
        manifest.require(folder, "download")


def test_one_byte_changed_with_its_time_kept_is_seen(home: Path) -> None:
    folder = make(home / "models/m", "x" * (2 * 2**20))  # large enough for the hash cache
    record = manifest.require(folder, "download")
    file = folder / "file.bin"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"y")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    manifest.check_sizes(folder, record)
    with pytest.raises(UserError, match=r"file\.bin was changed after it was made"):
        manifest.check_hashes(folder, record)


def test_a_manifest_edited_by_hand_is_refused(home: Path) -> None:
    folder = make(home / "models/m")
    record = json.loads((folder / "manifest.json").read_text())
    record["config"]["a"]["b"] = 7
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="changed by hand"):
        manifest.require(folder, "download")


def test_a_stale_input_is_refused_by_name_and_a_deleted_one_is_no_fault(home: Path) -> None:
    base = make(home / "models/m")
    data = make(home / "outputs/r/data", inputs=[base], name="data")
    manifest.require(data, "data")
    make(base, "other bytes")
    with pytest.raises(
        UserError,
        match=r"outputs/r/data was made from models/m \w{8}, which is now \w{8}: run `make data ARGS=--force`",
    ):
        manifest.require(data, "data")
    (base / "manifest.json").unlink()
    manifest.require(data, "data")


def test_another_stages_folder_is_no_substitute(home: Path) -> None:
    with pytest.raises(UserError, match="was made by stage download, not train"):
        manifest.require(make(home / "models/m"), "train")


def test_the_hash_cache_survives_damage(home: Path) -> None:
    folder = make(home / "models/m", "x" * (2 * 2**20))
    cache = home / "outputs/.hashes.json"
    assert manifest.read(folder).files["file.bin"].sha256 in cache.read_text()
    for broken in ("[1]", "{", ""):
        cache.write_text(broken)
        manifest.check_hashes(folder, manifest.read(folder))
    whole = cache.read_bytes()
    for place in range(0, len(whole), 3):  # no flipped byte accuses a file that is as it was
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        manifest.check_hashes(folder, manifest.read(folder))


def test_a_run_that_was_renamed_or_copied_is_made_of_its_own_folders(home: Path) -> None:
    data = {"outputs/a/data": "1", "outputs/a/adapter": "2", "outputs/other/merged": "3", "models/m": "4"}
    renamed = manifest.as_renamed(data, home / "outputs/b/merged")
    assert renamed == {"outputs/b/data": "1", "outputs/b/adapter": "2", "outputs/other/merged": "3", "models/m": "4"}
    assert manifest.as_renamed(data, home / "outputs/a/merged") == data
    of_another_run = {"outputs/a/adapter/adapter_model.safetensors": "5", "outputs/b/data": "6"}
    assert manifest.as_renamed(of_another_run, home / "outputs/b/adapter") == of_another_run
    assert manifest.as_renamed({"outputs/a/data": "1"}, home / "large/data") == {"outputs/a/data": "1"}
