"""What must hold before a slow start of vLLM: a permitted address, a length that the model has, enough memory."""

import os
import re
import socket
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.endpoint import address, protocol
from lockstep.errors import UserError
from lockstep.serving import server_control

SHORTEST_KEY = 16  # characters
# Bytes beside weights and KV cache on a CPU: two Python processes with torch, and activations.
CPU_OVERHEAD = 3 * 2**30


def check_address(host: str, port: int) -> bool:
    """Whether only this machine can reach the address.

    Raises:
        UserError: it is no address, others could reach it without a key, no header can carry the key, or the port is
            taken.
    """
    loopback = address.is_loopback(host, "--serve.host")
    if len(protocol.key()) < SHORTEST_KEY and not loopback:
        raise UserError(
            f"--serve.host {host}: others could reach the server, so it needs a key: set {protocol.KEY} to at least "
            f"{SHORTEST_KEY} characters, such as the output of `openssl rand -hex 24`, or serve on 127.0.0.1"
        )
    listener(host, port).close()
    return loopback


def listener(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, and does not listen yet. Raises UserError where the port is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except PermissionError as error:
        bound.close()
        raise UserError(f"port {port} needs the rights of root: choose one above 1023 with --serve.port") from error
    except OSError as error:
        bound.close()
        raise UserError(f"port {port} on {host} is in use{_holder(port)} or choose another --serve.port") from error
    return bound


def _holder(port: int) -> str:
    """Which run's server listens at a port, and how it is stopped; to be completed with another way on."""
    for folder, note in server_control.running():
        if urllib.parse.urlsplit(note.url).port == port:
            return f" by the server of {paths.label(folder.parent)}: run `{server_control.stop_command(folder)}`,"
    return " by another program: end it,"


def config_of(model: Path) -> dict[str, Any]:
    """The model's config.json; where it takes more than text, its part about text in place of the rest."""
    config: dict[str, Any] = atomic.read_json(model / filenames.CONFIG)
    text: dict[str, Any] = config.get("text_config", {})
    return config | text


def check_length(model: Path, length: int) -> None:
    """Raise UserError where the model has fewer positions."""
    longest = config_of(model).get("max_position_embeddings")
    if longest and length > longest:
        raise UserError(f"--serve.max_model_len {length} is more than the model's {longest} positions")


def check_cpu_memory(model: Path, cache: int, dtype: str) -> None:
    """Raise UserError where weights and KV cache do not fit into the free memory.

    Args:
        cache: bytes of the KV cache.
        dtype: that the weights are served in, as vLLM names it.
    """
    import psutil

    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    config = config_of(model)
    if dtype == "float32" and config.get("dtype", config.get("torch_dtype")) != "float32":
        weights *= 2
    needed = weights + cache + CPU_OVERHEAD
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"serving needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are available: "
            f"lower --serve.kv_cache_memory_bytes, or stop other programs"
        )


def ask_gpus(fields: str, gpus: int) -> list[str]:
    """What nvidia-smi (--query-gpu) says about the first visible GPUs, which the server will use; a line each."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query += ["--id", ",".join(visible.split(",")[:gpus])]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()[:gpus]


def check_gpu_memory(share: float, gpus: int) -> None:
    """Raise UserError where a GPU that the server will use has less free memory than the share it is to take."""
    for gpu, line in enumerate(ask_gpus("memory.total,memory.free", gpus)):
        if not re.fullmatch(r"\d+, \d+", line):  # unified memory is reported as [N/A]
            continue
        total, free = map(int, line.split(", "))
        if total * share > free:
            raise UserError(
                f"GPU {gpu} has {free} MiB free of {total} MiB: set --serve.gpu_memory_utilization below "
                f"{free / total:.2f}, or stop other programs"
            )
