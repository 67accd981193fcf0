"""The account of weights: every parameter of a base is adapted, in 4 bits, as it was, or not reached by text.

`coverage.json` holds it, so that nobody has to guess what a training quantized and what it trained. Names are those of
the network's parameters in memory; sums are over the whole base, without the adapter's own parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.errors import UserError

GROUPS = ("adapted_4bit", "adapted_16bit", "frozen_4bit", "frozen_16bit", "unused_by_text")
MEANING = {
    "adapted_4bit": "4-bit, with an adapter",
    "adapted_16bit": "not quantized, trained",
    "frozen_4bit": "4-bit, frozen",
    "frozen_16bit": "not quantized, frozen",
    "unused_by_text": "not used by text",
}
ADAPTER, IDLE_EXPERTS = "adapter", "experts without an adapter"  # reasons that programs go by
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Weight:
    """One parameter of the base.

    Attributes:
        parameters: how many numbers it holds.
        bytes: that it takes in memory, scales of 4-bit blocks included; 0 where it is not loaded.
        group: one of GROUPS.
        reason: why it is there.
    """

    parameters: int
    bytes: int
    group: str
    reason: str


class Account:
    """Every parameter of a base, by name."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.weights = dict(weights)

    @property
    def parameters(self) -> int:
        return sum(weight.parameters for weight in self.weights.values())

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights.values())

    @property
    def share_4bit(self) -> float:
        """The share of all parameters that are held in 4 bits."""
        in_4bit = sum(weight.parameters for weight in self.weights.values() if weight.group.endswith("_4bit"))
        return in_4bit / max(1, self.parameters)

    @property
    def adapted(self) -> set[str]:
        """The names of all parameters that training changes."""
        return {name for name, weight in self.weights.items() if weight.group.startswith("adapted")}

    def groups(self) -> dict[str, dict[str, int]]:
        """For each of GROUPS its parameters, bytes and number of tensors."""
        sums = {group: {"parameters": 0, "bytes": 0, "tensors": 0} for group in GROUPS}
        for weight in self.weights.values():
            entry = sums[weight.group]
            entry["parameters"] += weight.parameters
            entry["bytes"] += weight.bytes
            entry["tensors"] += 1
        return sums

    def as_json(self) -> dict[str, Any]:
        """What coverage.json holds."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "share_4bit": self.share_4bit,
            "groups": self.groups(),
            "reasons": {name: weight.reason for name, weight in sorted(self.weights.items())},
        }

    def largest_unquantized(self) -> tuple[str, int]:
        """(reason, bytes) of what takes most memory outside the 4-bit weights."""
        sizes: dict[str, int] = {}
        for weight in self.weights.values():
            if not weight.group.endswith("_4bit"):
                sizes[weight.reason] = sizes.get(weight.reason, 0) + weight.bytes
        return max(sizes.items(), key=lambda entry: entry[1], default=("", 0))


def summary(account: Account) -> str:
    """One line: what was quantized, what was not, and what it takes in memory."""
    total = f"{_short(account.parameters)} parameters in {gigabytes(account.bytes)}"
    trained = sum(account.weights[name].parameters for name in account.adapted) / max(1, account.parameters)
    text = f"weights: {total}; adapted {trained:.1%}"
    if not account.share_4bit:
        return text
    reason, size = account.largest_unquantized()
    return f"{text}, 4-bit {account.share_4bit:.1%}; largest part not in 4 bits: {reason}, {gigabytes(size)}"


def table(coverage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a table for people, from what coverage.json holds; groups that are empty are left out."""
    lines = []
    for group, sums in coverage["groups"].items():
        if sums["tensors"]:
            share = sums["parameters"] / max(1, coverage["parameters"])
            lines.append({"meaning": MEANING[group], "share": share, "size": gigabytes(sums["bytes"]), **sums})
    return lines


def share_of_idle_experts(account: Account) -> float:
    """The share of all parameters that are experts without an adapter."""
    idle = sum(weight.parameters for weight in account.weights.values() if weight.reason == IDLE_EXPERTS)
    return idle / max(1, account.parameters)


def check_share(account: Account, least: float) -> None:
    """Refuse a QLoRA that would hardly quantize anything.

    Args:
        least: the share of parameters that must be in 4 bits.

    Raises:
        UserError: names the share, what stays as it is, and the setting.
    """
    if account.share_4bit >= least:
        return
    reason, size = account.largest_unquantized()
    raise UserError(
        f"--method qlora would hold only {account.share_4bit:.1%} of {_short(account.parameters)} parameters in 4 bits "
        f"({reason}: {gigabytes(size)} of {gigabytes(account.bytes)} stay as they are): take --method lora, or accept "
        f"it with --quantization.min_share_4bit {int(account.share_4bit * 100) / 100}"
    )


def _short(count: int) -> str:
    """30,532,122,624 → 30.5 B."""
    for size, letter in UNITS:
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def gigabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
