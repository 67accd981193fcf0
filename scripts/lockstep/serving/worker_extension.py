"""Inside vLLM's workers: which parts of an adapter lie in the buffers that answers are computed with.

vLLM adds `AdapterBlocks` to its worker's class (`--worker-extension-cls`), so that the middleware can ask every worker.
What is looked at is vLLM 0.32's: `vllm/lora/model_manager.py` keeps the layers that take adapters, each with stacked
buffers in which an adapter has a slot, and packs what a network keeps apart (q, k and v into one layer).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".lora_A.weight", ".lora_embedding_A")  # of the one tensor by which an update is counted
INNER = ".base_layer"  # PEFT's ending of the first of two updated parameters of one module: experts' gate_up_proj

Blocks = list[bool | None]  # of one update, one per expert: whether it holds anything; None: another worker has it
Pairs = list[tuple["Tensor", "Tensor"]]  # buffers of A and B


def updates(names: Iterable[str]) -> Iterator[str]:
    """The modules that an adapter's file updates, from the names of its tensors, with PEFT's prefix."""
    for name in names:
        for ending in ENDINGS:
            if name.endswith(ending):
                yield name.removesuffix(ending)


class AdapterBlocks:
    """What vLLM's worker class gets beside its own methods."""

    model_runner: Any  # of vLLM's worker

    def lockstep_blocks(self, lora_id: int, file: str) -> dict[str, Blocks]:
        """For each update in an adapter's file, whether its blocks in this worker hold anything but zeros.

        Args:
            lora_id: by which vLLM knows the adapter.
            file: adapter_model.safetensors, from which vLLM loaded it.

        Returns:
            module, as the file names it → blocks; none where this worker has no layer for it, or the adapter no slot.
        """
        from safetensors import safe_open

        manager = self.model_runner.lora_manager._adapter_manager
        with safe_open(file, framework="pt") as opened:
            names = list(updates(opened.keys()))
        if lora_id not in manager.lora_index_to_id:
            return {name: [] for name in names}
        slot = manager.lora_index_to_id.index(lora_id)
        places = _places(manager)
        of_name = {name: places.get(_name_in_vllm(manager, name)) for name in names}
        return {name: place.blocks(slot) if place else [] for name, place in of_name.items()}


@dataclass(frozen=True)
class _Place:
    """Where vLLM keeps an update: in which of its layers, and in which of the parts that are packed into that."""

    layer: Any
    part: int = 0
    parts: int = 1
    inner: bool = False

    def blocks(self, slot: int) -> Blocks:
        if not type(self.layer).__name__.startswith("FusedMoE"):
            return [all(_holds(a, b) for a, b in self._slices(slot))]
        if self.parts == 1:
            return self._blocks_of_all_experts(slot)
        return self._block_of_one_expert(slot)

    def _slices(self, slot: int) -> Pairs:
        stacked_a, stacked_b = self.layer.lora_a_stacked, self.layer.lora_b_stacked
        if not isinstance(stacked_a, tuple):  # an embedding's, or the head's
            return [(stacked_a[slot], stacked_b[slot])]
        pairs = [(a[slot], b[slot]) for a, b in zip(stacked_a, stacked_b, strict=True)]
        # where a layer has more slices than parts, the first part (q, k and v in one) fills what the others leave
        first = len(pairs) - self.parts + 1
        return pairs[:first] if self.part == 0 else [pairs[first + self.part - 1]]

    def _blocks_of_all_experts(self, slot: int) -> Blocks:
        """Of a parameter that holds all experts; a worker may have a part of them (expert parallelism)."""
        layer = self.layer
        pairs = self._expert_buffers("w13" if self.inner else "w2", slot)
        own = [all(_holds(a[expert], b[expert]) for a, b in pairs) for expert in range(layer.local_num_experts)]
        before = layer.ep_rank * layer.local_num_experts
        return [None] * before + own + [None] * (layer.global_num_experts - before - len(own))

    def _block_of_one_expert(self, slot: int) -> Blocks:
        """Of one projection of one expert; vLLM's order is gate, down, up for each, or up, down without gates."""
        layer = self.layer
        expert, projection = divmod(self.part, self.parts // layer.global_num_experts)
        expert -= layer.ep_rank * layer.local_num_experts
        if not 0 <= expert < layer.local_num_experts:
            return [None]
        kind, place = (("w13", 0), ("w2", 0), ("w13", -1))[projection]
        a, b = self._expert_buffers(kind, slot)[place]
        return [_holds(a[expert], b[expert])]

    def _expert_buffers(self, kind: str, slot: int) -> Pairs:
        """[experts, rank, in] and [experts, out, rank], for each of the parts that w13 may have."""
        layer = self.layer
        if kind == "w2":
            stacked_a, stacked_b = layer.w2_lora_a_stacked, layer.w2_lora_b_stacked
        else:
            stacked_a, stacked_b = layer.w13_lora_a_stacked, layer.w13_lora_b_stacked
        return [(a[slot], b[slot]) for a, b in zip(stacked_a, stacked_b, strict=True)]


def _places(manager: Any) -> dict[str, _Place]:
    """vLLM's name of everything that it takes updates of → its place."""
    places = {name: _Place(layer) for name, layer in manager.modules.items()}
    for owner, parts in manager.packed_modules.items():
        for part, name in enumerate(parts):
            places[name] = _Place(manager.modules[owner], part, len(parts))
    for name, layer in manager.modules.items():
        if type(layer).__name__.startswith("FusedMoE"):
            places[f"{name}{INNER}"] = _Place(layer, inner=True)
    return places


def _name_in_vllm(manager: Any, name: str) -> str:
    """What vLLM makes of a module's name when it loads an adapter; empty where it leaves the module out."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    try:
        return str(parse_fine_tuned_lora_name(f"{name}.lora_A.weight", mapper and mapper.get_rename_mapper())[0])
    except ValueError:
        return ""


def _holds(a: "Tensor", b: "Tensor") -> bool:
    return bool(a.any()) and bool(b.any())
