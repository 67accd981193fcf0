"""What was given is told apart by its content; whatever is not what it is said to be is an error in one line."""

from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.verification import subjects


def model(folder: Path, config: str = "{}", **files: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_a_runs_folder_stands_for_its_stages(tmp_path: Path) -> None:
    merged = model(tmp_path / "merged", model__safetensors="")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    given = subjects.recognised(adapter=tmp_path, merged=tmp_path)
    assert (given.adapter, given.merged) == (tmp_path / "adapter", merged)
    assert given.models == {"merged": merged} and given.reference == merged


@pytest.mark.parametrize(
    ("files", "config", "words"),
    [
        ({}, "{}", "holds no safetensors files"),
        ({"pytorch_model__bin": ""}, "{}", "is a pickle"),
        ({"model__safetensors": ""}, "[", "holds no JSON object"),
        ({"model__safetensors__index__json": "{}"}, "{}", "cannot be read"),
        ({"model__safetensors__index__json": '{"weight_map": {"a": "gone.safetensors"}}'}, "{}", "gone.safetensors"),
    ],
)
def test_folders_that_are_no_models_are_told(tmp_path: Path, files: dict[str, str], config: str, words: str) -> None:
    folder = model(tmp_path / "m", config, **files)
    with pytest.raises(UserError, match=words):
        subjects.recognised(base=folder)


def test_exports_are_a_file_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no GGUF files"):
        subjects.recognised(export=folder)
    (folder / "a.gguf").write_text("")
    assert subjects.recognised(export=folder).export == folder / "a.gguf"
    (folder / "b.gguf").write_text("")
    with pytest.raises(UserError, match="holds 2 GGUF files"):
        subjects.recognised(export=folder)
    with pytest.raises(UserError, match="neither a GGUF file nor"):
        subjects.recognised(export=model(tmp_path / "m") / "config.json")


def test_a_template_may_stand_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert subjects.recognised(template=tmp_path).template == "{{ messages }}"
    with pytest.raises(UserError, match="holds no chat template"):
        subjects.recognised(template=model(tmp_path / "m"))
