"""vLLM's flags about the device that it computes on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from lockstep.errors import UserError
from lockstep.serving import preflight
from lockstep.settings.schema import Serve

STEP = 512  # prompt tokens that a CPU computes in one step


def has_cuda() -> bool:
    """Whether an NVIDIA driver answers, the same test as in the Makefile."""
    if os.environ.get("ACCEL"):
        return os.environ["ACCEL"] == "cuda"
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0


def arguments(serve: Serve, model: Path, cuda: bool) -> list[str]:
    """vLLM's flags of dtype, memory and compiling.

    Raises:
        UserError: not enough memory is free for the model and its cache.
    """
    if cuda:
        gpus = serve.tensor_parallel_size * serve.pipeline_parallel_size * serve.data_parallel_size
        preflight.check_gpu_memory(serve.gpu_memory_utilization, gpus)
        dtype = _gpu_dtype(serve.dtype, gpus)
        memory = ["--dtype", dtype, "--gpu-memory-utilization", str(serve.gpu_memory_utilization)]
        return memory + (["--enforce-eager"] if serve.enforce_eager else [])
    dtype = _cpu_dtype(serve.dtype)
    preflight.check_cpu_memory(model, serve.kv_cache_memory_bytes, dtype)
    memory = ["--dtype", dtype, "--kv-cache-memory-bytes", str(serve.kv_cache_memory_bytes)]
    memory += ["--block-size", "32"]  # with vLLM's 128 on CPUs, prefixes shorter than that would not be cached
    # A step with a long prompt ends within seconds, and other requests, the canary among them, get their turn.
    memory += ["--max-num-batched-tokens", str(max(STEP, serve.max_num_seqs))]
    # Compiling needs a C++ compiler and a minute; it pays on a server that stays up.
    return memory + (["--enforce-eager"] if serve.enforce_eager is not False else [])


def cpu_environment(workers: int) -> dict[str, str]:
    """Variables that give each worker its share of all cores. Raises UserError with fewer cores than workers."""
    variables = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    if workers > 1 and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        if len(cores) < workers:
            raise UserError(f"{workers} workers share a model, and there are {len(cores)} cores for them")
        share = len(cores) // workers
        shares = [cores[start : start + share] for start in range(0, share * workers, share)]
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(",".join, shares))
    return variables


def _gpu_dtype(setting: str, gpus: int) -> str:
    """As in training: GPUs older than Ampere (compute capability 8.0) have no bfloat16."""
    capabilities = preflight.ask_gpus("compute_cap", gpus) if setting == "auto" else []
    return "float16" if any(re.fullmatch(r"[1-7]\.\d", capability) for capability in capabilities) else setting


def _cpu_dtype(setting: str) -> str:
    """As in training: a CPU that has no instructions for bfloat16 is many times slower with it."""
    import torch

    from lockstep.model import networks

    slow = setting == "auto" and networks.compute_dtype("auto", "cpu") == torch.float32
    return "float32" if slow else setting
