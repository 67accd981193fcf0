"""The same rows, the same adapter, the same order: our losses are TRL's, step by step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lockstep import paths
from lockstep.data.collator import IGNORE
from lockstep.settings import yaml_file
from lockstep.training import setup
from lockstep.training.batching import WindowSampler

ROWS = 24


def rows() -> Dataset:
    chance = torch.Generator().manual_seed(1)
    made = []
    for number in range(ROWS):
        size = 8 + int(torch.randint(0, 40, (), generator=chance))
        ids = torch.randint(3, 500, (size,), generator=chance).tolist()
        silent = 1 + size // 3
        made.append({"input_ids": ids, "labels": [IGNORE] * silent + ids[silent:], "row": str(number)})
    return Dataset.from_list(made)


def test_step_by_step(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig
    from support import rounding, tiny
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    monkeypatch.setattr(paths, "HOME", tiny_model.parent.parent)  # above both
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path)
    monkeypatch.setattr(paths, "MODELS", tiny_model.parent)
    settings = yaml_file.load(None, {
        "run": "r", "model.source": "local", "model.path": str(tiny_model), "model.name": tiny_model.name, "method": "lora",
        "train.dtype": "float32", "lora.lora_dropout": "0", "lora.r": "4", "train.learning_rate": "3e-3", "data.max_length": "64",
        "train.per_device_train_batch_size": "2", "train.gradient_accumulation_steps": "3", "train.logging_steps": "1",
        "train.num_train_epochs": "2", "train.optim": "adamw_torch",
    })  # fmt: skip
    data = rows()
    made = setup.build(settings, "cpu", torch.float32, data, None, 0, [])
    assert made.trainer.collate.packed and made.trainer.collate.share_prefix and made.fast and made.fast.whole
    first = {
        name: weight.detach().clone() for name, weight in made.trainer.model.state_dict().items() if "lora_" in name
    }
    made.trainer.train()

    def order(epoch: int) -> list[int]:
        sampler = WindowSampler(ROWS, 6, settings.train.seed)
        sampler.set_epoch(epoch)
        return [row for window in sampler for row in window]

    class Order(torch.utils.data.Sampler[int]):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return ROWS

        def __iter__(self) -> Any:
            return iter(order(self.epoch))

    class SameOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Order:
            return Order()

    theirs = SameOrder(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"), max_length=64, use_cpu=True, bf16=False, per_device_train_batch_size=2,
            gradient_accumulation_steps=3, num_train_epochs=2, learning_rate=3e-3, warmup_steps=0.03, optim="adamw_torch",
            lr_scheduler_type="linear", logging_steps=1, save_strategy="no", report_to="none", gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=data.remove_columns("row"), processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    theirs.model.load_state_dict(first, strict=False)
    theirs.train()
    ours, others = (
        [log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (made.trainer, theirs)
    )
    assert len(ours) == 8
    # The first loss differs by a few roundings. Each step of Adam then divides small differences by gradients that may be
    # small, too, so that they grow; a row weighted wrongly, or a mean of means, moves a loss by more than a hundredth.
    assert ours[0] == pytest.approx(float(others[0]), rel=16 * rounding.epsilon(torch.float32))
    assert ours == pytest.approx([float(value) for value in others], rel=2e-4)
    assert ours[-1] < ours[0]
