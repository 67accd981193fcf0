"""What a run knows about itself, in one small file: what a deployment is verified against elsewhere.

No weights, and of the rows only those of the reference. Every part is a text that a stage wrote, and the manifests in
the bundle say which: a bundle whose parts belong to several runs is refused when it is packed and when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.manifest import Manifest
from lockstep.errors import UserError
from lockstep.serving import gate_bounds
from lockstep.settings import commands
from lockstep.settings.tree import Settings
from lockstep.verification import bundle_file, bundle_shapes, bundle_weights
from lockstep.verification.bundle_file import Packed
from lockstep.verification.bundle_weights import TensorRecord
from lockstep.verification.expectation import Expectation
from lockstep.verification.files_expectation import SAMPLING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MODEL = "model"  # stands for models/<name>/ in the names of parts
STAGES = (MODEL, filenames.DATA, filenames.ADAPTER, filenames.MERGED, filenames.BASE)
WEIGHTS = "weights.json"
# Of a manifest: what the folder is, and with which packages it was made. Not when, where and by which command.
_OF_MANIFEST = {"stage", "schema_", "config", "inputs", "files", "digest", "revision", "origin", "versions"}
# A tokenizer in texts: other engines tell log-probabilities by the texts of tokens, not by their ids.
_OF_TOKENIZER = (
    filenames.TOKENIZER, filenames.TOKENIZER_CONFIG, filenames.CHAT_TEMPLATE, filenames.SPECIAL_TOKENS,
    filenames.ADDED_TOKENS,
)  # fmt: skip
_OF_MODEL = (
    filenames.CONFIG, filenames.GENERATION_CONFIG, filenames.TOKENIZER_CONFIG, filenames.CHAT_TEMPLATE,
)  # fmt: skip
# Stage → files that are parts, where it has them.
_FILES = {
    filenames.ADAPTER: (
        filenames.CONTRACT, filenames.REFERENCE, filenames.COVERAGE, filenames.BASE_TENSORS, filenames.ADAPTER_CONFIG,
        filenames.GENERATION_CONFIG, *_OF_TOKENIZER,
    ),
    MODEL: (filenames.TOKENIZER_CONFIG, filenames.CHAT_TEMPLATE, filenames.GENERATION_CONFIG),
    filenames.MERGED: (filenames.MERGE_REPORT, *_OF_MODEL),
    filenames.BASE: _OF_MODEL,
}  # fmt: skip
CONTRACT, REFERENCE = REQUIRED = tuple(
    f"{filenames.ADAPTER}/{name}" for name in (filenames.CONTRACT, filenames.REFERENCE)
)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose parts belong together.

    Attributes:
        packed: its file's content.
        source: the file, for people.
        manifests: of the run's folders that it knows, by the names in STAGES.
    """

    packed: Packed
    source: str
    manifests: dict[str, Manifest]

    @property
    def signed_by(self) -> str | None:
        """Name of the key that it says it is signed with; None: it is not signed."""
        return self.packed.signature.key if self.packed.signature else None

    @property
    def rows(self) -> int:
        """How many rows of the user's data are in it."""
        return len(self.required(REFERENCE)["rows"])

    def json(self, part: str) -> dict[str, Any] | None:
        """The JSON object that a part is; None where the bundle lacks it. Raises UserError where it is none."""
        text = self.packed.parts.get(part)
        return None if text is None else bundle_file.as_json(text, part, self.source)

    def required(self, part: str) -> dict[str, Any]:
        """The same for a part that every bundle has."""
        return bundle_file.as_json(self.packed.parts[part], part, self.source)

    @cached_property
    def weights(self) -> dict[str, dict[str, TensorRecord]]:
        """Hashes of tensors, of each of STAGES that has weights."""
        content = self.json(WEIGHTS) or {}
        try:
            return {
                stage: {name: TensorRecord.model_validate(record) for name, record in tensors.items()}
                for stage, tensors in content.items()
            }
        except (ValidationError, AttributeError) as error:
            raise UserError(f"{self.source}: its part {WEIGHTS} has another form") from error

    def expectation(self) -> Expectation:
        """What an endpoint is held against, without tokenizer."""
        generation = self.json(f"{filenames.ADAPTER}/{filenames.GENERATION_CONFIG}") or {}
        return Expectation(
            source=self.source,
            contract=self.required(CONTRACT),
            reference=self.required(REFERENCE),
            sampling={key: value for key, value in generation.items() if key in SAMPLING},
            certified=self._certified(),
        )

    def _certified(self) -> dict[str, float]:
        """How far the merge's certificate says that the merged model is from the trained one."""
        part = f"{filenames.MERGED}/{filenames.MERGE_REPORT}"
        certificate = self.json(part)
        try:
            return gate_bounds.of_report(certificate) if certificate else {}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.source}: its part {part} has another form") from error

    def unpacked(self, folder: Path) -> Expectation:
        """The same, with the tokenizer of training and the template of its base written into an empty folder.

        Raises:
            UserError: a file is none that a tokenizer may have.
        """
        from lockstep.model import file_checks

        written: dict[str, Path] = {}
        for stage in (filenames.ADAPTER, MODEL):
            texts = {name: self.packed.parts.get(f"{stage}/{name}") for name in _OF_TOKENIZER}
            written[stage] = folder / stage
            written[stage].mkdir()
            for name, text in texts.items():
                if text is not None:
                    (written[stage] / name).write_bytes(text.encode("utf-8", errors="surrogatepass"))
                    file_checks.check_content(written[stage] / name)
        has_tokenizer = (written[filenames.ADAPTER] / filenames.TOKENIZER).exists()
        return replace(
            self.expectation(),
            tokenizer=written[filenames.ADAPTER] if has_tokenizer else None,
            suspects={"the base's own template": written[MODEL]},
        )


def read(file: Path, public_key: "Ed25519PublicKey | None" = None) -> Bundle:
    """A bundle, with all that can be compared inside of it compared.

    Raises:
        UserError: as `bundle_file.read`, or its parts are of several runs.
    """
    packed, source = bundle_file.read(file, public_key), paths.label(file)
    manifests: dict[str, Manifest] = {}
    for stage in STAGES:
        part = f"{stage}/{filenames.MANIFEST}"
        if part in packed.parts:
            try:
                manifests[stage] = Manifest.model_validate_json(packed.parts[part])
            except ValidationError as error:
                raise UserError(f"{source}: its part {part} is no manifest of a stage") from error
    if missing := [part for part in REQUIRED if part not in packed.parts]:
        raise UserError(f"{source} lacks its part {missing[0]}: pack it again")
    if fault := _fault(packed, manifests):
        raise UserError(f"{source}: {fault}; pack it again")
    read_bundle = Bundle(packed, source, manifests)
    if fault := bundle_shapes.fault(*(read_bundle.required(part) for part in REQUIRED)):
        raise UserError(f"{source}: {fault}; pack it again")
    return read_bundle


def pack(settings: Settings, file: Path, key: "Ed25519PrivateKey | None" = None) -> Bundle:
    """Write the bundle of a finished run whose folders were checked (`folders`).

    Args:
        settings: of the run's training.

    Raises:
        UserError: the run's folders do not belong together.
    """
    parts, weights = {}, {}
    for stage, folder in folders(settings).items():
        record = Manifest.model_validate_json((folder / filenames.MANIFEST).read_text(encoding="utf-8"))
        parts[f"{stage}/{filenames.MANIFEST}"] = _text(record.model_dump(include=_OF_MANIFEST, by_alias=True))
        for name in _FILES.get(stage, ()):
            if name in record.files:
                parts[f"{stage}/{name}"] = (folder / name).read_bytes().decode("utf-8")
        if tensors := bundle_weights.hashes(folder):
            weights[stage] = {name: tensor.model_dump() for name, tensor in tensors.items()}
    parts[WEIGHTS] = _text(weights)
    parts |= reports(settings)
    bundle_file.write(file, settings.run, parts, key)
    return read(file, key.public_key() if key else None)


def folders(settings: Settings) -> dict[str, Path]:
    """The folders of a run that a bundle speaks of, by the names in STAGES; those that are not there are left out.

    Raises:
        UserError: the run is not finished: data, adapter and a model to serve must be there.
    """
    own = {stage: settings.run_dir / stage for stage in STAGES[1:]}
    there = {stage: folder for stage, folder in own.items() if (folder / filenames.MANIFEST).exists()}
    for stage in (filenames.DATA, filenames.ADAPTER):
        if stage not in there:
            manifest.read(own[stage])  # which says what to run
    if not there.keys() & {filenames.MERGED, filenames.BASE}:
        manifest.read(own[filenames.MERGED])
    if settings.method != "full":
        there = {MODEL: settings.model.folder} | there
    return there


def reports(settings: Settings) -> dict[str, str]:
    """Parts that no manifest covers: what the comparison on disk and the last gate found.

    Raises:
        UserError: the gate refused this very model.
    """
    parts, there = {}, folders(settings)
    compared = atomic.read_json(settings.run_dir / filenames.DISK_CHECK)
    parts[filenames.DISK_CHECK] = _text({stage: result for stage, result in compared.items() if stage in there})
    report_file = settings.run_dir / filenames.SERVE / filenames.GATE_REPORT
    try:
        report = atomic.read_json(report_file)
        served = {paths.resolve_label(label): digest for label, digest in report.get("served", {}).items()}
    except (OSError, ValueError, AttributeError, RecursionError):  # not served yet, or a damaged report
        return parts
    of_this_run = bool(served) and all(
        (folder / filenames.MANIFEST).exists() and manifest.read(folder).digest == digest
        for folder, digest in served.items()
    )
    if of_this_run and not report["passed"]:
        raise UserError(
            f"the gate kept the endpoint of this model shut ({paths.label(report_file)}): "
            f"run `{commands.make('serve')}` until it opens"
        )
    if of_this_run:
        report.pop("seconds", None)  # which no two runs have in common
        parts[f"{filenames.SERVE}/{filenames.GATE_REPORT}"] = _text(report)
    return parts


def _fault(packed: Packed, manifests: Mapping[str, Manifest]) -> str:
    """Where the parts of a bundle do not belong together; empty where they do."""
    if filenames.ADAPTER not in manifests or filenames.DATA not in manifests:
        return "it lacks the manifest of the training or of its data"
    for stage, record in manifests.items():
        if not record.is_intact:
            return f"the manifest of {stage} is not what its own digest says"
        for label, digest in record.inputs.items():
            source = _stage_of(label)
            if source in manifests and manifests[source].digest != digest:
                return f"{stage} was made from another {source} than the one in it"
    for part, text in packed.parts.items():
        stage, _, name = part.partition("/")
        if stage not in manifests or name == filenames.MANIFEST:
            continue
        recorded = manifests[stage].files.get(name)
        if recorded is None or bundle_file.sha256(text) != recorded.sha256:
            return f"{part} is not the one that the manifest of {stage} lists"
    return ""


def _stage_of(label: str) -> str:
    """Which of STAGES an input's label names; empty where it is another file or folder."""
    if match := manifest.OWN_INPUT.fullmatch(label):
        return label.removeprefix(f"outputs/{match[1]}/")
    return MODEL if label.startswith("models/") else ""


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
