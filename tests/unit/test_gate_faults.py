"""What proofs 3 and 4 say of wrong models: real networks, trained and recorded as stage 02 does, answering by transformers."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import tiny
from support.transformers_server import TransformersServer
from transformers import AutoModelForCausalLM

from lockstep.artifacts import filenames
from lockstep.data.collator import IGNORE
from lockstep.serving import gate_log_probs
from lockstep.serving.gate_bounds import Bounds
from lockstep.serving.gate_findings import Findings
from lockstep.settings.tree import Settings
from lockstep.training import reference, reference_probes

Network = Any
USED = range(20, 120)  # ids that held-out rows hold


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, dict[str, Any]]:
    """A model that is sure of what it says, with an adapter; and its reference."""
    folder = tmp_path_factory.mktemp("run")
    base = tiny.model(folder / "base", tied=False)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight *= 1.0 if "norm" in name else 6.0
    network.save_pretrained(base)
    network = tiny.peft_adapter(folder / "adapter", base, noise=0.1)
    (folder / "adapter" / filenames.CONTRACT).write_text(json.dumps({"vocabulary": {"size": 500}}))
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(24):
        ids = torch.randint(USED.start, USED.stop, (20 + number,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE] * 8 + ids[8:], "answer": len(ids) - 8, "row": str(number)})
    more = reference_probes.choose(Settings(), network, rows, folder / "adapter")
    record = reference.record(network, [], rows, torch.float32, network.disable_adapter(), 512, more)
    return network, json.loads(json.dumps(record))


def judged(served: Network, record: dict[str, Any], base: Network | None = None, **bounds: Any) -> Findings:
    server: Any = TransformersServer(served) if base is None else TransformersServer(served, beneath=base)
    findings = Findings()
    given = Bounds(
        **{"kl": None, "logprob_gap": None, "min_stop_rate": None, "max_model_len": 512, "vocabulary": 512} | bounds
    )
    name = None if base is None else "beneath"
    gate_log_probs.check(server, "r", name, record, {"conversations": []}, given, {}, findings)
    return findings


def merged(network: PeftModel) -> Network:
    return copy.deepcopy(network).merge_and_unload()


def in_bfloat16(network: PeftModel) -> Network:
    return merged(network).to(torch.bfloat16)


def a_window(network: PeftModel) -> Network:
    """That reaches over every held-out row, and not over a long one."""
    changed = merged(network)
    inner = changed.model.forward

    def forward(input_ids: torch.Tensor, **more: Any) -> Any:
        size = input_ids.shape[1]
        ages = torch.arange(size)[:, None] - torch.arange(size)
        mask = torch.zeros(size, size).masked_fill((ages < 0) | (ages >= 64), float("-inf"))
        return inner(input_ids=input_ids, **more | {"attention_mask": mask[None, None]})

    changed.model.forward = forward
    return changed


def rare_embeddings_in_another_order(network: PeftModel) -> Network:
    changed = merged(network)
    weight = changed.get_input_embeddings().weight.data
    weight[USED.stop :] = weight[USED.stop :].roll(1, 0)
    return changed


def another_scale(share: float) -> Callable[[PeftModel], Network]:
    def scale(network: PeftModel) -> Network:
        changed = copy.deepcopy(network)
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                weight.data *= share
        return changed

    return scale


def a_layer_without_its_adapter(network: PeftModel) -> Network:
    changed = copy.deepcopy(network)
    for name, weight in changed.named_parameters():
        if "lora_B" in name and ".layers.1." in name:
            weight.data.zero_()
    return changed


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (merged, None), (in_bfloat16, None), (a_window, "other_rope"), (rare_embeddings_in_another_order, "embeddings"),
        (another_scale(0.0), "no_effect"), (another_scale(0.5), "scaled"), (a_layer_without_its_adapter, "other_weights"),
    ],
)  # fmt: skip
def test_wrong_models_are_told_from_right_ones(
    run: tuple[PeftModel, dict[str, Any]], spoil: Callable[[PeftModel], Network], named: str | None
) -> None:
    network, record = run
    findings = judged(spoil(network), record)
    assert findings.named == named, findings.report
    assert not findings.warnings and findings.report["kl_kinds"].keys() == {"rows", "ends", "vocabulary", "long"}


def test_the_base_beneath_an_adapter_is_the_one_it_was_trained_on(run: tuple[PeftModel, dict[str, Any]]) -> None:
    network, record = run
    base = copy.deepcopy(network).unload()
    right = judged(network, record, base)
    assert not right.reasons and right.report["base_kl"] < 1e-6
    base.lm_head.weight.data = base.lm_head.weight.data.roll(1, 0)
    assert "the base beneath the adapter is" in judged(network, record, base).reasons[0]


def test_a_record_of_an_earlier_version_is_compared_by_its_tokens(run: tuple[PeftModel, dict[str, Any]]) -> None:
    network, record = run
    earlier = {key: value for key, value in record.items() if key != "probes"}
    right = judged(network, earlier)
    assert not right.reasons and "was trained by an earlier version" in right.warnings[-1]
    assert right.report["kl_kinds"].keys() == {"rows", "ends"}
    assert judged(another_scale(0.0)(network), earlier).report["kl"] > 1000 * right.report["kl"]
