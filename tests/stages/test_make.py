"""What make does by itself: it leaves a .venv alone that is in use, and hands arguments on to earlier stages."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny
from support.programs import ROOT, free_port


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", *words, f"PYTHON={sys.executable}", "ACCEL=cpu"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | environment
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)


def test_packages_that_a_program_uses_are_not_cleared(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ROOT.glob("requirements*"):
        shutil.copy(file, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/kept").touch()
    holder = os.open(tmp_path / ".venv", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_SH)  # as cli.run does
    answer = make(tmp_path, "setup")
    os.close(holder)
    assert (
        answer.returncode == 2
        and "error: .venv is in use: another make is installing packages, or programs still run from it"
        in answer.stderr
    )
    assert [file.name for file in (tmp_path / ".venv").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("language", "says"), [("zh_CN:en", "ARGS 和 CONFIG 都只能有一行"), ("en", "ARGS and CONFIG must each be one line")]
)
def test_make_speaks_the_language_of_the_locale(language: str, says: str) -> None:
    assert says in make(ROOT, "help", "ARGS=a\nb", LANGUAGE=language).stderr


@pytest.mark.parametrize(
    ("goal", "words", "script", "handed_on"),
    [
        ("merge", "--train.learning_rate 5e-4", "02_train_qlora.py", True),
        ("merge", "--train.training_args '{\"adam_beta2\": 0.95}'", "02_train_qlora.py", True),
        ("serve", "--merge.strategy original", "03_merge_lora.py", True),
        ("serve", "--serve.mode lora", "02_train_qlora.py", True),
        ("serve", "--serve.port 8001", "02_train_qlora.py", False),
        ("serve", "--adapter.path theirs", "02_train_qlora.py", None),
        ("serve-lora", "--adapter.path theirs", "02_train_qlora.py", None),
    ],
)
def test_earlier_stages_get_the_arguments_that_they_read(
    tmp_path: Path, goal: str, words: str, script: str, handed_on: bool | None
) -> None:
    """Against stand-ins for the scripts, none of whose output is there; None: the stage is not run at all."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ROOT.glob("requirements*"):
        shutil.copy(file, tmp_path)
    stand_in = '#!/bin/bash\nfor word in "$@"; do printf "%s|" "$word"; done >> log\necho >> log\n[[ " $* " != *" --check "* ]] || exit 3\n'
    for name in (".venv/bin/python", "scripts/serve_vllm.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(stand_in)
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/cpu.stamp").touch()
    answer = make(tmp_path, goal, "CONFIG=c.yaml", f"ARGS={words}")
    assert answer.returncode == 0, answer.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    ran = [line for line in lines if script in line and "--check" not in line]
    assert len(ran) == (handed_on is not None)
    merges = [line for line in lines if "03_merge_lora.py" in line and "--check" not in line]
    assert all("|--base|" in line for line in merges) == (goal == "serve-lora")  # which serves what may not be merged
    wanted = "|".join(words.replace("'", "").split(" ", 1)) + "|"
    assert all((wanted in line) == handed_on and "--config|c.yaml|" in line for line in ran)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The real scripts without any output, and an environment that make takes for set up."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        ROOT / "Makefile",
        *ROOT.glob("requirements*"),
        *(ROOT / "configs").glob("*.yaml"),
        ROOT / "data/build_toy_dataset.py",
    ):
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv/cpu.stamp").touch()
    return folder


@pytest.mark.parametrize(
    ("goal", "words", "message"),
    [
        ("data", "--data.train_file absent.jsonl", "no file absent.jsonl: data/README.md shows what goes there"),
        ("train", "--data.template absent.jinja", "--data.template absent.jinja: absent.jinja is not there"),
        ("train", "--lora.start_from absent", "absent holds no adapter"),
        ("merge", "--adapter.path absent", "absent holds no adapter"),
        ("serve", "--serve.port {port} --data.test_file 'absent-*.jsonl'", "no file absent-*.jsonl"),
        ("evaluate", "--evaluate.panel absent.json", "--evaluate.panel: no file absent.json"),
        ("bench", "", "no file data/rows.jsonl"),
    ],
)
def test_a_wrong_path_is_found_before_a_download(checkout: Path, goal: str, words: str, message: str) -> None:
    (checkout / "mine.yaml").write_text("run: mine\ndata: {train_file: data/rows.jsonl}\n")
    if words:
        tiny.rows(checkout / "data/rows.jsonl", 3)
    arguments = words.replace("{port}", str(free_port()))  # one in use would be told of first
    answer = make(checkout, goal, "CONFIG=mine.yaml", f"ARGS={arguments}", HF_HUB_OFFLINE="1")
    errors = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert answer.returncode == 2 and len(errors) == 1 and errors[0].startswith("error: "), answer.stderr
    assert message in errors[0].replace(f"{checkout}/", "")
    assert not (checkout / "models").exists() and not (checkout / "outputs").exists()


def test_the_demos_own_rows_are_written_before_its_paths_are_checked(checkout: Path) -> None:
    answer = make(checkout, "train", PIP_NO_INDEX="1")
    assert "data/toy/test.jsonl: 86 rows" in answer.stdout and answer.stdout.count("build_toy_dataset.py") == 1
    assert "the package index did not deliver" in answer.stderr  # as far as it gets without a network
    written = [(checkout / f"data/toy/{split}.jsonl").stat().st_mtime_ns for split in ("train", "validation", "test")]
    (checkout / "data/toy/train.jsonl").unlink()
    again = make(checkout, "data", PIP_NO_INDEX="1")
    assert again.stdout.count("build_toy_dataset.py") == 1
    assert min(file.stat().st_mtime_ns for file in (checkout / "data/toy").iterdir()) > max(written)


def test_an_adapter_of_the_config_is_not_trained_again(checkout: Path) -> None:
    """Stage 02 says so to make, which cannot look into a config."""
    adapter = checkout / "theirs"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    tiny.rows(checkout / "rows.jsonl", 3)
    for text, code in (("", 3), (f"adapter: {{path: {adapter}}}\n", 0)):
        (checkout / "mine.yaml").write_text(f"run: mine\ndata: {{train_file: rows.jsonl}}\n{text}")
        command = [sys.executable, "scripts/02_train_qlora.py", "--config", "mine.yaml", "--check"]
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert answer.returncode == code, answer.stderr


def test_a_trained_whole_model_is_merged_without_its_base(checkout: Path) -> None:
    """Which its user may have deleted: gigabytes would be downloaded again."""
    (checkout / "mine.yaml").write_text("run: mine\ndata: {train_file: rows.jsonl}\n")
    tiny.rows(checkout / "rows.jsonl", 3)
    making = (
        "from lockstep import paths; from lockstep.artifacts.stage import Stage\n"
        "import sys\n"
        "with Stage('train', paths.run_dir('mine') / 'adapter', {'method': sys.argv[1]}, [], force=True).writing() as work:\n"
        "    (work / 'weights').write_text('w')\n"
    )
    for method, code in (("qlora", 3), ("full", 0)):
        environment = os.environ | {"PYTHONPATH": str(checkout / "scripts"), "LOCKSTEP_HOME": str(checkout)}
        subprocess.run([sys.executable, "-c", making, method], cwd=checkout, env=environment, check=True)
        for words, expected in ((["--to-merge"], code), ([], 3)):
            command = [sys.executable, "scripts/00_download_model.py", *words, "--config", "mine.yaml", "--check"]
            answer = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
            assert answer.returncode == expected, answer.stderr
