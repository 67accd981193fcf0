"""The merge certificate: the trained model and each merged one, read from disk and compared.

Each is loaded in a process of its own, so that one model is in memory at a time and nothing left in a
process can flatter it. The trained model's log-probabilities are handed over in a file that the others map.
"""

import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from lockstep.artifacts import filenames, manifest
from lockstep.data.collator import IGNORE, Collator
from lockstep.errors import UserError, disk_errors, is_out_of_memory
from lockstep.merging import dequantizer, safetensors_stream
from lockstep.model import adapter_files, merge_plan, networks
from lockstep.processes import busy, child_processes
from lockstep.settings.tree import Settings
from lockstep.training import distributions, reference, reference_probes
from lockstep.training.distributions import Batch

MAX_GAP = 0.05  # nats a token between the trained model's own record and the model that is read back
LOG_PROBS = "trained.f32"  # of the trained model, float32 [positions, vocabulary]
TOGETHER = 512  # supervised positions in a pass, and rows of logits in memory

Answer = TypeVar("Answer")


def in_fresh_process(
    work: Callable[..., Answer], *arguments: Any, forks: child_processes.Forks | None = None
) -> Answer:
    """Run `work`, a module's function, in a new process and return what it returns.

    Args:
        forks: where the process is forked from; without them it imports everything itself.

    Raises:
        UserError: its own, or the process was killed, as where memory runs out.
        OSError: its own.
    """
    with child_processes.fresh(_report, work, arguments, forks=forks) as (child, receiver):
        try:
            with busy.waiting("loading PyTorch in a process of its own"):
                receiver.recv()  # that it has begun
            outcome = receiver.recv()
        except EOFError as error:
            child.join()
            raise UserError(
                f"the process that loads the model to measure it ended with {child.exitcode}: most likely this "
                f"machine's memory ran out (a merge needs room for one model); stop other programs and run again"
            ) from error
        child.join()
    if isinstance(outcome, UserError | OSError):
        raise outcome
    answer: Answer = outcome
    return answer


def _report(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(None)
    try:
        with disk_errors():
            sender.send(work(*arguments))
    except (UserError, OSError) as error:
        sender.send(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sender.send(UserError(f"out of memory while a model is measured ({error}): stop other programs and run again"))


def probes(data: Path, pad: int) -> list[Batch]:
    """The held-out rows that a model is measured on, as batches of a few rows.

    Args:
        pad: the id that rows are padded with.
    """
    batches: list[list[dict[str, Any]]] = []
    together = 0
    for row in reference.by_length(reference.probe_rows(data)):
        positions = len(row["labels"]) - row["labels"].count(IGNORE)
        if not batches or len(batches[-1]) == 8 or together + positions > TOGETHER:
            batches.append([])
            together = 0
        batches[-1].append(row)
        together += positions
    return [Collator(pad)(rows) for rows in batches]


def load_trained(settings: Settings, adapter: Path, dtype: torch.dtype) -> Any:
    """The trained model itself: all its weights, or the base as training loaded it, with the adapter.

    Args:
        dtype: that training computed in.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    from lockstep.model import peft_adapter

    on = networks.device()
    if settings.method == "full":
        return networks.load(adapter, torch.float32, on)
    quantization = settings.quantization if settings.method == "qlora" else None
    base = networks.load(settings.model.folder, dtype, on, quantization)
    plan = merge_plan.plan_merge(settings.model.folder, adapter_files.read(adapter))
    if (rows := plan.vocabulary) and rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    # PEFT rounds DoRA's tensors to the base's dtype while it loads, and without low_cpu_mem_usage
    # saved modules, too; training computed with them as they are on disk.
    with warnings.catch_warnings():
        # that a part of tied weights was trained, which the merge unties
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        with peft_adapter.names_as_in_memory(base):
            network = PeftModel.from_pretrained(base, adapter, low_cpu_mem_usage=True)
            set_peft_model_state_dict(network, load_file(adapter / filenames.ADAPTER_WEIGHTS))
    return network


def measure_trained(settings: Settings, adapter: Path, pad: int, work: Path) -> dict[str, float]:
    """Write the trained model's log-probabilities on the held-out rows, in the dtype of training, for `measure`.

    Args:
        work: a folder for the file LOG_PROBS.

    Returns:
        its loss, and its distance, read back, from what training recorded, in nats per token.

    Raises:
        UserError: it is not the model that training recorded.
    """
    batches = probes(settings.run_dir / filenames.DATA, pad)
    dtype = dequantizer.trained_dtype(adapter)
    with busy.waiting("loading the trained model"):
        network, of_targets = load_trained(settings, adapter, dtype), []
    with (work / LOG_PROBS).open("wb") as stream:
        for log_probs, targets in distributions.log_probs(network, batches, dtype, "measuring the trained model"):
            stream.write(log_probs.numpy().data)
            of_targets.append(log_probs.gather(1, targets[:, None])[:, 0])
    measured = torch.cat(of_targets)
    reference.check_experts(adapter, network)
    rows = sum(len(batch["input_ids"]) for batch in batches)
    gap = reference.gap(adapter, measured, rows)
    if gap > MAX_GAP:
        raise UserError(
            f"the adapter, read back, is {gap:.3f} nats per token from the model that was trained, by its "
            f"{filenames.REFERENCE}: it was changed, or this machine computes otherwise; "
            f"here, {manifest.again(adapter)}"
        )
    return {
        "eval_loss": -measured.mean().item(),
        "reference_gap": gap,
        "positions": len(measured),
        "rows": rows,
    }


def measure(folder: Path, sums: safetensors_stream.Sums, adapter: Path, pad: int, work: Path) -> dict[str, Any]:
    """How far a merged model on disk is from the trained one, in nats per supervised position.

    It computes as it will be served here: in the weights' bfloat16 where the device can.

    Args:
        sums: of its files, as `merge.write_weights` gave them.
        adapter: its folder in a run, with the reference.
        work: the folder where `measure_trained` wrote.

    Raises:
        UserError: the files do not hold what was written.

    Returns:
        kl_mean, kl_max, top1_agreement and eval_loss; and what the gate will measure: `kl_kinds`, the mean KL of each
        kind of places, and the mean distance of the tokens' log-probabilities, of all and of the end-of-turn tokens.
    """
    what = f"the merge onto {folder.name} weights"
    with busy.waiting(f"reading {what} back"):
        safetensors_stream.verify(folder, sums)
        on = networks.device()
        dtype = networks.compute_dtype("auto", on)
        network = networks.load(folder, dtype, on)
    if all(weight.dtype == dtype for weight in network.parameters()):
        dtype = torch.float32  # no autocast: it computes in its own dtype
    start = 0
    divergences, agreements, losses, gaps, at_ends = [], [], [], [], []
    batches = probes(adapter.with_name(filenames.DATA), pad)
    measured = distributions.log_probs(network, batches, dtype, f"measuring {what}")
    for batch, (merged, targets) in zip(batches, measured, strict=True):
        end = start + merged.numel()
        trained = torch.from_file(str(work / LOG_PROBS), size=end, dtype=torch.float32)[start:].view(merged.shape)
        start = end
        divergences.append(torch.nn.functional.kl_div(merged, trained, reduction="none", log_target=True).sum(-1))
        agreements.append(merged.argmax(-1) == trained.argmax(-1))
        losses.append(-merged.gather(1, targets[:, None]))
        gaps.append((merged - trained).gather(1, targets[:, None])[:, 0].abs())
        at_ends.append(torch.zeros(len(targets), dtype=torch.bool))
        at_ends[-1][(batch["labels"][:, 1:] != IGNORE).sum(1).cumsum(0) - 1] = True
    divergence = torch.cat(divergences).clamp_min(0)  # equal ones may come out just below, by rounding
    more = [probe for probe in reference.read(adapter).get("probes", []) if probe["kind"] != reference_probes.ROWS]
    kinds = {"rows": divergence[~torch.cat(at_ends)], "ends": divergence[torch.cat(at_ends)]}
    return {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_agreement": torch.cat(agreements).float().mean().item(),
        "eval_loss": torch.cat(losses).mean().item(),
        "logprob_gap": torch.cat(gaps).mean().item(),
        "end_token_gap": torch.cat(gaps)[torch.cat(at_ends)].mean().item(),
        "kl_kinds": {kind: values.mean().item() for kind, values in kinds.items() if len(values)}
        | reference_probes.kl_of(network, more, dtype, f"measuring {what}, probes"),
    }
