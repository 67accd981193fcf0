"""merged/ and base/ as a whole, compared on disk with what base and adapter give: every tensor, every other file.

The result is kept beside the folder, for as long as the folder and what it was made of stay what they are.
"""

import tempfile
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError
from lockstep.processes import busy
from lockstep.settings.tree import Settings

# Keys that may differ without a change of what the model does: where → key → why.
FREE = {
    filenames.CONFIG: {"transformers_version": "the library's version when the file was written"},
    filenames.GENERATION_CONFIG: {"transformers_version": "the library's version when the file was written"},
    filenames.TOKENIZER_CONFIG: {
        "name_or_path": "where the tokenizer was loaded from",
        "is_local": "whether that was a folder",
        "local_files_only": "whether that was a folder",
    },
}
OWN = {filenames.MANIFEST, filenames.MERGE_REPORT}  # what this folder alone has


def require(settings: Settings, folder: Path) -> dict[str, Any]:
    """Compare a folder with what its base and adapter give, unless that was done for these very files.

    Args:
        settings: of the training.
        folder: merged/ or base/ of the run.

    Returns:
        `tensors`, `elements`, `rounded`, `requantized` (see `weights_check.Account`) and `files`, all compared.

    Raises:
        UserError: it is another model, or another tokenizer, template or config.
    """
    from lockstep.merging import certificate

    if remembered := _remembered(settings, folder):
        return remembered
    with busy.waiting(f"comparing {paths.label(folder)} with what base and adapter give"):
        compared = certificate.in_fresh_process(compare, settings, folder)
    _remember(settings, folder, compared)
    return compared


def is_remembered(settings: Settings, folder: Path) -> bool:
    """Whether `require` has nothing to compute."""
    return _remembered(settings, folder) is not None


def remember_written(settings: Settings, folder: Path) -> None:
    """Note that a folder is what base and adapter give: stage 03 has just written it so, and read it back."""
    from lockstep.model import checkpoint_files

    tensors = checkpoint_files.tensors_of(folder).values()
    weights = {file.name for file in checkpoint_files.files(folder)} | {filenames.WEIGHTS_INDEX}
    counts = {"tensors": len(tensors), "elements": sum(prod(tensor.shape) for tensor in tensors)}
    rest = manifest.payload(folder).keys() - weights - OWN
    _remember(settings, folder, {**counts, "rounded": 0, "requantized": 0, "files": len(rest)})


def compare(settings: Settings, folder: Path) -> dict[str, Any]:
    """As `require`, without looking at what is remembered. It loads torch."""
    from lockstep.merging import merge, weights_check
    from lockstep.merging.dequantizer import Dequantizer
    from lockstep.model import adapter_delta, adapter_files, merge_plan

    adapter = settings.run_dir / filenames.ADAPTER
    full, is_base = settings.method == "full", folder.name == filenames.BASE
    base = adapter if full else settings.model.folder
    change = adapter_delta.AdapterDelta() if full or is_base else adapter_files.read(adapter)
    dequantized = is_base or _strategy(folder) == "dequantized"
    dequantizer = Dequantizer(adapter, settings.quantization, strict=False) if dequantized else None
    float32 = atomic.read_json(adapter / filenames.BASE_TENSORS).get("float32")
    plan = merge_plan.plan_merge(base, change)
    account = weights_check.compare(merge.Merge(plan, dequantizer, float32), folder)
    if account.wrong:
        name, difference = next(iter(account.wrong.items()))
        more = f", and {len(account.wrong) - 1} more tensors do" if len(account.wrong) > 1 else ""
        raise _other(folder, f"{name} {difference}, from what base and adapter give{more}")
    files = compare_files(folder, base, adapter)
    counts = asdict(account)
    del counts["wrong"]
    return counts | {"files": files}


def compare_files(folder: Path, base: Path, adapter: Path) -> int:
    """Write all but the weights anew beside the folder's weights, and compare; returns how many files there are.

    Raises:
        UserError: a file is missing, does not belong there, or says something else.
    """
    from lockstep.merging import merged_folder
    from lockstep.model import checkpoint_files

    weights = {file.name for file in checkpoint_files.files(folder)} | {filenames.WEIGHTS_INDEX}
    with tempfile.TemporaryDirectory() as name:
        again = Path(name)
        for file in weights:
            if (folder / file).exists():
                (again / file).symlink_to((folder / file).resolve())
        merged_folder.write_rest(base, adapter, again)
        expected = {file.name for file in again.iterdir()} - weights
        present = set(manifest.payload(folder)) - weights - OWN
        for file in sorted(expected ^ present):
            raise _other(folder, f"{file} {'is missing' if file in expected else 'does not belong there'}")
        for file in sorted(expected):
            if difference := _difference(folder / file, [again / file, adapter / file]):
                raise _other(folder, f"{file} differs from base and adapter in {difference}")
    return len(expected)


def _remember(settings: Settings, folder: Path, compared: dict[str, Any]) -> None:
    """Keep a result for these very files."""
    file = settings.run_dir / filenames.DISK_CHECK
    atomic.write_json(file, _results(file) | {folder.name: {"of": _identity(settings, folder), **compared}})


def _remembered(settings: Settings, folder: Path) -> dict[str, Any] | None:
    result = _results(settings.run_dir / filenames.DISK_CHECK).get(folder.name)
    if not isinstance(result, dict) or result.pop("of", None) != _identity(settings, folder):
        return None
    return result


def _results(file: Path) -> dict[str, Any]:
    try:
        results = atomic.read_json(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return results if isinstance(results, dict) else {}


def _identity(settings: Settings, folder: Path) -> dict[str, str]:
    """What a result holds for: label → digest."""
    folders = [folder, settings.run_dir / filenames.ADAPTER]
    folders += [settings.model.folder] if settings.method != "full" else []
    return {paths.label(part): manifest.read(part).digest for part in folders}


def _strategy(folder: Path) -> str:
    strategy: str = atomic.read_json(folder / filenames.MERGE_REPORT)["strategy"]
    return strategy


def _other(folder: Path, what: str) -> UserError:
    return UserError(f"{paths.label(folder)} is not the trained model: {what}; {manifest.again(folder)}")


def _difference(file: Path, expected: list[Path]) -> str:
    """In what a file differs from the nearest of those that are right; empty where it is one of them.

    A tokenizer that another version of the library wrote may look otherwise than one that is written now, but both
    merged/ and adapter/ then have that one's.
    """
    differences = []
    for other in expected:
        if not other.exists():
            continue
        if file.suffix == ".json":
            free = FREE.get(file.name, {}).keys()
            differences.append(_first_key(atomic.read_json(file), atomic.read_json(other), free))
        else:
            differences.append("" if file.read_bytes() == other.read_bytes() else "its text")
    return "" if "" in differences else differences[0]


def _first_key(value: Any, other: Any, free: Any, path: str = "") -> str:
    """Where two JSON values differ first; empty where they are the same."""
    if isinstance(value, dict) and isinstance(other, dict):
        for key in sorted((value.keys() | other.keys()) - (free if not path else set())):
            inner = f"{path}.{key}" if path else key
            if (key in value) != (key in other):
                return inner
            if difference := _first_key(value[key], other[key], free, inner):
                return difference
        return ""
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        for place, (left, right) in enumerate(zip(value, other, strict=True)):
            if difference := _first_key(left, right, free, f"{path}[{place}]"):
                return difference
        return ""
    return "" if type(value) is type(other) and value == other else path or "its content"
