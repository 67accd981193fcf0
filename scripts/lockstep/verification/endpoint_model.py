"""Loading a trained model here, and what it says. Every function loads one: run it in a fresh process."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

LONG_ROW = 2048  # tokens of the row that shows other rotary embeddings


def with_adapter(base: Path, adapter: Path) -> Any:
    """Base and adapter as PEFT loads them, for this machine's device."""
    from peft import PeftModel

    from lockstep.model import adapter_files, merge_plan, networks, peft_adapter

    network: Any = networks.load(base, _dtype(), networks.device())
    plan = merge_plan.plan_merge(base, adapter_files.read(adapter))
    if (size := plan.vocabulary) and size != network.get_input_embeddings().weight.shape[0]:
        network.resize_token_embeddings(size, mean_resizing=False)
    with peft_adapter.names_as_in_memory(network):
        return PeftModel.from_pretrained(network, adapter, low_cpu_mem_usage=True)


def record_with_adapter(base: Path, adapter: Path, contract: dict[str, Any], rows: list[Any]) -> dict[str, Any]:
    """As reference.json, of base and adapter.

    Args:
        rows: as stage 01 writes them.
    """
    trained = with_adapter(base, adapter)
    return _record(trained, contract, rows, trained.disable_adapter())


def record(folder: Path, contract: dict[str, Any], rows: list[Any]) -> dict[str, Any]:
    """The same of a merged folder, without its base."""
    return _record(_plain(folder), contract, rows, None)


def beneath(base: Path, recorded: dict[str, Any], contract: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What a base says of what is on record of a merged model: (`golden`, log-probabilities for each probe)."""
    from lockstep.training import distributions, reference_probes
    from lockstep.training.reference_probes import Probe

    network, known = _plain(base), recorded["probes"]
    chosen = [Probe(probe["kind"], probe["input_ids"], probe["places"]) for probe in known]
    rows = distributions.of_rows(network, reference_probes.batches_of(chosen), _dtype(), "what the base says")
    values = [
        reference_probes.values_of(at_places, probe["ids"]) for probe, (at_places, _) in zip(known, rows, strict=True)
    ]
    return _record(network, contract, [], None)["golden"], values


def _plain(folder: Path) -> Any:
    from lockstep.model import networks

    return networks.load(folder, _dtype(), networks.device())


def _record(
    network: Any, contract: dict[str, Any], rows: list[Any], without_adapter: AbstractContextManager[Any] | None
) -> dict[str, Any]:
    from lockstep.model import networks
    from lockstep.training import probes, reference, reference_probes

    limit = networks.longest(network.config) or LONG_ROW
    size = contract.get("vocabulary", {}).get("size")
    ids = [token for token in probes.text_ids(network) if size is None or token < size]
    held_out, length = [row["input_ids"] for row in rows], min(LONG_ROW, limit)
    more = [*reference_probes.drawn(ids, length), *reference_probes.lengthy(held_out, length)]
    longest = min(reference.LONG, limit)
    return reference.record(network, contract["conversations"], rows, _dtype(), without_adapter, longest, more)


def _dtype() -> Any:
    from lockstep.model import networks

    return networks.compute_dtype("auto", networks.device())
