"""See torchvision.io."""

import enum

from torchvision.io import __getattr__

from . import functional, v2

__all__ = ["InterpolationMode", "__getattr__", "functional", "v2"]


class InterpolationMode(enum.Enum):
    """As in torchvision: transformers makes a table of them while it is imported."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"
