import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.edits import edit_json

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.merging import disk_check


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter and what was merged of them."""
    home = tmp_path_factory.mktemp("home")
    tiny.peft_adapter(home / "adapter", tiny.model(home / "base"))
    tiny.tokenizer().save_pretrained(home / "adapter")
    (home / "adapter" / filenames.CONTRACT).write_text("{}\n")
    tiny.merged(home / "base", home / "adapter", home / "merged")
    return home


@pytest.fixture
def merged(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "merged", tmp_path / "merged")
    return tmp_path / "merged"


def compare(home: Path, merged: Path) -> int:
    return disk_check.compare_files(merged, home / "base", home / "adapter")


def test_every_file_of_a_merged_folder_is_compared(home: Path, merged: Path) -> None:
    weights = {"model.safetensors"}
    assert compare(home, merged) == len(list(merged.iterdir())) - len(weights) >= 6


def swap_two_words(tokenizer: dict) -> dict:
    words = tokenizer["model"]["vocab"]
    words["Ġorder"], words["Ġone"] = words["Ġone"], words["Ġorder"]
    return tokenizer


def another_decoder(tokenizer: dict) -> dict:
    digits = {"type": "Replace", "pattern": {"String": "7"}, "content": "1"}
    return tokenizer | {"decoder": {"type": "Sequence", "decoders": [tokenizer["decoder"], digits]}}


@pytest.mark.parametrize(
    ("file", "change", "difference"),
    [
        (filenames.TOKENIZER, swap_two_words, "model.vocab.Ġo"),
        (filenames.TOKENIZER, another_decoder, "decoder."),
        (filenames.TOKENIZER_CONFIG, lambda config: config | {"eos_token": "<|endoftext|>"}, "eos_token"),
        (filenames.CONFIG, lambda config: config | {"sliding_window": 300}, "sliding_window"),
        (filenames.CONFIG, lambda config: config | {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        (filenames.CONFIG, lambda config: config | {"eos_token_id": [2, 9]}, "eos_token_id"),
        (filenames.GENERATION_CONFIG, lambda config: config | {"eos_token_id": 7}, "eos_token_id"),
        (filenames.GENERATION_CONFIG, lambda config: config | {"temperature": 0.1}, "temperature"),
        (filenames.CONTRACT, lambda _: {"conversations": []}, "conversations"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    home: Path, merged: Path, file: str, change: Callable[[dict], dict], difference: str
) -> None:
    edit_json(merged / file, change)
    with pytest.raises(UserError) as refusal:
        compare(home, merged)
    assert f"{file} differs from base and adapter in {difference}" in str(refusal.value)


def test_a_template_that_changes_on_one_word_is_refused(home: Path, merged: Path) -> None:
    template = merged / filenames.CHAT_TEMPLATE
    text = template.read_text(encoding="utf-8")
    template.write_text("{% if 'zebra' in messages[0]['content'] %}!{% endif %}" + text, encoding="utf-8")
    with pytest.raises(UserError, match=r"chat_template\.jinja differs from base and adapter in its text"):
        compare(home, merged)


def test_files_that_are_missing_or_too_many_are_refused(home: Path, merged: Path) -> None:
    (merged / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocab\.json does not belong there"):
        compare(home, merged)
    (merged / "vocab.json").unlink()
    (merged / filenames.GENERATION_CONFIG).unlink()
    with pytest.raises(UserError, match=r"generation_config\.json is missing"):
        compare(home, merged)


def test_the_version_of_the_library_that_wrote_it_may_differ(home: Path, merged: Path) -> None:
    edit_json(merged / filenames.CONFIG, lambda config: config | {"transformers_version": "5.0.0"})
    assert json.loads((merged / filenames.CONFIG).read_text())["transformers_version"] == "5.0.0"
    compare(home, merged)
