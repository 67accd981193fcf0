"""A folder somewhere, held against the bundle of the run that made it: files by their digests, tensors by theirs.

The fast way comes first: where every file is byte for byte the run's, that is all. A folder that another program
saved again is compared tensor by tensor and key by key.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.manifest import FileRecord
from lockstep.errors import UserError
from lockstep.merging.disk_check import FREE
from lockstep.processes import busy
from lockstep.verification import bundle, bundle_weights
from lockstep.verification.bundle import Bundle
from lockstep.verification.bundle_weights import TensorRecord
from lockstep.verification.files_expectation import SAMPLING
from lockstep.verification.verdict import DIAGNOSES, FAILED, PASSED, UNKNOWN, Proof

MERGE_AGAIN = "copy the run's folder again, as stage 03 wrote it"
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_DTYPE = ("dtype", "torch_dtype")
_STOPS = ("eos_token_id",)


def proofs(packed: Bundle, stage: str, folder: Path, tokenizer: Path | None = None) -> dict[str, Proof]:
    """What a folder's files say, held against the run's folder of a stage; proof by name.

    Args:
        stage: merged, base or adapter.
        tokenizer: folder with that of training, with which one is compared that is another file; None: not at hand.

    Raises:
        UserError: the bundle knows no such folder, or a file cannot be read.
    """
    require(packed, stage)
    recorded = packed.manifests[stage].files
    with busy.waiting(f"checking {paths.label(folder)}"):
        differing = sorted(name for name in recorded if not _is(folder / name, recorded[name]))
    model_files = {name: folder / name for name in differing if not _is_weights(name)}
    results = {"weights": _weights(packed, stage, folder, recorded, differing)}
    results["tokens"] = _tokens(packed, stage, folder, model_files, tokenizer)
    if stage != filenames.ADAPTER:
        results |= _behaviour(packed, stage, model_files)
    return results


def require(packed: Bundle, stage: str) -> None:
    """Raise UserError where a bundle knows no folder of a stage."""
    if stage not in packed.manifests:
        known = ", ".join(name for name in packed.manifests if name != filenames.DATA)
        raise UserError(f"{packed.source} knows no {stage} folder of the run {packed.packed.run}, but {known}")


def _is(file: Path, record: FileRecord) -> bool:
    """Whether a file has the bytes of a record."""
    return file.is_file() and file.stat().st_size == record.bytes and manifest.sha256_of(file) == record.sha256


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name == filenames.WEIGHTS_INDEX


def _weights(
    packed: Bundle, stage: str, folder: Path, recorded: Mapping[str, FileRecord], differing: list[str]
) -> Proof:
    """Whether a folder holds the run's tensors, and its network's shape is the run's."""
    weights = {name for name in recorded if _is_weights(name)}
    stray = {file.name for file in folder.glob("*.safetensors")} - weights
    expected = packed.weights.get(stage, {})
    figures: dict[str, Any] = {"bundle_tensors": len(expected), "bundle_files_equal": len(recorded) - len(differing)}
    if stray or weights & set(differing):
        proof = _tensors(packed, stage, folder, figures)
        if proof.status == FAILED:
            return proof
        how = f"all {len(expected)} tensors are the run's, in other files"
    else:
        how = f"every file of weights is the run's, {len(weights)} in all"
    config = filenames.ADAPTER_CONFIG if stage == filenames.ADAPTER else filenames.CONFIG
    if config in differing:
        return _config(packed, stage, folder / config, figures | {"how": how})
    return Proof(PASSED, figures, _name_of(packed, stage), how)


def _name_of(packed: Bundle, stage: str) -> str | None:
    """What the run's merged model is, in the words of DIAGNOSES."""
    report = packed.json(f"{filenames.MERGED}/{filenames.MERGE_REPORT}")
    named = f"merged_{(report or {}).get('strategy')}"
    return named if stage == filenames.MERGED and named in DIAGNOSES else None


def _tensors(packed: Bundle, stage: str, folder: Path, figures: dict[str, Any]) -> Proof:
    """The tensors of a folder by their hashes, whatever files they are in."""
    expected, there = packed.weights.get(stage, {}), bundle_weights.hashes(folder)
    base = packed.weights.get(bundle.MODEL, {})
    others = [name for name in expected if name in there and there[name] != expected[name]]
    tied = _output_layer(packed, stage)
    missing = [name for name in expected.keys() - there.keys() if name != tied or expected[name] not in there.values()]
    # a copy under another name, as of tied embeddings, changes nothing
    added = [name for name in there.keys() - expected.keys() if there[name] not in expected.values()]
    wrong = sorted([*others, *missing, *added])
    of_base = [name for name in others if there[name] == base.get(name)]
    figures |= {"bundle_tensors_different": len(wrong), "bundle_tensors_of_base": len(of_base)}
    if not wrong:
        return Proof(PASSED, figures)
    text = f"{len(wrong)} of {len(expected)} tensors are not the run's, the first is {wrong[0]}"
    trained = [name for name in expected if expected[name] != base.get(name)]
    if len(of_base) == len(wrong) == len(trained):
        return Proof(FAILED, figures, "base", "every tensor is that of the base: nothing was merged", MERGE_AGAIN)
    if len(of_base) == len(wrong):
        return Proof(FAILED, figures, "partial", f"{text}: these are the base's", MERGE_AGAIN)
    if missing and len(missing) == len(wrong):
        return Proof(FAILED, figures, "other_weights", f"{text}, and is missing", MERGE_AGAIN)
    if all(name in there and _other_dtype(there[name], expected.get(name)) for name in wrong):
        return Proof(
            FAILED, figures, "wrong_dtype",
            f"{text}: it is {there[wrong[0]].dtype} and was {expected[wrong[0]].dtype}", MERGE_AGAIN,
        )  # fmt: skip
    return Proof(FAILED, figures, "other_weights", text, MERGE_AGAIN)


def _output_layer(packed: Bundle, stage: str) -> str | None:
    """The tensor that need not be there, as it is that of the embeddings; None where the two are apart."""
    config = packed.json(f"{stage}/{filenames.CONFIG}") or {}
    inner = config.get("text_config")
    is_tied = config.get("tie_word_embeddings") or (isinstance(inner, dict) and inner.get("tie_word_embeddings"))
    return "lm_head.weight" if is_tied else None


def _other_dtype(record: TensorRecord, expected: TensorRecord | None) -> bool:
    return expected is not None and record.dtype != expected.dtype and record.shape == expected.shape


def _config(packed: Bundle, stage: str, file: Path, figures: dict[str, Any]) -> Proof:
    """A network's or an adapter's config that is not byte for byte the run's."""
    how = figures.pop("how")
    changed, one_sided = _keys(packed, stage, file)
    if changed:
        key = changed[0].split(".")[-1]
        named = "other_rope" if key in _ROPE else "wrong_dtype" if key in _DTYPE else "other_weights"
        text = f"{file.name} says another {changed[0]} than the run's"
        return Proof(FAILED, figures, named, text, MERGE_AGAIN)
    if one_sided:
        text = f"{how}, but only one of the two {file.name} says {one_sided[0]}"
        return Proof(UNKNOWN, figures, None, text, MERGE_AGAIN)
    return Proof(PASSED, figures, _name_of(packed, stage), how)


def _tokens(packed: Bundle, stage: str, folder: Path, differing: Mapping[str, Path], tokenizer: Path | None) -> Proof:
    """Whether tokenizer and template are the run's."""
    template = differing.get(filenames.CHAT_TEMPLATE)
    if template is not None:
        text = packed.packed.parts.get(f"{stage}/{filenames.CHAT_TEMPLATE}", "")
        where = f"{template.name} {_first_line(text, template)}"
        return Proof(FAILED, {}, "other_template", where, MERGE_AGAIN)
    wrong = [
        file
        for name, file in sorted(differing.items())
        if name not in _NO_TOKENS and (name != filenames.TOKENIZER_CONFIG or any(_keys(packed, stage, file)))
    ]
    if not wrong:
        return Proof(PASSED, {}, None, "tokenizer and template are the run's")
    if not wrong[0].exists():
        return Proof(FAILED, {}, "other_tokens", f"{wrong[0].name} is missing", MERGE_AGAIN)
    if tokenizer is None:
        text = f"{wrong[0].name} is another file than the run's: whether it gives the same tokens is not known"
        return Proof(UNKNOWN, {}, None, text, MERGE_AGAIN)
    from lockstep.verification import chats, tokens_proof  # transformers

    proof = tokens_proof.of_folder(chats.of_folder(tokenizer), chats.of_folder(folder), [])
    return replace(proof, figures={f"{stage}_{name}": value for name, value in proof.figures.items()})


# Files of a model's folder that say nothing about tokens, or are other proofs' business.
_NO_TOKENS = {
    filenames.CONFIG, filenames.GENERATION_CONFIG, filenames.ADAPTER_CONFIG, filenames.CONTRACT, filenames.MERGE_REPORT,
    filenames.REFERENCE, filenames.BASE_TENSORS, filenames.COVERAGE, filenames.METRICS, filenames.LOSS_PLOT,
    filenames.MODEL_CARD,
}  # fmt: skip


def _behaviour(packed: Bundle, stage: str, differing: Mapping[str, Path]) -> dict[str, Proof]:
    """Stop tokens and sampling: what generation_config.json says."""
    file = differing.get(filenames.GENERATION_CONFIG)
    if file is None:
        text = f"{filenames.GENERATION_CONFIG} is the run's"
        return {"stops": Proof(PASSED, {}, None, text), "sampling": Proof(PASSED, {}, None, text)}
    if not file.exists():
        gone = Proof(FAILED, {}, "lost_end_token", f"{file.name} is missing: what ends an answer is lost", MERGE_AGAIN)
        return {"stops": gone, "sampling": Proof(PASSED, {}, None, f"without {file.name} nothing is asked for")}
    here, run = _json(file), packed.json(f"{stage}/{file.name}") or {}
    ends = [_ids(content.get(_STOPS[0])) for content in (here, run)]
    lost, extra = sorted(ends[1] - ends[0]), sorted(ends[0] - ends[1])
    stops = Proof(PASSED, {"bundle_stop_ids": sorted(ends[0])}, None, "the stop tokens are the run's")
    if lost or extra:
        named, what = ("lost_end_token", lost) if lost else ("extra_end_token", extra)
        text = f"{file.name}: the token {what[0]} {'no longer ends' if lost else 'also ends'} an answer"
        stops = Proof(FAILED, {"bundle_stop_ids": sorted(ends[0])}, named, text, MERGE_AGAIN)
    asked = sorted(name for name in SAMPLING if here.get(name) is not None and here.get(name) != run.get(name))
    sampling = Proof(PASSED, {}, None, "no sampling is set beyond the run's")
    if asked:
        text = f"{file.name} sets {asked[0]} to {here[asked[0]]}, for which nobody asked"
        sampling = Proof(FAILED, {"bundle_set": {name: here[name] for name in asked}}, None, text, MERGE_AGAIN)
    return {"stops": stops, "sampling": sampling}


def _ids(value: Any) -> set[int]:
    return {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}


def _keys(packed: Bundle, stage: str, file: Path) -> tuple[list[str], list[str]]:
    """Dotted keys of a JSON file with other values than the run's, and those that only one of the two has."""
    here, run = _json(file), packed.json(f"{stage}/{file.name}")
    if run is None:
        return [], [file.name]
    flat = [_flat(content) for content in (here, run)]
    free = FREE.get(file.name, {}).keys()
    changed = [key for key in flat[1] if key not in free and key in flat[0] and flat[0][key] != flat[1][key]]
    one_sided = [key for key in sorted(flat[0].keys() ^ flat[1].keys()) if key not in free]
    return changed, one_sided


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{paths.label(file)} is missing: {MERGE_AGAIN}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{paths.label(file)} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{paths.label(file)} holds no JSON object")
    return content


def _first_line(expected: str, file: Path) -> str:
    """Where a text differs from the run's, in words."""
    if not file.exists():
        return "is missing"
    lines = [text.split("\n") for text in (expected, file.read_bytes().decode("utf-8", errors="replace"))]
    number = next((n for n, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), min(map(len, lines)))
    shown = [part[number][:60] if number < len(part) else "nothing" for part in lines]
    return f"differs from the run's in line {number + 1}: {shown[1]!r} for {shown[0]!r}"
