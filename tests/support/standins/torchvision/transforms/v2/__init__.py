"""See torchvision.io."""

from torchvision.io import __getattr__

from . import functional

__all__ = ["__getattr__", "functional"]
