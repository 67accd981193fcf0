"""Names on disk: which tensors of a checkpoint each parameter of the network is made of, by transformers' own mapping.

Inside a run, tensors have the names that they have in memory: those of the network's state dict. Files may name them
otherwise (`backbone.layers.0…`), hold the experts of a layer one by one, or hold several matrices as one.
transformers describes that in a conversion mapping of renamings and converters; here the mapping is applied to names
and shapes alone, with the network on the meta device. Every converter only moves elements, so the way back is exact.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lockstep.errors import UserError
from lockstep.model import checkpoint_files, networks
from lockstep.model.checkpoint_files import FileTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Member:
    """One tensor of a group.

    Attributes:
        name: in the files.
        renamed: its name where the converter takes over.
        pattern: of the converter, by which that took it.
        shape: in the files.
    """

    name: str
    renamed: str
    pattern: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Parameters and the tensors of the files that they are made of, all of them together.

    Attributes:
        parameters: shape of each, by its name in memory.
        tensors: names in the files, in the order in which the converter takes them.
        members, target, converter: for the conversion; None where the one tensor is the one parameter.
    """

    parameters: dict[str, tuple[int, ...]]
    tensors: tuple[str, ...]
    members: tuple[Member, ...] = ()
    target: str = ""
    converter: Any = None
    network: Any = field(default=None, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether the one tensor is the one parameter, under another name perhaps."""
        return self.converter is None

    @property
    def can_return(self) -> bool:
        """Whether transformers' conversion leads back to tensors of the files' shapes."""
        empty = {name: torch.empty(shape, device="meta") for name, shape in self.parameters.items()}
        try:
            self.to_file(empty)
        except UserError:
            return False
        return True

    def to_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters, from tensors by their names in the files."""
        if self.converter is None:
            return dict(zip(self.parameters, (tensors[name] for name in self.tensors), strict=True))
        converter = deepcopy(self.converter)
        for member in self.members:
            converter.add_tensor(self.target, member.name, member.pattern, tensors[member.name])
        return _converted(converter, self.target, self.network)

    def to_file(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as files hold them, from parameters by their names in memory.

        Raises:
            UserError: transformers' mapping leads to other tensors than the files hold.
        """
        if self.converter is None:
            return dict(zip(self.tensors, (parameters[name] for name in self.parameters), strict=True))
        if (parts := self._parts_of_one(parameters)) is not None:
            return parts
        reverse = self.converter.reverse_transform()
        key = ""
        for name in self.parameters:
            key, pattern = reverse.rename_source_key(name)
            reverse.add_tensor(key, name, pattern, parameters[name])
        converted = _converted(reverse, key, self.network)
        tensors = {}
        for member in self.members:
            # a checkpoint of the base model alone has no prefix, and the mapping gives one, or the other way round
            tensor = next((converted[name] for name in converted if _same_but_for_prefix(name, member.renamed)), None)
            if tensor is None or tensor.numel() != torch.Size(member.shape).numel():
                raise UserError(
                    f"{member.name} cannot be written again as the checkpoint holds it: transformers' conversion "
                    f"makes {min(converted, default='nothing')} of it"
                )
            tensors[member.name] = tensor.reshape(member.shape)
        return tensors

    def _parts_of_one(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors that a converter only joins; transformers would cut them into equal parts, whatever they were."""
        from transformers.core_model_loading import Concatenate

        operation, *more = self.converter.operations
        if more or not isinstance(operation, Concatenate):
            return None
        (whole,) = parameters.values()
        order = self.converter.source_patterns
        members = sorted(self.members, key=lambda member: order.index(member.pattern))
        parts = torch.split(whole, [member.shape[operation.dim] for member in members], operation.dim)
        return {member.name: part.contiguous() for member, part in zip(members, parts, strict=True)}

    def check_round_trip(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`to_memory`, having checked that `to_file` gives every bit of these tensors back. Raises UserError."""
        parameters = self.to_memory(tensors)
        for name, tensor in self.to_file(parameters).items():
            if tensor.dtype != tensors[name].dtype or not torch.equal(tensor, tensors[name]):
                raise UserError(f"{name} would come back from transformers' conversion as another tensor: not merged")
        return parameters


@dataclass(frozen=True)
class CheckpointNames:
    """The names of one checkpoint, on disk and in memory.

    Attributes:
        network: on the meta device, in bfloat16.
        tensors: all that the files hold.
        groups: the loaded ones, in the files' order.
        unloaded: names in the files that transformers does not load, such as heads that predict further tokens.
    """

    network: "PreTrainedModel"
    tensors: dict[str, FileTensor]
    groups: tuple[Group, ...]
    unloaded: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every loaded parameter and saved buffer, by its name in memory."""
        return {name: shape for group in self.groups for name, shape in group.parameters.items()}

    @property
    def buffers(self) -> set[str]:
        """Names in memory that are no parameters."""
        return {name for name, _ in self.network.named_buffers()}

    @property
    def tied(self) -> dict[str, str]:
        """Tied parameters, each with the name of the one whose weights it shares: head → embedding."""
        return dict(self.network.all_tied_weights_keys)

    def group_of(self, parameter: str) -> Group:
        """What a parameter is made of. Raises KeyError where the checkpoint has none of that name."""
        return self._by_parameter[parameter]

    @cached_property
    def _by_parameter(self) -> dict[str, Group]:
        return {name: group for group in self.groups for name in group.parameters}

    def size(self, names: Iterable[str]) -> int:
        """Bytes of these tensors of the files."""
        return sum(self.tensors[name].size for name in names)

    def on_disk(self, parameter: str) -> str:
        """The name in the files of a parameter that is one tensor there, or would be one.

        A head that is no longer the embedding gets the name by which transformers would save it.
        """
        group = self._by_parameter.get(parameter)
        if group and group.is_plain:
            return group.tensors[0]
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import rename_source_key

        mapping = get_model_conversion_mapping(self.network, add_legacy=False)
        for name in self.tensors:  # marks what this checkpoint uses
            rename_source_key(name, *_split(mapping))
        reverse = [transform.reverse_transform() for transform in mapping[::-1] if transform.was_used()]
        on_disk, _ = rename_source_key(parameter, *_split(reverse), reverse=True)
        renamed, _ = _renamed(on_disk, mapping, self.network)
        return on_disk if renamed == parameter else parameter


def of_folder(folder: Path) -> CheckpointNames:
    """The names of a checkpoint: config.json and the headers of its files are read, and no tensor.

    Raises:
        UserError: the config names no causal language model.
    """
    return of_network(networks.empty(folder), checkpoint_files.tensors_of(folder))


def of_network(network: Any, tensors: dict[str, FileTensor]) -> CheckpointNames:
    """The names of a network on the meta device, and of the tensors that its files hold.

    It goes as transformers' `convert_and_load_state_dict_in_model` does.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(network)
    renamings, converters = _split(mapping)
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = network.state_dict()
    plain: dict[str, str] = {}  # parameter → tensor
    collected: dict[str, list[Member]] = {}  # the first parameter of a group → its tensors
    unloaded = []
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = _renamed(name, mapping, network, state)
        if target not in state or (pattern is None and target in plain):
            unloaded.append(name)
        elif pattern is None:
            plain[target] = name
        else:
            renamed, _ = rename_source_key(name, renamings, [])
            collected.setdefault(target, []).append(Member(name, renamed, pattern, tensors[name].shape))
    groups = [Group({target: tensors[name].shape}, (name,)) for target, name in plain.items()]
    for target, members in collected.items():
        group = _group(network, target, members, by_pattern[members[0].pattern], tensors)
        if group.parameters.keys() & state.keys():
            groups.append(group)
        else:
            unloaded += group.tensors
    place = {name: position for position, name in enumerate(tensors)}
    groups.sort(key=lambda group: min(place[name] for name in group.tensors))
    return CheckpointNames(network, tensors, tuple(groups), tuple(sorted(unloaded, key=place.__getitem__)))


def _group(network: Any, target: str, members: list[Member], converter: Any, tensors: dict[str, FileTensor]) -> Group:
    """What a converter makes of its tensors, tried on the meta device."""
    from transformers.core_model_loading import Transpose

    names = tuple(member.name for member in members)
    if len(members) == 1 and any(isinstance(step, Transpose) and step.check_dims for step in converter.operations):
        # "transpose unless the shape fits" is no way back: it becomes one of the two
        if tuple(network.state_dict()[target].shape) == members[0].shape:
            return Group({target: members[0].shape}, names)
        converter = deepcopy(converter)
        for step in converter.operations:
            if isinstance(step, Transpose):
                step.check_dims = False
    group = Group({}, names, tuple(members), target, converter, network)
    dtype = {member.name: DTYPES.get(tensors[member.name].dtype, torch.uint8) for member in members}
    empty = {member.name: torch.empty(member.shape, dtype=dtype[member.name], device="meta") for member in members}
    parameters = {name: tuple(tensor.shape) for name, tensor in group.to_memory(empty).items()}
    return Group(parameters, names, tuple(members), target, converter, network)


def _split(mapping: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """The renamings and the converters of a mapping."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = list(mapping)
    return (
        [transform for transform in transforms if isinstance(transform, WeightRenaming)],
        [transform for transform in transforms if isinstance(transform, WeightConverter)],
    )


def _renamed(
    name: str, mapping: Iterable[Any], network: Any, state: Mapping[str, Any] | None = None
) -> tuple[str, str | None]:
    """The name in memory of a tensor in the files, and the pattern of the converter that takes it, if one does."""
    from transformers.core_model_loading import rename_source_key

    state = network.state_dict() if state is None else state
    target, pattern = rename_source_key(name, *_split(mapping), network.base_model_prefix, state)
    if target not in state and name in state:
        target, pattern = rename_source_key(name, [], [], network.base_model_prefix, state)
    return target, pattern


def _converted(converter: Any, target: str, network: Any) -> dict[str, Tensor]:
    realized = converter.convert(target, model=network, config=network.config)
    return {name: part[0] if isinstance(part, list) else part for name, part in realized.items()}


def _same_but_for_prefix(first: str, second: str) -> bool:
    return f".{first}".endswith(f".{second}") or f".{second}".endswith(f".{first}")
