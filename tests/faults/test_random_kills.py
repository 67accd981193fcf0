"""SIGKILL at random times, one after another, and SIGTERM in every phase of training; then the same command again.

What stands there at the end equals the clean run, as in test_kills.py.
"""

import random
from typing import Any

import pytest
from support.world import STAGES, World, again, one_line

pytestmark = [
    pytest.mark.faults,
    pytest.mark.promise("A stage that is killed anywhere, and run again, ends as if it had not been"),
]

RANDOM_TIMES = {"train": 50}  # 20 in other stages


@pytest.mark.parametrize("name", STAGES)
def test_kills_at_random_times(world: World, name: str, record_property: Any) -> None:
    clean, chance, wrong = world.clean[name], random.Random(name), []
    times = RANDOM_TIMES.get(name, 20)
    record_property("cases", times)
    world.nursery.restore(clean.before)
    whole = world.run(name, watch_reads=True).seconds
    for _ in range(times):
        world.nursery.restore(clean.before)
        after = 0.01 + chance.random() * whole
        world.run(name, watch_reads=True, kill_after=after)
        wrong += [f"after {after:.3f} s: {fault}" for fault in again(world, name)]
    assert not wrong, "\n".join(wrong)


def test_kill_after_kill(world: World, record_property: Any) -> None:
    """Training that never lives long: killed until it is through."""
    clean, chance = world.clean["train"], random.Random("again")
    world.nursery.restore(clean.before)
    kills = 0
    while not (world.nursery.home / "outputs/r/adapter").exists() and kills < 40:
        world.run("train", watch_reads=True, kill_after=clean.ended.seconds * (0.2 + 0.3 * chance.random()))
        kills += 1
    record_property("cases", kills)
    assert not again(world, "train")


PHASES = {
    "load": ("call lockstep/model/networks.py load", 1),
    "step 1": ("call lockstep/training/trainer.py training_step", 1),
    "mid-accumulation": ("call lockstep/training/loss.py loss_sum", 6),
    "evaluation": ("call lockstep/training/trainer.py evaluate", 1),
    "save": ("call lockstep/training/checkpoints.py publish", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_every_phase_of_training(world: World, phase: str) -> None:
    at, time = PHASES[phase]
    world.nursery.restore(world.clean["train"].before)
    ended = world.run("train", do="term", at=at, time=time)
    outlook = "there is no checkpoint yet" if phase == "load" else "remains, and the same command goes on from there"
    assert ended.code == 75 and outlook in one_line(ended)
    left = [path.name for path in (world.nursery.home / "outputs/r").glob("*adapter*")]
    assert left == [".adapter.lock"], "something looks complete"
    assert not again(world, "train")
