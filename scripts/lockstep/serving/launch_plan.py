"""One start of vLLM: its command line, and what its supervisor, its middleware and the gate are told."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.data import sample_question
from lockstep.endpoint import address, curl_line, protocol, server_note
from lockstep.errors import UserError
from lockstep.serving import device_flags, model_flags, preflight, probe, server_control, serving_modes
from lockstep.serving.gate import Claim
from lockstep.serving.gate_bounds import Bounds
from lockstep.serving.request_rules import Rules
from lockstep.serving.serving_modes import Subject
from lockstep.settings.tree import Settings

SERVER = "lockstep.serving.vllm_server"
KEEP_ALIVE = 90  # seconds that a connection may idle: above the 60 to 75 of proxies, so that they close it first
PAGES_OF_ANYBODY = {"*", "null"}
# Switches of vLLM that let a request load weights or run code.
UNSAFE = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")
# Flags that serve.vllm_args must leave alone: set here, or a way past the middleware.
RESERVED = {
    "model", "hf_config_path", "uds", "middleware", "config", "chat_template", "chat_template_content_format",
    "generation_config", "override_generation_config", "default_chat_template_kwargs", "enable_lora",
    "lora_modules", "max_lora_rank", "trust_remote_code",
    "trust_request_chat_template", "trust_request_mm_kwargs", "enable_prompt_embeds", "enable_tokenizer_info_endpoint",
    "profiler_config", "tool_server", "logprobs_mode", "allowed_local_media_path",
    "worker_extension_cls", "worker_cls", "tokenizer_mode", "language_model_only", "tokens_only", "enable_scale_out",
    "grpc", "grpc_port", "headless", "api_server_count", "tool_parser_plugin", "exclude_tools_when_tool_choice_none",
}  # fmt: skip
# And flags that would do nothing here, or that a setting takes the place of → what to do instead.
INSTEAD = dict.fromkeys(
    ("allowed_origins", "allowed_methods", "allowed_headers", "allow_credentials"),
    "set serve.allowed_origins to the pages that may call the endpoint from a browser",
) | dict.fromkeys(
    ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh", "root_path"),
    "put a proxy such as nginx or Caddy in front of the endpoint for TLS or for a path",
) | dict.fromkeys(
    ("h11_max_incomplete_event_size", "h11_max_header_count"), "the size of a request's head is bounded here already"
) | dict.fromkeys(
    ("disable_fastapi_docs", "enable_offline_docs"), "the pages of FastAPI's documentation are not served"
) | {
    "api_key": "set LOCKSTEP_API_KEY in the environment",
    "host": "set serve.host",
    "port": "set serve.port",
    "served_model_name": "set serve.served_model_name",
    "tool_call_parser": "set serve.tool_call_parser",
    "enable_auto_tool_choice": "set serve.tool_call_parser",
}  # fmt: skip
FLAG = re.compile(r"-{0,2}[A-Za-z][\w.-]*")
ANOTHER_FLAG = re.compile(r"\s*-(?![\d.])")  # a value must not begin like this; a negative number does not


@dataclass(frozen=True)
class Timing:
    """How long the supervisor waits, in seconds.

    Args:
        startup: until the server must be healthy.
        grace: for requests in flight once it is told to stop.
        pause: between two canaries.
        patience: that a canary, or any sign of work, may take: a hang shows within 30 s.
    """

    startup: float
    grace: float
    pause: float = 5.0
    patience: float = 18.0


@dataclass(frozen=True)
class LaunchPlan:
    """One start of vLLM.

    Args:
        command, environment: of its process; the environment is added to ours.
        folder: for server.log, server.json and the gate's report.
        url: where clients find it, ending in /v1.
        model: the name that clients send.
        route: why it serves in this mode; empty where that was asked for.
        served: label of each folder that is served → its digest.
        claim: what the gate holds it to.
        rules: what its middleware lets in.
        canary: a prompt, as token ids.
        remade: folders that stage 03 made of base and adapter, each with the settings of the training.
        example: a chat request to try it with, as JSON.
    """

    command: list[str]
    environment: dict[str, str]
    folder: Path
    url: str
    model: str
    route: str
    served: dict[str, str]
    claim: Claim
    rules: Rules
    canary: list[int]
    timing: Timing
    remade: dict[Path, Settings]
    example: dict[str, Any]


def check_place(settings: Settings) -> None:
    """Refuse, before a run is merged to be served, an address that it cannot have, or a server that is there already.

    Raises:
        UserError: see `preflight.check_address`; or the run is served.
    """
    if settings.serve.mode != "auto":
        folder = address.serve_dir(settings)
        if note := server_note.current(folder):
            where, stop = f"at {note.url} by process {note.pid}", server_control.stop_command(folder)
            raise UserError(f"{server_control.already(folder)} {where}: run `{stop}` first")
    preflight.check_address(settings.serve.host, settings.serve.port)


def plan(settings: Settings) -> LaunchPlan:
    """Check all that can be checked before a slow start, and say how to start.

    Raises:
        UserError: a missing, stale or changed stage, an address that others could reach without a
            key, a busy port, or too little memory.
    """
    _check_origins(settings.serve.allowed_origins)
    settings, route = serving_modes.resolve(settings)
    serve = settings.serve
    for name in UNSAFE:
        if os.environ.get(name, "0") not in ("", "0"):
            raise UserError(f"{name} is set: it opens the server to code or weights from outside; unset it")
    loopback = preflight.check_address(serve.host, serve.port)
    subject = serving_modes.subject_of(settings)
    preflight.check_length(subject.model, serve.max_model_len)
    cuda = device_flags.has_cuda()
    model_flags.check(subject.model, cuda)
    command = _arguments(settings, subject, cuda)
    rules = _rules(settings, subject, loopback, cuda, tools=model_flags.TOOLS in command)
    name = address.model_name(settings)
    question = sample_question.of_run(settings.run_dir) or [{"role": "user", "content": curl_line.PLAIN_QUESTION}]
    return LaunchPlan(
        command=[sys.executable, "-W", "ignore", "-m", SERVER, *command],
        environment=_environment(settings, cuda),
        folder=address.serve_dir(settings),
        url=address.url(settings),
        model=name,
        route=route,
        served=subject.digests,
        claim=_claim(settings, subject, rules.vocabulary),
        rules=rules,
        canary=probe.canary_prompt(subject.adapters[name]),
        timing=Timing(serve.startup_timeout, grace=serve.shutdown_timeout + 5),  # a little more than vLLM's own
        remade=dict.fromkeys(subject.remade, subject.trained),
        example=curl_line.body(settings.sampling, name, question),
    )


def _check_origins(origins: tuple[str, ...]) -> None:
    """Raise UserError where any page at all is let in, and nothing else keeps it out."""
    if (anybody := PAGES_OF_ANYBODY.intersection(origins)) and not protocol.key():
        raise UserError(
            f"--serve.allowed_origins {min(anybody)}: any page in a browser on this machine could use the model, so it "
            f"needs a key: set {protocol.KEY}, or list the pages' origins, such as http://localhost:5173"
        )


def _arguments(settings: Settings, subject: Subject, cuda: bool) -> list[str]:
    """vLLM's command line. Raises UserError: see `device_flags.arguments` and `_more_arguments`."""
    serve = settings.serve
    of_model = model_flags.arguments(subject.model, cuda)
    of_model += model_flags.of_thoughts(of_model, subject.answers_with, serve.vllm_args)
    return [
        "--model", str(subject.model), *subject.arguments,
        "--host", serve.host, "--port", str(serve.port),
        "--max-model-len", str(serve.max_model_len),
        "--max-num-seqs", str(serve.max_num_seqs),
        "--middleware", "lockstep.serving.middleware.Guard",
        "--worker-extension-cls", "lockstep.serving.worker_extension.AdapterBlocks",
        "--disable-fastapi-docs",
        "--disable-access-log-for-endpoints", "/health,/metrics",
        "--shutdown-timeout", str(serve.shutdown_timeout),
        "--chat-template-content-format", "string",  # as training renders messages
        *of_model,
        *model_flags.of_tools(
            of_model, serve.tool_call_parser, subject.answers_with, settings.run_dir / filenames.SERVE
        ),
        *device_flags.arguments(serve, subject.model, cuda),
        *_parallel_arguments(settings),
        *_more_arguments(serve.vllm_args),
    ]  # fmt: skip


def _environment(settings: Settings, cuda: bool) -> dict[str, str]:
    """What vLLM's environment has beside ours."""
    environment = {
        "PYTHONPATH": _python_path(),
        "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP", "127.0.0.1"),  # the engine's own sockets stay on loopback, too
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",  # templates are UTF-8 in any locale
    }
    if not cuda:
        serve = settings.serve
        environment |= device_flags.cpu_environment(serve.tensor_parallel_size * serve.pipeline_parallel_size)
    return environment


def _python_path() -> str:
    """Where vLLM finds the middleware, before what somebody set."""
    folders = [str(paths.SCRIPTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(filter(None, folders)))


def _rules(settings: Settings, subject: Subject, loopback: bool, cuda: bool, tools: bool) -> Rules:
    serve = settings.serve
    return Rules(
        tokenizer=str(subject.answers_with),
        allow_tokens=list(subject.trained.data.allow_tokens),
        vocabulary=preflight.config_of(subject.model)["vocab_size"],
        max_n=serve.max_n,
        max_body_bytes=serve.max_body_bytes,
        max_requests=serve.max_num_seqs + serve.max_queue,
        loopback=loopback,
        prompt_logprobs=cuda or serve.mode != "lora",
        max_prompts=serve.max_prompts,
        allowed_origins=list(serve.allowed_origins),
        tools=tools,
        max_model_len=serve.max_model_len,
    )


def _claim(settings: Settings, subject: Subject, vocabulary: int) -> Claim:
    serve = settings.serve
    bounds = Bounds(serve.max_kl, serve.max_logprob_gap, serve.min_stop_rate, serve.max_model_len, vocabulary)
    folders = {name: (subject.answers_with, adapter) for name, adapter in subject.adapters.items()}
    return Claim(serve.mode, folders, subject.base_name, bounds)


def _parallel_arguments(settings: Settings) -> list[str]:
    serve = settings.serve
    sizes = {
        "--tensor-parallel-size": serve.tensor_parallel_size,
        "--pipeline-parallel-size": serve.pipeline_parallel_size,
        "--data-parallel-size": serve.data_parallel_size,
    }
    words: list[str] = []
    for flag, size in sizes.items():
        words += [flag, str(size)] if size > 1 else []
    return words


def _more_arguments(given: dict[str, Any]) -> list[str]:
    """serve.vllm_args as words of a command line.

    Raises:
        UserError: one of them is no flag of vLLM's and its values, or a reserved one.
    """
    words: list[str] = []
    for name, value in given.items():
        several = value if isinstance(value, list) else [value]
        values = [json.dumps(entry) if isinstance(entry, dict) else str(entry) for entry in several]
        if not FLAG.fullmatch(name) or any(ANOTHER_FLAG.match(text) for text in values):
            raise UserError(f"--serve.vllm_args: {name}: {value!r} is not one flag and its values")
        plain = name.strip("-").replace("-", "_").removeprefix("no_").split(".")[0]
        for flag, instead in INSTEAD.items():  # vLLM takes flags that are cut short, too
            if flag.startswith(plain):
                raise UserError(f"--serve.vllm_args: {name} is not open to change: {instead}")
        if any(reserved.startswith(plain) for reserved in RESERVED):
            raise UserError(
                f"--serve.vllm_args: {name} is not open to change: Lockstep sets it, or leaves it off for safety"
            )
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *values]
    return words
