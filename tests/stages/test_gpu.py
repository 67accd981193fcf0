"""What only an NVIDIA GPU can show: `make test-gpu`. The promises are those that the other tests make on a CPU."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import homes, programs, rounding, tiny

from lockstep import paths
from lockstep.data.collator import IGNORE, Collator
from lockstep.errors import UserError
from lockstep.model import networks, peft_adapter
from lockstep.settings import yaml_file
from lockstep.settings.schema import Lora, Quantization
from lockstep.settings.tree import Settings
from lockstep.training import fast_lora, loss, packed_attention, setup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
SIZES = (9, 30, 12, 25, 7, 18, 40, 11)
GRADIENTS = dict[str, torch.Tensor]


def rows(*sizes: int) -> Dataset:
    chance = torch.Generator().manual_seed(1)
    made = []
    for number, size in enumerate(sizes):
        ids = torch.randint(3, 500, (size,), generator=chance).tolist()
        silent = 2 + number % 3
        made.append({"input_ids": ids, "labels": [IGNORE] * silent + ids[silent:], "row": str(number)})
    return Dataset.from_list(made)


def on_gpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in batch.items()}


def measured(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, GRADIENTS]:
    model.zero_grad()
    total, _ = loss.loss_sum(model, on_gpu(batch))
    total.backward()
    return total.item(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


def with_loss(measurement: tuple[float, GRADIENTS]) -> GRADIENTS:
    return measurement[1] | {"loss": torch.tensor(measurement[0])}


def assert_alike(one: GRADIENTS, other: GRADIENTS, share: float) -> None:
    """The distance between each two gradients is at most a share of their length."""
    assert one.keys() == other.keys() and one
    for name, gradient in one.items():
        assert (gradient - other[name]).norm() <= share * gradient.norm() + 1e-6, name


def adapted(folder: Path, dtype: torch.dtype, quantized: bool) -> torch.nn.Module:
    network = networks.load(folder, dtype, "cuda", Quantization() if quantized else None)
    model: torch.nn.Module = peft_adapter.attach(network, Lora(r=4, lora_dropout=0.0)).train()
    chance = torch.Generator("cuda").manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=chance)
    return model


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_fast_pass_is_pefts(tmp_path: Path, kind: str, quantized: bool) -> None:
    """In float32; in bfloat16 it is as near to that as PEFT's own."""
    folder, batch = tiny.model(tmp_path / "m", kind=kind), Collator(0)([*rows(7, 15)])
    exact = adapted(folder, torch.float32, quantized)
    theirs = measured(exact, batch)
    fast = fast_lora.FastPass(exact)
    assert fast.layers == 14 and fast.whole
    ours = measured(exact, batch)
    assert len(list(networks.linear4bit(exact))) == (14 if quantized else 0)
    in_double = measured(rounding.in_float64(exact), batch)
    rounding.assert_as_exact(with_loss(ours), with_loss(theirs), with_loss(in_double))
    fast.undo(exact)
    assert measured(exact, batch)[0] == theirs[0]

    coarse = adapted(folder, torch.bfloat16, quantized)
    with torch.autocast("cuda", torch.bfloat16):
        pefts = measured(coarse, batch)[1]
        assert fast_lora.FastPass(coarse).whole
        ours_coarse = measured(coarse, batch)[1]

    def error(gradients: GRADIENTS) -> float:
        return sum((gradients[name] - theirs[1][name]).square().sum().item() for name in theirs[1]) ** 0.5

    assert ours_coarse.keys() == theirs[1].keys() and 0 < error(ours_coarse) <= 1.2 * error(pefts)


def test_masks_drop_the_share_that_was_asked_for_and_come_from_the_gpus_generator() -> None:
    x = torch.randn(1000, 999, dtype=torch.bfloat16, device="cuda")
    torch.manual_seed(3)
    mask, other = fast_lora.draw_mask(x, 0.05), fast_lora.draw_mask(x, 0.05)
    assert (~mask).float().mean().item() == pytest.approx(0.05, abs=0.001)
    assert (~mask & ~other).float().mean().item() == pytest.approx(0.0025, abs=0.0005)
    torch.manual_seed(3)
    assert torch.equal(fast_lora.draw_mask(x, 0.05), mask)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(fast_lora.drop(x.to(dtype), mask), x.to(dtype) * mask)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flash_attention_keeps_rows_apart(kv_heads: int) -> None:
    ends, chance = (0, 5, 205, 206, 270), torch.Generator("cuda").manual_seed(1)
    shapes = [(1, heads, ends[-1], 64) for heads in (4, kv_heads, kv_heads)]
    whole = [torch.randn(shape, generator=chance, device="cuda") for shape in shapes]
    outputs, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        given = [one.to(dtype, copy=True).requires_grad_() for one in whole]
        assert packed_attention._flash_computes(given[0], given[2], ends) == (dtype == torch.bfloat16)
        out, _ = packed_attention._attend(torch.nn.Module(), *given, None, borders=ends)
        out.float().square().sum().backward()
        outputs.append(out.detach().float())
        gradients.append({str(number): one.grad.float() for number, one in enumerate(given) if one.grad is not None})
    assert outputs[0].shape == outputs[1].shape == (1, 270, 4, 64)
    assert (outputs[1] - outputs[0]).norm() < 0.01 * outputs[0].norm()
    assert_alike(*gradients, 0.02)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings of a short training of a tiny model."""
    tiny_model = tiny.model(tmp_path / "models/tiny")
    homes.settle(monkeypatch, tmp_path)

    def settings(**more: str) -> Settings:
        given = {
            "run": "r", "model.source": "local", "model.path": str(tiny_model), "model.name": "tiny", "method": "lora",
            "train.dtype": "float32", "lora.lora_dropout": "0", "lora.r": "4", "train.learning_rate": "1e-2",
            "train.per_device_train_batch_size": "8", "train.gradient_accumulation_steps": "1", "data.max_length": "64",
            "train.logging_steps": "1",
        }  # fmt: skip
        return yaml_file.load(None, given | {name.replace("__", "."): value for name, value in more.items()})

    return settings


def build(settings: Settings, train: Dataset) -> setup.Training:
    return setup.build(settings, "cuda", networks.compute_dtype(settings.train.dtype, "cuda"), train, None, 0, [])


def losses(made: setup.Training) -> list[float]:
    made.trainer.train()
    return [log["loss"] for log in made.trainer.state.log_history if "loss" in log]


ONE_BY_ONE = {"train__per_device_train_batch_size": "1", "train__gradient_accumulation_steps": "8"}


@pytest.mark.parametrize(
    "other", [ONE_BY_ONE, {"train__padding_free": "false"}, ONE_BY_ONE | {"train__padding_free": "false"},
              {"train__gradient_checkpointing": "true"}, {"train__use_liger_kernel": "true"}],
)  # fmt: skip
def test_the_losses_do_not_depend_on_how_rows_are_laid_out(configured: Any, other: dict[str, str]) -> None:
    if "train__use_liger_kernel" in other:
        pytest.importorskip("liger_kernel")
    epochs = {"train__num_train_epochs": "4"}
    made = build(configured(**epochs), rows(*SIZES, *SIZES))
    assert made.trainer.collate.packed and made.fast and made.fast.whole
    second = build(configured(**epochs, **other), rows(*SIZES, *SIZES))
    assert second.trainer.collate.packed == ("train__padding_free" not in other)
    assert second.trainer.network.is_gradient_checkpointing == ("train__gradient_checkpointing" in other)
    first_losses, other_losses = losses(made), losses(second)
    assert len(first_losses) == 8 and first_losses[-1] < first_losses[0]
    assert other_losses == pytest.approx(first_losses, rel=1e-4)


def test_out_of_memory_is_advice_and_auto_batch_goes_on(configured: Any) -> None:
    """A card that is as good as full, and passes that do not fit into what is left."""
    many = rows(*[60] * 4096)
    given = {"train__per_device_train_batch_size": "2048", "train__gradient_accumulation_steps": "2", "train__optim": "adamw_torch"}  # fmt: skip
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600 * 2**20) / total)
    try:
        settings = configured(**given)
        made = build(settings, many)
        with pytest.raises(UserError, match=r"train_batch_size 1024 --train\.gradient_accumulation_steps 4"):
            setup.advise_on_memory(made.trainer.train, settings, made.trainer)
        made = build(configured(**given, train__auto_batch="true"), many)
        assert len(losses(made)) == 1 and made.trainer.rows_in_a_pass < 2048
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def words(home: Path, run: str) -> tuple[str, ...]:
    return (
        "--run", run, "--model.source", "local", "--model.path", str(home / "tiny"), "--model.name", "tiny",
        "--data.train_file", str(home / "rows.jsonl"), "--data.max_length", "200", "--lora.lora_dropout", "0.1",
        "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2", "--train.save_steps", "4",
        "--train.num_train_epochs", "12", "--train.eval_steps", "40", "--train.learning_rate", "1e-2", "--lora.r", "4",
        "--train.sample_tokens", "4", "--train.logging_steps", "1",
    )  # fmt: skip


def stage(home: Path, script: str, run: str) -> programs.Ended:
    """A program of its own: what has used a GPU must not fork."""
    step = programs.run(home, script, *words(home, run), fresh=True)
    assert step.returncode == 0, step.stderr
    return step


def weights(home: Path, run: str) -> GRADIENTS:
    from safetensors.torch import load_file

    return load_file(home / f"outputs/{run}/adapter/adapter_model.safetensors")


def test_nf4_training_is_killed_goes_on_and_merges_to_what_was_trained(tmp_path: Path) -> None:
    """With paged_adamw_8bit, whose state a resume must bring back."""
    home = tmp_path
    tiny.model(home / "tiny")
    tiny.rows(home / "rows.jsonl", 40)
    stage(home, "00_download_model.py", "whole")
    stage(home, "01_data_collator.py", "whole")
    stage(home, "02_train_qlora.py", "whole")
    metrics = json.loads((home / "outputs/whole/adapter/metrics.json").read_text())
    assert metrics["device"] == "cuda" and metrics["peak_memory_bytes"] > 0
    base = json.loads((home / "outputs/whole/adapter/base_tensors.json").read_text())
    assert len(base["dequantized"]) == 14, "no layer was in 4 bits"
    checkpoint = next(home.glob("outputs/whole/checkpoints/checkpoint-*"))
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert state and all("state1" in part for part in state.values()), "the optimizer was not bitsandbytes'"

    shutil.copytree(home / "outputs/whole/data", home / "outputs/killed/data", copy_function=shutil.copy2)
    command = [sys.executable, str(programs.ROOT / "scripts/02_train_qlora.py"), *words(home, "killed")]
    folder = home / "outputs/killed/checkpoints"
    for _ in range(2):  # and one in a resumed training
        seen = {path.parent.name for path in folder.glob("checkpoint-*/manifest.json")}
        process = subprocess.Popen(command, env=programs.script_environment(home), cwd=home, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not {path.parent.name for path in folder.glob("checkpoint-*/manifest.json")} - seen:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert "resuming from" in stage(home, "02_train_qlora.py", "killed").stdout
    one, other = weights(home, "whole"), weights(home, "killed")
    assert_alike(one, other, 0.02)

    stage(home, "03_merge_lora.py", "killed")
    report = json.loads((home / "outputs/killed/merged/merge_report.json").read_text(encoding="utf-8"))
    assert report["trained"]["reference_gap"] < 0.01
    assert report["candidates"][report["strategy"]]["kl_mean"] < 1e-3
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_losses_are_trls_step_by_step(configured: Any, tmp_path: Path) -> None:
    """NF4, bfloat16, rows end to end, against padded rows in TRL."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from lockstep.training.batching import WindowSampler

    data = rows(*SIZES, *SIZES, *SIZES)
    settings = configured(
        method="qlora", train__dtype="bfloat16", train__per_device_train_batch_size="2", train__gradient_accumulation_steps="3",
        train__optim="adamw_torch",
    )  # fmt: skip
    made = build(settings, data)
    assert made.trainer.collate.packed and made.fast and made.fast.whole
    assert len(list(networks.linear4bit(made.trainer.model))) == 14 and made.trainer.args.bf16
    first = {name: w.detach().clone() for name, w in made.trainer.model.state_dict().items() if "lora_" in name}
    ours = losses(made)
    order = [row for window in WindowSampler(len(data), 6, 42) for row in window]

    class SameOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> list[int]:
            return order

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    theirs = SameOrder(
        AutoModelForCausalLM.from_pretrained(
            paths.MODELS / "tiny", dtype=torch.bfloat16, quantization_config=four_bit, device_map={"": "cuda"}
        ),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"), max_length=64, bf16=True, per_device_train_batch_size=2, gradient_accumulation_steps=3,
            num_train_epochs=1, learning_rate=1e-2, warmup_steps=0.03, optim="adamw_torch", lr_scheduler_type="linear", logging_steps=1,
            save_strategy="no", report_to="none", gradient_checkpointing=False, disable_tqdm=True,
        ),
        train_dataset=data.remove_columns("row"), processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    theirs.model.load_state_dict(first, strict=False)
    theirs.train()
    others = [float(log["loss"]) for log in theirs.state.log_history if "loss" in log]
    assert len(ours) == len(others) == 4 and ours == pytest.approx(others, rel=5e-3)
