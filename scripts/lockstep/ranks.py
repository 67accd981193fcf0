"""Several processes that train one model, as accelerate launch and torchrun start them."""

import os
from typing import TypeVar


def _number(name: str, default: int) -> int:
    """What a launcher wrote; anything else there is not ours."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


PROCESSES = _number("WORLD_SIZE", 1)
RANK = _number("RANK", 0) if PROCESSES > 1 else 0
LOCAL_RANK = _number("LOCAL_RANK", 0) if PROCESSES > 1 else 0
FIRST = RANK == 0
# Each process holds only a part of every weight: FSDP, DeepSpeed's ZeRO.
SHARDED = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))

Value = TypeVar("Value")


def join(on_cpu: bool) -> None:
    """Let the processes find each other; nothing where there is one."""
    if PROCESSES > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu)


def from_first(value: Value) -> Value:
    """The first process's value, in all of them. They wait here for it."""
    if PROCESSES == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Value] = broadcast_object_list([value])
    return values[0]


def wait() -> None:
    """Until all processes are here."""
    if PROCESSES > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
