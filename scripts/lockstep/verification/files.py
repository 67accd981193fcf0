"""The proofs that files allow, without asking any endpoint."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.verification import verdict
from lockstep.verification.subjects import Subjects, has_tokenizer
from lockstep.verification.verdict import UNKNOWN, Proof

if TYPE_CHECKING:
    from lockstep.verification.conversations import Conversation

UNREADABLE = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError)  # of a config that is not known

Looks = dict[str, list[Proof]]


def files_proofs(subjects: Subjects) -> dict[str, Proof]:
    """What files establish: proof by name; those that do not apply are left out.

    Raises:
        UserError: a file cannot be read, or the adapter belongs to another base.
    """
    from lockstep.verification import conversations

    looks: Looks = {name: [] for name in verdict.PROOFS}
    rows = conversations.rows(subjects.data) if subjects.data else []
    _weights(subjects, looks)
    _texts(subjects, rows, looks)
    combined = {name: verdict.combined(proofs) for name, proofs in looks.items()}
    return {name: proof for name, proof in combined.items() if proof}


def merged(*looks: Mapping[str, Proof]) -> dict[str, Proof | None]:
    """All proofs of several looks, each with the gravest of its statuses; None where none of them applies."""
    return {name: verdict.combined([look[name] for look in looks if name in look]) for name in verdict.PROOFS}


def _weights(subjects: Subjects, looks: Looks) -> None:
    """Add the proofs `weights` and `adapter`."""
    from lockstep.verification import adapter_contents, adapter_proof, config_proof, export_proof, weights_proof

    for option, folder in (("base", subjects.base), ("merged", subjects.merged)):
        _refuse_quantized(option, folder)
    names = _names(subjects.base) if subjects.base else None
    contents = None
    if subjects.adapter:
        contents = adapter_contents.read(subjects.adapter, names)
        looks["adapter"].append(adapter_proof.of_adapter(subjects.adapter, contents, names))
    if subjects.export:
        looks["weights"].append(export_proof.of_export(subjects.base, subjects.merged, subjects.export, contents))
    if subjects.merged is None:
        return
    if subjects.base is None:
        text = "without the base nothing says what the weights should be"
        looks["weights"].append(Proof(UNKNOWN, text=text, next="give --base, as it was published"))
        return
    _names(subjects.merged)
    looks["weights"].append(weights_proof.of_merged(subjects.base, subjects.merged, contents, subjects.adapter))
    looks["weights"].append(config_proof.of_configs(subjects.base, subjects.merged))


def _texts(subjects: Subjects, rows: "list[Conversation]", looks: Looks) -> None:
    """Add the proofs `tokens`, `stops` and `sampling`."""
    from lockstep.prompts import template_source
    from lockstep.verification import (
        chats,
        gguf_file,
        gguf_proofs,
        sampling_proof,
        stops_proof,
        tokens_proof,
    )
    from lockstep.verification.files_expectation import sampling_of

    folder = subjects.reference
    trained = None
    if folder is not None and has_tokenizer(folder):
        text = subjects.template or template_source.of_folder(folder)
        known = subjects.template is not None or (folder == subjects.adapter and text is not None)
        if text is None and subjects.base:
            text = template_source.of_folder(subjects.base)
        trained = replace(chats.of_folder(folder, text), assumed=not known)
        if proof := stops_proof.of_rows(trained, rows):
            looks["stops"].append(proof)
    origins = [each for each in (subjects.base, subjects.adapter) if each]
    asked: dict[str, Any] = {name: value for each in origins for name, value in sampling_of(each).items()}
    if subjects.export and subjects.export.is_file() and trained is not None:
        file = gguf_file.read(subjects.export)
        looks["tokens"].append(_named("export", gguf_proofs.tokens(trained, file, rows)))
        looks["stops"].append(_named("export", gguf_proofs.stops(trained, file)))
        looks["sampling"].append(_named("export", gguf_proofs.sampling(asked, file)))
    if subjects.adapter and subjects.base and trained is not None and folder != subjects.base:
        looks["tokens"].append(_named("adapter", tokens_proof.of_adapter(trained, chats.of_folder(subjects.base))))
    for option, path in _folders(subjects).items():
        if trained is None or path == folder:
            text = "neither base nor adapter holds a tokenizer, so the training's is not known"
            looks["tokens"].append(Proof(UNKNOWN, text=text, next="give --base, or an adapter with its tokenizer"))
            continue
        if not has_tokenizer(path):
            text = f"{paths.label(path)} holds no tokenizer: servers would take another one, or none"
            looks["tokens"].append(Proof(UNKNOWN, text=text, next=tokens_proof.COPY))
        else:
            other = chats.of_folder(path)
            looks["tokens"].append(_named(option, tokens_proof.of_folder(trained, other, rows)))
            looks["stops"].append(_named(option, stops_proof.of_folder(trained, origins, other, path)))
        looks["sampling"].append(_named(option, sampling_proof.of_folder(asked, path)))


def _folders(subjects: Subjects) -> dict[str, Path]:
    """The models that are folders with a tokenizer of transformers'."""
    return {option: path for option, path in subjects.models.items() if path.is_dir()}


def _named(option: str, proof: Proof) -> Proof:
    """A proof with its figures under names of their own where it is not about the merged folder."""
    if option == "merged":
        return proof
    return replace(proof, figures={f"{option}_{name}": value for name, value in proof.figures.items()})


def _refuse_quantized(option: str, folder: Path | None) -> None:
    config = atomic.read_json(folder / filenames.CONFIG) if folder else {}
    settings = config.get("quantization_config") or {}
    if method := settings.get("quant_method"):
        assert folder
        hint = "give the model that it was made of" if option == "base" else "give it as --export"
        raise UserError(f"--{option} {paths.label(folder)} holds weights that are quantized ({method}): {hint}")


def _names(folder: Path) -> Any:
    """The names of a folder's tensors. Raises UserError where transformers does not know the model."""
    from lockstep.model import checkpoint_names

    try:
        return checkpoint_names.of_folder(folder)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{paths.label(folder)} cannot be read by transformers: {reason}") from error
