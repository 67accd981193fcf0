"""Exports of the trained model keep what was trained, whatever their bits; those of the base hold none of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import llama_cpp, merges, tiny

from lockstep.errors import UserError
from lockstep.verification import files, subjects
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, adapter/ and merged/, wide enough for groups of 128."""
    home = tmp_path_factory.mktemp("verify")
    tiny.model(home / "base", hidden_size=128, intermediate_size=256)
    tiny.peft_adapter(home / "adapter", home / "base", noise=0.02, r=8)
    merges.by_peft(home / "base", home / "adapter", home / "merged")
    return home


def proofs_of(made: Path, export: Path, **given: Path) -> dict[str, Proof]:
    given = given or {"adapter": made / "adapter"}
    return files.files_proofs(subjects.recognised(base=made / "base", export=export, **given))


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_0"])
def test_a_gguf_of_the_trained_model_passes(made: Path, tmp_path: Path, dtype: str) -> None:
    proofs = proofs_of(made, llama_cpp.gguf(made / "merged", tmp_path / "m.gguf", dtype=dtype))
    assert {name: proof.status for name, proof in proofs.items()} == dict.fromkeys(
        ("weights", "adapter", "tokens", "stops", "sampling"), PASSED
    ), proofs
    figures = proofs["weights"].figures
    assert figures["export_survived"] == pytest.approx(1, abs=0.02) and figures["export_missing"] == 0


def test_a_gguf_of_the_base_is_told_by_adapter_and_by_merged_folder(made: Path, tmp_path: Path) -> None:
    export = llama_cpp.gguf(made / "base", tmp_path / "b.gguf", dtype="Q4_0")
    assert proofs_of(made, export)["weights"].diagnosis == "base"
    proof = proofs_of(made, export, adapter=made / "adapter", merged=made / "merged")["weights"]
    assert (proof.status, proof.diagnosis) == (FAILED, "base"), proof.text
    right = llama_cpp.gguf(made / "merged", tmp_path / "m.gguf", dtype="Q4_0")
    assert proofs_of(made, right, adapter=made / "adapter", merged=made / "merged")["weights"].status == PASSED


@pytest.mark.long
def test_parts_and_strengths_are_told(made: Path, tmp_path: Path) -> None:
    base = merges.tensors(made / "base")
    partly = merges.changed(
        made / "merged", tmp_path / "p", lambda w: {n: base[n] if "layers.1" in n else t for n, t in w.items()}
    )
    twice = merges.changed(made / "merged", tmp_path / "t", merges.scaled(base, 2.0))
    other = tiny.model(tmp_path / "o", seed=3, hidden_size=128, intermediate_size=256)
    for folder, diagnosis in ((partly, "partial"), (twice, "twice"), (other, "other_weights")):
        export = llama_cpp.gguf(folder, folder.with_suffix(".gguf"), dtype="Q8_0")
        proof = proofs_of(made, export)["weights"]
        assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text


def test_the_head_of_a_gguf_is_held_against_the_training(made: Path, tmp_path: Path) -> None:
    import gguf

    template = (made / "base/chat_template.jinja").read_text()
    bad = llama_cpp.gguf(
        made / "merged", tmp_path / "m.gguf", dtype="F16", chat_template=template.replace("assistant", "model"),
    )  # fmt: skip
    proofs = proofs_of(made, bad)
    assert proofs["tokens"].diagnosis == "other_template" and "model" in proofs["tokens"].text
    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "llama")
    writer.add_block_count(2)
    writer.add_float32("general.sampling.temp", 0.2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    proofs = proofs_of(made, tmp_path / "s.gguf")
    assert proofs["weights"].status == UNKNOWN and proofs["tokens"].diagnosis == "other_tokens"
    assert proofs["sampling"].status == FAILED and "temperature 0.2" in proofs["sampling"].text


SCHEMES: dict[str, dict[str, Any]] = {
    "w4a16": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64},
    "w8a8": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "fp8": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
}
FORMATS = {"w4a16": "pack-quantized", "w8a8": "int-quantized", "fp8": "float-quantized"}


def compressed(folder: Path, out: Path, scheme: str) -> Path:
    """A folder as llm-compressor writes it for vLLM, plainly rounded."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.utils import calculate_qparams

    shutil.copytree(folder, out)
    settings = {
        "quant_method": "compressed-tensors", "format": FORMATS[scheme], "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": SCHEMES[scheme]}},
    }  # fmt: skip
    config = QuantizationConfig.model_validate(
        {k: v for k, v in settings.items() if k in QuantizationConfig.model_fields}
    )
    group = config.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(FORMATS[scheme])
    stored = {}
    for name, weight in merges.tensors(folder).items():
        if "proj" not in name:
            stored[name] = weight
            continue
        size = SCHEMES[scheme].get("group_size", weight.shape[1])
        parts = weight.float().reshape(len(weight), -1, size)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), group.weights)
        module = name.removesuffix(".weight")
        state = {"weight": weight.float(), "weight_scale": scale, "weight_zero_point": zero}
        stored |= {f"{module}.{part}": t.contiguous() for part, t in compressor.compress(state, group).items()}
    save_file(stored, out / merges.WEIGHTS, metadata={"format": "pt"})
    content = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(content | {"quantization_config": settings}))
    return out


@pytest.mark.long
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_folder_compressed_for_vllm_is_told_from_the_bases(made: Path, tmp_path: Path, scheme: str) -> None:
    right = proofs_of(made, compressed(made / "merged", tmp_path / "right", scheme))
    assert right["weights"].status == right["tokens"].status == right["stops"].status == PASSED, right
    assert right["weights"].figures["export_error"] < 0.15
    wrong = proofs_of(made, compressed(made / "base", tmp_path / "wrong", scheme))["weights"]
    assert (wrong.status, wrong.diagnosis) == (FAILED, "base"), wrong.text


def test_a_merge_that_nf4_rounds_back_to_the_base_is_told(made: Path, tmp_path: Path) -> None:
    """The merge onto NF4 weights lies on their grid: whoever loads it in 4 bits again serves the base."""
    from safetensors.torch import load_file

    from lockstep.merging import dequantizer
    from lockstep.settings.schema import Quantization

    small = shutil.copytree(made / "adapter", tmp_path / "small")
    file = small / "adapter_model.safetensors"
    save_file({n: t * (0.1 if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    merged = merges.by_nf4(merges.tensors(made / "base"), small)
    again = merges.changed(
        made / "merged",
        tmp_path / "again",
        lambda _: {
            n: dequantizer.round_trip(w, torch.bfloat16, Quantization(), "cpu") if "proj" in n else w
            for n, w in merged.items()
        },
    )
    proof = proofs_of(made, again, adapter=small)["weights"]
    assert proof.status == FAILED and proof.figures["export_survived"] < 0.5, proof.text


def test_a_format_that_is_not_known_is_an_error(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made / "merged", tmp_path / "m")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UserError, match="format awq"):
        proofs_of(made, out)
    with pytest.raises(UserError, match="quantized \\(awq\\): give it as --export"):
        files.files_proofs(subjects.recognised(base=made / "base", merged=out))
