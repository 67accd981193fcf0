"""A program that really computes: products of matrices, and a round trip through NF4, each beside its own reference.

`python -m lockstep.doctor.kernel_trial` prints one line of JSON. It is a process of its own, as a library that was
built for another machine may end it with a signal.
"""

import json
import sys
from typing import Any

SIZE = 256  # rows and columns of the matrices
BLOCK = 64  # values that share a scale
SEED = 7
# The sixteen values of NF4, as the paper of QLoRA lists them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def matrix_product(device: str) -> dict[str, float]:
    """Name of a dtype → the largest error of a product, relative to the largest value of the same one in float64."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    left, right = (torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (matrix.to(device, dtype) for matrix in (left, right))
        reference = a.double().cpu() @ b.double().cpu()
        difference = ((a @ b).double().cpu() - reference).abs().max()
        errors[str(dtype).removeprefix("torch.")] = float(difference / reference.abs().max())
    return errors


def nf4_round_trip(device: str) -> float:
    """The largest distance between what bitsandbytes gives back of some weights and the nearest value of the table.

    It is relative to the scale of each block; a right library is off by rounding alone.
    """
    import torch
    from bitsandbytes import functional

    generator = torch.Generator().manual_seed(SEED)
    weights = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float32).to(device)
    packed, state = functional.quantize_4bit(weights, blocksize=BLOCK, quant_type="nf4")
    returned = functional.dequantize_4bit(packed, state).float().reshape(-1, BLOCK)
    blocks = weights.reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(NF4, device=weights.device)
    nearest = table[((blocks / scales)[..., None] - table).abs().argmin(dim=-1)]
    # at the very middle between two values either of them is right
    worst = ((returned / scales) - blocks / scales).abs() - (nearest - blocks / scales).abs()
    on_the_table = ((returned / scales)[..., None] - table).abs().amin(dim=-1)
    return float(torch.maximum(worst.abs().max(), on_the_table.max()))


def main() -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda}
    result["products"] = matrix_product(device)
    try:
        result["nf4"] = nf4_round_trip(device)
    except (ImportError, RuntimeError, OSError, AttributeError, NotImplementedError) as error:
        result["nf4_error"] = f"{type(error).__name__}: {error}"[:300]
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
