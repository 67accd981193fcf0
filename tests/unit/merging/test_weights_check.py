import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from support.edits import edit_json, edit_tensors

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.merging import dequantizer, merge, weights_check
from lockstep.merging.weights_check import Account
from lockstep.model import adapter_files, checkpoint_files, merge_plan, networks
from lockstep.settings.schema import Quantization

NF4 = Quantization()
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def run(home: Path, quantized: bool = False, **changes) -> Callable[[], Account]:
    """A merged model in home/out, and what compares it."""
    base, lora = home / "base", home / "adapter"
    tiny.model(base, hidden_size=128, shard="100KB")
    tiny.peft_adapter(lora, base, **changes)
    hashes = {}
    if quantized:
        for name in (Q_PROJ, "model.layers.1.mlp.down_proj.weight"):
            weight = networks.load(base, torch.float32, "cpu").get_parameter(name).data
            restored = dequantizer.round_trip(weight, torch.float32, NF4, "cpu")
            hashes[name] = networks.tensor_sha256(restored)
    (lora / filenames.BASE_TENSORS).write_text(json.dumps({"dequantized": hashes, "dtype": "float32"}))

    def make(strict: bool) -> dequantizer.Dequantizer | None:
        return dequantizer.Dequantizer(lora, NF4, strict) if quantized else None

    merge.write_weights(base, home / "out", adapter_files.read(lora), make(strict=True))

    def compare() -> Account:
        plan = merge_plan.plan_merge(base, adapter_files.read(lora))
        return weights_check.compare(merge.Merge(plan, make(strict=False)), home / "out")

    return compare


def file_of(home: Path, name: str) -> Path:
    return checkpoint_files.tensors_of(home / "out")[name].file


@pytest.mark.parametrize("changes", [{}, {"use_dora": True, "modules_to_save": ["lm_head"]}, {"more": 3}])
def test_a_merge_that_is_right_is_right_to_the_bit(tmp_path: Path, changes: dict) -> None:
    account = run(tmp_path, **changes)()
    assert account.wrong == {} and account.rounded == 0 and account.tensors >= 20
    assert account.elements > 512 * 128


def swap_two(tensors: dict) -> None:
    tensors[EMBEDDING][[400, 401]] = tensors[EMBEDDING][[401, 400]].clone()


def touch_one(tensors: dict) -> None:
    tensors[Q_PROJ][3, 5] += 0.05


def rescale(tensors: dict) -> None:
    tensors[Q_PROJ] *= 1.01


def not_a_number(tensors: dict) -> None:
    tensors[Q_PROJ][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("name", "fault"), [(EMBEDDING, swap_two), (Q_PROJ, touch_one), (Q_PROJ, rescale), (Q_PROJ, not_a_number)]
)
def test_one_wrong_element_is_noticed(tmp_path: Path, name: str, fault: Callable[[dict], object]) -> None:
    compare = run(tmp_path)
    edit_tensors(file_of(tmp_path, name), fault)
    account = compare()
    assert account.wrong.keys() == {name} and "elements, by up to" in account.wrong[name]


def test_a_few_elements_that_another_processor_rounds_otherwise_are_rounding(tmp_path: Path) -> None:
    compare = run(tmp_path)

    def next_number(tensors: dict) -> None:
        bits = tensors[Q_PROJ].view(torch.int16)
        bits[::64, 7] += 1

    edit_tensors(file_of(tmp_path, Q_PROJ), next_number)
    account = compare()
    assert account.wrong == {} and account.rounded == 2

    def all_of_them(tensors: dict) -> None:
        tensors[Q_PROJ].view(torch.int16).add_(1)

    edit_tensors(file_of(tmp_path, Q_PROJ), all_of_them)
    assert compare().wrong.keys() == {Q_PROJ}


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    compare = run(tmp_path)
    index = tmp_path / "out" / filenames.WEIGHTS_INDEX
    file = file_of(tmp_path, Q_PROJ)
    edit_tensors(file, lambda tensors: tensors.update(extra=tensors.pop(Q_PROJ)))
    assert compare().wrong == {Q_PROJ: "is missing", "extra": "does not belong there"}
    assert index.exists()  # several files were compared
    edit_tensors(file, lambda tensors: tensors.update({Q_PROJ: tensors.pop("extra").float()}))
    assert "F32" in compare().wrong[Q_PROJ]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        compare()


def test_another_device_may_quantize_a_little_otherwise_and_no_more(tmp_path: Path) -> None:
    compare = run(tmp_path, quantized=True)
    assert compare().wrong == {}

    def of_another_device(record: dict) -> dict:
        record["dequantized"][Q_PROJ] = "0" * 64
        return record

    edit_json(tmp_path / "adapter" / filenames.BASE_TENSORS, of_another_device)
    assert compare() == Account(tensors=compare().tensors, elements=compare().elements)  # made here: equal all the same
    file = file_of(tmp_path, Q_PROJ)

    def one_step(tensors: dict) -> None:
        tensors[Q_PROJ][9, 3] += 0.1 * tensors[Q_PROJ][9].std()

    edit_tensors(file, one_step)
    account = compare()
    assert account.wrong == {} and account.requantized == 1

    def swap_rows(tensors: dict) -> None:
        tensors[Q_PROJ][[0, 1]] = tensors[Q_PROJ][[1, 0]].clone()

    edit_tensors(file, swap_rows)
    assert compare().wrong.keys() == {Q_PROJ}
