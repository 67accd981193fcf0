"""Folders beside the bundle of the run that made them: copied, saved again by another program, and spoilt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.serving import Home

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.settings.schema import Model
from lockstep.settings.tree import Settings
from lockstep.verification import bundle, bundle_folder
from lockstep.verification.bundle import Bundle
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN


@pytest.fixture(scope="module")
def packed(finished: Home, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        from support import homes

        homes.settle(patch, finished.folder)
        file = tmp_path_factory.mktemp("packed") / filenames.BUNDLE
        return bundle.pack(Settings(run="r", model=Model(name="tiny")), file)


@pytest.fixture
def merged(finished: Home, tmp_path: Path) -> Path:
    """The run's merged model, copied to another machine."""
    shutil.copytree(finished.run / "merged", tmp_path / "served")
    (tmp_path / "served/manifest.json").unlink()
    return tmp_path / "served"


def weights_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def spoilt(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str | None = None) -> None:
    """Save a folder's weights again after a change of them."""
    file = weights_of(folder)
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, folder / (name or file.name), metadata={"format": "pt"})


def edited(file: Path, **changes: Any) -> None:
    atomic.write_json(
        file, {key: value for key, value in (atomic.read_json(file) | changes).items() if value != "DROP"}
    )


def test_a_copy_passes_and_the_adapter_and_the_base_do(packed: Bundle, merged: Path, finished: Home) -> None:
    results = bundle_folder.proofs(packed, "merged", merged)
    assert {name: proof.status for name, proof in results.items()} == dict.fromkeys(
        ("weights", "tokens", "stops", "sampling"), PASSED
    )
    assert results["weights"].diagnosis in ("merged_original", "merged_dequantized")
    assert "every file of weights is the run's" in results["weights"].text
    for stage in ("adapter", "base"):
        assert {proof.status for proof in bundle_folder.proofs(packed, stage, finished.run / stage).values()} == {
            PASSED
        }
    with pytest.raises(UserError, match="knows no export folder of the run r, but model, adapter, merged, base"):
        bundle_folder.proofs(packed, "export", merged)


def test_weights_that_another_program_saved_again_pass_in_any_files(packed: Bundle, merged: Path) -> None:
    spoilt(merged, lambda tensors: None, "pytorch-00001.safetensors")
    edited(merged / "config.json", transformers_version="4.0")
    weights = bundle_folder.proofs(packed, "merged", merged)["weights"]
    assert weights.status == PASSED and "tensors are the run's, in other files" in weights.text
    # a copy of the tied embeddings, which older versions of transformers wrote
    spoilt(merged, lambda tensors: tensors.update({"copy": next(iter(tensors.values())).clone()}))
    assert bundle_folder.proofs(packed, "merged", merged)["weights"].status == PASSED


def first_layer(name: str) -> bool:
    return "layers.0." in name and "proj" in name


def of_base(
    base: dict[str, torch.Tensor], chosen: Callable[[str], bool]
) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor for name, tensor in base.items() if chosen(name)})


def test_other_weights_are_named_for_what_they_are(
    packed: Bundle, merged: Path, finished: Home, tmp_path: Path
) -> None:
    base = load_file(weights_of(finished.folder / "models/tiny"))

    def looked(change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
        folder = tmp_path / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(merged, folder)
        spoilt(folder, change)
        proof = bundle_folder.proofs(packed, "merged", folder)["weights"]
        assert proof.status == FAILED and proof.next
        return proof

    assert looked(of_base(base, lambda name: True)).diagnosis == "base"
    part = looked(of_base(base, first_layer))
    assert part.diagnosis == "partial" and "these are the base's" in part.text
    with safe_open(weights_of(merged), "pt") as file:
        names = list(file.keys())
    last = sorted(names)[-1]
    scaled = looked(lambda tensors: tensors.update({last: tensors[last] * 1.01}))
    assert (scaled.diagnosis, scaled.figures["bundle_tensors_different"]) == (
        "other_weights",
        1,
    ) and last in scaled.text
    assert "is missing" in looked(lambda tensors: tensors.pop(last)).text
    half = looked(lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
    assert half.diagnosis == "wrong_dtype" and "it is F16 and was BF16" in half.text


def test_files_of_weights_beside_the_runs_are_not_passed_over(packed: Bundle, merged: Path) -> None:
    name = next(iter(load_file(weights_of(merged))))
    save_file({name: torch.zeros(1)}, merged / "zzz.safetensors")  # which vLLM would load last
    assert bundle_folder.proofs(packed, "merged", merged)["weights"].status == FAILED


def test_configs_are_compared_by_key(packed: Bundle, merged: Path) -> None:
    config = merged / "config.json"
    before = config.read_text()
    for change, status, named in (
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, FAILED, "other_rope"),
        ({"dtype": "float16"}, FAILED, "wrong_dtype"),
        ({"rms_norm_eps": 0.1}, FAILED, "other_weights"),
        ({"more": 1}, UNKNOWN, None),
    ):
        config.write_text(before)
        edited(config, **change)
        proof = bundle_folder.proofs(packed, "merged", merged)["weights"]
        assert (proof.status, proof.diagnosis) == (status, named), proof
    config.unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        bundle_folder.proofs(packed, "merged", merged)


def test_template_tokenizer_stops_and_sampling(packed: Bundle, merged: Path) -> None:
    generation = merged / "generation_config.json"
    before = generation.read_text()
    ends = json.loads(before)["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    for change, name, named in (
        ({"eos_token_id": [*ends, 3]}, "stops", "extra_end_token"),
        ({"eos_token_id": "DROP"}, "stops", "lost_end_token"),
        ({"temperature": 0.6}, "sampling", None),
    ):
        generation.write_text(before)
        edited(generation, **change)
        results = bundle_folder.proofs(packed, "merged", merged)
        assert (results[name].status, results[name].diagnosis) == (FAILED, named)
        assert {proof.status for other, proof in results.items() if other != name} == {PASSED}
    generation.unlink()
    assert bundle_folder.proofs(packed, "merged", merged)["stops"].diagnosis == "lost_end_token"
    generation.write_text(before)

    tokenizer = merged / "tokenizer.json"
    edited(tokenizer, more=1)
    tokens = bundle_folder.proofs(packed, "merged", merged)["tokens"]
    assert tokens.status == UNKNOWN and "tokenizer.json is another file" in tokens.text
    tokenizer.unlink()
    assert bundle_folder.proofs(packed, "merged", merged)["tokens"].diagnosis == "other_tokens"
    template = merged / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ 1 }}")
    tokens = bundle_folder.proofs(packed, "merged", merged)["tokens"]
    assert (
        tokens.diagnosis == "other_template"
        and "differs from the run's in line " in tokens.text
        and "{{ 1 }}" in tokens.text
    )
