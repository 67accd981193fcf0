import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import homes, tiny
from support.serving import free_port, reseal

from lockstep.artifacts import filenames
from lockstep.artifacts.stage import Stage
from lockstep.errors import UserError
from lockstep.serving import launch_plan
from lockstep.settings import yaml_file
from lockstep.settings.tree import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCEL", "cpu")
    return homes.settle(monkeypatch, tmp_path)


def settings(**changes: str) -> Settings:
    given = {
        "run": "r",
        "model.name": "m",
        "serve.port": str(free_port()),
        "serve.max_model_len": "256",
        "serve.kv_cache_memory_bytes": str(2**20),
    }
    return yaml_file.load(None, given | {key.replace("__", "."): value for key, value in changes.items()})


def adapter(folder: Path, rank: int) -> None:
    """A LoRA adapter of one layer, as PEFT writes it."""
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_A.weight": torch.ones(rank, 64), f"{layer}.lora_B.weight": torch.ones(128, rank)}
    save_file(tensors, folder / filenames.ADAPTER_WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 8, "peft_type": "LORA"}))


def build(home: Path, rank: int = 24, method: str = "qlora", run: str = "r", template: str = "t") -> None:
    """Folders with manifests, as far as a plan looks at them."""
    made = settings(method=method)
    tiny_model = home / "tiny" if (home / "tiny").exists() else tiny.model(home / "tiny")
    sections = made.sections("model", "data", "method", "lora", "quantization")
    outputs = home / "outputs" / run
    folders = {
        "download": (home / "models/m", made.sections("model"), []),
        "train": (outputs / "adapter", sections, [home / "models/m"]),
        "merge": (outputs / "merged", sections, [outputs / "adapter"]),
        "base": (outputs / "base", sections, [outputs / "adapter"]),
    }
    for name, (folder, sections, inputs) in folders.items():
        if folder.exists():
            continue
        with Stage(name, folder, sections, inputs).writing() as work:
            if name != "train":
                for file in ("config.json", "model.safetensors"):
                    shutil.copyfile(tiny_model / file, work / file)
            adapter(work, rank)
            (work / "contract.json").write_text(json.dumps({"conversations": [{"prompt_ids": [1, 2]}]}))
            (work / "base_tensors.json").write_text("{}")
            (work / "generation_config.json").write_text('{"eos_token_id": [2]}')
            (work / "chat_template.jinja").write_text(template)


def flag(plan: launch_plan.LaunchPlan, name: str) -> str:
    return plan.command[plan.command.index(name) + 1]


def test_the_merged_model_is_served_under_the_runs_name_on_loopback(home: Path) -> None:
    build(home)
    plan = launch_plan.plan(settings())
    assert flag(plan, "--model") == str(home / "outputs/r/merged")
    assert (flag(plan, "--served-model-name"), flag(plan, "--host"), flag(plan, "--generation-config")) == (
        "r",
        "127.0.0.1",
        "vllm",
    )
    assert "--enforce-eager" in plan.command and "--trust-remote-code" not in plan.command
    assert plan.environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert flag(launch_plan.plan(settings(serve__served_model_name="x")), "--served-model-name") == "x"


def test_the_adapter_is_served_on_the_weights_that_it_was_trained_on(home: Path) -> None:
    build(home)
    with pytest.raises(UserError, match=r"lora\.r is 8 on the command line"):
        launch_plan.plan(settings(lora__r="8"))
    plan = launch_plan.plan(settings(serve__mode="lora"))
    assert flag(plan, "--generation-config") == str(home / "outputs/r/adapter")  # its stop tokens
    assert flag(plan, "--model") == str(home / "outputs/r/base")
    assert flag(plan, "--lora-modules") == f"r={home / 'outputs/r/adapter'}"
    assert flag(plan, "--max-lora-rank") == "32"  # 24 is no rank that vLLM starts for
    assert flag(plan, "--served-model-name") == "r-base"
    assert plan.model == "r"


def test_an_adapter_trained_without_quantization_is_served_on_the_base_itself(home: Path) -> None:
    build(home, method="lora")
    assert flag(launch_plan.plan(settings(serve__mode="lora")), "--model") == str(home / "models/m")


def test_auto_takes_the_adapter_where_vllm_can_serve_it(home: Path) -> None:
    build(home)
    plan = launch_plan.plan(settings(serve__mode="auto"))
    assert (plan.claim.mode, plan.route) == (
        "lora",
        "mode lora: plain LoRA of rank 24, which vLLM adds to LlamaForCausalLM",
    )
    file = home / "outputs/r/adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bias": "all"}))
    reseal(home / "outputs/r/adapter")
    shutil.rmtree(home / "outputs/r/merged")
    shutil.rmtree(home / "outputs/r/base")
    build(home)
    plan = launch_plan.plan(settings(serve__mode="auto"))
    assert (plan.claim.mode, plan.route) == ("merged", "mode merged: it has bias all, which vLLM does not serve")
    with pytest.raises(
        UserError, match=r"vLLM cannot serve the adapter r as one: it has bias all, .*take --serve\.mode merged"
    ):
        launch_plan.plan(settings(serve__mode="lora"))


def test_the_base_is_served_with_the_runs_template(home: Path) -> None:
    build(home)
    plan = launch_plan.plan(settings(serve__mode="base"))
    assert flag(plan, "--model") == str(home / "models/m")
    assert plan.model == flag(plan, "--served-model-name") == "r-base"  # a name that says what answers
    named = launch_plan.plan(settings(serve__mode="base", serve__served_model_name="x"))
    assert named.model == flag(named, "--served-model-name") == "x"
    assert flag(plan, "--chat-template") == str(home / "outputs/r/adapter/chat_template.jinja")


def gpus(home: Path, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """An nvidia-smi that tells of two GPUs of one kind, since there are none here to ask."""
    said = f'case "$1" in *compute_cap) echo {capability}; echo {capability};; *) echo 81920, 80000; echo 81920, 80000;; esac'
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{said}\n")
    (home / "bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("ACCEL", "cuda")


def test_cuda_flags_differ_in_what_they_must(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    gpus(home, monkeypatch, "9.0")
    plan = launch_plan.plan(settings(serve__tensor_parallel_size="2", serve__gpu_memory_utilization="0.8"))
    assert (flag(plan, "--tensor-parallel-size"), flag(plan, "--gpu-memory-utilization")) == ("2", "0.8")
    assert not {"--enforce-eager", "--kv-cache-memory-bytes", "--block-size"} & set(plan.command)
    with pytest.raises(UserError, match="GPU 0 has 80000 MiB free of 81920 MiB"):
        launch_plan.plan(settings(serve__gpu_memory_utilization="0.99"))


def test_it_serves_in_a_dtype_that_the_device_computes_with(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    for able, dtype in (({"avx2": True}, "float32"), ({"avx512_bf16": True}, "auto"), ({"amx_bf16": True}, "auto")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", able.copy)
        assert flag(launch_plan.plan(settings()), "--dtype") == dtype
        assert flag(launch_plan.plan(settings(serve__dtype="bfloat16")), "--dtype") == "bfloat16"
    for capability, dtype in {"7.5": "float16", "8.0": "auto", "12.0": "auto", "[N/A]": "auto"}.items():
        gpus(home, monkeypatch, capability)
        assert flag(launch_plan.plan(settings()), "--dtype") == dtype


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_reach_the_server_only_with_a_key(home: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    for key in ("", "short", " " * 20):
        monkeypatch.setenv("LOCKSTEP_API_KEY", key)
        with pytest.raises(UserError, match="needs a key: set LOCKSTEP_API_KEY to at least 16"):
            launch_plan.plan(settings(serve__host=host))
    monkeypatch.setenv("LOCKSTEP_API_KEY", "k" * 16)
    plan = launch_plan.plan(settings(serve__host=host))
    assert not plan.rules.loopback and "/tokenize" not in plan.rules.routes
    assert "k" * 16 not in str(plan)
    assert launch_plan.plan(settings()).rules.loopback


def test_the_guard_and_the_gate_are_told_what_they_need(home: Path) -> None:
    build(home)
    plan = launch_plan.plan(settings(serve__max_queue="5", serve__max_num_seqs="3", serve__max_n="2"))
    assert flag(plan, "--middleware") == "lockstep.serving.middleware.Guard"
    assert (plan.rules.max_requests, plan.rules.max_n, plan.rules.vocabulary) == (8, 2, 512)
    assert plan.rules.tokenizer == str(home / "outputs/r/merged") and plan.rules.prompt_logprobs
    assert plan.canary == [1, 2]
    lora = launch_plan.plan(settings(serve__mode="lora"))
    assert lora.rules.tokenizer == str(home / "outputs/r/adapter") and not lora.rules.prompt_logprobs


def test_a_byte_changed_since_is_found_before_the_start(home: Path) -> None:
    build(home)
    for name, mode in (("adapter", "lora"), ("base", "lora"), ("merged", "merged")):
        file = home / f"outputs/r/{name}/chat_template.jinja"
        file.write_text("u")
        with pytest.raises(UserError, match=f"outputs/r/{name}/chat_template.jinja was changed after it was made"):
            launch_plan.plan(settings(serve__mode=mode))
        file.write_text("t")


def test_adapters_of_other_runs_are_served_where_they_fit(home: Path) -> None:
    build(home)
    build(home, run="other", rank=60)
    build(home, run="odd", template="another")
    plan = launch_plan.plan(settings(serve__mode="lora", serve__adapters="other"))
    at = plan.command.index("--lora-modules")
    assert plan.command[at + 1 : at + 3] == [f"{run}={home}/outputs/{run}/adapter" for run in ("r", "other")]
    assert (flag(plan, "--max-lora-rank"), flag(plan, "--max-loras")) == ("64", "2")
    with pytest.raises(UserError, match="odd has another chat template than r"):
        launch_plan.plan(settings(serve__mode="lora", serve__adapters="odd"))
    with pytest.raises(UserError, match=r"is for --serve\.mode lora"):
        launch_plan.plan(settings(serve__adapters="other"))


def test_any_other_flag_of_vllm_passes_through_and_none_past_the_door(home: Path) -> None:
    build(home)
    given = json.dumps(
        {"block_size": 64, "enable-prefix-caching": False, "compilation_config": {"level": 0}, "x": [1, 2]}
    )
    words = launch_plan.plan(settings(serve__vllm_args=given)).command
    theirs = [
        "--block-size", "64", "--no-enable-prefix-caching", "--compilation-config", '{"level": 0}', "--x", "1", "2",
    ]  # fmt: skip
    assert words[-len(theirs) :] == theirs  # at the end: of a flag that we set, too, vLLM takes the last
    sizes = launch_plan.plan(settings(serve__data_parallel_size="2"))
    assert flag(sizes, "--data-parallel-size") == "2" and "--tensor-parallel-size" not in sizes.command
    with pytest.raises(UserError, match="1000 workers share a model"):
        launch_plan.plan(settings(serve__pipeline_parallel_size="1000"))
    for name in ("trust-remote-code", "middleware", "host", "no_enable_lora", "chat_template", "config",
                 "override_generation_config.temperature", "trust_remote_cod"):  # fmt: skip
        with pytest.raises(UserError, match=f"{name} is not open to change"):
            launch_plan.plan(settings(serve__vllm_args=json.dumps({name: True})))
    for name, instead in (
        ("allowed-origins", "serve.allowed_origins"), ("allow_cred", "serve.allowed_origins"), ("ssl_keyfile", "a proxy"),
        ("root-path", "a proxy"), ("h11-max-header-count", "bounded here"), ("api_key", "LOCKSTEP_API_KEY"),
        ("port", "serve.port"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name} is not open to change: .*{instead}"):
            launch_plan.plan(settings(serve__vllm_args=json.dumps({name: ["*"]})))
    for given in ({"host=0.0.0.0": True}, {"seed": ["1", "--host", "0.0.0.0"]}, {"seed": "--host=0.0.0.0"}, {"a b": 1},
                  {"seed": [1, "--trust-remote-code"]}, {"": True}, {"seed": "-x"}, {"seed": " --host"}):  # fmt: skip
        with pytest.raises(UserError, match="is not one flag and its values"):
            launch_plan.plan(settings(serve__vllm_args=json.dumps(given)))
    assert launch_plan.plan(settings(serve__vllm_args='{"seed": [-1, "-.5"]}')).command[-3:] == ["--seed", "-1", "-.5"]


def test_what_would_fail_after_a_minute_is_said_at_once(home: Path) -> None:
    with pytest.raises(UserError, match=r"outputs/r/merged is missing .*run `make merge` first"):
        launch_plan.plan(settings())
    build(home)
    with pytest.raises(UserError, match="more than the model's 512 positions"):
        launch_plan.plan(settings(serve__max_model_len="1024"))
    with pytest.raises(UserError, match="GiB of memory"):
        launch_plan.plan(settings(serve__kv_cache_memory_bytes=str(2**50)))
    with pytest.raises(UserError, match="is no address"):
        launch_plan.plan(settings(serve__host="nowhere.example"))
    taken = settings()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken.serve.port))
        holder.listen()
        with pytest.raises(UserError, match=f"port {taken.serve.port} on 127.0.0.1 is in use"):
            launch_plan.plan(taken)


def test_switches_that_open_the_server_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home)
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with pytest.raises(UserError, match="unset it"):
        launch_plan.plan(settings())


def test_pages_of_anybody_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKSTEP_API_KEY", raising=False)
    for origins in ("*", "http://localhost:5173,null", "http://localhost:5173,*"):
        with pytest.raises(UserError, match="any page in a browser on this machine could use the model"):
            launch_plan.plan(settings(serve__allowed_origins=origins))
    for origins, written in (
        ("http://localhost:5173/", "http://localhost:5173"), ("HTTPS://Chat.example.org:443", "https://chat.example.org"),
        ("app://obsidian.md", "app://obsidian.md"), ("http://[::1]:80", "http://[::1]"),
    ):  # fmt: skip
        assert settings(serve__allowed_origins=origins).serve.allowed_origins == (written,)
    for origins in ("localhost:5173", "http://localhost:5173/chat", "http://", "example.org"):
        with pytest.raises(UserError, match="must be a page's scheme, host and port"):
            settings(serve__allowed_origins=origins)
