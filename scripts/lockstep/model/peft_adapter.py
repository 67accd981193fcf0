"""LoRA adapters: attached to a base, started from earlier ones, and saved."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import transformers_weight_conversion
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError, is_out_of_memory
from lockstep.model import adapter_files, experts, experts_adapter, lora_targets, networks
from lockstep.model.adapter_delta import AdapterDelta
from lockstep.model.adapter_files import PREFIX
from lockstep.settings.schema import Lora

NAME = "default"  # PEFT's name for the only adapter
INITIAL = "initial"  # a folder beside the checkpoints, for initial weights that change the base


def attach(network: Any, lora: Lora) -> Any:
    """The base with a fresh adapter in float32, as PEFT makes it.

    Raises:
        UserError: the settings name modules that the model lacks, or ones that cannot be merged or served.
    """
    experts_adapter.check(network, lora)
    options = lora.model_dump(exclude={"loraplus_lr_ratio", "start_from"})
    options["target_parameters"] = experts_adapter.targets(network, lora) or None
    options["target_modules"] = lora_targets.modules_of(network, lora.target_modules)
    options["modules_to_save"] = list(lora.modules_to_save) or None
    _require_modules_to_save(network, lora.modules_to_save)
    options["init_lora_weights"] = True if lora.init_lora_weights == "default" else lora.init_lora_weights
    try:
        # prepare_model_for_kbit_training is left out on purpose: it would turn embeddings and
        # norms into float32, and the model that is served computes with them as they are.
        with names_as_in_memory(network):
            model = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **options))
    except ValueError as error:
        raise UserError(f"--lora.target_modules: {error}") from error
    for weight in model.parameters():
        if weight.requires_grad:  # PEFT leaves modules_to_save in the base's dtype, too coarse for small steps
            weight.data = weight.data.float()
    ends = (network.get_output_embeddings(), network.get_input_embeddings())
    if any(isinstance(layer, LoraLayer) for layer in ends):
        raise UserError(
            "--lora.target_modules: adapters of embeddings or the output layer cannot be merged or served here; "
            "--lora.modules_to_save trains such a layer whole"
        )
    return model


def _require_modules_to_save(network: Any, names: Iterable[str]) -> None:
    """Refuse names that fit no module: PEFT asks only whether any of them does."""
    modules = [f".{name}" for name, _ in network.named_modules()]
    for name in names:
        if not any(module.endswith(name) for module in modules):
            raise UserError(f"--lora.modules_to_save: {name} is not found in the model")


@contextmanager
def names_as_in_memory(network: nn.Module) -> Iterator[None]:
    """Have PEFT take targets and tensors by the names that they have here, and experts in 4 bits as if they were plain.

    For networks whose tensors transformers renames while it loads them, PEFT 0.21 takes all names for those of
    transformers 4 and translates them: `gate_proj` of a dense layer becomes the experts' `gate_up_proj`.
    """
    mapping = transformers_weight_conversion.get_checkpoint_conversion_mapping
    transformers_weight_conversion.get_checkpoint_conversion_mapping = lambda model_type: None
    try:
        with experts_adapter.shaped(network):
            yield
    finally:
        transformers_weight_conversion.get_checkpoint_conversion_mapping = mapping


def start_from(model: Any, folder: Path) -> None:
    """Give the adapter the weights of an earlier one. Raises UserError where those do not fit."""
    from peft import set_peft_model_state_dict

    try:
        with names_as_in_memory(model):
            keys = set_peft_model_state_dict(model, load_file(folder / filenames.ADAPTER_WEIGHTS))
    except (RuntimeError, SafetensorError) as error:  # other shapes, or a damaged file
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--lora.start_from {paths.label(folder)} does not fit this adapter: {reason}") from error
    wrong = [*keys.unexpected_keys, *(key for key in keys.missing_keys if "lora_" in key)]
    if wrong:
        raise UserError(f"--lora.start_from {paths.label(folder)} does not fit this adapter: {min(wrong)}")


def keep_initial(model: Any, folder: Path) -> None:
    """Write the initial weights of an adapter that takes them from the base: `save` subtracts them again."""
    config = model.peft_config[NAME]
    initialisation, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder)
    config.init_lora_weights = initialisation


def save(model: Any, origin: str, initial: Path | None, state: Any, work: Path) -> None:
    """Write the adapter as PEFT and vLLM read it; equal adapters give equal files.

    Args:
        origin: what the config names as the base.
        initial: what `keep_initial` wrote, where the adapter changed its base: it is saved as a plain
            adapter of the unchanged one, of twice the rank.
        state: the state dict where the model's own holds only a part of it (FSDP, ZeRO), else None.

    Raises:
        UserError: a weight is not finite, or was never changed.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in (state or trained).items():
        if not weight.isfinite().all() or ("lora_B" in name and not weight.any()):
            raise UserError(
                f"{name} is not finite or was never changed: nothing is published; lower --train.learning_rate, "
                f"or train for more steps, with --force"
            )
    model.peft_config[NAME].base_model_name_or_path = origin
    options = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    model.save_pretrained(work, save_embedding_layers=False, state_dict=state, **options)
    file = work / filenames.ADAPTER_CONFIG
    config = atomic.read_json(file)
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()  # PEFT writes sets, in an order that differs from run to run
    atomic.write_json(file, config)
    (work / filenames.MODEL_CARD).unlink(missing_ok=True)  # a skeleton; ours follows


def as_saved(model: Any) -> AdapterDelta:
    """A fresh adapter as it will be read from its files when it is trained: what is zero at the start counts as ones.

    Raises:
        UserError: a tensor that the merge does not know.
    """
    with names_as_in_memory(model):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, tensor in state.items():
        if ".lora_" in name and not tensor.any():
            state[name] = torch.ones_like(tensor)
    return adapter_files.of_tensors(state, model.peft_config[NAME].to_dict())


def trained_parts(network: nn.Module) -> dict[str, list[str]]:
    """What is adapted or trained whole, each with the names of the parameters that are trained for it."""
    parts: dict[str, list[str]] = {}
    adapters: set[str] = set()
    for path, module in network.named_modules():
        if isinstance(module, LoraLayer):
            own = [f"{path}.{name}" for name, _ in module.named_parameters() if not name.startswith("base_layer.")]
            part = path.replace(".base_layer", "")
            parts[f"{part}.{module.parameter_name}" if isinstance(module, ParamWrapper) else part] = own
            adapters.update(own)
    for name, weight in network.named_parameters():
        if weight.requires_grad and name not in adapters:
            parts[name] = [name]
    return parts


def are_layers(model: Any, parts: Iterable[str]) -> bool:
    """Whether all of these are adapted modules, and none is a stack of experts or a parameter that is trained whole."""
    modules = dict(model.base_model.model.named_modules())
    return all(isinstance(modules.get(part), LoraLayer) for part in parts)


def leave_out(model: Any, modules: Iterable[str]) -> None:
    """Take the adapters of these modules away; PEFT will give them none when it reads the adapter, either."""
    config, network = model.peft_config[NAME], model.base_model.model
    for path in modules:
        owner, _, own = path.rpartition(".")
        setattr(network.get_submodule(owner), own, network.get_submodule(path).base_layer)
    config.exclude_modules = sorted({*(config.exclude_modules or ()), *modules})


def base_hashes(model: Any) -> dict[str, str]:
    """sha256 of every 4-bit weight as training computed with it, by the name of the base's tensor."""
    hashes = {}
    for name, layer in networks.linear4bit(model):
        plain = name.removeprefix(PREFIX).replace(".base_layer", "")
        hashes[f"{plain}.weight"] = networks.tensor_sha256(networks.dequantize(layer))
    for name, stack in experts.stacks(model.get_base_model()):
        if stack.four_bit:
            hashes[name] = experts.stack_sha256(stack)
    return hashes


def plain_name(name: str) -> str | None:
    """The base's own name of a parameter in a network that PEFT has changed; None where it is the adapter's."""
    if ".lora_" in name or ".modules_to_save." in name:
        return None
    for inserted in (".base_layer", ".original_module", ".parametrizations"):
        name = name.replace(inserted, "")
    return name.removesuffix(".original")


def adapted_weights(network: nn.Module) -> set[str]:
    """The base's own names of all parameters that an adapter changes by a low-rank update."""
    names = set()
    for path, module in network.named_modules():
        if isinstance(module, LoraLayer):
            weight = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            names.add(f"{path.replace('.base_layer', '')}.{weight}")
    return names
