"""The names that transformers' image processors import from torchvision, and nothing behind them.

vLLM's classes of wrappers import those processors, also where they serve text alone. The CPU set has no torchvision, as
the general index has builds for CUDA only: with this on PYTHONPATH, tests serve the text of wrappers all the same.
"""

__version__ = "0.28.0"

from . import io, transforms

__all__ = ["io", "transforms"]
