"""See torchvision.io."""

from torchvision.io import __getattr__

__all__ = ["__getattr__"]
