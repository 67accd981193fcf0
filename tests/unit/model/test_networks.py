import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import families, rounding, tiny
from torch import nn

from lockstep.data.collator import IGNORE, Collator
from lockstep.errors import UserError
from lockstep.merging import dequantizer
from lockstep.model import networks
from lockstep.settings.schema import Quantization
from lockstep.training import loss


def batch() -> dict[str, torch.Tensor]:
    rows = [
        {"input_ids": list(range(10, 10 + n)), "labels": [IGNORE] * (n // 2) + list(range(10 + n // 2, 10 + n))}
        for n in (7, 15, 20)
    ]
    return Collator(2)(rows)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma"])
def test_logits_at_supervised_positions_equal_the_full_ones(tmp_path: Path, kind: str) -> None:
    network = networks.load(tiny.model(tmp_path / kind, kind=kind), torch.float32, "cpu").eval()
    rows = batch()
    exact = rounding.in_float64(network)
    logits, targets = loss.supervised_logits(network, rows)
    supervised = rows["labels"][:, 1:] != IGNORE
    full, full_exact = (
        model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1][supervised]
        for model in (network, exact)
    )
    total, count = loss.loss_sum(network, rows)
    rounding.assert_as_exact(
        {"logits": logits.detach(), "mean loss": (total / count).detach()},
        {"logits": full.detach(), "mean loss": network(**rows).loss.detach()},
        {"logits": full_exact.detach(), "mean loss": exact(**rows).loss.detach()},
    )
    assert targets.tolist() == rows["labels"][:, 1:][supervised].tolist()


def gradients(network: torch.nn.Module) -> torch.Tensor:
    network.train()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss.loss_sum(network, batch())
    total.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_an_evaluation_leaves_gradients_as_they_were(tiny_model: Path) -> None:
    """bitsandbytes repacks 4-bit weights in the first evaluation pass on some CPUs, and ruins training."""
    from peft import LoraConfig, get_peft_model

    base = networks.load(tiny_model, torch.bfloat16, "cpu", Quantization())
    network = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.nn.init.normal_(next(p for n, p in network.named_parameters() if "lora_B" in n))
    before = gradients(network)
    network.eval()
    with torch.no_grad():
        loss.loss_sum(network, batch())
    assert torch.equal(before, gradients(network))
    assert before.abs().sum() > 0


def test_a_tensor_quantized_again_is_the_one_that_the_layer_computes_with(tiny_model: Path) -> None:
    from safetensors.torch import load_file

    network = networks.load(tiny_model, torch.bfloat16, "cpu", Quantization())
    originals = load_file(tiny_model / "model.safetensors")
    layers = dict(networks.linear4bit(network))
    assert len(layers) == 14
    for name, layer in layers.items():
        again = dequantizer.round_trip(originals[f"{name}.weight"], torch.bfloat16, Quantization(), "cpu")
        assert torch.equal(networks.dequantize(layer), again)
        x = torch.randn(3, again.shape[1], dtype=torch.bfloat16)
        outputs, exact = layer(x), x.double() @ again.T.double()
        rounding.assert_as_exact({name: outputs}, {name: x @ again.T}, {name: exact}, torch.bfloat16)


def test_compute_dtype() -> None:
    assert networks.compute_dtype("float32", "cpu") is torch.float32
    assert networks.compute_dtype("auto", "mps") is torch.float32
    assert networks.compute_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)


def test_pickled_weights_are_never_loaded(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        networks.load(tmp_path, torch.float32, "cpu")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3-VL", "Ministral 3"])
def test_only_the_decoder_is_quantized(name: str, tmp_path: Path) -> None:
    network = networks.load(families.write(families.ALL[name], tmp_path), torch.bfloat16, "cpu", Quantization())
    prefix, decoder = networks.decoder(network)
    names = {path for path, _ in networks.linear4bit(network)}
    assert names == {f"{prefix}.{path}" for path, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    assert any(isinstance(module, nn.Linear) and path not in names for path, module in network.named_modules())


def test_a_layer_that_only_descends_from_linear_is_no_linear_layer() -> None:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextConfig

    with torch.device("meta"):
        assert networks.is_plain_linear(torch.nn.Linear(4, 4))
        assert networks.is_plain_linear(FalconLinear(4, 4))
        assert not networks.is_plain_linear(DeepseekV4GroupedLinear(4, 4, 2))
        assert not networks.is_plain_linear(Llama4Router(Llama4TextConfig(hidden_size=4)))
        assert not networks.is_plain_linear(torch.nn.Embedding(4, 4))


@pytest.mark.parametrize("name", sorted(families.ALL.keys() - {"T5", "BERT"}))
def test_the_class_is_the_one_that_the_checkpoint_names(name: str) -> None:
    family = families.ALL[name]
    config = getattr(transformers, family.network).config_class(**family.values)
    for architectures in ([family.network], None):
        config.architectures = architectures
        auto = networks.auto_class(config)
        if architectures or name not in {"Qwen3.5", "Qwen3.5 tied", "Qwen3.5-MoE"}:  # whose text part has a class, too
            assert auto._model_mapping[type(config)].__name__ == family.network


@pytest.mark.parametrize("kind", ["bert", "t5", "whisper", "vit"])
def test_other_models_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"the model is .*only causal language models are trained here"):
        networks.auto_class(transformers.AutoConfig.for_model(kind))


def test_the_parts_that_text_reaches() -> None:
    for name, outside in (
        ("Qwen3.5", {"visual"}),
        ("Gemma 3", {"vision_tower", "multi_modal_projector"}),
        ("OPT", set()),
    ):
        family = families.ALL[name]
        cls = getattr(transformers, family.network)
        with torch.device("meta"):
            network = cls(cls.config_class(**family.values))
        others = {key for key, _ in network.named_parameters()} - networks.text_parameters(network)
        assert {key.split(".")[1] for key in others} == outside
        assert {"lm_head", networks.decoder(network)[0]} <= networks.text_modules(network)


@pytest.mark.parametrize("name", ["Granite 4 hybrid", "Jamba"])
def test_what_fused_kernels_of_mamba_take_stays_in_16_bits(name: str, tmp_path: Path) -> None:
    network = networks.load(families.write(families.ALL[name], tmp_path), torch.bfloat16, "cpu", Quantization())
    mixers = [
        path for path, module in network.named_modules() if "A_log" in dict(module.named_parameters(recurse=False))
    ]
    layers = {path: type(module) for path, module in network.named_modules() if path.rpartition(".")[0] in mixers}
    linear = {path for path, kind in layers.items() if issubclass(kind, nn.Linear)}
    quantized = {path for path, _ in networks.linear4bit(network)} & linear
    assert quantized == {f"{mixer}.in_proj" for mixer in mixers} and len(linear) > len(quantized) > 0


def test_tensors_that_are_not_loaded_are_no_news(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.model(tmp_path)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"mtp.fc.weight": torch.ones(3)}, file, {"format": "pt"})
    networks.load(folder, torch.bfloat16, "cpu")
    assert "mtp.fc" not in "".join(capfd.readouterr())
