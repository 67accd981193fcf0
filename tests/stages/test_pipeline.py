"""Stages 00 to 03 as programs, one after the other, on a tiny random model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Run
from support import edits, programs, tiny
from support.programs import ROOT, script_environment
from support.serving import reseal

from lockstep.artifacts import filenames, manifest

TRAIN = (
    "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2", "--train.num_train_epochs", "5",
    "--train.save_steps", "4", "--train.eval_steps", "20", "--train.learning_rate", "1e-2", "--lora.r", "4",
)  # fmt: skip
SCRIPTS = {"00_download_model.py": (), "01_data_collator.py": (), "02_train_qlora.py": TRAIN, "03_merge_lora.py": ()}
Step = subprocess.CompletedProcess[str]


def common(source: Path) -> tuple[str, ...]:
    """Settings of every stage: a local model and a file of rows in `source`."""
    return (
        "--run", "r", "--model.source", "local", "--model.path", str(source / "tiny"), "--model.name", "tiny",
        "--data.train_file", str(source / "rows.jsonl"), "--data.max_length", "200",
    )  # fmt: skip


def build(home: Path, source: Path, *extra: str, fresh: str = "") -> dict[str, Step]:
    """Run all stages; every one must succeed.

    Args:
        fresh: the one that is started as a program of its own.
    """
    done = {}
    for script, words in SCRIPTS.items():
        done[script] = programs.run(home, script, *common(source), *words, *extra, fresh=script == fresh)
        assert done[script].returncode == 0, done[script].stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny.model(folder / "tiny")
    tiny.rows(folder / "rows.jsonl", 60)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build(home, source, fresh="03_merge_lora.py")  # forked, it would start its own processes otherwise than for users
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, free to be harmed."""
    shutil.copytree(built, tmp_path / "home", copy_function=shutil.copy2)
    return tmp_path / "home"


def refused(step: Step) -> str:
    lines = step.stderr.strip().splitlines()
    assert step.returncode == 2, step.stdout + step.stderr
    assert "Traceback" not in step.stderr
    assert sum(line.startswith("error:") for line in lines) == 1
    return lines[-1]


def test_every_stage_writes_just_what_it_promises(built: Path) -> None:
    def names(folder: str) -> set[str]:
        return {path.relative_to(built / folder).as_posix() for path in (built / folder).rglob("*") if path.is_file()}

    arrow = {
        f"{split}/{file}"
        for split in ("train", "validation", "test")
        for file in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    }
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names("models/tiny") == tokenizer | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "manifest.json",
    }
    assert names("outputs/r/data") == arrow | {
        "chat_template.jinja",
        "contract.json",
        "ledger.json",
        "quality.json",
        "rejects.jsonl",
        "changes.jsonl",
        "preview.html",
        "manifest.json",
    }
    assert names("outputs/r/adapter") == tokenizer | {
        "adapter_config.json", "adapter_model.safetensors", "base_tensors.json", "coverage.json", "generation_config.json", "metrics.json",
        "README.md", "manifest.json", "contract.json", "reference.json", "loss.png",
    }  # fmt: skip
    assert names("outputs/r/merged") == tokenizer | {
        "config.json", "generation_config.json", "model.safetensors", "merge_report.json", "manifest.json", "contract.json",
    }  # fmt: skip
    assert {path.name for path in (built / "outputs/r").iterdir() if not path.name.startswith(".")} == {
        "data", "adapter", "merged", "checkpoints", "runs", "metrics.jsonl", "samples.jsonl", "disk_check.json",
    }  # fmt: skip


def test_what_is_up_to_date_is_compared_with_base_and_adapter_once(home: Path, source: Path) -> None:
    """A manifest says that nobody changed a folder since; not that whoever wrote it was right."""
    note, run = home / "outputs/r/disk_check.json", home / "outputs/r"
    counted = json.loads(note.read_text())["merged"]
    note.unlink()
    assert "up to date" in programs.run(home, "03_merge_lora.py", *common(source)).stdout
    assert json.loads(note.read_text())["merged"] == counted and counted["tensors"] == 20
    reseal(run / "merged")
    assert "up to date" in programs.run(home, "03_merge_lora.py", *common(source)).stdout

    def swap_two(tensors: dict) -> None:
        tensors["model.embed_tokens.weight"][[400, 401]] = tensors["model.embed_tokens.weight"][[401, 400]].clone()

    edits.edit_tensors(run / "merged/model.safetensors", swap_two)
    reseal(run / "merged")
    refusal = refused(programs.run(home, "03_merge_lora.py", *common(source)))
    assert "outputs/r/merged is not the trained model: model.embed_tokens.weight differs in 128 of" in refusal


def test_the_ledger_adds_up_and_the_splits_hold_every_kept_row(built: Path) -> None:
    from datasets import load_from_disk

    ledger = json.loads((built / "outputs/r/data/ledger.json").read_text())
    (account,) = ledger["files"].values()
    assert account["lines"] == 60 == account["kept"] + sum(account["dropped"].values())
    splits = {split: load_from_disk(built / "outputs/r/data" / split) for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == account["kept"]
    for split, data in splits.items():
        assert ledger["splits"][split]["rows"] == len(data) > 0
        assert ledger["splits"][split]["tokens"] == sum(map(len, data["input_ids"]))


def test_text_is_byte_equal_and_labels_are_the_answer_and_its_end(built: Path, source: Path) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built / "models/tiny")
    source = [json.loads(line) for line in (source / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in load_from_disk(built / "outputs/r/data/train"):
        original = source[int(row["row"].rsplit(":", 1)[1]) - 1]
        assert [m["content"] for m in row["messages"]] == [
            f"{original['instruction']}\n{original['input']}",
            original["output"],
        ]
        supervised = [label for label in row["labels"] if label != -100]
        assert supervised == row["input_ids"][-len(supervised) :]
        assert tokenizer.decode(supervised) == original["output"] + "<|im_end|>"
        prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=False)
        assert row["input_ids"][: len(prompt)] == prompt


def test_one_contract_travels_from_data_to_adapter_and_merged_model(built: Path) -> None:
    from lockstep.prompts import template

    texts = {(built / f"outputs/r/{folder}/contract.json").read_bytes() for folder in ("data", "adapter", "merged")}
    assert len(texts) == 1
    contract = json.loads(texts.pop())
    merged = built / "outputs/r/merged"
    chat = template.load(merged, (merged / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))
    for conversation in contract["conversations"]:
        assert chat.prompt_ids(conversation["messages"]) == conversation["prompt_ids"]


def test_the_merge_report_proves_the_dequantized_merge(built: Path) -> None:
    report = json.loads((built / "outputs/r/merged/merge_report.json").read_text())
    assert report["passed"] is True
    assert report["strategy"] == "dequantized"
    assert report["candidates"]["dequantized"]["kl_mean"] < report["candidates"]["original"]["kl_mean"]
    assert 0 < report["rows"] <= 64


def test_training_learned_something(built: Path) -> None:
    metrics = json.loads((built / "outputs/r/adapter/metrics.json").read_text())
    first = json.loads((built / "outputs/r/metrics.jsonl").read_text().splitlines()[0])
    assert metrics["eval_loss"] < first["loss"] - 0.2
    assert metrics["tokens_per_second"] > 0 and metrics["peak_memory_bytes"] > 0


@pytest.mark.long
def test_padded_training_ends_where_training_without_padding_does(home: Path, source: Path) -> None:
    packed = json.loads((home / "outputs/r/adapter/metrics.json").read_text())
    answer = programs.run(home, "02_train_qlora.py", *common(source), *SCRIPTS["02_train_qlora.py"], "--train.padding_free", "false", "--force")  # fmt: skip
    assert answer.returncode == 0 and ", rows padded\n" in answer.stdout, answer.stderr
    padded = json.loads((home / "outputs/r/adapter/metrics.json").read_text())
    assert packed["eval_loss"] == pytest.approx(padded["eval_loss"], rel=0.02)  # dropout falls on other places
    assert packed["steps"] == padded["steps"]


def test_all_stages_again_are_up_to_date(built: Path, source: Path) -> None:
    for script, step in build(built, source).items():
        assert "is up to date" in step.stdout, script


def test_out_of_order_names_what_to_run(stage: Run, source: Path) -> None:
    assert "models/tiny is missing (no manifest.json): run `make download CONFIG= ARGS=" in refused(
        stage("01_data_collator.py", *common(source))
    )
    assert "outputs/r/data is missing (no manifest.json): run `make data CONFIG= ARGS=" in refused(
        stage("02_train_qlora.py", *common(source))
    )
    assert "outputs/r/adapter is missing (no manifest.json): run `make train CONFIG= ARGS=" in refused(
        stage("03_merge_lora.py", *common(source))
    )
    assert stage("03_merge_lora.py", *common(source), "--check").returncode == 3


def test_a_byte_of_data_changed_with_its_time_kept_stops_training(home: Path, source: Path) -> None:
    file = source / "rows.jsonl"
    before, original = file.stat(), file.read_bytes()
    file.write_bytes(original.replace(b"tea", b"tee", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        error = refused(programs.run(home, "02_train_qlora.py", *common(source), *TRAIN))
        assert "outputs/r/data was made from" in error and "rows.jsonl" in error and "make data" in error
        assert "rows.jsonl:" in refused(programs.run(home, "01_data_collator.py", *common(source)))
    finally:
        file.write_bytes(original)


def test_a_foreign_base_stops_merging(home: Path, source: Path) -> None:
    other = tiny.model(home / "other", seed=7)
    words = (*common(source), "--force", "--model.path", str(other))
    assert programs.run(home, "00_download_model.py", *words).returncode == 0
    shutil.rmtree(home / "outputs/r/merged")
    assert "was made from models/tiny" in refused(programs.run(home, "03_merge_lora.py", *common(source)))


def test_changed_settings_are_refused_by_name(home: Path, source: Path) -> None:
    assert "train.seed: 42 → 1" in refused(
        programs.run(home, "02_train_qlora.py", *common(source), *TRAIN, "--train.seed", "1")
    )
    assert "lora.r is 8 on the command line" in refused(
        programs.run(home, "03_merge_lora.py", *common(source), "--lora.r", "8")
    )
    assert "data.max_length is 64 on the command line" in refused(
        programs.run(home, "02_train_qlora.py", *common(source), *TRAIN, "--data.max_length", "64")
    )
    (home / "edited.yaml").write_text("train: {learning_rate: 1.0e-3}")
    edited = ("--config", str(home / "edited.yaml"), *common(source))
    message = f"outputs/r/adapter was trained with other settings: train.learning_rate is 0.001 in {home}/edited.yaml and was 0.01"
    for script in ("03_merge_lora.py", "05_evaluate.py"):  # what they make of the old model is up to date
        assert message in refused(programs.run(home, script, *edited))
    serve = [str(ROOT / "scripts/serve_vllm.sh"), *edited, "--serve.max_model_len", "64"]
    environment = script_environment(home, PYTHON=sys.executable)
    assert message in refused(subprocess.run(serve, env=environment, capture_output=True, text=True, check=False))
    kept = programs.run(home, "03_merge_lora.py", *edited, "--train.learning_rate", "1e-2")
    assert "is up to date" in kept.stdout, kept.stderr


def test_a_merge_past_its_bound_ships_nothing_and_says_why(home: Path, source: Path) -> None:
    shutil.rmtree(home / "outputs/r/merged")
    error = refused(
        programs.run(
            home, "03_merge_lora.py", *common(source), "--merge.strategy", "original", "--merge.max_kl", "1e-12"
        )
    )
    assert "nothing ships" in error
    assert not (home / "outputs/r/merged").exists()
    assert json.loads((home / "outputs/r/merged.failed/merge_report.json").read_text())["passed"] is False
    assert programs.run(home, "03_merge_lora.py", *common(source), "--merge.strategy", "dequantized").returncode == 0
    assert json.loads((home / "outputs/r/merged/merge_report.json").read_text())["candidates"]["original"] is None
    assert not (home / "outputs/r/merged.failed").exists()


def test_the_dequantized_base_for_adapter_serving(home: Path, source: Path) -> None:
    assert programs.run(home, "03_merge_lora.py", *common(source), "--base").returncode == 0
    assert (home / "outputs/r/base/model.safetensors").exists()
    assert "up to date" in programs.run(home, "03_merge_lora.py", *common(source), "--base").stdout


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(
    home: Path, built: Path, number: int, source: Path
) -> None:
    for name in ("adapter", "merged", "checkpoints", "runs"):
        shutil.rmtree(home / "outputs/r" / name)
    words = [sys.executable, str(ROOT / "scripts/02_train_qlora.py"), *common(source), *TRAIN]
    training = subprocess.Popen(
        words, env=script_environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    sealed = home / "outputs/r/checkpoints/checkpoint-4/manifest.json"
    deadline = time.monotonic() + 120
    while not sealed.exists():
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    training.send_signal(number)
    _, errors = training.communicate(timeout=60)
    assert not (home / "outputs/r/adapter").exists()
    if number == signal.SIGINT:
        assert training.returncode == 130
        remains = r"outputs/r/checkpoints/checkpoint-\d+ remains, and the same command goes on from there"
        assert re.fullmatch(rf"error: interrupted; {remains}\n", errors)
    changed = refused(programs.run(home, "02_train_qlora.py", *common(source), *TRAIN, "--train.seed", "1"))
    assert "holds a training with other config.train.seed" in changed or "other train.seed" in changed
    again = programs.run(home, "02_train_qlora.py", *common(source), *TRAIN)
    assert again.returncode == 0, again.stderr
    assert "resuming from outputs/r/checkpoints/checkpoint-" in again.stdout
    weights = [(folder / "outputs/r/adapter/adapter_model.safetensors").read_bytes() for folder in (home, built)]
    assert weights[0] == weights[1]


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(home: Path, source: Path) -> None:
    shutil.rmtree(home / "outputs/r/adapter")
    newest = max((home / "outputs/r/checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"")
    number = sorted(int(path.name.split("-")[1]) for path in newest.parent.glob("checkpoint-*"))[-2]
    older = newest.with_name(f"checkpoint-{number}")
    threads = json.loads((older / "lockstep.json").read_text())["threads"]
    edits.edit_json(older / "lockstep.json", lambda note: note | {"threads": threads + 5})
    hashes = {name: record.model_dump() for name, record in manifest.hash_files(older).items()}
    (older / "manifest.json").write_text(json.dumps({"files": hashes}))
    again = programs.run(home, "02_train_qlora.py", *common(source), *TRAIN)
    assert again.returncode == 0, again.stderr
    assert f"damaged, so not resumed from: outputs/r/checkpoints/{newest.name}.broken" in again.stdout
    assert f"resuming from outputs/r/checkpoints/{older.name}\n" in again.stdout
    assert f"note: {threads + 5} threads computed so far, and {threads} go on" in again.stdout


def test_lora_without_quantization_and_the_chinese_instruction_template(tmp_path: Path, source: Path) -> None:
    words = ("--method", "lora", "--data.template", "instruction_zh", "--data.system_prompt", "你是甄嬛。")
    build(tmp_path, source, *words)
    report = json.loads((tmp_path / "outputs/r/merged/merge_report.json").read_text())
    assert report["strategy"] == "original" and report["candidates"]["dequantized"] is None
    assert "你是甄嬛。" in (tmp_path / "outputs/r/merged/chat_template.jinja").read_text(encoding="utf-8")
    assert "no other base is needed" in programs.run(tmp_path, "03_merge_lora.py", *common(source), "--base").stdout


@pytest.mark.long
@pytest.mark.skipif(not tiny.SHARED_QWEN3.exists(), reason="the real Qwen3 tokenizer is not at hand")
def test_a_tiny_qwen3_with_the_real_tokenizer(tmp_path: Path) -> None:
    tiny.qwen3(tmp_path / "tiny")
    tiny.rows(tmp_path / "rows.jsonl", 40)
    build(tmp_path, tmp_path, "--train.max_steps", "2", "--quantization.min_share_4bit", "0")
    stops = json.loads((tmp_path / "outputs/r/merged/generation_config.json").read_text())["eos_token_id"]
    assert stops == 151645  # <|im_end|>


def test_a_training_killed_after_its_last_step_publishes_the_same_weights(
    home: Path, built: Path, source: Path
) -> None:
    """Trainer itself would train one step more when it resumes from the last one."""
    folder = "outputs/r/adapter"
    shutil.rmtree(home / folder)
    again = programs.run(home, "02_train_qlora.py", *common(source), *TRAIN)
    assert again.returncode == 0, again.stderr
    assert "resuming from outputs/r/checkpoints/checkpoint-" in again.stdout
    for name in ("adapter_model.safetensors", "README.md", "manifest.json"):
        mine, clean = (
            json.loads(x) if x[:1] == b"{" else x for x in ((h / folder / name).read_bytes() for h in (home, built))
        )
        if name == "manifest.json":
            mine, clean = mine["digest"], clean["digest"]
        assert mine == clean, name
    took, clean = (json.loads((h / folder / "metrics.json").read_text()) for h in (home, built))
    assert took["train_seconds"] > 0.5 * clean["train_seconds"] > 0  # and not of the last piece, which had no step


def test_nothing_untrained_or_broken_is_published(home: Path, source: Path) -> None:
    words = (*common(source), *TRAIN, "--run", "n", "--train.max_steps", "3")
    shutil.copytree(home / "outputs/r/data", home / "outputs/n/data")
    error = refused(programs.run(home, "02_train_qlora.py", *words, "--train.learning_rate", "1e30"))
    assert "lower --train.learning_rate" in error
    assert not (home / "outputs/n/adapter").exists()
    shutil.rmtree(home / "outputs/n/checkpoints")
    error = refused(programs.run(home, "02_train_qlora.py", *words, "--lora.target_modules", "q_proj,lm_head"))
    assert "cannot be merged or served" in error
    shutil.rmtree(home / "outputs/n/checkpoints")
    assert "not found" in refused(programs.run(home, "02_train_qlora.py", *words, "--lora.target_modules", "nothing"))
    assert "max_steps" in refused(programs.run(home, "02_train_qlora.py", *words, "--train.max_steps", "0"))


def test_no_held_out_rows_at_all(tmp_path: Path, source: Path) -> None:
    build(tmp_path, source, "--data.validation_share", "0", "--data.test_share", "0", "--train.max_steps", "4")
    metrics = json.loads((tmp_path / "outputs/r/adapter/metrics.json").read_text())
    assert "eval_loss" not in metrics


def test_files_of_the_user_are_never_replaced_unasked(home: Path, source: Path) -> None:
    (home / "outputs/u/data").mkdir(parents=True)
    (home / "outputs/u/data/mine.jsonl").write_text("mine")
    error = refused(programs.run(home, "01_data_collator.py", *common(source), "--run", "u"))
    assert "outputs/u/data holds files that Lockstep did not write" in error
    shutil.copytree(source / "tiny", home / "models/own")
    words = ("--model.source", "local", "--model.path", str(home / "models/own"), "--model.name", "own", "--force")
    assert "is models/own itself" in refused(programs.run(home, "00_download_model.py", *words))
    assert (home / "models/own/model.safetensors").exists()
