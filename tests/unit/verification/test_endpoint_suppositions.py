"""Known faults of an adapter, tried on base and adapter, and told from one another."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from support import tiny

from lockstep.artifacts import atomic, filenames
from lockstep.model import networks
from lockstep.settings.schema import Quantization
from lockstep.verification import endpoint_suppositions
from lockstep.verification.expectation import Question, Supposition


@pytest.fixture(scope="module")
def suppositions(tmp_path_factory: pytest.TempPathFactory) -> list[Supposition]:
    folder: Path = tmp_path_factory.mktemp("trained")
    base = tiny.model(folder / "base", initializer_range=0.3)
    tiny.peft_adapter(folder / "adapter", base, r=8, lora_alpha=16)
    questions: list[Question] = [([5 + place, 9, 20 + 3 * place], list(range(40, 60))) for place in range(12)]
    return endpoint_suppositions.tried(base, folder / "adapter", questions)


def test_the_faults_that_tools_are_known_for_are_tried(suppositions: list[Supposition]) -> None:
    words = " · ".join(fault.words for fault in suppositions)
    for part in ("twice", "use_rslora", "lora_alpha is left out", "only attention", "only the first half"):
        assert part in words
    assert {fault.diagnosis for fault in suppositions} == {"twice", "scaled", "partial", "merged_dequantized"}


def test_each_fault_is_told_from_all_others(suppositions: list[Supposition]) -> None:
    for fault in suppositions:
        named = endpoint_suppositions.nearest(suppositions, fault.answers, 1.0)
        assert named and named[0] == fault.diagnosis and named[1].startswith(fault.words)


def test_what_is_no_known_fault_is_not_named(suppositions: list[Supposition]) -> None:
    others = [{token: -3.0 + 0.01 * token * (-1) ** number for token in range(40, 60)} for number in range(12)]
    assert endpoint_suppositions.nearest(suppositions, others, 0.2) is None
    assert endpoint_suppositions.nearest([], others, 0.2) is None


def test_nf4_weights_are_tried_as_what_qlora_trains_unless_a_record_says_otherwise(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base", initializer_range=0.3)
    tiny.peft_adapter(tmp_path / "adapter", base, r=8, lora_alpha=16)
    questions: list[Question] = [([5 + place, 9, 20 + 3 * place], list(range(40, 60))) for place in range(12)]
    tried = endpoint_suppositions.tried(base, tmp_path / "adapter", questions)
    on_nf4 = next(fault for fault in tried if fault.diagnosis == endpoint_suppositions.ON_NF4)
    assert "NF4" in on_nf4.words
    named = endpoint_suppositions.nearest(tried, on_nf4.answers, 1.0)
    assert named and named[0] == endpoint_suppositions.ON_NF4

    atomic.write_json(tmp_path / "adapter" / filenames.BASE_TENSORS, {"dequantized": {}, "dtype": "float32"})
    tried = endpoint_suppositions.tried(base, tmp_path / "adapter", questions)
    assert endpoint_suppositions.ON_NF4 not in {fault.diagnosis for fault in tried}


def test_nf4_weights_are_those_that_bitsandbytes_computes_with(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base", initializer_range=0.3)
    made = networks.load(base, torch.bfloat16, "cpu")
    endpoint_suppositions._put_on_nf4(made)
    loaded = networks.load(base, torch.bfloat16, "cpu", Quantization())
    layer = loaded.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, bnb.nn.Linear4bit)
    identity = torch.eye(layer.in_features, dtype=torch.bfloat16)
    assert torch.equal(layer(identity).T, made.get_submodule("model.layers.0.mlp.up_proj").weight)
