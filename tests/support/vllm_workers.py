"""vLLM's engine without a server: loads adapters as the server does, and asks its workers what is in effect.

`python -m support.vllm_workers MODEL ADAPTER…` writes what they answer as the last line, in JSON: adapter → answers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.programs import ROOT

from lockstep.artifacts import filenames

EXTENSION = "lockstep.serving.worker_extension.AdapterBlocks"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": "127.0.0.1",
}  # fmt: skip


def answers(model: Path, *adapters: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """What the workers say of each adapter, by its folder's name.

    Args:
        settings: more of vLLM's engine arguments.
    """
    path = os.pathsep.join(str(ROOT / name) for name in ("scripts", "tests"))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.vllm_workers", json.dumps(settings), str(model), *map(str, adapters)],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    assert ended.returncode == 0 and lines, ended.stderr[-4000:]
    return dict(json.loads(lines[-1]))


def main() -> None:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    settings, model, *adapters = sys.argv[1:]
    engine = LLM(
        model, enable_lora=True, max_lora_rank=8, max_loras=len(adapters), max_model_len=128, enforce_eager=True,
        block_size=32, max_num_seqs=4, worker_extension_cls=EXTENSION, **json.loads(settings),
    )  # fmt: skip
    told = {}
    for number, folder in enumerate(map(Path, adapters), start=1):
        engine.llm_engine.add_lora(LoRARequest(folder.name, number, str(folder)))
        file = str(folder / filenames.ADAPTER_WEIGHTS)
        told[folder.name] = engine.collective_rpc("lockstep_blocks", args=(number, file))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
