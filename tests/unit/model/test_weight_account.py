"""Every parameter is counted once, in the right group, with the bytes that it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import families, tiny

from lockstep.errors import UserError
from lockstep.model import checkpoint_names, coverage, networks, peft_adapter, weight_account
from lockstep.settings.schema import Lora, Quantization

EMBEDDING = 512 * 64
LINEARS = 2 * (64 * 128 + 2 * 64 * 64 + 128 * 64 + 3 * 64 * 128)  # q, k, v, o, gate, up, down of two layers
NORMS = 5 * 64


def network(folder: Path, four_bit: bool, targets: tuple[str, ...] = ("all-linear",), **changes: Any) -> Any:
    base = networks.load(tiny.model(folder, **changes), torch.bfloat16, "cpu", Quantization() if four_bit else None)
    return peft_adapter.attach(base, Lora(target_modules=targets)).get_base_model() if targets else base


def account_of(network: Any) -> coverage.Account:
    return weight_account.of_network(network, checkpoint_names.of_folder(Path(network.config.name_or_path)))


def test_a_qlora_is_counted_to_the_last_parameter(tmp_path: Path) -> None:
    base = network(tmp_path, four_bit=True)
    save_file({"mtp.fc.weight": torch.ones(7)}, tmp_path / "more.safetensors")  # as of a head that predicts more tokens
    account = account_of(base)
    groups = account.groups()
    assert groups["adapted_4bit"] == {
        "parameters": LINEARS,
        "bytes": LINEARS // 2 + LINEARS // 64 + 14 * 4,  # nibbles, 8-bit scales, and a scale of those for each layer
        "tensors": 14,
    }
    assert groups["frozen_16bit"] == {"parameters": EMBEDDING + NORMS, "bytes": 2 * (EMBEDDING + NORMS), "tensors": 6}
    assert groups["unused_by_text"] == {"parameters": 7, "bytes": 0, "tensors": 1}
    assert account.parameters == LINEARS + EMBEDDING + NORMS + 7
    assert account.bytes == sum(group["bytes"] for group in groups.values())
    assert account.share_4bit == LINEARS / account.parameters
    reasons = account.as_json()["reasons"]
    assert reasons["model.layers.1.mlp.down_proj.weight"] == "adapter"
    assert reasons["model.embed_tokens.weight"] == "embedding"
    assert reasons["mtp.fc.weight"] == "not loaded by transformers"
    assert "4-bit 74.8%" in coverage.summary(account) and "embedding" in coverage.summary(account)


def test_what_has_no_adapter_is_frozen(tmp_path: Path) -> None:
    account = account_of(network(tmp_path, four_bit=True, targets=("q_proj",)))
    groups = account.groups()
    assert (groups["adapted_4bit"]["tensors"], groups["frozen_4bit"]["tensors"]) == (2, 12)
    assert account.adapted == {f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1)}
    assert account.weights["model.layers.0.mlp.up_proj.weight"].reason == "linear layer without an adapter"


@pytest.mark.parametrize("tied", [True, False])
def test_without_quantization_and_with_all_weights_trained(tmp_path: Path, tied: bool) -> None:
    base = network(tmp_path, four_bit=False, targets=(), tied=tied)
    base.requires_grad_(True)
    account = account_of(base)
    total = LINEARS + NORMS + EMBEDDING * (1 if tied else 2)
    assert account.groups()["adapted_16bit"]["parameters"] == account.parameters == total
    assert account.bytes == 2 * total and account.share_4bit == 0
    assert "4-bit" not in coverage.summary(account)


def test_a_training_that_would_quantize_little_is_refused_by_name(tmp_path: Path) -> None:
    account = account_of(network(tmp_path, four_bit=True, vocab_size=4096))
    with pytest.raises(
        UserError, match=r"only 27\.\d% of .* in 4 bits \(embedding: .*--quantization\.min_share_4bit 0\.27"
    ):
        coverage.check_share(account, 0.5)
    coverage.check_share(account, 0.27)


def test_the_table_has_a_line_for_each_group_that_is_not_empty(tmp_path: Path) -> None:
    lines = coverage.table(account_of(network(tmp_path, four_bit=True)).as_json())
    assert [line["meaning"] for line in lines] == ["4-bit, with an adapter", "not quantized, frozen"]
    assert sum(line["share"] for line in lines) == pytest.approx(1)


@pytest.mark.parametrize("name", ["Llama 3.2", "Qwen3-MoE", "Gemma 3", "Qwen3.5-MoE", "gpt-oss"])
@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_what_is_planned_from_shapes_is_what_is_loaded(tmp_path: Path, name: str, method: str) -> None:
    folder = families.write(families.ALL[name], tmp_path)
    quantization = Quantization() if method == "qlora" else None
    lora = Lora(lora_dropout=0)
    model = peft_adapter.attach(networks.load(folder, torch.bfloat16, "cpu", quantization), lora)
    account = account_of(model.get_base_model())
    assert weight_account.planned(folder, method, lora, Quantization()).as_json() == account.as_json()
    assert (account.share_4bit > 0.3) == (method == "qlora")
    assert account.parameters == sum(weight.numel() for weight in networks.empty(folder).parameters()) + sum(
        entry.parameters for entry in account.weights.values() if not entry.bytes
    )


def test_experts_that_get_no_adapter_are_told(tmp_path: Path) -> None:
    folder = families.write(families.ALL["Qwen2-MoE"], tmp_path)
    idle, adapted = (
        weight_account.planned(folder, "qlora", Lora(target_modules=names, lora_dropout=0), Quantization())
        for names in (("q_proj", "gate_proj"), ("all-linear",))
    )
    assert coverage.share_of_idle_experts(idle) > 0.2 and not coverage.share_of_idle_experts(adapted)
    without = weight_account.planned(folder, "qlora", None, Quantization())
    assert without.share_4bit == idle.share_4bit == adapted.share_4bit
