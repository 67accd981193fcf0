"""What an endpoint may serve instead of the trained model: known faults of an adapter, tried here and compared.

How strong an adapter acts, and which of its modules, changes log-probabilities in no simple way. So a fault is named
only if a model with just that fault says here what the endpoint says.

One of them need be no fault: nothing in a foreign adapter says whether it was trained on the base's own weights or, by
QLoRA, on NF4 ones, and an endpoint that computes with those is then right.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from lockstep.artifacts import atomic, filenames
from lockstep.verification.endpoint_places import LogProbs, divergence
from lockstep.verification.expectation import Question, Supposition

PLACES = 24  # that each fault is tried at, evenly spread
SECONDS = 180.0  # for all of them
SHARE = 0.05  # of the distance to the trained model that may be left
NEAR = 0.01  # nats a token, or this
TOGETHER = 8  # prompts in a pass
ON_NF4 = "merged_dequantized"


def nearest(suppositions: Sequence[Supposition], served: Sequence[LogProbs], distance: float) -> tuple[str, str] | None:
    """(diagnosis, words) of the fault that says what the endpoint says; None where none does.

    Args:
        served: what the endpoint answers to the same questions.
        distance: its mean KL from the trained model.
    """
    apart = {
        number: fmean(divergence(ours, theirs) for ours, theirs in zip(fault.answers, served, strict=True))
        for number, fault in enumerate(suppositions)
    }
    if not apart:
        return None
    best = min(apart, key=lambda number: apart[number])
    if apart[best] > max(min(NEAR, 0.5 * distance), SHARE * distance):
        return None
    fault = suppositions[best]
    return fault.diagnosis, f"{fault.words} (it says the same to {apart[best]:.4f} nats a token)"


def tried(base: Path, adapter: Path, questions: list[Question]) -> list[Supposition]:
    """What base and adapter say to the questions with each fault. Loads the model: run it in a fresh process."""
    from lockstep.verification import endpoint_model

    network, end = endpoint_model.with_adapter(base, adapter), time.monotonic() + SECONDS
    suppositions = []
    for diagnosis, words, factor in _faults(network):
        with _scaled(network, factor):
            suppositions.append(Supposition(diagnosis, words, _answers(network, questions)))
        if time.monotonic() > end:
            break
    if trained_on_nf4(adapter) is not False:
        _put_on_nf4(network)  # last of all, as nothing keeps the weights as they were
        words = "the adapter acts on NF4 weights, those that QLoRA trains on"
        suppositions.append(Supposition(ON_NF4, words, _answers(network, questions)))
    return suppositions


def trained_on_nf4(adapter: Path) -> bool | None:
    """Whether a run's record says that an adapter was trained on NF4 weights; None where there is no record."""
    record = adapter / filenames.BASE_TENSORS
    return bool(atomic.read_json(record)["dequantized"]) if record.exists() else None


Factor = Callable[[str], float]  # a module's name → by how much its update is multiplied


def _faults(network: Any) -> Iterator[tuple[str, str, Factor]]:
    """(diagnosis, words, factors) of faults that tools and servers are known for."""
    config = network.peft_config["default"]
    scale, root = config.lora_alpha / config.r, math.sqrt(config.r)
    if config.use_rslora:
        scale *= root
    strengths = [
        (2.0, "twice", "the training acts twice, as an adapter over weights into which it was merged already does"),
        (1 / root if config.use_rslora else root, "scaled", "use_rslora is taken for the opposite of what it is"),
        (1 / scale, "scaled", "lora_alpha is left out: the adapter acts as with alpha equal to r"),
        (0.5, "scaled", "the training acts with half its strength"),
        (0.75, "scaled", "the training acts with three quarters of its strength"),
        (1.5, "scaled", "the training acts with one and a half times its strength"),
        (4.0, "scaled", "the training acts with four times its strength"),
    ]
    tried_strengths = [1.0]
    for strength, diagnosis, words in strengths:
        if all(abs(strength - other) > 0.05 for other in tried_strengths):
            tried_strengths.append(strength)
            yield diagnosis, words, lambda name, strength=strength: strength  # type: ignore[misc]
    layers = 1 + max((_layer(name) for name in _adapted(network)), default=0)
    parts: dict[str, Callable[[str], bool]] = {
        "only attention is adapted": lambda name: "attn" in name or "attention" in name,
        "only the feed-forward layers are adapted": lambda name: "mlp" in name or "feed_forward" in name,
        "only queries and values are adapted": lambda name: name.endswith(("q_proj", "v_proj")),
        "only the first half of the layers is adapted": lambda name: _layer(name) < layers / 2,
        "only the second half of the layers is adapted": lambda name: _layer(name) >= layers / 2,
    }
    for words, takes in parts.items():
        taken = [takes(name) for name in _adapted(network)]
        if any(taken) and not all(taken):
            yield "partial", words, lambda name, takes=takes: float(takes(name))  # type: ignore[misc]


def _adapted(network: Any) -> dict[str, Any]:
    """The layers that an adapter changes, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def _layer(name: str) -> int:
    """The number of a module's layer; 0 where its name has none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


@contextmanager
def _scaled(network: Any, factor: Factor) -> Iterator[None]:
    layers = _adapted(network)
    before = {name: dict(layer.scaling) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.scaling.update({key: value * factor(name) for key, value in layer.scaling.items()})
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.scaling.update(before[name])


def _put_on_nf4(network: Any) -> None:
    """Quantize all linear weights but the output layer's to NF4 and back, as bitsandbytes does while it loads them."""
    from torch import nn

    from lockstep.merging import dequantizer
    from lockstep.settings.schema import Quantization

    head = network.get_output_embeddings()
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name:
            weight = module.weight.data
            restored = dequantizer.round_trip(weight, weight.dtype, Quantization(), weight.device.type)
            module.weight.data = restored.to(weight.device)


def _answers(network: Any, questions: Sequence[Question]) -> list[LogProbs]:
    import torch

    from lockstep.data.collator import IGNORE, Collator
    from lockstep.model import networks
    from lockstep.training import distributions

    order = sorted(range(len(questions)), key=lambda number: len(questions[number][0]))
    groups = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    batches = [
        Collator(0)(
            [{"input_ids": [*questions[n][0], 0], "labels": [IGNORE] * len(questions[n][0]) + [0]} for n in group]
        )
        for group in groups
    ]
    dtype = networks.compute_dtype("auto", networks.device())
    answers: list[LogProbs] = [{} for _ in questions]
    told = distributions.log_probs(network, batches, dtype, "what faults of the adapter would say")
    for group, (at_places, _) in zip(groups, told, strict=True):
        for number, log_probs in zip(group, at_places, strict=True):
            tokens = questions[number][1]
            values = log_probs[torch.tensor(tokens)].tolist()
            answers[number] = dict(zip(tokens, values, strict=True))
    return answers
