"""The house keeps its order: packages import downwards only, functions fit on a screen, names say what they hold."""

import ast
import re
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.artifacts import filenames

PACKAGE = ROOT / "scripts/lockstep"
# A room imports only from those before it, inside functions too; scripts import any of them.
ORDER = (
    "errors", "paths", "text", "processes", "settings", "artifacts", "prompts", "endpoint", "download", "model", "data",
    "training", "merging", "serving", "client", "evaluation", "verification", "doctor", "chat",
)  # fmt: skip
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FUNCTION = 60  # lines
ROOMS = 20  # at the top of lockstep/
# Words that say nothing of what a variable holds.
EMPTY_NAMES = {"found", "one", "said", "made", "wanted", "some"}
PRINTING = {"settings/cli.py", "serving/supervisor.py"}  # where errors are reported, and a program of its own


def names_of(files: list[Path]) -> list[str]:
    return [file.relative_to(ROOT / "scripts").as_posix() for file in files]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def room_of(file: Path) -> str:
    place = file.relative_to(PACKAGE)
    return place.parts[0] if len(place.parts) > 1 else place.stem


def imported(file: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions and for types only."""
    names = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_file(name: str) -> Path | None:
    """The file of `lockstep.a.b`, or of `lockstep.a.b.c` where c is something in it."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        file = (ROOT / "scripts").joinpath(*parts[:end]).with_suffix(".py")
        if file.exists():
            return file
    return None


def test_every_room_stands_in_the_order() -> None:
    rooms = {room_of(file) for file in MODULES} - {"__init__"}
    assert rooms == set(ORDER)
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= ROOMS


@pytest.mark.parametrize("file", MODULES, ids=names_of(MODULES))
def test_a_package_imports_only_from_those_before_it(file: Path) -> None:
    own = room_of(file)
    for name in imported(file):
        if name.startswith("lockstep."):
            room = name.split(".")[1]
            assert room == own or own == "__init__" or ORDER.index(room) < ORDER.index(own), name


def test_no_module_imports_itself_by_way_of_others() -> None:
    uses = {
        file: {other for name in imported(file) if name.startswith("lockstep.") and (other := module_file(name))}
        for file in MODULES
    }
    finished: set[Path] = set()

    def visit(file: Path, way: tuple[Path, ...]) -> None:
        assert file not in way, " → ".join(names_of([*way, file]))
        if file not in finished:
            for other in uses[file]:
                visit(other, (*way, file))
            finished.add(file)

    for file in MODULES:
        visit(file, ())


@pytest.mark.parametrize("file", [*SCRIPTS, *MODULES], ids=names_of([*SCRIPTS, *MODULES]))
def test_no_file_imports_a_stage_or_finds_modules_in_another_way(file: Path) -> None:
    stages = {script.stem for script in SCRIPTS}
    assert not stages & {name.split(".")[0] for name in imported(file)}
    text = file.read_text(encoding="utf-8")
    assert "importlib.import_module" not in text and "sys.path" not in text and "runpy" not in text


@pytest.mark.parametrize("file", MODULES, ids=names_of(MODULES))
def test_only_programs_print(file: Path) -> None:
    calls = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints or file.relative_to(PACKAGE).as_posix() in PRINTING


@pytest.mark.parametrize("file", [*SCRIPTS, *MODULES], ids=names_of([*SCRIPTS, *MODULES]))
def test_functions_fit_on_a_screen(file: Path) -> None:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("file", [*SCRIPTS, *MODULES], ids=names_of([*SCRIPTS, *MODULES]))
def test_names_say_what_they_hold(file: Path) -> None:
    tree = tree_of(file)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not names & EMPTY_NAMES


@pytest.mark.parametrize("file", MODULES, ids=names_of(MODULES))
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(tree_of(file)), "no docstring"


def test_unit_tests_stand_where_the_code_does() -> None:
    """tests/unit/<package>/test_<module>.py; what concerns several modules stands beside the packages.

    Where two packages have a module of one name, test_<package>_<module>.py: pytest takes each name once.
    """
    for test in (ROOT / "tests/unit").glob("*/test_*.py"):
        own = test.stem.removeprefix("test_")
        names = (own, own.removeprefix(f"{test.parent.name}_"))
        places = [PACKAGE / test.parent.name / f"{name}.py" for name in names]
        assert any(place.exists() for place in places), f"{test.relative_to(ROOT)} tests no module of that name"


FILE_NAME = re.compile(
    r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.(json|jsonl|jinja|safetensors|model|html|csv|txt|png|md|log)"
)


def written_names(file: Path) -> set[str]:
    """The names of files and folders that a module spells out: whole literals, and what stands after a path's slash."""
    names = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE_NAME.fullmatch(node.value):
            names.add(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            names |= set(node.right.value.split("/")) if isinstance(node.right.value, str) else set()
    return names


def test_the_name_of_a_file_or_folder_stands_in_one_place() -> None:
    """Names that stages share are constants of artifacts/filenames.py; any other name belongs to one module alone."""
    shared = {value for value in vars(filenames).values() if isinstance(value, str)}
    modules_of: dict[str, list[str]] = {}
    for file in [*SCRIPTS, *MODULES]:
        # paths.py names what is outside of runs: the repository's own data/, models/ and outputs/
        if file not in (PACKAGE / "artifacts/filenames.py", PACKAGE / "paths.py"):
            for name in written_names(file):
                modules_of.setdefault(name, []).append(file.name)
    repeated = {name: modules for name, modules in modules_of.items() if name in shared or len(modules) > 1}
    assert not repeated, "use artifacts/filenames.py"
