import json
from pathlib import Path

import torch
from support import rounding
from transformers import AutoModelForCausalLM, BloomConfig

from lockstep.artifacts import filenames
from lockstep.data.collator import IGNORE, Collator
from lockstep.model import networks
from lockstep.training import distributions, reference

ROWS = [
    {
        "input_ids": list(range(10, 10 + n)),
        "labels": [IGNORE] * 3 + list(range(13, 10 + n)),
        "answer": n - 5,
        "row": f"f:{n}",
    }
    for n in (7, 15)
]


def said(network: torch.nn.Module) -> torch.Tensor:
    ((found, targets),) = distributions.log_probs(network, [Collator(0)(ROWS)], torch.float32)
    return found.gather(1, targets[:, None])[:, 0]


def test_what_is_recorded_is_what_the_model_says(tiny_model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    conversations = [{"name": "short", "prompt_ids": [5, 6, 7]}, {"name": "too long", "prompt_ids": [5] * 600}]
    found = reference.record(network, conversations, ROWS, torch.float32, None, longest=512)
    (golden,) = found["golden"]
    assert golden["name"] == "short" and golden["base"] is None
    row = found["rows"][1]
    assert row["places"] == list(range(3, 15)) and row["row"] == "f:15" and row["start"] == 5

    def by_hand(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            after = torch.log_softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1], -1)
            whole = torch.log_softmax(model(torch.tensor([ROWS[1]["input_ids"]])).logits[0], -1)
        return {
            "golden": after[golden["trained"]["ids"]],
            "row": torch.stack([whole[place - 1, row["input_ids"][place]] for place in row["places"]]),
            "ids": after.topk(20).indices,
        }

    recorded = {"golden": golden["trained"]["logprobs"], "row": row["trained"], "ids": golden["trained"]["ids"]}
    rounding.assert_as_exact(
        {name: torch.tensor(values) for name, values in recorded.items()},
        by_hand(network),
        by_hand(rounding.in_float64(network)),
    )
    assert row["end"] == {"id": 24, "trained": row["trained"][-1], "base": None}
    (tmp_path / filenames.REFERENCE).write_text(json.dumps(found))
    assert reference.gap(tmp_path, said(network), len(ROWS)) < 1e-5


def test_a_model_without_a_bound_leaves_no_conversation_out(tiny_model: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    conversations = [{"name": "long", "prompt_ids": [5] * 500}]
    assert len(reference.record(network, conversations, ROWS, torch.float32, None, longest=None)["golden"]) == 1
    assert networks.longest(network.config) == 512 and networks.longest(BloomConfig()) is None


def test_another_model_is_far_from_the_record(tiny_model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    (tmp_path / filenames.REFERENCE).write_text(
        json.dumps(reference.record(network, [], ROWS, torch.float32, None, 512))
    )
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    assert reference.gap(tmp_path, said(network), len(ROWS)) > 0.5


def test_rows_are_measured_by_length_and_recorded_in_their_order(tiny_model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = [*reversed(ROWS), {**ROWS[0], "row": "again"}]
    found = reference.record(network, [], rows, torch.float32, None, None)
    in_order = reference.record(network, [], ROWS, torch.float32, None, None)["rows"]
    assert [row["row"] for row in found["rows"]] == ["f:15", "f:7", "again"]
    for row, other in zip(found["rows"], [in_order[1], in_order[0], in_order[0]], strict=True):
        torch.testing.assert_close(torch.tensor(row["trained"]), torch.tensor(other["trained"]), atol=1e-5, rtol=0)
    # a record of an earlier version holds more rows than are measured now
    (tmp_path / filenames.REFERENCE).write_text(json.dumps(found))
    ((log_probs, targets),) = distributions.log_probs(
        network, [Collator(0)(reference.by_length(rows[:2]))], torch.float32
    )
    assert reference.gap(tmp_path, log_probs.gather(1, targets[:, None])[:, 0], 2) < 1e-5
