import pytest
import torch
import transformers
from support import families

from lockstep.errors import UserError
from lockstep.model import lora_targets, networks, peft_adapter
from lockstep.settings.schema import Lora


def empty(name: str) -> torch.nn.Module:
    """A family's network on the meta device."""
    family = families.ALL[name]
    cls = getattr(transformers, family.network)
    with torch.device("meta"):
        return cls(cls.config_class(**family.values))


def kinds(network: torch.nn.Module) -> set[str]:
    """The last names of the modules that all-linear takes."""
    return {name.rpartition(".")[2] for name in lora_targets.modules_of(network, ("all-linear",))}


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("Llama 3", ATTENTION | MLP),
        ("GLM-4-MoE", ATTENTION | MLP),  # dense and shared ones
        ("Qwen3-MoE", ATTENTION),  # experts are parameters, and the router is none
        ("Gemma 4 MoE", ATTENTION | MLP),
        ("Hunyuan MoE", ATTENTION | MLP),
        ("Llama 4 text", ATTENTION | MLP),
        ("GLM-5", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"} | MLP),  # and no indexer
        ("Qwen3.5", ATTENTION | MLP | {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}),
        ("Granite 4 hybrid", ATTENTION | {"in_proj", "input_linear", "output_linear"}),  # Mamba's out_proj is left out
        ("LFM2", {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"}),
        ("Jamba", ATTENTION | MLP | {"in_proj"}),
    ],
)
def test_all_linear_means_the_linear_layers_that_can_be_trained(name: str, layers: set[str]) -> None:
    assert kinds(empty(name)) == layers


@pytest.mark.parametrize("name", ["Gemma 3", "Gemma 4", "Ministral 3", "Qwen3-VL", "Qwen3.5-MoE"])
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
def test_of_a_wrapper_only_the_decoder_gets_adapters(name: str, targets: tuple[str, ...]) -> None:
    network = empty(name)
    inside, _ = networks.decoder(network)
    model = peft_adapter.attach(network, Lora(target_modules=targets, lora_dropout=0.0, target_parameters=("none",)))
    adapted = [key for key, _ in model.named_parameters() if "lora_A" in key]
    assert adapted and all(key.startswith(f"base_model.model.{inside}.") for key in adapted)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert any("vision" in name or "visual" in name for name in layers)  # there are others to leave out


def test_names_of_a_plain_models_modules_stay_as_they_are_given() -> None:
    assert lora_targets.modules_of(empty("Llama 3"), ("q_proj", "mlp.up_proj")) == ["q_proj", "mlp.up_proj"]


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("Llama 3", ("q_proj", "qkv"), "qkv is not found in the model"),
        ("Qwen3.5", ("q_proj", "qkv"), r"model.visual.blocks.0.attn.qkv takes no part in text"),
        ("GPT-2", ("all-linear",), r"transformer.h.0.attn.c_attn of this model is a Conv1D"),
        ("GPT-2", ("c_fc",), r"transformer.h.0.mlp.c_fc of this model is a Conv1D"),
    ],
)
def test_targets_that_cannot_be_trained_are_refused_by_name(name: str, targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora_targets.modules_of(empty(name), targets)


def test_peft_takes_names_as_they_are_in_memory() -> None:
    """PEFT's translation would make the experts' gate_up_proj of the dense layer's gate_proj, with twice the rank."""
    network = empty("GLM-4-MoE")
    lora = Lora(r=4, target_modules=("gate_proj", "up_proj"), lora_dropout=0.0, target_parameters=("none",))
    config = peft_adapter.attach(network, lora).peft_config["default"]
    assert not config.target_parameters and not config.rank_pattern
    assert config.target_modules == {"gate_proj", "up_proj"}


def test_a_name_of_what_is_no_module_beside_experts_leads_to_their_setting() -> None:
    with pytest.raises(
        UserError, match=r"gate_proj is not found in the model; experts are parameters here .*target_param"
    ):
        lora_targets.modules_of(empty("Qwen3-MoE"), ("q_proj", "gate_proj"))
    with pytest.raises(UserError, match=r"nonsense is not found in the model$"):
        lora_targets.modules_of(empty("Llama 3"), ("nonsense",))
