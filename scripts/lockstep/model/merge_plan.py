"""What a merge of an adapter into a base writes, known from names and shapes alone."""

from dataclasses import dataclass, replace
from pathlib import Path

from lockstep.model import checkpoint_names, experts, stacked_update
from lockstep.model.adapter_delta import EMBEDDINGS, AdapterDelta
from lockstep.model.checkpoint_names import CheckpointNames


@dataclass(frozen=True)
class MergePlan:
    """A merge that fits.

    Attributes:
        adapter: what is left of it where tied tensors stay one.
        names: of the base's checkpoint.
        parted: parameters that the base's files hold under the name of one that they are tied to, each with that one;
            the adapter changes the two differently, so both are written.
        shapes: of all that is merged, by the names in memory.
    """

    adapter: AdapterDelta
    names: CheckpointNames
    parted: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the merged model knows; None where its embedding has a name of its own."""
        return next((shape[0] for name, shape in self.shapes.items() if name.endswith(EMBEDDINGS)), None)


def plan_merge(base: Path, adapter: AdapterDelta, names: CheckpointNames | None = None) -> MergePlan:
    """The merge of an adapter, possibly an empty one, into a base.

    Args:
        base: its folder.
        names: of the base's checkpoint, where they are known already.

    Raises:
        UserError: the adapter changes a tensor that the base lacks, does not fit it, or lacks one itself.
    """
    names = names or checkpoint_names.of_folder(base)
    shapes = names.shapes
    transposed = {name: stack.transposed for name, stack in experts.stacks(names.network)}
    adapter = replace(adapter, low_rank=stacked_update.oriented(adapter.low_rank, transposed))
    # Of two tied tensors the base's files hold one. Where the adapter changes both alike, that stays so; otherwise
    # they part, and the other one is written, too, made from the one that is there.
    parted: dict[str, str] = {}
    for pair in names.tied.items():
        kept, lacking = sorted(pair, key=lambda name: name not in shapes)
        if lacking in shapes:
            continue
        if adapter.keeps_tied(kept, lacking):
            adapter = adapter.without({lacking})
        else:
            parted[lacking] = kept
            shapes[lacking] = shapes[kept]
            if kept in adapter.embeddings:  # brought in the place of both, while the two were one
                adapter = replace(adapter, embeddings={lacking: adapter.embeddings[kept]} | adapter.embeddings)
    adapter.check_base(shapes, base.name)
    return MergePlan(adapter, names, parted, {name: adapter.shape(name, shape) for name, shape in shapes.items()})
