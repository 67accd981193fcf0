"""The gate's proof that every part of the adapter is in effect.

vLLM leaves out what it has no layer for, by name, without a word: an adapter on three modules of seven still moves
log-probabilities. So what lies in the live server's own buffers is counted against the adapter's file, module by module
and, where one parameter holds all experts of a layer, expert by expert. The file in turn must hold an update of every
parameter that training says it adapted (coverage.json).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.endpoint import protocol
from lockstep.errors import UserError
from lockstep.model.coverage import ADAPTER
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server
from lockstep.serving.worker_extension import Blocks, updates

FIELDS = ("modules_active", "modules_expected")
NAMED = 3  # missing modules that a message names


def foresee(adapter: Path) -> str:
    """Why the adapter cannot be what was trained, as its files tell; empty where they agree.

    Args:
        adapter: its folder; one without an account of its weights was trained before there was one.
    """
    adapted = _adapted(adapter)
    if not adapted:
        return ""
    from lockstep.model import adapter_files  # torch takes seconds

    held = adapter_files.read(adapter)
    experts = held.changed_experts
    trained = atomic.read_json(adapter / filenames.COVERAGE).get("adapted_experts", {})
    lost = sorted(adapted - held.low_rank.keys())
    fewer = sorted(name for name, count in trained.items() if experts.get(name, 0) < count)
    if lost:
        fault = f"lacks {len(lost)} of the {len(adapted)} updates that were trained, {lost[0]} among them"
    elif fewer:
        fault = f"changes {experts.get(fewer[0], 0)} of the {trained[fewer[0]]} experts that were trained in {fewer[0]}"
    else:
        return ""
    return f"{filenames.ADAPTER_WEIGHTS} {fault} ({filenames.COVERAGE}): it was cut; {manifest.again(adapter)}"


def check(server: Server, name: str, adapter: Path, findings: Findings) -> None:
    """Count the adapter's modules that are in effect, against those that its file holds and training adapted.

    Args:
        name: that clients send.
        adapter: its folder.

    Raises:
        Unanswered: the server does not tell.
        UserError: the adapter's file cannot be read.
    """
    workers = server.ask(protocol.MODULES)["adapters"].get(name, [])
    with _opened(adapter) as file:
        expected = sorted(updates(file.keys()))
        faults = {module: _fault(file, module, in_effect([worker.get(module, []) for worker in workers]))
                  for module in expected}  # fmt: skip
    missing = [f"{module} ({fault})" for module, fault in faults.items() if fault]
    active = len(expected) - len(missing)
    findings.report |= dict(zip(FIELDS, (active, len(_adapted(adapter)) or len(expected)), strict=True))
    if reason := foresee(adapter):
        findings.refuse("partial", reason)
    if missing or not expected:
        named = "; ".join(missing[:NAMED]) + ("; …" if len(missing) > NAMED else "")
        findings.refuse(
            "partial",
            f"{active} of the adapter's {len(expected)} modules are in effect in vLLM: {named}; "
            "take --serve.mode merged",
        )


def _adapted(adapter: Path) -> set[str]:
    """The parameters that training gave a low-rank update, by their names in memory."""
    file = adapter / filenames.COVERAGE
    reasons = atomic.read_json(file)["reasons"] if file.exists() else {}
    return {name for name, reason in reasons.items() if reason == ADAPTER}


def in_effect(workers: Sequence[Blocks]) -> Blocks:
    """Which blocks of an update hold something in all workers that have them; empty where none has a layer for it.

    Args:
        workers: what each of them says; all have the same layers (tensor parallelism), their own ones (pipelines), or
            their own experts.
    """
    answers = [blocks for blocks in workers if blocks]
    told = [[value for value in values if value is not None] for values in zip(*answers, strict=True)]
    return [bool(values) and all(values) for values in told]


@contextmanager
def _opened(adapter: Path) -> Iterator[Any]:
    """The adapter's file, as safetensors gives it."""
    from safetensors import SafetensorError, safe_open

    file = adapter / filenames.ADAPTER_WEIGHTS
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise UserError(f"{paths.label(file)} cannot be read: {error}") from error


def _fault(file: Any, module: str, live: Blocks) -> str:
    """What the live server lacks of one module's update; empty where it lacks nothing."""
    if not live:
        return "vLLM has no layer of this name"
    empty = [block for block, holds in enumerate(_held(file, module, len(live))) if holds and not live[block]]
    if not empty:
        return ""
    return "its buffer is empty" if len(live) == 1 else f"empty for {len(empty)} of {len(live)} experts"


def _held(file: Any, module: str, count: int) -> list[bool]:
    """Which blocks of a module's update hold anything but zeros in the file.

    PEFT's A of all experts is [experts · rank, in], expert by expert, and B is [out, rank · experts], in which the
    experts alternate (`ParamWrapper.get_delta_factors`).
    """
    if f"{module}.lora_embedding_A" in file.keys():  # noqa: SIM118 - no mapping
        return [True]  # an update of zeros is refused long before
    a = file.get_tensor(f"{module}.lora_A.weight").reshape(count, -1)
    b = file.get_tensor(f"{module}.lora_B.weight")
    b = b.reshape(-1, count) if count > 1 else b.reshape(-1, 1)
    return [bool(x and y) for x, y in zip(a.any(dim=1).tolist(), b.any(dim=0).tolist(), strict=True)]
