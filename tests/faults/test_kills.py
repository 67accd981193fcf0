"""SIGKILL at each place from which a stage changes the disk; then the same command again.

What stands there at the end equals the clean run, byte for byte where nothing is timed, and no stage has
read a folder whose manifest does not verify. LOCKSTEP_KILLS=every kills at many more moments of each place.
"""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from support.world import STAGES, World, again

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("A stage that is killed anywhere, and run again, ends as if it had not been"),
]

EVERY = os.environ.get("LOCKSTEP_KILLS") == "every"


def moments(sites: dict[str, int], chance: random.Random) -> list[tuple[str, int]]:
    """(site, how many calls of it before the kill): one a site, or up to 12 spread over all."""
    if not EVERY:
        return [(site, chance.randint(1, count)) for site, count in sites.items()]
    return [
        (site, time)
        for site, count in sites.items()
        for time in sorted({1 + round(n * (count - 1) / 11) for n in range(12)})
    ]


def killed_at(world: World, name: str, sites: dict[str, int], before: Path, more: tuple[str, ...] = ()) -> list[str]:
    """What is wrong after kills at each of the sites, and the same command again."""
    wrong = []
    for site, time in moments(sites, random.Random(name)):
        for when in (time, 1):  # the last calls need not come again: threads of a library race for who makes a folder
            world.nursery.restore(before)
            killed = world.run(name, more, do="kill", at=site, time=when)
            if killed.code == -signal.SIGKILL:
                break
        else:
            wrong.append(f"{site}, time {time}: was not reached")
        wrong += [f"{site}, time {time}: {fault}" for fault in again(world, name, more)]
    return wrong


@pytest.mark.parametrize("name", STAGES)
def test_a_kill_at_each_place_that_changes_the_disk(world: World, name: str, record_property: Any) -> None:
    sites = world.sites(name)
    record_property("cases", len(moments(sites, random.Random(name))))
    wrong = killed_at(world, name, sites, world.clean[name].before)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in {"batch", "report"}])
def test_a_kill_at_each_place_that_replaces_an_output(world: World, name: str, record_property: Any) -> None:
    """With --force and a finished output: only the places that do not come in a first run."""
    world.nursery.restore(world.clean[name].before)
    assert world.run(name).code == 0
    finished = world.nursery.keep(world.nursery.home / "snapshots/finished")
    sites = world.run(name, ("--force",), count_sites=True).sites
    only_here = {site: count for site, count in sites.items() if site not in world.clean[name].ended.sites}
    record_property("cases", len(only_here))
    wrong = killed_at(world, name, only_here, finished, ("--force",))
    assert only_here and not wrong, "\n".join(wrong)


def test_a_kill_at_each_place_where_training_goes_on(world: World, record_property: Any) -> None:
    """Killed, and killed again: only the places that do not come in a first run."""
    clean = world.clean["train"]
    world.nursery.restore(clean.before)
    world.run("train", do="kill", at="call lockstep/training/checkpoints.py publish", time=2)
    begun = world.nursery.keep(world.nursery.home / "snapshots/begun")
    only_here = {
        site: n for site, n in world.run("train", count_sites=True).sites.items() if site not in clean.ended.sites
    }
    record_property("cases", len(only_here))
    wrong = killed_at(world, "train", only_here, begun)
    assert only_here and not wrong, "\n".join(wrong)
