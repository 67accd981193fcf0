"""What is published of a training: the adapter's folder, and what the trained model says, on record."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lockstep.artifacts import atomic, filenames
from lockstep.model import adapter_files, carried_files, full_weights, networks, peft_adapter
from lockstep.processes import distributed
from lockstep.settings.tree import Settings
from lockstep.training import loss_plot, model_card, packed_attention, reference, reference_probes, setup

if TYPE_CHECKING:
    from lockstep.prompts.template import Template
    from lockstep.training.setup import Training
    from lockstep.training.trainer import SupervisedTrainer


def metrics(
    training: "Training", settings: Settings, dtype: torch.dtype, held_out_loss: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What metrics.json holds. All processes must ask.

    Args:
        dtype: that training computed in.
        held_out_loss: as `setup.finish` gives it.
        seconds: that training took in all its pieces, loading apart.
    """
    trainer = training.trainer
    splits = atomic.read_json(settings.run_dir / filenames.DATA / filenames.LEDGER)["splits"]
    device = trainer.args.device.type
    return {
        "train_loss": trainer.mean_loss(),
        **held_out_loss,
        "train_rows": splits["train"]["rows"],
        "train_samples": splits["train"].get("samples", splits["train"]["rows"]),  # older ledgers count samples alone
        "supervised_tokens": splits["train"]["supervised_tokens"],
        "steps": trainer.state.global_step,
        "tokens_per_second": round(trainer.tokens * distributed.PROCESSES / seconds, 1),
        "train_seconds": round(seconds, 1),
        "peak_memory_bytes": setup.peak_memory(device),
        "trainable_parameters": training.trainable,
        "rows_in_a_pass": trainer.rows_in_a_pass,
        "processes": distributed.PROCESSES,
        "device": device,
        "dtype": networks.dtype_name(dtype),
    }


def save(training: "Training", chat: "Template", settings: Settings, measured: dict[str, Any], work: Path) -> None:
    """Everything that later stages and other people need of what was trained. All processes must ask; the first writes.

    Args:
        measured: of `metrics`.
        work: the folder that becomes outputs/<run>/adapter/.
    """
    data, trainer = settings.run_dir / filenames.DATA, training.trainer
    state = trainer.gathered_state()
    if not distributed.FIRST:
        return
    record: dict[str, Any] = {"dequantized": {}, "dtype": measured["dtype"]}
    if settings.method == "full":
        record["float32"] = full_weights.save(trainer.network, state, settings.model.folder, work)
        carried_files.carry(settings.model.folder, work)
    else:
        initial = settings.run_dir / filenames.CHECKPOINTS / peft_adapter.INITIAL
        peft_adapter.save(trainer.model, settings.model.origin, initial if initial.exists() else None, state, work)
        record["dequantized"] = peft_adapter.base_hashes(trainer.model)
    chat.tokenizer.save_pretrained(work)
    atomic.write_json(work / filenames.BASE_TENSORS, record)
    coverage = training.account.as_json()
    if settings.method != "full" and adapter_files.read_config(work).get("target_parameters"):
        coverage["adapted_experts"] = adapter_files.read(work).changed_experts
    atomic.write_json(work / filenames.COVERAGE, coverage)
    atomic.write_json(work / filenames.METRICS, measured)
    # for servers that load the untouched base: where the answers that were learned end
    atomic.write_json(work / filenames.GENERATION_CONFIG, {"eos_token_id": chat.stop_ids})
    ledger = atomic.read_json(data / filenames.LEDGER)
    card = model_card.text(settings, measured, ledger, chat.stop_ids, coverage)
    (work / filenames.MODEL_CARD).write_text(card, encoding="utf-8")
    loss_plot.draw(settings.run_dir / filenames.TRAINING_LOG, work / filenames.LOSS_PLOT, settings.run)
    shutil.copyfile(data / filenames.CONTRACT, work / filenames.CONTRACT)


def remember(trainer: "SupervisedTrainer", settings: Settings, dtype: torch.dtype, work: Path) -> None:
    """Write reference.json: what the trained model and its base say to the golden conversations and held-out rows.

    Args:
        work: where `save` wrote.
    """
    from peft import PeftModel

    data, model, full = settings.run_dir / filenames.DATA, trainer.model, settings.method == "full"
    if distributed.MAY_BE_SHARDED:  # no process may hold all weights: what was saved is read back
        model = setup.load_base(settings, dtype, networks.device(), work if full else None)
        with peft_adapter.names_as_in_memory(model):
            model = model if full else PeftModel.from_pretrained(model, work)
    else:
        trainer.network.set_attn_implementation(packed_attention.plain(trainer.network))
    rows = reference.probe_rows(data)
    record = reference.record(
        model,
        atomic.read_json(data / filenames.CONTRACT)["conversations"],
        rows,
        dtype,
        without_adapter=None if full else model.disable_adapter(),
        longest=reference.longest_prompt(settings, trainer.network),
        more=reference_probes.choose(settings, trainer.network, rows, work),
    )
    atomic.write_json(work / filenames.REFERENCE, record)
