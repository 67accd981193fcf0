"""An adapter that was trained elsewhere with PEFT, taken in as if stage 02 had made it.

Nobody recorded what it was trained on, so the record is made here: hashes of the base as this machine
loads it, and the log-probabilities of the model with the adapter.
"""

import shutil
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import adapter_files, file_checks, merge_plan, networks
from lockstep.prompts import contract, template, template_source
from lockstep.prompts.template import Template
from lockstep.settings.tree import Settings
from lockstep.training import reference, reference_probes

TOKENIZERS = (filenames.TOKENIZER, filenames.SENTENCEPIECE)  # one of them makes a folder's tokenizer complete


def files_of(folder: Path) -> list[Path]:
    """The files of a foreign adapter that are taken in.

    Raises:
        UserError: it is no adapter of LoRA's relatives, or holds odd files.
    """
    names = [filenames.ADAPTER_WEIGHTS, filenames.ADAPTER_CONFIG]
    if own_tokenizer(folder):
        names += [
            *TOKENIZERS,
            filenames.TOKENIZER_CONFIG,
            filenames.SPECIAL_TOKENS,
            filenames.ADDED_TOKENS,
            filenames.CHAT_TEMPLATE,
        ]
    files = [folder / name for name in names if (folder / name).exists()]
    file_checks.check_files(files)
    adapter_files.read_config(folder)
    return files


def own_tokenizer(folder: Path) -> bool:
    """Whether the adapter brings a tokenizer of its own."""
    return (folder / filenames.TOKENIZER_CONFIG).exists() and any((folder / name).exists() for name in TOKENIZERS)


def check(settings: Settings, folder: Path) -> str | None:
    """Compare the adapter with the base by names and shapes.

    Returns:
        a note where the adapter names another base than the one that it is merged into, else None.

    Raises:
        UserError: it belongs to another base.
    """
    base = settings.model.folder
    merge_plan.plan_merge(base, adapter_files.read(folder))
    named = adapter_files.read_config(folder).get("base_model_name_or_path")
    known = {name.rstrip("/").rpartition("/")[2].lower() for name in (settings.model.origin, base.name)}
    if not named or named.rstrip("/").rpartition("/")[2].lower() in known:
        return None
    return (
        f"the adapter names {named} as its base, and is taken to belong to {settings.model.origin}, as all names and "
        f"shapes fit"
    )


def chat(settings: Settings, folder: Path) -> Template:
    """The tokenizer that the adapter was trained with, and the template of the run's data.

    Raises:
        UserError: the adapter's own tokenizer or template makes other prompts than those of the data.
    """
    data = settings.run_dir / filenames.DATA
    text = (data / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    allowed, as_text = settings.data.allow_tokens, contract.text_tokens_of(data)
    if not own_tokenizer(folder):
        return template.load(settings.model.folder, text, allowed, as_text)
    own = template_source.of_folder(folder)
    if own is not None:
        own = template_source.bake(own, settings.data.system_prompt, settings.data.thinking, settings.data.date)
    known = atomic.read_json(data / filenames.CONTRACT)["conversations"]
    theirs = template.load(folder, own or text, allowed, as_text)
    for conversation in known:
        ids = theirs.prompt_ids(conversation["messages"], conversation.get("tools"))
        if ids != conversation["prompt_ids"]:
            raise UserError(
                f"the adapter's own {'template' if own else 'tokenizer'} renders the conversation "
                f"{conversation['name']!r} to other ids than {paths.label(data)}: "
                f"make the data with the template that the adapter was trained with, "
                f"--data.template {paths.label(folder)}/{filenames.CHAT_TEMPLATE}"
            )
    return template.load(folder, text, allowed, as_text)


def take_in(settings: Settings, folder: Path, work: Path) -> dict[str, Any]:
    """Everything that later stages need of an adapter, in `work`. Loads the model: run it in a fresh process.

    Returns:
        metrics.
    """
    from lockstep.merging import certificate
    from lockstep.model import checkpoint_names, peft_adapter, weight_account

    data, on = settings.run_dir / filenames.DATA, networks.device()
    for name in (filenames.ADAPTER_WEIGHTS, filenames.ADAPTER_CONFIG):
        shutil.copyfile(folder / name, work / name)
    own_chat = chat(settings, folder)
    own_chat.tokenizer.save_pretrained(work)
    shutil.copyfile(data / filenames.CONTRACT, work / filenames.CONTRACT)
    atomic.write_json(work / filenames.GENERATION_CONFIG, {"eos_token_id": own_chat.stop_ids})
    dtype = networks.compute_dtype(settings.train.dtype, on)
    dtype_name = networks.dtype_name(dtype)
    network = certificate.load_trained(settings, work, dtype)
    atomic.write_json(
        work / filenames.BASE_TENSORS, {"dequantized": peft_adapter.base_hashes(network), "dtype": dtype_name}
    )
    names = checkpoint_names.of_folder(settings.model.folder)
    account = weight_account.of_network(network.get_base_model(), names)
    held = adapter_files.read(work)
    if lost := sorted(peft_adapter.adapted_weights(network.get_base_model()) - held.low_rank.keys()):
        raise UserError(
            f"{paths.label(folder)}/{filenames.ADAPTER_WEIGHTS} holds nothing for {lost[0]}, which its config targets "
            f"({len(lost)} such weights): it was cut or saved in part; save the whole adapter with PEFT"
        )
    atomic.write_json(work / filenames.COVERAGE, account.as_json() | {"adapted_experts": held.changed_experts})
    rows = reference.probe_rows(data)
    record = reference.record(
        network,
        atomic.read_json(data / filenames.CONTRACT)["conversations"],
        rows,
        dtype,
        without_adapter=network.disable_adapter(),
        longest=reference.longest_prompt(settings, network),
        more=reference_probes.choose(settings, network, rows, work),
    )
    atomic.write_json(work / filenames.REFERENCE, record)
    log_probs = [value for row in record["rows"] for value in row["trained"]]
    metrics = {"eval_loss": -sum(log_probs) / len(log_probs), "device": on, "dtype": dtype_name}
    atomic.write_json(work / filenames.METRICS, metrics)
    return metrics
