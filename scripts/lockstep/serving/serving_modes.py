"""What a mode serves: which folders, with every byte of them checked, and vLLM's flags about them."""

from dataclasses import dataclass
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import atomic, filenames, lineage, manifest
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.merging import serving_route
from lockstep.prompts import contract
from lockstep.settings.tree import Settings


@dataclass(frozen=True)
class Subject:
    """What a mode serves.

    Args:
        model: the folder that vLLM loads.
        arguments: vLLM's flags about it.
        answers_with: folder of the template and tokenizer that the server uses.
        adapters: name that clients send → the adapter's folder, with its contract and reference; the run's own first.
        trained: the settings of the training.
        base_name: of the base beneath the adapters; None where none is served.
        remade: folders that stage 03 made of base and adapter, and that can be made again to compare them.
    """

    model: Path
    arguments: list[str]
    answers_with: Path
    adapters: dict[str, Path]
    trained: Settings
    base_name: str | None = None
    remade: tuple[Path, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """Label → digest of every folder that is served."""
        folders = dict.fromkeys([self.model, *self.adapters.values()])
        return {paths.label(folder): manifest.read(folder).digest for folder in folders}


def resolve(settings: Settings) -> tuple[Settings, str]:
    """The settings with mode auto made one of the others, and why that one; empty where it was asked for."""
    if settings.serve.mode != "auto":
        return settings, ""
    adapter = settings.run_dir / filenames.ADAPTER
    record = _intact(adapter, "train")
    if record.config["method"] == "full":
        mode, reason = "merged", "all weights were trained, there is no adapter"
    else:
        route = serving_route.inspect(adapter)
        mode, reason = route.mode, route.reason
    return settings.replace("serve", {"mode": mode}), f"mode {mode}: {reason}"


def subject_of(settings: Settings) -> Subject:
    """What is served with these settings; their mode is not auto.

    Raises:
        UserError: a stage is missing, stale or changed, or vLLM cannot serve the adapter.
    """
    mode = settings.serve.mode
    if mode != "lora" and settings.serve.adapters:
        raise UserError("--serve.adapters is for --serve.mode lora: a merged model is one model")
    if mode == "merged":
        return _merged(settings)
    return _base(settings) if mode == "base" else _adapters(settings)


def _merged(settings: Settings) -> Subject:
    merged, adapter = settings.run_dir / filenames.MERGED, settings.run_dir / filenames.ADAPTER
    record = _intact(merged, "merge")
    lineage.refuse_edits(settings, merged, record)
    trained = settings.inherit(record.config)
    # its reference is what the merged model is compared with
    lineage.refuse_edits(trained, adapter, _intact(adapter, "train"))
    name = address.model_name(settings)
    # Sampling is the request's business; a model's own file must not change results.
    arguments = ["--served-model-name", name, "--generation-config", "vllm"]
    return Subject(merged, arguments, merged, {name: adapter}, trained, remade=(merged,))


def _base(settings: Settings) -> Subject:
    trained, arguments = _trained(settings)
    _intact(trained.model.folder, "download")
    adapter, name = settings.run_dir / filenames.ADAPTER, address.model_name(settings)
    arguments = ["--served-model-name", name, *arguments]
    return Subject(trained.model.folder, arguments, adapter, {name: adapter}, trained)


def _adapters(settings: Settings) -> Subject:
    """The run's adapter, and those of other runs, on the weights that they were trained on."""
    trained, arguments = _trained(settings)
    is_quantized = trained.method == "qlora"
    base = settings.run_dir / filenames.BASE if is_quantized else trained.model.folder
    _intact(base, "base" if is_quantized else "download")
    adapter = settings.run_dir / filenames.ADAPTER
    adapters = {address.model_name(settings): adapter} | _other_runs(settings, adapter)
    base_name = address.base_name(settings)
    arguments = ["--served-model-name", base_name, *arguments, "--enable-lora", "--lora-modules"]
    arguments += [f"{name}={folder}" for name, folder in adapters.items()]
    ranks = [_rank(name, folder) for name, folder in adapters.items()]
    arguments += ["--max-lora-rank", str(max(ranks)), "--max-loras", str(len(adapters))]
    remade = (base,) if is_quantized else ()
    return Subject(base, arguments, adapter, adapters, trained, base_name, remade)


def _trained(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings of the training, and vLLM's flags for a base that answers as the adapter does.

    The base may end its answers elsewhere, and take words for added tokens that are text here: tokenizer, template and
    stop tokens are those of the adapter.
    """
    adapter = settings.run_dir / filenames.ADAPTER
    record = _intact(adapter, "train")
    lineage.refuse_edits(settings, adapter, record)
    trained = settings.inherit(record.config)
    _check_sampling(adapter)
    template = str(adapter / filenames.CHAT_TEMPLATE)
    return trained, ["--tokenizer", str(adapter), "--chat-template", template, "--generation-config", str(adapter)]


def _rank(name: str, adapter: Path) -> int:
    """What vLLM must be started with for an adapter. Raises UserError where it cannot serve it as one."""
    route = serving_route.inspect(adapter)
    if route.max_lora_rank is None:
        raise UserError(f"vLLM cannot serve the adapter {name} as one: {route.reason}; take --serve.mode merged")
    return route.max_lora_rank


def _intact(folder: Path, stage: str) -> manifest.Manifest:
    record = manifest.require(folder, stage)
    manifest.check_hashes(folder, record)
    return record


def _check_sampling(adapter: Path) -> None:
    """The adapter's generation config is the server's: it may say where answers end, and nothing about sampling."""
    file = adapter / filenames.GENERATION_CONFIG
    extra = atomic.read_json(file).keys() - {"eos_token_id"}
    if extra:
        raise UserError(
            f"{paths.label(file)} sets {min(extra)}: sampling is the request's business; {manifest.again(adapter)}"
        )


def _other_runs(settings: Settings, adapter: Path) -> dict[str, Path]:
    """The adapters of other runs that this server offers, too, by the names of their runs.

    Raises:
        UserError: one of them does not fit onto the same base with the same template.
    """
    folders: dict[str, Path] = {}
    shared = (
        (filenames.BASE_TENSORS, "was trained on other base weights"),
        (filenames.CHAT_TEMPLATE, "has another chat template"),
    )
    for run in settings.serve.adapters:
        folder = paths.run_dir(run) / filenames.ADAPTER
        _intact(folder, "train")
        for file, difference in shared:
            if (folder / file).read_bytes() != (adapter / file).read_bytes():
                raise UserError(f"--serve.adapters: {run} {difference} than {settings.run}: serve it by itself")
        if contract.text_tokens_of(folder) != contract.text_tokens_of(adapter):
            raise UserError(
                f"--serve.adapters: {run} takes other added tokens for text than {settings.run}: serve it by itself"
            )
        folders[run] = folder
    return folders
