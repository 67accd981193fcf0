import json
import socket
from pathlib import Path

import pytest

from lockstep import configfile, endpoint, paths
from lockstep.config import Settings
from lockstep.errors import UserError
from lockstep.stage import Stage


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, folder in (("HOME", tmp_path), ("MODELS", tmp_path / "models"), ("OUTPUTS", tmp_path / "outputs")):
        monkeypatch.setattr(paths, name, folder)
    monkeypatch.setenv("ACCEL", "cpu")
    return tmp_path


def settings(**changes: str) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {
        "run": "r",
        "model.name": "m",
        "serve.port": port,
        "serve.max_model_len": "256",
        "serve.kv_cache_memory_bytes": str(2**20),
    }
    return configfile.load(None, given | {key.replace("__", "."): value for key, value in changes.items()})


def build(home: Path, rank: int = 24, method: str = "qlora") -> None:
    """Folders with manifests, as far as a plan looks at them."""
    made = settings(method=method)
    sections = made.sections("model", "data", "method", "lora", "quantization")
    folders = {
        "download": (home / "models/m", made.sections("model"), []),
        "train": (home / "outputs/r/adapter", sections, [home / "models/m"]),
        "merge": (home / "outputs/r/merged", sections, [home / "outputs/r/adapter"]),
        "base": (home / "outputs/r/base", sections, [home / "outputs/r/adapter"]),
    }
    for name, (folder, sections, inputs) in folders.items():
        with Stage(name, folder, sections, inputs).writing() as work:
            (work / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
            (work / "adapter_config.json").write_text(json.dumps({"r": rank}))


def flag(plan: endpoint.Plan, name: str) -> str:
    return plan.command[plan.command.index(name) + 1]


def test_the_merged_model_is_served_under_the_runs_name_on_loopback(home: Path) -> None:
    build(home)
    plan = endpoint.plan(settings())
    assert flag(plan, "--model") == str(home / "outputs/r/merged")
    assert (flag(plan, "--served-model-name"), flag(plan, "--host"), flag(plan, "--generation-config")) == (
        "r",
        "127.0.0.1",
        "vllm",
    )
    assert "--enforce-eager" in plan.command and "--trust-remote-code" not in plan.command
    assert plan.environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert flag(endpoint.plan(settings(serve__served_model_name="x")), "--served-model-name") == "x"


def test_the_adapter_is_served_on_the_weights_that_it_was_trained_on(home: Path) -> None:
    build(home)
    with pytest.raises(UserError, match=r"lora\.r is 8 on the command line"):
        endpoint.plan(settings(lora__r="8"))
    plan = endpoint.plan(settings(serve__mode="lora"))
    assert flag(plan, "--generation-config") == str(home / "outputs/r/adapter")  # its stop tokens
    assert flag(plan, "--model") == str(home / "outputs/r/base")
    assert flag(plan, "--lora-modules") == f"r={home / 'outputs/r/adapter'}"
    assert flag(plan, "--max-lora-rank") == "32"  # 24 is no rank that vLLM starts for
    assert flag(plan, "--served-model-name") == "r-base"
    assert plan.model == "r"


def test_an_adapter_trained_without_quantization_is_served_on_the_base_itself(home: Path) -> None:
    build(home, method="lora")
    assert flag(endpoint.plan(settings(serve__mode="lora")), "--model") == str(home / "models/m")


def test_the_base_is_served_with_the_runs_template(home: Path) -> None:
    build(home)
    plan = endpoint.plan(settings(serve__mode="base"))
    assert flag(plan, "--model") == str(home / "models/m")
    assert flag(plan, "--chat-template") == str(home / "outputs/r/adapter/chat_template.jinja")


def test_cuda_flags_differ_in_what_they_must(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    monkeypatch.setenv("ACCEL", "cuda")
    monkeypatch.setattr(endpoint, "_check_gpu_memory", lambda share, gpus: None)  # there is no GPU here to ask
    plan = endpoint.plan(settings(serve__tensor_parallel_size="2", serve__gpu_memory_utilization="0.8"))
    assert (flag(plan, "--tensor-parallel-size"), flag(plan, "--gpu-memory-utilization")) == ("2", "0.8")
    assert "--enforce-eager" not in plan.command and "--kv-cache-memory-bytes" not in plan.command


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_no_address_that_others_could_reach(home: Path, host: str) -> None:
    build(home)
    with pytest.raises(UserError, match="others could reach the server"):
        endpoint.plan(settings(serve__host=host))


def test_what_would_fail_after_a_minute_is_said_at_once(home: Path) -> None:
    with pytest.raises(UserError, match=r"outputs/r/merged is missing .*run `make merge` first"):
        endpoint.plan(settings())
    build(home)
    with pytest.raises(UserError, match="more than the model's 512 positions"):
        endpoint.plan(settings(serve__max_model_len="1024"))
    with pytest.raises(UserError, match="GiB of memory"):
        endpoint.plan(settings(serve__kv_cache_memory_bytes=str(2**50)))
    with pytest.raises(UserError, match="is no address"):
        endpoint.plan(settings(serve__host="nowhere.example"))
    taken = settings()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken.serve.port))
        holder.listen()
        with pytest.raises(UserError, match=f"port {taken.serve.port} on 127.0.0.1 is in use"):
            endpoint.plan(taken)


def test_switches_that_open_the_server_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with pytest.raises(UserError, match="unset it"):
        endpoint.plan(settings())


def test_url_and_name() -> None:
    assert endpoint.url(configfile.load(None, {"serve.port": "1"})) == "http://127.0.0.1:1/v1"
    assert endpoint.url(configfile.load(None, {"serve.host": "::1"})) == "http://[::1]:8000/v1"
