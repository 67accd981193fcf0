"""Trained output → one model in bfloat16, shard by shard over safetensors, with exact arithmetic.

A QLoRA adapter was trained on weights that went through 4 bits and back. Usually it is added to the
original weights instead, which makes another model than the one that was trained.
"""

import math
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.merging import safetensors_stream
from lockstep.merging.dequantizer import Dequantizer
from lockstep.model import merged_dtypes
from lockstep.model.adapter_delta import BLOCK, AdapterDelta
from lockstep.model.checkpoint_names import Group
from lockstep.model.merge_plan import MergePlan, plan_merge
from lockstep.processes import busy

DTYPE = torch.bfloat16  # of merged models, but for what `merged_dtypes` keeps


class Merge:
    """A planned merge, tensor by tensor, under the names of the base's files.

    Args:
        dequantizer: replaces weights by their dequantized 4-bit ones; None keeps the original weights.
        float32: after full training, names in the files of what the base keeps in float32: see `merged_dtypes`.

    Attributes:
        files: for each file of the base, the tensors to write there in their order, with shape and dtype.
        unbounded: those that may hold infinities: bounds of clipped layers, which are no parameters.
    """

    def __init__(
        self, plan: MergePlan, dequantizer: Dequantizer | None, float32: Collection[str] | None = None
    ) -> None:
        self.plan, self.dequantizer = plan, dequantizer
        self.changed = plan.adapter.names | (dequantizer.hashes.keys() if dequantizer else set())
        self.dtypes = merged_dtypes.of_names(plan.names, DTYPE, float32)
        # what each tensor is made of: a parameter, a group of which it is a part, or itself
        self.parameters: dict[str, str] = {}
        self.groups: dict[str, Group] = {}
        for group in plan.names.groups:
            if group.is_plain:
                self.parameters[group.tensors[0]] = next(iter(group.parameters))
            elif self.changed & group.parameters.keys():
                self.groups |= dict.fromkeys(group.tensors, group)
        self.source_of = {plan.names.on_disk(parameter): parameter for parameter in plan.parted}
        self.parameters |= self.source_of
        self.files = self._files()
        buffers = plan.names.buffers
        self.unbounded = {name for name, parameter in self.parameters.items() if parameter in buffers}
        self._waiting: dict[str, Tensor] = {}  # of groups that stand in several files

    def sources(self, name: str) -> set[str]:
        """The base's parameters, by their names in memory, that a tensor of the files is made of."""
        if name in self.groups:
            return set(self.groups[name].parameters)
        parameter = self.parameters.get(name)
        return set() if parameter is None else {self.plan.parted.get(parameter, parameter)}

    def _files(self) -> dict[Path, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        files: dict[Path, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
        for name, tensor in self.plan.names.tensors.items():
            written = files.setdefault(tensor.file, {})
            group = self.groups.get(name)
            # the tensors of a group one after the other: then no more than one group is in memory
            for member in group.tensors if group else (name,):
                if self.plan.names.tensors[member].file == tensor.file:
                    written[member] = (self.plan.names.tensors[member].shape, self.dtypes[member])
            parameter = self.parameters.get(name)
            if parameter is None:
                continue
            written[name] = (self.plan.shapes[parameter], self.dtypes[name])
            for on_disk, other in self.source_of.items():
                if self.plan.parted[other] == parameter:
                    written[on_disk] = (self.plan.shapes[other], self.dtypes[name])
        return files

    def pieces(self) -> Iterator[tuple[Path, str, Iterator[Tensor]]]:
        """(the base's file, tensor's name there, its rows in blocks) of the merged model, not yet in its dtype.

        Raises:
            UserError: a tensor is not the one that was trained on; an adapter's change is none.
        """
        for shard, targets in self.files.items():
            with ExitStack() as stack:
                self._opened = {shard: stack.enter_context(safe_open(shard, framework="pt"))}
                for name in targets:
                    yield shard, name, self._blocks(name)

    def _blocks(self, name: str) -> Iterator[Tensor]:
        if name in self.groups:
            if name not in self._waiting:
                self._waiting |= self._merged(self.groups[name])
            yield self._waiting.pop(name)
        elif name in self.parameters:
            parameter = self.parameters[name]
            of_base = self.plan.parted.get(parameter, parameter)
            yield from self._changed(parameter, of_base, self._read(self.plan.names.group_of(of_base).tensors[0]))
        else:
            yield self._read(name)

    def _changed(self, parameter: str, of_base: str, weight: Tensor) -> Iterator[Tensor]:
        """What the merge makes of a parameter's weight, in blocks of rows."""
        if self.dequantizer:
            weight = self.dequantizer(of_base, weight)
        if parameter in self.plan.adapter.names:
            yield from self.plan.adapter.pieces(parameter, weight)
        elif weight.numel() > BLOCK:
            rows = max(1, BLOCK * len(weight) // weight.numel())
            yield from (weight[start : start + rows] for start in range(0, len(weight), rows))
        else:
            yield weight

    def _merged(self, group: Group) -> dict[str, Tensor]:
        """The tensors of a group as the files hold them, from its parameters with what training changed."""
        parameters = group.check_round_trip({name: self._read(name) for name in group.tensors})
        for parameter in list(parameters):
            weight = parameters.pop(parameter)
            blocks = self._changed(parameter, parameter, weight)
            parameters[parameter] = torch.cat([block.to(self.dtypes[group.tensors[0]]) for block in blocks])
        return group.to_file(parameters)

    def _read(self, name: str) -> Tensor:
        file = self.plan.names.tensors[name].file
        tensor: Tensor
        if file in self._opened:
            tensor = self._opened[file].get_tensor(name)
        else:  # a group may stand in several files
            with safe_open(file, framework="pt") as opened:
                tensor = opened.get_tensor(name)
        return tensor


def write_weights(
    base: Path,
    out: Path,
    adapter: AdapterDelta,
    dequantizer: Dequantizer | None,
    float32: Collection[str] | None = None,
) -> safetensors_stream.Sums:
    """The merged model's files and their index, a block of rows in memory at a time, or one layer's experts.

    Args:
        float32: as of `Merge`.

    Returns:
        what `safetensors_stream.verify` must find when it reads them back.

    Raises:
        UserError: as `plan_merge` and `pieces` do; or values are not finite.
    """
    plan = plan_merge(base, adapter)
    if dequantizer and (missing := dequantizer.hashes.keys() - plan.shapes.keys()):
        raise UserError(f"the adapter belongs to another base: {min(missing)} is not in {base.name}")
    merge = Merge(plan, dequantizer, float32)
    out.mkdir(parents=True, exist_ok=True)
    sums: safetensors_stream.Sums = {}
    with ThreadPoolExecutor(1) as disk, _one_thread():
        synced = []
        count = sum(map(len, merge.files.values()))
        pieces = busy.steps(merge.pieces(), f"writing {out.name} weights", count, "tensors")
        for shard, members in groupby(pieces, key=itemgetter(0)):
            with safetensors_stream.Writer(out / shard.name, merge.files[shard]) as writer:
                for _, name, blocks in members:
                    writer.write(name, blocks, finite=name not in merge.unbounded)
            sums[shard.name] = writer.sums
            synced.append(disk.submit(atomic.fsync, out / shard.name))
        for job in synced:
            job.result()
    if (base / filenames.WEIGHTS_INDEX).exists():
        written = [entry for tensors in merge.files.values() for entry in tensors.values()]
        safetensors_stream.write_index(out, sums, sum(dtype.itemsize * math.prod(shape) for shape, dtype in written))
    return sums


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread: blocks are small, and the other thread writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
