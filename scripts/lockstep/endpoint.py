"""The endpoint: what vLLM is started with, what must hold before, and how to reach it.

`python -m lockstep.endpoint plan …` prints the plan as shell assignments for serve_vllm.sh.
"""

import argparse
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lockstep import cli, manifest, paths
from lockstep.config import Settings
from lockstep.errors import UserError

VLLM = "vllm.entrypoints.openai.api_server"  # the CPU wheel's `vllm` command does not start
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started for
# Switches of vLLM that let a request load weights or run code.
UNSAFE = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")
# Beside weights and KV cache, on a CPU: two Python processes with torch, and activations.
CPU_OVERHEAD = 3 * 2**30


@dataclass(frozen=True)
class Plan:
    """One start of vLLM."""

    command: list[str]
    environment: dict[str, str]
    folder: Path  # for server.log and server.json
    url: str  # ends in /v1
    model: str  # the name that clients send


def url(settings: Settings) -> str:
    """Where clients find the endpoint."""
    host = settings.serve.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}/v1"


def model_name(settings: Settings) -> str:
    """The name under which the tuned model answers (or, in base mode, the base)."""
    return settings.serve.served_model_name or settings.run


def has_cuda() -> bool:
    """Whether an NVIDIA driver answers, the same test as in the Makefile."""
    if os.environ.get("ACCEL"):
        return os.environ["ACCEL"] == "cuda"
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0


def plan(settings: Settings) -> Plan:
    """Check all that can be checked before a slow start, and say how to start.

    Raises:
        UserError: a missing or stale stage, an address that others could reach, a busy port, or
            too little memory.
    """
    run_dir, serve = settings.run_dir, settings.serve
    for name in UNSAFE:
        if os.environ.get(name, "0") not in ("", "0"):
            raise UserError(f"{name} is set: it opens the server to code or weights from outside; unset it")
    model, arguments = _model_arguments(settings)
    _check_address(serve.host, serve.port)
    _check_length(model, serve.max_model_len)
    arguments += [
        "--host", serve.host, "--port", str(serve.port),
        "--dtype", serve.dtype,
        "--max-model-len", str(serve.max_model_len),
        "--max-num-seqs", str(serve.max_num_seqs),
        "--disable-access-log-for-endpoints", "/health,/metrics",
        "--shutdown-timeout", "30",
        "--chat-template-content-format", "string",  # as training renders messages
    ]  # fmt: skip
    environment = {
        "VLLM_HOST_IP": "127.0.0.1",  # the engine's own sockets stay on loopback, too
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # --- the one place where CUDA and CPU differ ---
    if has_cuda():
        _check_gpu_memory(serve.gpu_memory_utilization, serve.tensor_parallel_size)
        arguments += ["--gpu-memory-utilization", str(serve.gpu_memory_utilization)]
        arguments += ["--tensor-parallel-size", str(serve.tensor_parallel_size)]
        eager = bool(serve.enforce_eager)
    else:
        if serve.tensor_parallel_size > 1:
            raise UserError("--serve.tensor_parallel_size shares a model between GPUs, and there is none")
        _check_cpu_memory(model, serve.kv_cache_memory_bytes)
        arguments += ["--kv-cache-memory-bytes", str(serve.kv_cache_memory_bytes)]
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # all cores answer
        # Compiling needs a C++ compiler and a minute; it pays on a server that stays up.
        eager = serve.enforce_eager is not False
    arguments += ["--enforce-eager"] if eager else []
    command = [sys.executable, "-W", "ignore", "-m", VLLM, "--model", str(model), *arguments]
    return Plan(command, environment, run_dir / "serve", url(settings), model_name(settings))


def _model_arguments(settings: Settings) -> tuple[Path, list[str]]:
    """The folder that vLLM loads, and the flags that belong to the mode."""
    run_dir, name = settings.run_dir, model_name(settings)
    if settings.serve.mode == "merged":
        record = manifest.require(run_dir / "merged", "merge")
        settings.inherit(record.config, paths.label(run_dir / "merged"))
        # Sampling is the request's business; a model's own file must not change results.
        return run_dir / "merged", ["--served-model-name", name, "--generation-config", "vllm"]
    adapter = run_dir / "adapter"
    record = manifest.require(adapter, "train")
    settings = settings.inherit(record.config, paths.label(adapter))
    # The base may end its answers elsewhere: template and stop tokens are those of the adapter.
    template = ["--chat-template", str(adapter / "chat_template.jinja"), "--generation-config", str(adapter)]
    manifest.require(settings.model.folder, "download")
    if settings.serve.mode == "base":
        return settings.model.folder, ["--served-model-name", name, *template]
    if "," in str(adapter):
        raise UserError(f"vLLM cannot serve an adapter from a path with a comma: {adapter}")
    base = settings.model.folder
    if settings.method == "qlora":
        base = run_dir / "base"
        manifest.require(base, "base")
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    bucket = next(known for known in RANKS if known >= rank)
    lora = ["--enable-lora", "--lora-modules", f"{name}={adapter}", "--max-lora-rank", str(bucket)]
    return base, ["--served-model-name", f"{name}-base", *template, *lora]


def _check_address(host: str, port: int) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"--serve.host {host!r} is no address") from error
    if not loopback:
        raise UserError(
            f"--serve.host {host}: others could reach the server, and vLLM's key guards only a part "
            f"of its routes; serve on 127.0.0.1 and put a reverse proxy or an ssh tunnel before it"
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise UserError(f"port {port} needs the rights of root: choose one above 1023 with --serve.port") from error
        except OSError as error:
            raise UserError(
                f"port {port} on {host} is in use: run `make stop` if it is this run's server, or choose another --serve.port"
            ) from error


def _check_length(model: Path, length: int) -> None:
    longest = json.loads((model / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    if longest and length > longest:
        raise UserError(f"--serve.max_model_len {length} is more than the model's {longest} positions")


def _check_cpu_memory(model: Path, cache: int) -> None:
    import psutil

    needed = sum(file.stat().st_size for file in model.glob("*.safetensors")) + cache + CPU_OVERHEAD
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"serving needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are available: "
            f"lower --serve.kv_cache_memory_bytes, or stop other programs"
        )


def _check_gpu_memory(share: float, gpus: int) -> None:
    """Of the GPUs that the server will take: the first ones that are visible."""
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query += ["--id", ",".join(visible.split(",")[:gpus])]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    for gpu, line in enumerate(answer.stdout.splitlines()[:gpus]):
        if not re.fullmatch(r"\d+, \d+", line):  # unified memory is reported as [N/A]
            continue
        total, free = map(int, line.split(", "))
        if total * share > free:
            raise UserError(
                f"GPU {gpu} has {free} MiB free of {total} MiB: set --serve.gpu_memory_utilization below "
                f"{free / total:.2f}, or stop other programs"
            )


def main() -> None:
    """`plan` prints shell assignments for serve_vllm.sh; `folder` only where the server's files are."""
    parser = cli.parser("Settings of the endpoint", "serve")
    parser.add_argument("action", choices=["plan", "folder"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = cli.settings_from(options)
    if options.action == "folder":
        return print(settings.run_dir / "serve")
    made = plan(settings)
    environment = [f"{key}={value}" for key, value in made.environment.items()]
    print(f"command=({shlex.join(['env', *environment, *made.command])})")
    for name, value in (("folder", made.folder), ("url", made.url), ("model", made.model)):
        print(f"{name}={shlex.quote(str(value))}")
    print(f"timeout={settings.serve.startup_timeout}")


if __name__ == "__main__":
    cli.run(main)
