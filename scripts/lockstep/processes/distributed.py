"""Several processes that train one model, as accelerate launch and torchrun start them."""

import datetime
import os
from typing import TypeVar

from lockstep.errors import UserError


def _number(name: str, default: int) -> int:
    """A number that a launcher wrote into the environment; any other text there is not meant for us."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR")  # a launcher sets these together with WORLD_SIZE
PROCESSES = _number("WORLD_SIZE", 1) if all(os.environ.get(name) for name in LAUNCHED) else 1
RANK = _number("RANK", 0) if PROCESSES > 1 else 0
LOCAL_RANK = _number("LOCAL_RANK", 0) if PROCESSES > 1 else 0
FIRST = RANK == 0
# The launcher asks for FSDP or for DeepSpeed's ZeRO, so each process may hold only a part of every weight. That must be
# known before there is a model to look at. It is no proof: on CPU processes accelerate 1.15 makes plain DDP of an FSDP
# config, and then what goes by this is merely cautious.
MAY_BE_SHARDED = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))

Value = TypeVar("Value")


def check() -> None:
    """Refuse an incomplete launch, as on clusters that set WORLD_SIZE by themselves: no process would know its part.

    Raises:
        UserError: names the variable that is not set.
    """
    missing = [name for name in LAUNCHED if not os.environ.get(name)]
    if _number("WORLD_SIZE", 1) > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {missing[0]} is not set: start with `accelerate launch` or "
            f"torchrun, or unset WORLD_SIZE"
        )


def join(on_cpu: bool, timeout: float | None = None) -> None:
    """Let the processes find each other, if there are several.

    Args:
        timeout: seconds that a process waits for the others, whatever they do together; None: the library's default.

    Raises:
        UserError: they do not find each other.
    """
    if PROCESSES > 1:
        from accelerate import PartialState

        options = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
        joined = PartialState(cpu=on_cpu, **options).num_processes
        if joined != PROCESSES:
            raise UserError(f"WORLD_SIZE is {PROCESSES}, and {joined} processes found each other: look at the launcher")


def from_first(value: Value) -> Value:
    """The value of the first process, in all of them. They wait here for it."""
    if PROCESSES == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Value] = broadcast_object_list([value])
    return values[0]


def wait() -> None:
    """Wait until all processes are here."""
    if PROCESSES > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
