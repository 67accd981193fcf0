"""What vLLM's own classes serve, as data: an architecture of config.json → what vLLM does with it.

Read from vLLM 0.32.0 and tried there on CPUs with tiny random models, an adapter on every linear layer of the decoder
(`tests/e2e/test_served_families.py`); `tests/e2e/test_vllm_classes.py` compares it with the classes of the vLLM that is
installed. What is not listed may be served merged, as vLLM also runs many of transformers' own classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "0.32.0"


@dataclass(frozen=True)
class Served:
    """What vLLM does with an architecture.

    Attributes:
        layers: the names of layers to which it adds adapters; none where it takes no adapters.
        wrapper: a network for more than text, started for text only.
        torchvision: its module imports it, by way of transformers' image processors.
        plain_rotation: it hands the heads apart to vLLM's rotary kernel for CPUs, which then turns them wrongly; in
            torch, vLLM computes the same rightly.
        gpu_only: what it computes on GPUs only; empty where it also runs on CPUs.
    """

    layers: frozenset[str] = frozenset()
    wrapper: bool = False
    torchvision: bool = False
    plain_rotation: bool = False
    gpu_only: str = ""


ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
LAYERS = ATTENTION | {"gate_proj", "up_proj", "down_proj"}  # of most models
DELTA_NET = frozenset({"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"})
UNGATED = LAYERS - {"gate_proj"}
GEMMA4 = LAYERS | {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}

DENSE = Served(LAYERS)
WRAPPER = Served(LAYERS, wrapper=True, torchvision=True)

CLASSES: dict[str, Served] = {
    "LlamaForCausalLM": DENSE,
    "MistralForCausalLM": DENSE,
    "Ministral3ForCausalLM": DENSE,
    "Qwen2ForCausalLM": DENSE,
    "Qwen3ForCausalLM": DENSE,
    "GemmaForCausalLM": DENSE,
    "Gemma2ForCausalLM": DENSE,
    "Gemma3ForCausalLM": DENSE,
    "Gemma4ForCausalLM": Served(GEMMA4),
    "GraniteForCausalLM": DENSE,
    "Olmo2ForCausalLM": DENSE,
    "Olmo3ForCausalLM": DENSE,
    "SmolLM3ForCausalLM": DENSE,
    "Ernie4_5ForCausalLM": DENSE,
    "HunYuanDenseV1ForCausalLM": DENSE,
    "SeedOssForCausalLM": DENSE,
    "Cohere2ForCausalLM": DENSE,
    "Exaone4ForCausalLM": DENSE,
    "NemotronForCausalLM": Served(UNGATED),
    "ApertusForCausalLM": Served(UNGATED),
    "ArceeForCausalLM": Served(UNGATED),
    "Starcoder2ForCausalLM": Served(ATTENTION | {"c_fc", "c_proj"}),
    "GPTNeoXForCausalLM": Served(frozenset({"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"})),
    "OPTForCausalLM": Served(frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"})),
    "StableLmForCausalLM": Served(),
    "Phi3ForCausalLM": Served(frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"})),
    # vLLM's mapping says that gate_proj and up_proj are packed there, and they are one layer in the checkpoint, too
    "Glm4ForCausalLM": Served(ATTENTION | {"down_proj"}),
    # its shared layers; those of Mamba were not tried
    "GraniteMoeHybridForCausalLM": Served(ATTENTION | {"input_linear", "output_linear"}),
    "Lfm2ForCausalLM": Served(
        frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}), plain_rotation=True
    ),
    "Lfm2MoeForCausalLM": Served(frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "in_proj"}), plain_rotation=True),
    "NemotronHForCausalLM": Served(ATTENTION, gpu_only="experts without gates"),
    "OlmoHybridForCausalLM": Served(ATTENTION, gpu_only="its linear attention"),
    "FalconH1ForCausalLM": Served(LAYERS | {"in_proj"}),
    "Qwen3_5ForCausalLM": Served(LAYERS | DELTA_NET, torchvision=True),
    # Beside experts, adapters were not tried: what stands here is what vLLM's classes say of their attention.
    "Qwen2MoeForCausalLM": Served(ATTENTION),
    "Qwen3MoeForCausalLM": Served(ATTENTION),
    "Qwen3NextForCausalLM": Served(ATTENTION),
    "Glm4MoeForCausalLM": Served(ATTENTION),
    "Ernie4_5_MoeForCausalLM": Served(ATTENTION),
    "OlmoeForCausalLM": Served(ATTENTION),
    "GraniteMoeForCausalLM": Served(ATTENTION),
    "MixtralForCausalLM": Served(ATTENTION),
    "GptOssForCausalLM": Served(ATTENTION),
    "Gemma3ForConditionalGeneration": WRAPPER,
    "Gemma4ForConditionalGeneration": Served(GEMMA4, wrapper=True, torchvision=True),
    "Gemma4UnifiedForConditionalGeneration": WRAPPER,
    "Mistral3ForConditionalGeneration": WRAPPER,
    "Qwen3VLForConditionalGeneration": WRAPPER,
    "Qwen3_5ForConditionalGeneration": Served(LAYERS | DELTA_NET, wrapper=True, torchvision=True),
    "Qwen3_5MoeForConditionalGeneration": Served(LAYERS | DELTA_NET, wrapper=True, torchvision=True),
    "Qwen3_5MoeForCausalLM": Served(LAYERS | DELTA_NET, torchvision=True),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # in configs, how many there are


def of(config: Mapping[str, Any]) -> Served | None:
    """What vLLM does with a model, by its config.json; None where that is not known."""
    return CLASSES.get(architecture_of(config))


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that a config.json names, or a question mark."""
    return str((config.get("architectures") or ["?"])[0])


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a model has experts, by its config.json; where it takes more than text, by the part about text."""
    part = config | config.get("text_config", {})
    return any(part.get(key) for key in EXPERTS) and part.get("enable_moe_block") is not False
