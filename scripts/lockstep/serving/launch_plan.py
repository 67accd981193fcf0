"""The endpoint: what vLLM is started with, what must hold before, and how to reach it."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.merging import serving_route
from lockstep.serving import device_flags, gate, preflight, probe, request_rules
from lockstep.settings.tree import Settings

VLLM = "vllm.entrypoints.openai.api_server"  # the CPU wheel's `vllm` command does not start
# Switches of vLLM that let a request load weights or run code.
UNSAFE = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")
# Flags that serve.vllm_args must leave alone: set here, or a way past the door.
RESERVED = {
    "model", "hf_config_path", "host", "port", "uds", "served_model_name", "middleware", "api_key", "config", "root_path", "chat_template",
    "chat_template_content_format", "generation_config", "override_generation_config", "default_chat_template_kwargs",
    "enable_lora", "lora_modules", "max_lora_rank", "trust_remote_code", "trust_request_chat_template",
    "trust_request_mm_kwargs", "enable_prompt_embeds", "enable_tokenizer_info_endpoint", "profiler_config",
    "tool_server", "logprobs_mode", "ssl_keyfile", "ssl_certfile", "allowed_local_media_path",
}  # fmt: skip
FLAG = re.compile(r"-{0,2}[A-Za-z][\w.-]*")
MORE = re.compile(r"\s*-(?![\d.])")  # what would begin another flag; a negative number does not


@dataclass(frozen=True)
class LaunchPlan:
    """One start of vLLM."""

    command: list[str]
    environment: dict[str, str]
    folder: Path  # for server.log, server.json and the gate's report
    url: str  # ends in /v1
    model: str  # the name that clients send
    mode: str  # merged, lora or base
    route: str  # why this mode, where it was not asked for
    rules: request_rules.Rules
    prove: Callable[[probe.Server], dict[str, Any]]
    served: dict[str, str]  # label of a folder → its digest
    canary: list[int]  # a prompt
    foresee: Callable[[], dict[str, Any] | None]  # why the gate would stay shut, where files say it
    timeout: float  # seconds until it must be healthy
    grace: float  # seconds for requests in flight once it is told to stop
    pause: float = 5.0  # seconds between two canaries
    patience: float = 18.0  # that a canary, or any sign of work, may take: a hang shows within 30 s


@dataclass(frozen=True)
class Subject:
    """What a mode serves."""

    model: Path  # that vLLM loads
    arguments: list[str]
    answers_with: Path  # folder of template and tokenizer
    adapters: dict[str, Path]  # name that clients send → folder with the contract and the reference
    base_name: str | None = None  # of the base beneath the adapters
    allow_tokens: tuple[str, ...] = ()


def plan(settings: Settings) -> LaunchPlan:
    """Check all that can be checked before a slow start, and say how to start.

    Raises:
        UserError: a missing, stale or changed stage, an address that others could reach without a
            key, a busy port, or too little memory.
    """
    settings, route = _routed(settings)
    serve = settings.serve
    for name in UNSAFE:
        if os.environ.get(name, "0") not in ("", "0"):
            raise UserError(f"{name} is set: it opens the server to code or weights from outside; unset it")
    loopback = preflight.check_address(serve.host, serve.port)
    subject = _subject(settings)
    preflight.check_length(subject.model, serve.max_model_len)
    cuda = device_flags.has_cuda()
    arguments = [
        *subject.arguments,
        "--host", serve.host, "--port", str(serve.port),
        "--max-model-len", str(serve.max_model_len),
        "--max-num-seqs", str(serve.max_num_seqs),
        "--middleware", "lockstep.serving.middleware.Guard",
        "--disable-fastapi-docs",
        "--disable-access-log-for-endpoints", "/health,/metrics",
        "--shutdown-timeout", str(serve.shutdown_timeout),
        "--chat-template-content-format", "string",  # as training renders messages
        *device_flags.arguments(serve, subject.model, cuda),
        *_parallel_arguments(settings),
        *_more_arguments(serve.vllm_args),
    ]  # fmt: skip
    environment = {
        "PYTHONPATH": str(paths.SCRIPTS),  # where vLLM finds the middleware
        "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP", "127.0.0.1"),  # the engine's own sockets stay on loopback, too
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",  # templates are UTF-8 in any locale
    }
    if not cuda:
        environment |= device_flags.cpu_environment(serve.tensor_parallel_size * serve.pipeline_parallel_size)
    rules = request_rules.Rules(
        tokenizer=str(subject.answers_with),
        allow_tokens=list(subject.allow_tokens),
        vocabulary=preflight.config_of(subject.model)["vocab_size"],
        max_n=serve.max_n,
        max_body_bytes=serve.max_body_bytes,
        max_requests=serve.max_num_seqs + serve.max_queue,
        loopback=loopback,
        prompt_logprobs=cuda or serve.mode != "lora",
    )
    folders = {name: (subject.answers_with, adapter) for name, adapter in subject.adapters.items()}
    given = "serve.max_logprob_gap" in settings.explicit
    bounds = gate.Bounds(serve.max_logprob_gap, given, serve.min_stop_rate, serve.max_model_len, rules.vocabulary)
    return LaunchPlan(
        command=[sys.executable, "-W", "ignore", "-m", VLLM, "--model", str(subject.model), *arguments],
        environment=environment,
        folder=address.serve_dir(settings),
        url=address.url(settings),
        model=address.model_name(settings),
        mode=serve.mode,
        route=route,
        rules=rules,
        prove=partial(gate.prove, mode=serve.mode, served=folders, base_name=subject.base_name, bounds=bounds),
        served=_digests(subject),
        canary=probe.canary_prompt(subject.adapters[address.model_name(settings)]),
        timeout=serve.startup_timeout,
        foresee=partial(gate.foresee, folders),
        grace=serve.shutdown_timeout + 5,  # a little more than vLLM's own
    )


def _digests(subject: Subject) -> dict[str, str]:
    """Label → digest of all that is served."""
    folders = dict.fromkeys([subject.model, *subject.adapters.values()])
    return {paths.label(folder): manifest.read(folder).digest for folder in folders}


def _parallel_arguments(settings: Settings) -> list[str]:
    serve = settings.serve
    sizes = {
        "tensor_parallel_size": serve.tensor_parallel_size,
        "pipeline_parallel_size": serve.pipeline_parallel_size,
        "data_parallel_size": serve.data_parallel_size,
    }
    several = {name: size for name, size in sizes.items() if size > 1}
    return [word for name, size in several.items() for word in (f"--{name.replace('_', '-')}", str(size))]


def _more_arguments(given: dict[str, Any]) -> list[str]:
    """serve.vllm_args as words of a command line."""
    words: list[str] = []
    for name, value in given.items():
        several = value if isinstance(value, list) else [value]
        values = [json.dumps(one) if isinstance(one, dict) else str(one) for one in several]
        if not FLAG.fullmatch(name) or any(MORE.match(text) for text in values):
            raise UserError(f"--serve.vllm_args: {name}: {value!r} is not one flag and its values")
        plain = name.strip("-").replace("-", "_").removeprefix("no_").split(".")[0]
        if any(reserved.startswith(plain) for reserved in RESERVED):  # vLLM takes flags that are cut short, too
            raise UserError(
                f"--serve.vllm_args: {name} is not open to change: Lockstep sets it, or leaves it off for safety"
            )
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *values]
    return words


def _subject(settings: Settings) -> Subject:
    """What is served in this mode, with every byte of it checked.

    Raises:
        UserError: a stage is missing, stale or changed, or vLLM cannot serve the adapter.
    """
    run_dir, name, mode = settings.run_dir, address.model_name(settings), settings.serve.mode
    adapter = run_dir / filenames.ADAPTER
    if mode != "lora" and settings.serve.adapters:
        raise UserError("--serve.adapters is for --serve.mode lora: a merged model is one model")
    if mode == "merged":
        record = _intact(run_dir / filenames.MERGED, "merge")
        made = settings.inherit(record.config, paths.label(run_dir / filenames.MERGED))
        _intact(adapter, "train")  # its reference is what the merged model is compared with
        # Sampling is the request's business; a model's own file must not change results.
        words = ["--served-model-name", name, "--generation-config", "vllm"]
        return Subject(
            run_dir / filenames.MERGED, words, run_dir / filenames.MERGED, {name: adapter}, None, made.data.allow_tokens
        )
    record = _intact(adapter, "train")
    made = settings.inherit(record.config, paths.label(adapter))
    _check_sampling(adapter)
    # The base may end its answers elsewhere: template and stop tokens are those of the adapter.
    template = ["--chat-template", str(adapter / filenames.CHAT_TEMPLATE), "--generation-config", str(adapter)]
    if mode == "base":
        _intact(made.model.folder, "download")
        words = ["--served-model-name", name, *template]
        return Subject(made.model.folder, words, adapter, {name: adapter}, None, made.data.allow_tokens)
    base = run_dir / filenames.BASE if made.method == "qlora" else made.model.folder
    _intact(base, "base" if made.method == "qlora" else "download")
    adapters = {name: adapter} | _others(settings, adapter)
    ranks = [_rank(served, folder) for served, folder in adapters.items()]
    words = ["--served-model-name", f"{name}-base", *template, "--enable-lora", "--lora-modules"]
    words += [f"{served}={folder}" for served, folder in adapters.items()]
    words += ["--max-lora-rank", str(max(ranks)), "--max-loras", str(len(adapters))]
    return Subject(base, words, adapter, adapters, f"{name}-base", made.data.allow_tokens)


def _rank(name: str, adapter: Path) -> int:
    """What vLLM must be started with for an adapter. Raises UserError where it cannot serve it as one."""
    route = serving_route.inspect(adapter)
    if route.max_lora_rank is None:
        raise UserError(f"vLLM cannot serve the adapter {name} as one: {route.reason}; take --serve.mode merged")
    return route.max_lora_rank


def _routed(settings: Settings) -> tuple[Settings, str]:
    """Mode auto made one of the others, and why."""
    if settings.serve.mode != "auto":
        return settings, ""
    adapter = settings.run_dir / filenames.ADAPTER
    record = _intact(adapter, "train")
    if record.config["method"] == "full":
        mode, reason = "merged", "all weights were trained, there is no adapter"
    else:
        route = serving_route.inspect(adapter)
        mode, reason = route.mode, route.reason
    return settings.replace("serve", {"mode": mode}), f"mode {mode}: {reason}"


def _intact(folder: Path, stage: str) -> manifest.Manifest:
    record = manifest.require(folder, stage)
    manifest.check_hashes(folder, record)
    return record


def _check_sampling(adapter: Path) -> None:
    """The adapter's generation config is the server's: it may say where answers end, and nothing about sampling."""
    file = adapter / filenames.GENERATION_CONFIG
    extra = atomic.read_json(file).keys() - {"eos_token_id"}
    if extra:
        raise UserError(
            f"{paths.label(file)} sets {min(extra)}: sampling is the request's business; {manifest.again(adapter)}"
        )


def _others(settings: Settings, adapter: Path) -> dict[str, Path]:
    """The adapters of other runs that this server offers, too, by the names of their runs."""
    found: dict[str, Path] = {}
    for run in settings.serve.adapters:
        folder = paths.run_dir(run) / filenames.ADAPTER
        _intact(folder, "train")
        for file, what in (
            (filenames.BASE_TENSORS, "was trained on other base weights"),
            (filenames.CHAT_TEMPLATE, "has another chat template"),
        ):
            if (folder / file).read_bytes() != (adapter / file).read_bytes():
                raise UserError(f"--serve.adapters: {run} {what} than {settings.run}: serve it by itself")
        found[run] = folder
    return found
