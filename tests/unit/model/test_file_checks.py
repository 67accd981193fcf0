"""A stranger's files as bytes; whole hostile models are in tests/faults/test_hostile_models.py."""

import json
import os
from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.model import file_checks


def put(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_files_of_the_folder_and_of_the_hubs_cache_are_taken(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots/commit"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    blob = put(tmp_path / "blobs", "f00", "{}")
    (snapshot / "config.json").symlink_to(blob)
    beside = put(snapshot, "vocab.json", "{}")
    (snapshot / "other.json").symlink_to(beside)
    file_checks.check_files(snapshot.iterdir())


def test_links_and_pipes_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a/b/model"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to(put(tmp_path, "secret.json", "{}"))
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "nowhere.json").symlink_to(folder / "absent")
    for file in folder.iterdir():
        with pytest.raises(UserError, match="is no regular file of the model's folder"):
            file_checks.refuse_odd_file(file)


def test_what_no_real_model_has_in_size_is_refused_unread(tmp_path: Path) -> None:
    for name, mebibytes in (("config.json", 16), ("vocab.json", 64), ("chat_template.jinja", 1)):
        file = put(tmp_path, name, "")
        os.truncate(file, mebibytes * 2**20 + 1)
        with pytest.raises(UserError, match=f"more than {mebibytes} MiB"):
            file_checks.check_content(file)
    weights = put(tmp_path, "model.safetensors", "")
    os.truncate(weights, 2**33)
    file_checks.check_content(weights)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "is not JSON"),
        ("any.json", '{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("any.json", "[" * 10**6, "nested without end"),
        ("config.json", "[]", "holds no JSON object"),
        ("any.json", json.dumps([{"x": [{"auto_map": {"AutoModel": "m.M"}}]}]), "asks to run code"),
        ("tokenizer_config.json", '{"auto_map": "m.M"}', "asks to run code"),
    ],
)
def test_unsound_json_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        file_checks.check_content(put(tmp_path, name, content))


def test_a_vocabulary_may_hold_the_word(tmp_path: Path) -> None:
    file_checks.check_content(put(tmp_path, "vocab.json", '{"auto_map": 17}'))
    file_checks.check_content(put(tmp_path, "list.json", "[]"))
