"""Copies of a finished run that are spoilt, each with its paperwork made right, as another tool or a hand leaves it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest

PARTS = (filenames.DATA, filenames.ADAPTER, filenames.MERGED, filenames.BASE)
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: outputs/<run>/.
        model: the folder of its base.
        source: the run that this one is a copy of.
    """

    folder: Path
    model: Path
    source: "Run | None" = None

    @property
    def checkpoints(self) -> Path:
        return (self.source or self).folder / filenames.CHECKPOINTS

    @property
    def adapter(self) -> Path:
        return self.folder / filenames.ADAPTER

    @property
    def merged(self) -> Path:
        return self.folder / filenames.MERGED

    @property
    def base(self) -> Path:
        """The weights that the adapter was trained on."""
        dequantized = self.folder / filenames.BASE
        return dequantized if dequantized.exists() else self.model

    def served(self, mode: str) -> Path:
        """The folder whose weights vLLM loads."""
        return self.merged if mode == "merged" else self.base

    def answers_with(self, mode: str) -> Path:
        """The folder whose tokenizer, template and stop tokens are served."""
        return self.merged if mode == "merged" else self.adapter

    def copy(self, name: str) -> "Run":
        """The same run under another name; files that are written anew there leave these as they are."""
        there = self.folder.with_name(name)
        shutil.rmtree(there, ignore_errors=True)
        for part in PARTS:
            if not (self.folder / part).exists():
                continue
            for file in sorted((self.folder / part).rglob("*")):
                target = there / file.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.is_file():
                    os.link(file, target)
            replace_text(there / part / filenames.MANIFEST, f'"outputs/{self.folder.name}/', f'"outputs/{name}/')
        return Run(there, self.model, self)

    def seal(self) -> None:
        """Make all manifests true again, each input by its present digest."""
        for part in PARTS:
            file = self.folder / part / filenames.MANIFEST
            if not file.exists():
                continue
            record = manifest.Manifest.model_validate_json(file.read_text(encoding="utf-8"))
            inputs = {label: _digest(label, digest) for label, digest in record.inputs.items()}
            changed = record.model_copy(update={"files": manifest.hash_files(file.parent), "inputs": inputs})
            changed = changed.model_copy(update={"digest": changed.content_digest()})
            atomic.write_json(file, changed.model_dump(by_alias=True))


def _digest(label: str, before: str) -> str:
    folder = paths.resolve_label(label)
    return manifest.read(folder).digest if (folder / filenames.MANIFEST).exists() else before


def replace_text(file: Path, old: str, new: str) -> None:
    """Write a text file anew. Raises ValueError where there is nothing to replace."""
    text = file.read_text(encoding="utf-8")
    if old not in text and file.name != filenames.MANIFEST:
        raise ValueError(f"{file} does not hold {old!r}")
    file.unlink()
    file.write_text(text.replace(old, new), encoding="utf-8")


def edit_json(file: Path, edit: Callable[[Any], Any]) -> None:
    """Change what a JSON file says.

    Args:
        edit: changes the value in place, or returns another.
    """
    value = json.loads(file.read_text(encoding="utf-8"))
    changed = edit(value)
    file.unlink()
    file.write_text(json.dumps(value if changed is None else changed, ensure_ascii=False, indent=2), encoding="utf-8")


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a model's folder."""
    from safetensors.torch import load_file

    loaded: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded |= load_file(file)
    return loaded


def write_tensors(file: Path, changed: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    file.unlink(missing_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file, metadata={"format": "pt"})


@dataclass(frozen=True)
class Weight:
    """A tensor of a merged model, and what it is made of.

    Args:
        merged, base, original: in it, in the base that the adapter was trained on, and in the base as downloaded.
        part: of the adapter; None where that leaves it as it is.
    """

    name: str
    merged: Any
    base: Any
    original: Any
    part: Any

    @property
    def update(self) -> Any:
        """What the adapter adds, float32."""
        return None if self.part is None else update_of(self.part)

    @property
    def layer(self) -> int:
        """Of the network; -1 where it belongs to none."""
        parts = self.name.split(".")
        return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def weights(run: Run) -> Iterator[Weight]:
    """Every tensor of the merged model, as it was before a copy was spoilt."""
    merged, base, original, parts = _all(run.source or run)
    for name, tensor in merged.items():
        yield Weight(name, tensor, base[name], original[name], parts.get(name))


@lru_cache(1)
def _all(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    return tensors(run.merged), tensors(run.base), tensors(run.model), low_rank(run.adapter)


def low_rank(adapter: Path) -> dict[str, Any]:
    """Name of each weight → its part in an adapter."""
    from lockstep.model import adapter_files

    return dict(adapter_files.read(adapter).low_rank)


def update_of(part: Any) -> Any:
    """What a part of an adapter adds to its weight, float32."""
    return part.scale * (part.b.float() @ part.a.float())
