"""Every function of torchvision's that is looked for here, and none that can be called."""

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"torchvision's {name} is not here: this is a stand-in of the tests")

    return missing
