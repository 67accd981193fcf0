"""What is to be verified, and against what: anybody's folders and files, told apart by their content."""

from dataclasses import dataclass
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import checkpoint_files

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
GGUF = ".gguf"
# `quant_method` of config.json, of formats whose tensors can be turned into numbers here
COMPRESSED = "compressed-tensors"


@dataclass(frozen=True)
class Subjects:
    """What was given. All are there and of their kind.

    Attributes:
        base: folder of the model that was trained.
        adapter: PEFT's folder, with what was trained.
        merged: folder of a model that is said to be base and adapter in one.
        export: the same in another format: a folder, or a GGUF file.
        data: rows, or a file of them, that the training read.
        template: Jinja source of the chat template that the training used.
    """

    base: Path | None = None
    adapter: Path | None = None
    merged: Path | None = None
    export: Path | None = None
    data: Path | None = None
    template: str | None = None

    @property
    def reference(self) -> Path | None:
        """The folder whose tokenizer, template and stop tokens are those of the training, as far as anybody knows."""
        if self.adapter and has_tokenizer(self.adapter):
            return self.adapter
        return self.base or self.merged

    @property
    def models(self) -> dict[str, Path]:
        """What is held against the training: name of the option → folder or file."""
        given = {"merged": self.merged, "export": self.export}
        return {name: path for name, path in given.items() if path}


def recognised(
    base: Path | None = None,
    adapter: Path | None = None,
    merged: Path | None = None,
    export: Path | None = None,
    data: Path | None = None,
    template: Path | None = None,
) -> Subjects:
    """Paths as somebody typed them. A run's folder stands for the stage's folder in it.

    Raises:
        UserError: one is not there, or is something else.
    """
    for option, path in (
        ("base", base), ("adapter", adapter), ("merged", merged), ("export", export), ("data", data),
        ("template", template),
    ):  # fmt: skip
        if path is not None and not path.exists():
            raise UserError(f"--{option} {paths.label(path)}: there is no such file or folder")
    return Subjects(
        _model("base", base) if base else None,
        _adapter(adapter) if adapter else None,
        _model("merged", _stage(merged, filenames.MERGED)) if merged else None,
        _export(export) if export else None,
        data,
        _template(template) if template else None,
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    names = (filenames.TOKENIZER, filenames.SENTENCEPIECE, filenames.VOCABULARY)
    return folder.is_dir() and any((folder / name).exists() for name in names)


def _stage(folder: Path, name: str) -> Path:
    """The stage's folder of a run, or the folder itself."""
    return folder / name if not (folder / filenames.CONFIG).exists() and (folder / name).is_dir() else folder


def _model(option: str, folder: Path) -> Path:
    label = f"--{option} {paths.label(folder)}"
    if (folder / filenames.ADAPTER_CONFIG).exists() and not (folder / filenames.CONFIG).exists():
        raise UserError(f"{label} is an adapter: give it as --adapter")
    if not (folder / filenames.CONFIG).exists():
        raise UserError(f"{label} is no model's folder: it holds no {filenames.CONFIG}")
    _require_object(folder / filenames.CONFIG)
    _require_object(folder / filenames.GENERATION_CONFIG)
    if not _weights(folder):
        pickle = next((name for name in PICKLES if (folder / name).exists()), None)
        hint = f": {pickle} is a pickle, which could run code and is never loaded; save it as safetensors"
        raise UserError(f"{label} holds no safetensors files{hint if pickle else ''}")
    return folder


def _require_object(file: Path) -> None:
    """Raise UserError where a file is there and holds no JSON object."""
    try:
        is_object = not file.exists() or isinstance(atomic.read_json(file), dict)
    except (OSError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise UserError(f"{paths.label(file)} cannot be read: it holds no JSON object")


def _weights(folder: Path) -> bool:
    """Whether all of a folder's safetensors files are there. Raises UserError where some are missing."""
    try:
        files = list(checkpoint_files.files(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{paths.label(folder)}: {filenames.WEIGHTS_INDEX} cannot be read ({error})") from error
    if missing := [file.name for file in files if not file.exists()]:
        raise UserError(f"{paths.label(folder)} is incomplete: {missing[0]} of its index is missing")
    return bool(files)


def _adapter(folder: Path) -> Path:
    folder = folder / filenames.ADAPTER if not (folder / filenames.ADAPTER_CONFIG).exists() else folder
    if not (folder / filenames.ADAPTER_CONFIG).exists():
        raise UserError(
            f"--adapter {paths.label(folder)} holds no adapter: {filenames.ADAPTER_CONFIG} is missing; "
            f"give the folder that PEFT saved"
        )
    return folder


def _export(path: Path) -> Path:
    if path.is_file():
        if path.suffix != GGUF:
            raise UserError(f"--export {paths.label(path)} is neither a GGUF file nor a model's folder")
        return path
    _require_object(path / filenames.CONFIG)
    if (path / filenames.CONFIG).exists() and _weights(path):
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) != 1:
        raise UserError(
            f"--export {paths.label(path)} holds {len(files) or 'no'} GGUF files and no safetensors: give one file"
        )
    return files[0]


def _template(file: Path) -> str:
    """The source in a .jinja file, or that of a tokenizer's folder."""
    from lockstep.prompts import template_source

    text = template_source.of_folder(file) if file.is_dir() else None
    if file.is_dir() and text is None:
        raise UserError(f"--template {paths.label(file)} holds no chat template")
    try:
        return text if text is not None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {paths.label(file)} cannot be read ({error})") from error
