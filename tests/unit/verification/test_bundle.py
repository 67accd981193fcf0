"""A bundle of a finished run: what is in it, that equal runs give equal bytes, and that its parts belong together."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import homes
from support.programs import Ended, run
from support.serving import Home, reseal

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.manifest import canonical
from lockstep.errors import UserError
from lockstep.settings.schema import Model
from lockstep.settings.tree import Settings
from lockstep.verification import bundle, bundle_file, bundle_weights
from lockstep.verification.bundle import Bundle


@pytest.fixture(scope="module")
def packed(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A copy of the finished run, with its bundle."""
    home = finished.copy(tmp_path_factory.mktemp("bundle") / "home")
    home.stage("bundle.py")
    return home


def bundle_of(home: Home) -> Path:
    return home.run / filenames.BUNDLE


def again(home: Home, *words: str) -> Ended:
    return run(home.folder, "bundle.py", *home.words, *words)


def repack(home: Home, change: Callable[[dict[str, str]], object]) -> Bundle:
    """What is read after parts were changed by somebody who makes the bundle's hashes right again."""
    parts = dict(bundle_file.read(bundle_of(home)).parts)
    change(parts)
    file = home.folder / "other.lockstep"
    bundle_file.write(file, "r", parts)
    return bundle.read(file)


def test_it_holds_what_a_deployment_is_held_against_and_no_weights(packed: Home) -> None:
    read = bundle.read(bundle_of(packed))
    expectation = read.expectation()
    assert expectation.contract == atomic.read_json(packed.run / "adapter/contract.json")
    assert expectation.reference == atomic.read_json(packed.run / "adapter/reference.json")
    assert expectation.sampling == {}
    for stage in ("data", "adapter", "merged", "base"):
        assert read.manifests[stage].digest == manifest.read(packed.run / stage).digest
    assert read.manifests["model"].digest == manifest.read(packed.folder / "models/tiny").digest
    tensors = bundle_weights.hashes(packed.run / "merged")
    assert read.weights["merged"] == tensors and len(tensors) > 10 and read.weights["model"].keys() == tensors.keys()
    assert read.json("merged/merge_report.json")["passed"] and read.json("disk_check.json").keys() == {"merged", "base"}
    text = gzip.decompress(bundle_of(packed).read_bytes()).decode()
    assert bundle_of(packed).stat().st_size < 100_000 and str(packed.folder) not in text
    assert read.rows == len(expectation.reference["rows"])


def test_it_holds_no_time_and_no_row_but_those_of_the_reference(packed: Home) -> None:
    read = bundle.read(bundle_of(packed))
    for stage, record in read.manifests.items():
        assert not (record.created or record.argv or record.metrics or record.config_file), stage
    rows = read.json(bundle.REQUIRED[1])["rows"]
    held_out = {int(row["row"].rpartition(":")[2]) for row in rows}
    shown = json.dumps([row["messages"] for row in rows])
    for number, line in enumerate((packed.origin / "rows.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        question = json.dumps(f"{row['instruction']}\n{row['input']}")
        assert (question in shown) == (number in held_out), line


def test_equal_runs_give_equal_bytes(packed: Home, tmp_path: Path) -> None:
    before = bundle_of(packed).read_bytes()
    answer = again(packed)
    assert answer.returncode == 0, answer.stderr
    assert bundle_of(packed).read_bytes() == before
    assert f"outputs/r/bundle.lockstep is complete: {len(before) / 1024:.0f} KiB" in answer.stdout
    # a run that was made again at another time, by another command
    for stage in ("data", "adapter", "merged", "base"):
        file = packed.run / stage / filenames.MANIFEST
        record = atomic.read_json(file)
        shutil.copy(file, tmp_path / stage)
        atomic.write_json(
            file, record | {"created": "2020-01-01T00:00:00+00:00", "argv": ["x"], "seconds": 1, "threads": 64}
        )
    assert again(packed).returncode == 0
    assert bundle_of(packed).read_bytes() == before
    for stage in ("data", "adapter", "merged", "base"):
        shutil.copy(tmp_path / stage, packed.run / stage / filenames.MANIFEST)


def test_check_tells_whether_the_bundle_of_this_run_is_there(packed: Home, finished: Home, tmp_path: Path) -> None:
    assert again(packed, "--check").returncode == 0
    home = packed.copy(tmp_path / "home")
    record = atomic.read_json(home.run / "merged/merge_report.json")
    atomic.write_json(home.run / "merged/merge_report.json", record | {"bound": 0.5})
    reseal(home.run / "merged")
    assert again(home, "--check").returncode == 3
    bundle_of(home).unlink()
    assert again(home, "--check").returncode == 3


def test_what_is_not_finished_or_was_changed_is_refused_with_the_command_to_run(packed: Home, tmp_path: Path) -> None:
    home = packed.copy(tmp_path / "home")
    bundle_of(home).unlink()

    def error(*words: str) -> str:
        answer = again(home, *words)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1, answer.stderr
        assert not bundle_of(home).exists()
        return answer.stderr

    contract = home.run / "adapter/contract.json"
    text = contract.read_text()
    contract.write_text(text.replace('"stop_ids"', '"stop_idz"'))
    assert "outputs/r/adapter/contract.json was changed after it was made: run `make train" in error()
    contract.write_text(text)
    (home.run / "base").rename(tmp_path / "base")
    (home.run / "merged").rename(tmp_path / "merged")
    assert "outputs/r/merged is missing (no manifest.json): run `make merge" in error()
    (tmp_path / "merged").rename(home.run / "merged")
    (home.run / "adapter").rename(tmp_path / "adapter")
    assert "outputs/r/adapter is missing (no manifest.json): run `make train" in error()
    (tmp_path / "adapter").rename(home.run / "adapter")
    assert "--key absent.pem cannot be read: No such file" in error("--key", "absent.pem")
    (home.run / "serve").mkdir()
    served = {f"outputs/r/{stage}": manifest.read(home.run / stage).digest for stage in ("merged", "adapter")}
    atomic.write_json(home.run / "serve/gate_report.json", {"served": served, "passed": False, "seconds": 1.0})
    assert (
        "the gate kept the endpoint of this model shut (outputs/r/serve/gate_report.json): run `make serve" in error()
    )
    # without base/, as it was not made, and with a gate that passed
    atomic.write_json(home.run / "serve/gate_report.json", {"served": served, "passed": True, "seconds": 1.0})
    assert again(home).returncode == 0
    read = bundle.read(bundle_of(home))
    assert read.json("serve/gate_report.json") == {"served": served, "passed": True} and "base" not in read.manifests
    # of a model that is there no more
    atomic.write_json(home.run / "serve/gate_report.json", {"served": {"outputs/r/merged": "0" * 64}, "passed": False})
    assert again(home).returncode == 0
    assert "serve/gate_report.json" not in bundle.read(bundle_of(home)).packed.parts


@pytest.mark.long
def test_a_merge_that_is_not_of_base_and_adapter_is_not_packed(packed: Home, tmp_path: Path) -> None:
    home = packed.copy(tmp_path / "home")
    config = home.run / "merged/config.json"
    atomic.write_json(config, atomic.read_json(config) | {"rms_norm_eps": 0.1})
    reseal(home.run / "merged")
    answer = again(home)
    assert answer.returncode == 2 and "config.json differs from base and adapter in rms_norm_eps" in answer.stderr


def test_every_part_that_is_exchanged_is_named(packed: Home) -> None:
    names = bundle_file.read(bundle_of(packed)).parts.keys()
    free = {bundle.WEIGHTS, filenames.DISK_CHECK}  # which only a signature covers
    covered = [name for name in names if name not in free and not name.endswith(filenames.MANIFEST)]
    assert len(covered) > 12
    for name in covered:
        with pytest.raises(UserError, match=f"{name} is not the one that the manifest of {name.split('/')[0]} lists"):
            repack(packed, lambda parts, name=name: parts.update({name: parts[name] + " "}))
    for name in bundle.REQUIRED:
        with pytest.raises(UserError, match=f"lacks its part {name}"):
            repack(packed, lambda parts, name=name: parts.pop(name))


def other_digest(part: str) -> Callable[[dict[str, str]], None]:
    """Another stage's output, complete in itself."""

    def change(parts: dict[str, str]) -> None:
        record = manifest.Manifest.model_validate_json(parts[part])
        changed = record.model_copy(update={"config": record.config | {"other": 1}})
        changed = changed.model_copy(update={"digest": changed.content_digest()})
        parts[part] = canonical(changed.model_dump(by_alias=True)).decode()

    return change


def test_parts_of_several_runs_are_refused(packed: Home) -> None:
    for stage in ("model", "data", "adapter"):
        with pytest.raises(UserError, match=f"was made from another {stage} than the one in it; pack it again"):
            repack(packed, other_digest(f"{stage}/manifest.json"))
    with pytest.raises(UserError, match="lacks the manifest of the training"):
        repack(packed, lambda parts: parts.pop("data/manifest.json"))

    def edit(parts: dict[str, Any]) -> None:
        parts["merged/manifest.json"] = parts["merged/manifest.json"].replace(
            '"strategy": "auto"', '"strategy": "original"'
        )

    with pytest.raises(UserError, match="the manifest of merged is not what its own digest says"):
        repack(packed, edit)
    with pytest.raises(UserError, match=r"its part data/manifest.json is no manifest"):
        repack(packed, lambda parts: parts.update({"data/manifest.json": "{}"}))


def test_a_renamed_run_is_packed(packed: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = packed.copy(tmp_path / "home")
    home.run.rename(home.run.with_name("other"))
    homes.settle(monkeypatch, home.folder)
    settings = Settings(run="other", model=Model(name="tiny"))
    assert bundle.pack(settings, paths.OUTPUTS / "other" / filenames.BUNDLE).packed.run == "other"
