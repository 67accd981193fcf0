"""What settings are made of: which of them are file paths, and where those start."""

from pathlib import Path

from lockstep.settings import yaml_file
from lockstep.settings.fields import holds_file_paths
from lockstep.settings.tree import Settings, leaves


def test_file_paths_are_known_by_their_type() -> None:
    known = {name for name, field in leaves() if holds_file_paths(field)}
    assert known == yaml_file.FILE_KEYS
    assert known == {
        "model.path", "data.train_file", "data.validation_file", "data.test_file", "lora.start_from", "adapter.path",
        "evaluate.panel",
    }  # fmt: skip


def test_file_paths_on_the_command_line_start_at_a_folder_and_all_else_does_not(tmp_path: Path) -> None:
    (tmp_path / "a,b.jsonl").touch()
    given = {"model.path": "m", "data.template": "chat.jinja", "lora.start_from": "null", "model.name": "m"}
    settings = yaml_file.load(
        None, given | {"data.train_file": "x.jsonl,y.jsonl", "data.test_file": "a,b.jsonl"}, tmp_path
    )
    assert settings.model.path == str(tmp_path / "m") and settings.model.name == "m"
    assert settings.data.template == str(tmp_path / "chat.jinja") and settings.lora.start_from is None
    assert settings.data.train_file == (str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl"))
    assert settings.data.test_file == (str(tmp_path / "a,b.jsonl"),)
    in_data_set = {"data.source": "hub", "data.id": "a/b", "data.train_file": "x.jsonl"}
    assert yaml_file.load(None, in_data_set, tmp_path).data.train_file == ("x.jsonl",)
    config = tmp_path / "c.yaml"
    config.write_text("data:\n  source: hub\n  id: a/b\n")
    assert yaml_file.load(config, {"data.train_file": "x.jsonl"}, tmp_path).data.train_file == ("x.jsonl",)


def test_a_copy_knows_what_was_given_and_the_original_does_not() -> None:
    settings = Settings()
    assert settings.with_explicit({"lora.r": "in a file"}).explicit == {"lora.r": "in a file"}
    assert settings.explicit == {}
