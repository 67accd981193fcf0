import json
from pathlib import Path

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM

from lockstep.data.collator import IGNORE
from lockstep.settings.tree import Settings
from lockstep.training import distributions, reference_probes
from lockstep.training.reference_probes import Probe

IDS = list(range(10, 50_000))


def test_every_part_of_the_vocabulary_is_read() -> None:
    probes = reference_probes.drawn(IDS, 1024)
    tokens = [token for probe in probes for token in probe.input_ids[:-1]]
    assert len(tokens) == 48 * 15
    part = len(IDS) / len(tokens)
    assert all(0 <= token - 10 - number * part + 1 <= part + 1 for number, token in enumerate(sorted(tokens)))
    assert {len(probe.input_ids) for probe in probes} == {16} and all(probe.places == [15] for probe in probes)
    assert reference_probes.drawn(IDS, 1024) == probes  # the same in every run
    few = reference_probes.drawn([5, 6, 7], 9)
    assert {token for probe in few for token in probe.input_ids} == {5, 6, 7} and few[0].places == [8]
    assert reference_probes.drawn([5], 9) == reference_probes.drawn(IDS, 1) == []


def test_the_long_row_ends_as_it_begins() -> None:
    rows = [list(range(100, 140)), list(range(200, 270))]
    (probe,) = reference_probes.lengthy(rows, 500)
    size = reference_probes.ECHO
    assert len(probe.input_ids) == 500 and probe.input_ids[:size] == probe.input_ids[-size:]
    assert probe.input_ids[size : size + 40] == rows[0] and set(probe.input_ids) <= {*rows[0], *rows[1]}
    assert probe.places == sorted(set(probe.places)) and probe.places[-1] == 499
    assert sum(place >= 500 - size for place in probe.places) == reference_probes.LONG_PLACES
    assert (
        reference_probes.lengthy(rows, 70)
        == reference_probes.lengthy(rows, 80)
        == reference_probes.lengthy([], 500)
        == []
    )


@pytest.mark.parametrize(
    ("supervised", "places"),
    [([3], [3]), ([3, 4], [3, 4]), ([0, 4, 5, 6, 7], [4, 5, 6, 7]), (range(3, 13), [3, 6, 9, 12])],
)
def test_the_last_place_of_a_row_is_its_end(supervised: list[int], places: list[int]) -> None:
    labels = [place if place in supervised else IGNORE for place in range(14)]
    assert reference_probes.places_of(labels) == places


def test_what_is_chosen_holds_no_added_token_and_fits_the_model(tiny_model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps({"vocabulary": {"size": 400}}))
    row = {"input_ids": list(range(60, 90)), "labels": [IGNORE] * 29 + [89]}
    chosen = reference_probes.choose(Settings(), network, [row], tmp_path)
    drawn = {token for probe in chosen if probe.kind == "vocabulary" for token in probe.input_ids}
    assert min(drawn) == 3 and max(drawn) < 400  # the tokenizer adds the first three
    assert [len(probe.input_ids) for probe in chosen if probe.kind == "long"] == [512]  # the model's positions
    recorded = []
    rows = distributions.of_rows(network, reference_probes.batches_of(chosen), torch.float32, "")
    for probe, (log_probs, targets) in zip(chosen, rows, strict=True):
        ids, values = reference_probes.likeliest(log_probs, targets)
        assert all(probe.input_ids[place] in at for place, at in zip(probe.places, ids, strict=True))
        recorded.append(reference_probes.as_json(probe, ids, values, None))
    distances = reference_probes.kl_of(network, recorded, torch.float32, "")
    assert distances.keys() == {"vocabulary", "long"} and max(distances.values()) < 1e-6
    with torch.no_grad():
        network.lm_head.weight.mul_(3)
    assert min(reference_probes.kl_of(network, recorded, torch.float32, "").values()) > 1e-3


def test_rows_of_equal_length_share_a_batch() -> None:
    probes = [Probe("vocabulary", [1] * 16, [15])] * 3 + [Probe("long", [1] * 64, [8, 63])]
    assert [tuple(batch["labels"].shape) for batch in reference_probes.batches_of(probes)] == [(3, 16), (1, 64)]
