"""Adapters trained elsewhere with PEFT: taken in, merged and measured, or refused, by stage 03 as a program."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from support import programs, tiny
from test_pipeline import common, refused

from lockstep.artifacts import atomic, manifest
from lockstep.model import checkpoint_files, networks


def foreign(folder: Path, base: Path, tokenizer=None, more: int = 0, **changes) -> torch.nn.Module:
    """Someone else's adapter, with a tokenizer of its own or none."""
    network = tiny.peft_adapter(folder, base, more, noise=0.05, **changes)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return network


def outliers(base: Path) -> None:
    """Make the 4-bit error of a base large: in each block one value sets the scale of all others."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith("proj.weight"):
            weight.view(-1)[::64] *= 20
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where stages 00 and 01 are done, with their sources beside it."""
    home = tmp_path_factory.mktemp("home")
    outliers(tiny.model(home / "source/tiny"))
    tiny.rows(home / "source/rows.jsonl", 40)
    for script in ("00_download_model.py", "01_data_collator.py"):
        done = programs.run(home, script, *common(home / "source"))
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def words(made: Path, tmp_path: Path) -> tuple[str, ...]:
    """Settings of a run whose data is made, in a home of its own."""
    for folder in ("models", "outputs"):
        shutil.copytree(made / folder, tmp_path / folder, copy_function=shutil.copy2)
    return (*common(made / "source"), "--method", "lora", "--train.dtype", "float32")


def report(home: Path) -> dict:
    return json.loads((home / "outputs/r/merged/merge_report.json").read_text())


def test_a_foreign_adapter_is_taken_in_and_merged(tmp_path: Path, stage: Run, words: tuple[str, ...]) -> None:
    foreign(tmp_path / "theirs", tmp_path / "models/tiny")
    words += ("--adapter.path", str(tmp_path / "theirs"))
    done = stage("03_merge_lora.py", *words)
    assert done.returncode == 0, done.stderr
    assert "outputs/r/adapter is complete: taken in from" in done.stdout and "note: the adapter" not in done.stdout
    adapter = tmp_path / "outputs/r/adapter"
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base_tensors.json", "coverage.json", "generation_config.json", "metrics.json",
        "manifest.json", "contract.json", "reference.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    made = json.loads((adapter / "manifest.json").read_text())
    assert (made["stage"], made["origin"]) == ("train", "external")
    assert (adapter / "contract.json").read_bytes() == (tmp_path / "outputs/r/data/contract.json").read_bytes()
    assert report(tmp_path)["passed"] and report(tmp_path)["candidates"]["original"]["kl_mean"] < 1e-3
    assert report(tmp_path)["trained"]["reference_gap"] < 1e-5
    again = stage("03_merge_lora.py", *words)
    assert again.stdout.count("is up to date") == 2
    foreign(tmp_path / "theirs", tmp_path / "models/tiny", r=8)
    assert "was made with other inputs" in refused(stage("03_merge_lora.py", *words))
    assert "give stage 03 --adapter.path and --force again" in refused(stage("03_merge_lora.py", *words[:-2]))


def test_tokens_added_to_the_vocabulary_come_along(tmp_path: Path, stage: Run, words: tuple[str, ...]) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(520 - len(tokenizer))])
    network = foreign(tmp_path / "theirs", tmp_path / "models/tiny", tokenizer, 8, modules_to_save=["embed_tokens"])
    done = stage("03_merge_lora.py", *words, "--adapter.path", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    merged = tmp_path / "outputs/r/merged"
    config = json.loads((merged / "config.json").read_text())
    assert config["vocab_size"] == 520 and "<extra_1>" in (merged / "tokenizer.json").read_text()
    assert report(tmp_path)["candidates"]["original"]["kl_mean"] < 2e-3
    ids = torch.arange(500, 520)[None]
    with torch.no_grad():
        apart = networks.load(merged, torch.float32, "cpu")(input_ids=ids).logits - network(input_ids=ids).logits
    assert apart.abs().max() < 0.05


def test_what_cannot_be_taken_in_is_one_line(tmp_path: Path, stage: Run, words: tuple[str, ...]) -> None:
    base, theirs = tmp_path / "models/tiny", tmp_path / "theirs"

    def said(*more: str) -> str:
        return refused(stage("03_merge_lora.py", *words, "--adapter.path", str(theirs), *more))

    theirs.mkdir()
    assert "holds no adapter: adapter_config.json cannot be read" in said()
    foreign(theirs, base)
    (theirs / "adapter_model.safetensors").rename(theirs / "adapter_model.bin")
    assert "adapter_model.bin there is a pickle" in said()
    (theirs / "adapter_model.bin").unlink()
    assert "run `make data CONFIG= ARGS=" in said("--run", "other")
    foreign(theirs, tiny.model(tmp_path / "wide", hidden_size=96))
    assert "the adapter belongs to another base" in said()
    foreign(theirs, base, init_lora_weights="pissa")
    assert "save it again with PEFT's path_initial_model_for_weight_conversion" in said()
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHATML.replace("assistant", "bot")
    foreign(theirs, base, tokenizer)
    assert "the adapter's own template renders the conversation" in said()
    assert not (tmp_path / "outputs/r/adapter").exists()


def test_an_adapter_of_another_base_of_equal_shape_is_named(tmp_path: Path, stage: Run, words: tuple[str, ...]) -> None:
    foreign(tmp_path / "theirs", tiny.model(tmp_path / "somebodys-model", seed=5))
    done = stage("03_merge_lora.py", *words, "--adapter.path", str(tmp_path / "theirs"))
    assert done.returncode == 0 and "note: the adapter names" in done.stdout and "somebodys-model" in done.stdout


def test_a_trained_adapter_is_not_replaced_unasked(tmp_path: Path, stage: Run, words: tuple[str, ...]) -> None:
    trained = stage("02_train_qlora.py", *words, "--train.max_steps", "2", "--train.learning_rate", "1e-2")
    assert trained.returncode == 0, trained.stderr
    before = (tmp_path / "outputs/r/adapter/adapter_model.safetensors").read_bytes()
    foreign(tmp_path / "theirs", tmp_path / "models/tiny")
    said = refused(stage("03_merge_lora.py", *words, "--adapter.path", str(tmp_path / "theirs")))
    assert "outputs/r/adapter was made with other inputs" in said and "another --run keeps both" in said
    assert (tmp_path / "outputs/r/adapter/adapter_model.safetensors").read_bytes() == before


def test_where_the_4_bit_error_is_large_the_usual_merge_is_measured_and_refused(
    tmp_path: Path, stage: Run, words: tuple[str, ...]
) -> None:
    foreign(tmp_path / "theirs", tmp_path / "models/tiny", lora_alpha=1)
    words = (*words, "--method", "qlora", "--adapter.path", str(tmp_path / "theirs"), "--merge.max_kl", "0.002")
    said = refused(stage("03_merge_lora.py", *words, "--merge.strategy", "original"))
    assert "onto the original weights" in said and "nothing ships" in said and "make serve-lora" in said
    assert not (tmp_path / "outputs/r/merged").exists()
    failed = json.loads((tmp_path / "outputs/r/merged.failed/merge_report.json").read_text())
    assert (
        failed["passed"] is False and failed["strategy"] == "original" and failed["candidates"]["dequantized"] is None
    )
    assert "nats from the trained model, more than --merge.max_kl" in failed["reason"]
    done = stage("03_merge_lora.py", *words)
    assert done.returncode == 0, done.stderr
    hashes = json.loads((tmp_path / "outputs/r/adapter/base_tensors.json").read_text())["dequantized"]
    assert len(hashes) == 14
    found = report(tmp_path)
    assert found["strategy"] == "dequantized" and found["passed"] and "reason" not in found
    closer, usual = (found["candidates"][name] for name in ("dequantized", "original"))
    assert usual["kl_mean"] > 5 * closer["kl_mean"] and usual["kl_mean"] == failed["candidates"]["original"]["kl_mean"]
    assert len(checkpoint_files.tensors_of(tmp_path / "outputs/r/merged")) == len(
        checkpoint_files.tensors_of(tmp_path / "models/tiny")
    )


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.long
@pytest.mark.promise("Models made to harm are refused before anything of theirs runs")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"rank_pattern": {"([a-z_.0-9]+)+!": 4}}, "the adapter of the model took too much time"),
        ({"alpha_pattern": {"(": 4}}, "transformers can load"),
        ({"target_modules": ".*_proj|([a-z_.0-9]+)+!"}, "the adapter of the model took too much time"),
        ({"exclude_modules": "("}, "transformers can load"),
        ({"r": "x"}, "adapter_config.json: r is 'x'"),
        ({"r": None, "lora_alpha": []}, "adapter_config.json: r is None"),
        ({"target_modules": [[]] * 9, "rank_pattern": [4]}, "transformers can load"),
        ({"bias": {}, "modules_to_save": 1}, "transformers can load"),
        (LOOPS, "the chat template of the model took too much time"),
    ],
)
def test_an_adapter_made_to_harm_is_refused_in_bounded_time(
    tmp_path: Path, stage: Run, words: tuple[str, ...], spoil: str | dict, says: str
) -> None:
    from transformers import AutoTokenizer

    theirs = tmp_path / "theirs"
    foreign(theirs, tmp_path / "models/tiny", AutoTokenizer.from_pretrained(tmp_path / "models/tiny"))
    if isinstance(spoil, str):
        (theirs / "chat_template.jinja").write_text(spoil)
    else:
        file = theirs / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | spoil))
    assert says in refused(stage("03_merge_lora.py", *words, "--adapter.path", str(theirs)))
    assert not (tmp_path / "outputs/r/adapter").exists()


@pytest.mark.promise("Models made to harm are refused before anything of theirs runs")
def test_an_adapter_of_odd_files_or_changed_since_is_refused(
    tmp_path: Path, stage: Run, words: tuple[str, ...]
) -> None:
    theirs = tmp_path / "theirs"
    config, weights = theirs / "adapter_config.json", theirs / "adapter_model.safetensors"

    def said() -> str:
        return refused(stage("03_merge_lora.py", *words, "--adapter.path", str(theirs)))

    foreign(theirs, tmp_path / "models/tiny")
    (theirs / "manifest.json").write_text('{"files": "somebody else\'s"}')
    config.write_text("[" * 10**6)
    assert "adapter_config.json of the model is nested without end" in said()
    config.unlink()
    os.mkfifo(config)
    assert "adapter_config.json is no regular file" in said()
    config.unlink()
    foreign(theirs, tmp_path / "models/tiny")
    atomic.write_json(
        theirs / "manifest.json",
        {"files": {name: one.model_dump() for name, one in manifest.hash_files(theirs).items()}},
    )
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "adapter_model.safetensors was changed after it was made: it is not taken" in said()
    assert not (tmp_path / "outputs/r/adapter").exists()


def test_an_adapter_that_was_cut_is_refused_by_the_name_of_what_is_missing(
    tmp_path: Path, stage: Run, words: tuple[str, ...]
) -> None:
    theirs = tmp_path / "theirs"
    foreign(theirs, tmp_path / "models/tiny")
    file = theirs / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "layers.1.self_attn" not in name}
    save_file(kept, file, {"format": "pt"})
    message = refused(stage("03_merge_lora.py", *words, "--adapter.path", str(theirs)))
    assert (
        "holds nothing for model.layers.1.self_attn.k_proj.weight, which its config targets (4 such weights)" in message
    )
    assert not (tmp_path / "outputs/r/adapter").exists()
