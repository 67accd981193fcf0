"""A run's config and data: whether they can be read, what must still be downloaded, and what comes next."""

from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.data import user_files
from lockstep.data.splits import SPLITS
from lockstep.doctor import row_look
from lockstep.doctor.findings import Fact, Finding, Look
from lockstep.doctor.network import Need
from lockstep.endpoint import address, server_note
from lockstep.errors import UserError
from lockstep.serving import preflight, server_control
from lockstep.settings import commands
from lockstep.settings.tree import Settings

TOY = "data/toy/"  # which make writes where the demo needs it
STAGES = (("data", filenames.DATA), ("train", filenames.ADAPTER), ("merge", filenames.MERGED))
GIB = 2**30


def look(settings: Settings) -> Look:
    """The run's stages, its data, and what comes next."""
    findings = [*_paths(settings), *_broken(settings)]
    facts = [Fact("run", _progress(settings))]
    if settings.data.source == "files" and not findings:
        facts_of_data, findings_of_data = _rows(settings)
        facts += facts_of_data
        findings += findings_of_data
    return Look(tuple(facts), tuple(findings))


def _progress(settings: Settings) -> str:
    """Which stages are done, and the next one's command."""
    steps = [("download", settings.model.folder), *((goal, settings.run_dir / name) for goal, name in STAGES)]
    for number, (goal, folder) in enumerate(steps):
        if not manifest.looks_complete(folder):
            done = ", ".join(paths.label(ready) for _, ready in steps[:number])
            return f"{settings.run}: {f'{done} done, ' if done else ''}next `{commands.make(goal)}`"
    return f"{settings.run}: trained and merged, next `{commands.make('serve')}`"


def _paths(settings: Settings) -> list[Finding]:
    """Files that the settings name and that are not there."""
    findings = []
    for stage in ("download", "data", "train", "merge", "evaluate"):
        done = {"download": settings.model.folder, "data": settings.run_dir / filenames.DATA}.get(stage)
        if done and manifest.looks_complete(done):
            continue
        try:
            user_files.check_paths(settings, stage)
        except UserError as error:
            if TOY not in str(error):
                findings.append(Finding("path_missing", str(error), f"then run `{commands.make('data')}`"))
    return findings


def _broken(settings: Settings) -> list[Finding]:
    """Folders of stages whose files are not those that their manifest lists."""
    findings = []
    for folder in (settings.model.folder, *(settings.run_dir / name for _, name in STAGES)):
        if not (folder / filenames.MANIFEST).exists():
            continue
        try:
            manifest.check_sizes(folder, manifest.read(folder))
        except UserError as error:
            findings.append(Finding("output_damaged", str(error), "the stages after it refuse it until then"))
    return findings


def _rows(settings: Settings) -> tuple[list[Fact], list[Finding]]:
    """How the data stage would read the files."""
    files: dict[str, list[Path]] = {}
    try:
        for split in SPLITS:
            names = getattr(settings.data, f"{split}_file")
            files[split] = [path for name in names for path in user_files.files_of(paths.ROOT, name, split)]
        count, reason = row_look.problem(files, settings.data)
    except UserError as error:
        if TOY in str(error):
            return [Fact("data", f"make writes {TOY}")], []
        return [], [Finding("path_missing", str(error), f"then run `{commands.make('data')}`")]
    if reason:
        cure = f"`{commands.make('data')}` ends with this; data/README.md shows what rows look like"
        return [], [Finding("data_rows", reason, cure)]
    return [Fact("data", f"{count} rows looked at, of {sum(map(len, files.values()))} files")], []


def needs(settings: Settings) -> list[Need]:
    """What is still to be downloaded."""
    model, data = settings.model, settings.data
    needed = []
    if model.source != "local" and not manifest.looks_complete(model.folder):
        other = "--model.source modelscope" if model.source == "hub" else "--model.source hub"
        needed.append(Need(model.source, f"the model {model.id}", f"try {other}, or --config configs/demo.yaml"))
    if data.source != "files" and data.id and not manifest.looks_complete(paths.DATASETS / data.id.replace("/", "--")):
        needed.append(Need(data.source, f"the data set {data.id}", "name files of your own with --data.train_file"))
    return needed


def disk_needed(settings: Settings) -> int:
    """Bytes that the next stages write, as far as the base model's size tells."""
    weights = sum(file.stat().st_size for file in settings.model.folder.glob("*.safetensors"))
    merged = 0 if manifest.looks_complete(settings.run_dir / filenames.MERGED) else weights
    return merged + GIB


def memory_needed(settings: Settings, cuda: bool) -> int:
    """Bytes of memory that serving the run on a CPU takes; 0 where that is not known, or a GPU serves."""
    weights = sum(file.stat().st_size for file in settings.model.folder.glob("*.safetensors"))
    if cuda or not weights:
        return 0
    return weights + settings.serve.kv_cache_memory_bytes + preflight.CPU_OVERHEAD


def server_at(settings: Settings) -> str:
    """Which of our servers holds the run's port, and how it is stopped; empty where none does."""
    note = server_note.current(address.serve_dir(settings))
    if note and note.url == address.url(settings):
        return f"held by this run's own server: {note.model}, {note.state}"
    for folder, other in server_control.running():
        if other.url.rsplit(":", 1)[-1] == address.url(settings).rsplit(":", 1)[-1]:
            stop = server_control.stop_command(folder)
            return f"held by the server of {paths.label(folder.parent)} (`{stop}` ends it)"
    return ""
