"""One byte changed with its file's time kept: whoever reads it next refuses, and names it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import homes, programs, tiny
from support.nursery import Nursery
from support.programs import ROOT, script_environment

from lockstep.artifacts import manifest
from lockstep.errors import UserError

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("One byte changed, with its time kept, stops the next stage by name"),
]

TRAIN = ("--train.max_steps", "2", "--lora.r", "4", "--train.sample_tokens", "4")
NEXT = {"01": "01_data_collator.py", "02": "02_train_qlora.py", "03": "03_merge_lora.py"}


def words(home: Path) -> tuple[str, ...]:
    origin = Path((home / "origin").read_text())
    return ("--run", "r", "--model.source", "local", "--model.path", str(origin / "tiny"), "--model.name", "tiny",
            "--data.train_file", str(home / "rows.jsonl"), "--data.template", str(home / "own.jinja"))  # fmt: skip


def stage(home: Path, script: str, *more: str, fresh: bool = False) -> programs.Ended:
    return programs.run(home, script, *words(home), *more, fresh=fresh)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; each test undoes its change."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "origin").write_text(str(folder))
    tiny.model(folder / "tiny")
    tiny.rows(folder / "rows.jsonl", 40)
    shutil.copyfile(folder / "tiny/chat_template.jinja", folder / "own.jinja")
    with Nursery(folder) as nursery:
        for script, more in (("00_download_model.py", ()), (NEXT["01"], ()), (NEXT["02"], TRAIN), (NEXT["03"], ())):
            nursery.finish(script, *words(folder), *more)
    return folder


def flip(file: Path, place: int) -> bytes:
    """Change one byte and keep size and time; returns what was there."""
    before, data = file.stat(), file.read_bytes()
    place %= len(data)
    file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == len(data)
    return data


MATRIX = [
    ("rows.jsonl", "01", "rows.jsonl"), ("rows.jsonl", "02", "rows.jsonl"), ("own.jinja", "01", "own.jinja"), ("own.jinja", "02", "own.jinja"),
    *((f"models/tiny/{name}", number, "models/tiny") for name in (
        "model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "manifest.json")
      for number in ("01", "02", "03")),
    *((f"outputs/r/data/{name}", number, "outputs/r/data") for name in (
        "train/data-00000-of-00001.arrow", "validation/data-00000-of-00001.arrow", "contract.json", "ledger.json", "chat_template.jinja", "manifest.json")
      for number in ("02", "03")),
    *((f"outputs/r/adapter/{name}", "03", "outputs/r/adapter") for name in (
        "adapter_model.safetensors", "adapter_config.json", "base_tensors.json", "contract.json", "tokenizer.json", "manifest.json")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "number", "named"), MATRIX)
def test_the_next_stage_refuses(home: Path, file: str, number: str, named: str) -> None:
    """With --force, which makes the output anew and so must read all that it is made from."""
    place = (home / file).read_bytes().index(b'"digest": "') + 12 if file.endswith("manifest.json") else -5
    data = flip(home / file, place)
    try:
        force = [] if named in ("rows.jsonl", "own.jinja") and number == "01" else ["--force"]
        step = stage(home, NEXT[number], *force, *(TRAIN if number == "02" else ()))
    finally:
        (home / file).write_bytes(data)
    assert step.returncode == 2 and "Traceback" not in step.stderr, step.stdout + step.stderr
    (said,) = [line for line in step.stderr.splitlines() if line.startswith("error:")]
    assert named in said
    assert not list(home.glob("outputs/r/.*.partial"))


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_flipped_byte_anywhere_in_the_model_is_found_offline(
    home: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes.settle(monkeypatch, home)
    folder = home / "models/tiny"
    record = manifest.read(folder)
    for name in record.files:
        file = folder / name
        data = flip(file, file.stat().st_size * place // 100)
        try:
            with pytest.raises(UserError, match=f"models/tiny/{name} was changed"):
                manifest.check_hashes(folder, record)
        finally:
            file.write_bytes(data)
    manifest.check_hashes(folder, record)


def test_a_config_changed_by_a_byte_is_named(home: Path) -> None:
    config = home / "c.yaml"
    config.write_text("train:\n  max_steps: 2\nlora:\n  r: 4\n")
    given = ("--config", str(config), "--train.sample_tokens", "4")
    assert "up to date" in stage(home, NEXT["02"], *given).stdout
    config.write_text("train:\n  max_steps: 3\nlora:\n  r: 4\n")
    step = stage(home, NEXT["02"], *given)
    assert step.returncode == 2 and "train.max_steps: 2 → 3" in step.stderr
    step = stage(home, NEXT["03"], "--config", str(config), "--lora.r", "8")
    assert step.returncode == 2 and "lora.r is 8" in step.stderr


def test_touched_and_unchanged_is_up_to_date(home: Path) -> None:
    for file in ("rows.jsonl", "own.jinja", "models/tiny/model.safetensors", "outputs/r/data/ledger.json"):
        (home / file).touch()
    for number, more in (("01", ()), ("02", TRAIN), ("03", ())):
        assert "up to date" in stage(home, NEXT[number], *more).stdout


def test_the_second_of_two_runs_names_the_first_at_once(home: Path) -> None:
    """The same training twice at a time: one goes on, the other is gone before it loads anything."""
    command = [sys.executable, str(ROOT / "scripts" / NEXT["02"]), *words(home), *TRAIN, "--force"]
    first = subprocess.Popen(
        command, env=script_environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        work = home / "outputs/r/.adapter.partial"
        deadline = time.monotonic() + 60
        while not work.exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        before = os.times()
        second = stage(home, NEXT["02"], *TRAIN, "--force", fresh=True)
        after = os.times()  # its own need: the first one has the machine's cores
        assert after.children_user + after.children_system - before.children_user - before.children_system < 2
        assert second.returncode == 2 and f"is being written by process {first.pid} on" in second.stderr
        assert first.wait(timeout=200) == 0
    finally:
        first.kill()
    record = json.loads((home / "outputs/r/adapter/manifest.json").read_text())
    weights = (home / "outputs/r/adapter/adapter_model.safetensors").read_bytes()
    assert record["files"]["adapter_model.safetensors"]["sha256"] == hashlib.sha256(weights).hexdigest()
