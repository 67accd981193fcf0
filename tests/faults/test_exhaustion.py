"""What runs out, stage by stage: the disk, a file's size, memory, numbers. The last good output stays as it was.

Each stage has a finished output, and is told to make it again (--force) while something is missing: it ends
with exit code 2 and one line, what was there is still there, and once there is enough again the stage ends well.
"""

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.nursery import Ended, Nursery
from support.serving import reseal
from support.world import STAGES, World, broken, contents, one_line

from lockstep.artifacts import manifest

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("Where disk, memory or numbers run out, a stage says so in one line and loses nothing"),
]

AGAIN = dict.fromkeys(STAGES, ("--force",)) | {"report": ()}
# What a stage says or keeps of an unfinished try, beside its output.
UNFINISHED = (
    "/checkpoints/",
    "/metrics.jsonl",
    "/samples.jsonl",
    "/answers/",
    ".partial",
    "/merged.failed/",
    "/sheet.csv",
)


FILLED: set[str] = set()  # places at which the disk was full once, in this stage or one before


def published(home: Path) -> dict[str, str]:
    return {name: what for name, what in contents(home).items() if not any(part in name for part in UNFINISHED)}


def finish(world: World, name: str) -> None:
    """The home just after the stage has ended well."""
    world.nursery.restore(world.clean[name].before)
    assert world.run(name).code == 0


def kept(world: World, name: str, good: dict[str, str]) -> list[str]:
    """What is not as it was."""
    found = published(world.nursery.home)
    return [file for file in sorted(found.keys() | good.keys()) if found.get(file) != good.get(file)]


def starved(world: World, name: str, codes: tuple[int, ...] = (0, 2), **task: Any) -> tuple[Ended, str]:
    """How the stage ended that has to do with less, and what is wrong with that, or nothing."""
    good = published(world.nursery.home)
    ended = world.run(name, more=AGAIN[name], **task)
    changed = [*kept(world, name, good), *broken(world.nursery.home)]  # what is made again is equal, too
    if changed:
        return ended, f"ends with {ended.code}, and changed {changed}"
    if ended.code not in codes:
        return ended, f"ends with {ended.code}: {ended.printed[-1500:]}"
    try:
        if ended.code == 2:
            one_line(ended)
    except AssertionError as error:
        return ended, f"says more than a line: {error}"
    return ended, ""


def broke_beneath(ended: Ended) -> bool:
    """Whether native code, or the interpreter itself, could not do without the memory."""
    hung = ended.code == -signal.SIGKILL and re.search(r"threading\.py.* in start$", ended.printed, re.MULTILINE)
    no_room_for_a_thread = ended.code == 127 and "cannot allocate memory for thread-local data: ABORT" in ended.printed
    died = ended.code in (-signal.SIGABRT, -signal.SIGSEGV) or "PanicException" in ended.printed
    return died or no_room_for_a_thread or bool(hung)


@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_is_full_at_each_place_that_writes(world: World, name: str, record_property: Any) -> None:
    finish(world, name)
    snapshot = world.nursery.keep(world.nursery.home / "snapshots/finished")
    sites = world.run(name, more=AGAIN[name], count_sites=True).sites
    takes_room = {site: count for site, count in sites.items() if site.split()[-1] not in {"os.unlink", "os.rmdir"}
                  and "rmtree" not in site and "unlink" not in site and site not in FILLED}  # fmt: skip
    FILLED.update(takes_room)
    chance, wrong = random.Random(name), []
    record_property("cases", len(takes_room))
    for site, count in takes_room.items():
        world.nursery.restore(snapshot)
        _, fault = starved(world, name, do="full", at=site, time=chance.randint(1, count))
        wrong += [f"{site}: {fault}"] if fault else []
    assert not wrong, "\n".join(wrong)
    assert world.run(name, more=AGAIN[name]).code == 0


@pytest.mark.parametrize("name", STAGES)
def test_files_that_may_not_grow(world: World, name: str, record_property: Any) -> None:
    limits = (0, 100, 2_000, 20_000, 60_000, 150_000)
    record_property("cases", len(limits))
    finish(world, name)
    snapshot = world.nursery.keep(world.nursery.home / "snapshots/finished")
    wrong = []
    for limit in limits:
        world.nursery.restore(snapshot)
        _, fault = starved(world, name, file_size=limit + 1)
        wrong += [f"{limit} bytes: {fault}"] if fault else []
    assert not wrong, "\n".join(wrong)
    assert world.run(name, more=AGAIN[name]).code == 0


@pytest.mark.parametrize("name", STAGES)
def test_an_address_space_that_ends(world: World, name: str, record_property: Any) -> None:
    """Where an allocation fails in native code, that may be the end: Rust (tokenizers) panics or aborts (SIGABRT), C++
    (torch, in a layer or in autograd's thread) ends with SIGSEGV or SIGABRT, glibc with 127 where it has no room for what
    a thread keeps, and Python's Thread.start waits for ever for a thread that died as it began. Of such an end no line can be promised, and it is not counted; that nothing is lost
    is, and is required all the same.
    """
    rooms = (1, 8, 30, 80, 200)  # MB beyond what a stage has once all is imported
    finish(world, name)
    snapshot = world.nursery.keep(world.nursery.home / "snapshots/finished")
    wrong, counted = [], len(rooms)
    for room in rooms:
        world.nursery.restore(snapshot)
        ended, fault = starved(world, name, address_space=room * 2**20)
        if broke_beneath(ended) and "changed" not in fault:
            counted -= 1
        else:
            wrong += [f"{room} MB: {fault}"] if fault else []
    record_property("cases", counted)
    assert not wrong, "\n".join(wrong)
    assert world.run(name, more=AGAIN[name]).code == 0


# The heaviest call of each stage.
HEAVY = {
    "local": "00_download_model.py fetch_local", "hub": "lockstep/download/hub.py fetch", "data": "lockstep/data/arrow_writer.py write",
    "train": "lockstep/training/loss.py loss_sum", "merge": "lockstep/merging/merge.py write_weights", "base": "lockstep/merging/merge.py write_weights",
    "external": "lockstep/merging/merge.py write_weights", "batch": "lockstep/client/openai_client.py record", "evaluate": "lockstep/evaluation/contestants.py collect",
    "report": "lockstep/evaluation/report_page.py write",
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("kind", ["memory", "cuda memory"])
def test_memory_runs_out_in_the_heaviest_call(world: World, name: str, kind: str) -> None:
    finish(world, name)
    _, fault = starved(world, name, codes=(2,), do=kind, at=f"call {HEAVY[name]}")
    assert not fault, fault
    assert world.run(name, more=AGAIN[name]).code == 0


def spoil(folder: Path, tensor: str, value: float) -> None:
    """Put a value into a tensor of a safetensors folder, and make its manifest true again."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if tensor in name)
    weights[name].view(-1)[0] = value
    save_file(weights, file, {"format": "pt"})
    if (folder / "manifest.json").exists():
        reseal(folder)


NUMBERS = {
    "a base to be trained on": ("train", "models/tiny", "q_proj"),
    "the adapter to be merged": ("merge", "outputs/r/adapter", "lora_B"),
    "someone's adapter": ("external", "peft", "lora_B"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", NUMBERS)
def test_weights_that_are_no_numbers(world: World, case: str, value: float) -> None:
    name, folder, tensor = NUMBERS[case]
    world.nursery.restore(world.clean[name].before)
    home = world.nursery.home
    shutil.copytree(home / "peft", home / "peft.good", dirs_exist_ok=True)
    try:
        spoil(home / folder, tensor, value)
        if folder == "models/tiny":  # as if the data had been made with it
            reseal(home / "outputs/r/data", {folder: manifest.read(home / folder).digest})
        ended = world.run(name, more=("--force",))
        assert ended.code == 2, ended.printed[-3000:]
        assert any(word in one_line(ended) for word in ("finite", "nan", "inf")), ended.printed
    finally:
        shutil.rmtree(home / "peft")
        (home / "peft.good").rename(home / "peft")


def test_a_local_model_with_weights_that_are_no_numbers_is_not_taken(world: World) -> None:
    home = world.nursery.home
    world.nursery.restore(world.clean["local"].before)
    shutil.copytree(home / "tiny", home / "tiny.good")
    try:
        spoil(home / "tiny", "q_proj", float("nan"))
        ended = world.run("local")
        assert ended.code == 2 and "finite" in one_line(ended)
    finally:
        shutil.rmtree(home / "tiny")
        (home / "tiny.good").rename(home / "tiny")


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A second nursery, whose home is empty: a disk is put there."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "disk").mkdir()
    with Nursery(folder / "disk", folder) as nursery:
        yield nursery


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A disk of memory, of `size` bytes."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("name", ["local", "data", "train", "merge", "base"])
def test_a_real_disk_that_is_full(world: World, name: str, beside: Nursery, record_property: Any) -> None:
    """With little room left beside what is there."""
    rooms = (16, 64, 256, 600)  # KB
    record_property("cases", len(rooms))
    before = world.clean[name].before
    used = sum(file.stat().st_size + 4096 for file in before.rglob("*"))
    wrong = []
    for room in rooms:
        with disk(beside.home, used + room * 1024):
            beside.restore(before)
            good = published(beside.home)
            ended = beside.run(*world.words(name))
            found = published(beside.home)
        if ended.code not in (0, 2):
            wrong.append(f"{room} KB: ends with {ended.code}: {ended.printed[-1500:]}")
        elif ended.code == 2:
            one_line(ended)
            wrong += [f"{room} KB: {file} differs" for file, what in good.items() if found.get(file) != what]
    assert not wrong, "\n".join(wrong)
