"""The dtype of every tensor of a merged model.

Merged models are bfloat16, with these exceptions:

- What is no floating-point number stays as it is.
- A float32 tensor of a checkpoint that holds most of its bytes in 16 bits stays float32. Whoever published it kept it
  so on purpose: biases of routers, A_log, D and dt_bias of Mamba. If nothing changes it, every bit is the base's.
- Of a checkpoint that is float32 as a whole, what transformers' class keeps in float32 stays so: a model that computes
  in bfloat16 has these in float32, too.
"""

from collections.abc import Collection
from typing import Any

import torch

from lockstep.model.checkpoint_names import CheckpointNames

DTYPES = {
    "BOOL": torch.bool, "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # by their names in safetensors files  # fmt: skip


def of_names(
    names: CheckpointNames, dtype: torch.dtype = torch.bfloat16, kept: Collection[str] | None = None
) -> dict[str, torch.dtype]:
    """The dtype in which a merge writes each tensor of a checkpoint, by its name in the files.

    Args:
        dtype: where no exception holds.
        kept: after full training, which makes float32 of all that it trains, what the base had so; None for a base.
    """
    in_32 = {name for name, tensor in names.tensors.items() if tensor.dtype == "F32"}
    in_16 = {name for name, tensor in names.tensors.items() if tensor.dtype in ("F16", "BF16")}
    if kept is None and names.size(in_16) > names.size(in_32):
        stay = in_32
    else:
        of_class = _float32_of_class(names.network)
        stay = {name for group in names.groups if of_class & group.parameters.keys() for name in group.tensors}
        stay = (stay | set(kept or ())) & in_32
    dtypes = {}
    for name, tensor in names.tensors.items():
        own = DTYPES[tensor.dtype]
        dtypes[name] = own if name in stay or not own.is_floating_point else dtype
    return dtypes


def _float32_of_class(network: Any) -> set[str]:
    """Names of the parameters and buffers that a network has in float32 where it computes in bfloat16."""
    from transformers.core_model_loading import build_glob_alternation

    plan = network._get_dtype_plan(torch.bfloat16)
    pattern = build_glob_alternation(list(plan))[0] if plan else None
    return {
        name
        for name, tensor in network.state_dict().items()
        if tensor.dtype == torch.float32 or (pattern and pattern.search(name))
    }
