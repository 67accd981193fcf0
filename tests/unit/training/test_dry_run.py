"""What would fail later is found before the first step, by name; and a sound training is left as it was."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from support import families, homes, tiny

from lockstep.data.collator import IGNORE
from lockstep.errors import UserError
from lockstep.model import checkpoint_names, networks, peft_adapter
from lockstep.settings import yaml_file
from lockstep.settings.tree import Settings
from lockstep.training import dry_run, fast_lora, setup
from lockstep.training.fast_lora import FastPass

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
BYPASSED = "model.layers.1.mlp.down_proj"


def rows(longest: int = 40) -> Dataset:
    made = []
    for number, size in enumerate((9, 14, 12, 25, longest)):
        ids = [(7 * place + number) % 490 + 3 for place in range(size)]
        made.append({"input_ids": ids, "labels": [IGNORE] * 2 + ids[2:], "row": f"rows.jsonl:{number + 1}"})
    return Dataset.from_list(made)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a training on a family's tiny model, or on the tiny Llama."""
    homes.settle(monkeypatch, tmp_path)

    def given(family: str = "", **changes: str) -> Settings:
        folder = tmp_path / "models" / "base"
        if not folder.exists():
            _ = families.write(families.ALL[family], folder) if family else tiny.model(folder, tied=False)
        values = {
            "run": "r", "model.source": "local", "model.path": str(folder), "model.name": "base", "method": "lora",
            "train.dtype": "float32", "lora.lora_dropout": "0", "lora.r": "4", "data.max_length": "64",
        }  # fmt: skip
        return yaml_file.load(None, values | {name.replace("__", "."): value for name, value in changes.items()})

    return given


def built(given: Settings, longest: int = 40) -> setup.Training:
    return setup.build(given, "cpu", getattr(torch, given.train.dtype), rows(longest), None, 0, [])


def loaded(given: Settings) -> tuple[Any, Any]:
    return setup.load_model(given, "cpu", getattr(torch, given.train.dtype))


def tried(given: Settings, model: Any, network: Any, fast: FastPass | None) -> tuple[FastPass | None, dry_run.Findings]:
    dtype = getattr(torch, given.train.dtype)
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
        return dry_run.check_passes(given, model, network, fast, rows())


def adapted(network: Any) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, LoraLayer)}


# --- sound trainings ---


@DTYPES
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("family", "parts"), [("Llama 3", 14), ("Qwen3-MoE", 12), ("gpt-oss", 12), ("Qwen3.5", 15), ("Gemma 3n text", 29)]
)
def test_a_sound_training_passes(
    settings: Callable[..., Settings], family: str, parts: int, method: str, dtype: str
) -> None:
    more = {"quantization__min_share_4bit": "0"} if method == "qlora" else {}
    made = built(settings(family, method=method, train__dtype=dtype, **more))
    assert made.findings and made.findings.adapted == parts
    assert made.findings.slow is None and not made.findings.left_out and 5 < made.findings.nats < 9
    assert made.fast and made.fast.layers
    assert made.trainer.collate.packed == (family not in ("gpt-oss", "Qwen3.5"))
    trainer = made.trainer
    value = trainer.training_step(trainer.model, [trainer.train_dataset[place] for place in range(5)])
    assert value.isfinite()


def test_nothing_is_left_behind(settings: Callable[..., Settings]) -> None:
    given = settings(lora__lora_dropout="0.1")
    model, network = loaded(given)
    before, state, attention = torch.get_rng_state(), {n: w.clone() for n, w in model.named_parameters()}, "sdpa"
    fast, findings = tried(given, model, network, FastPass(model))
    assert findings.slow is None and fast and fast.whole
    assert torch.equal(before, torch.get_rng_state())
    assert all(weight.grad is None and torch.equal(weight, state[name]) for name, weight in model.named_parameters())
    assert network.config._attn_implementation == attention and all("forward" in vars(layer) for layer in layers(fast))


def layers(fast: FastPass) -> list[Any]:
    return [layer for group in fast.groups for layer in group.layers]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("family", [name for name in families.ALL if name not in ("BERT", "T5")])
def test_every_family_passes_or_is_refused_by_name(settings: Callable[..., Settings], family: str, method: str) -> None:
    more = {"quantization__min_share_4bit": "0"} if method == "qlora" else {}
    given = settings(family, method=method, train__dtype="bfloat16", **more)
    if family == "GPT-2" and method != "full":
        with pytest.raises(UserError, match="is a Conv1D"):
            built(given)
        return
    made = built(given, longest=150)
    assert made.findings and made.findings.slow is None and not made.findings.left_out


# --- the plan ---


def test_an_adapter_that_could_not_be_merged_is_refused(settings: Callable[..., Settings], tmp_path: Path) -> None:
    given = settings()
    model, _ = loaded(given)
    dry_run.check_plan(given, model, checkpoint_names.of_folder(given.model.folder))
    wider = checkpoint_names.of_folder(tiny.model(tmp_path / "wider", hidden_size=96, tied=False))
    with pytest.raises(
        UserError, match=r"could not be merged: .*model\.layers\.0\S+ has shape .*--lora.target_modules"
    ):
        dry_run.check_plan(given, model, wider)
    shallow = checkpoint_names.of_folder(tiny.model(tmp_path / "shallow", num_hidden_layers=1, tied=False))
    with pytest.raises(UserError, match=r"could not be merged: .*model\.layers\.1\.mlp\.down_proj\.weight is not in"):
        dry_run.check_plan(given, model, shallow)


def test_what_vllm_serves_merged_only_is_refused_with_serve_mode_lora(settings: Callable[..., Settings]) -> None:
    with pytest.raises(UserError, match=r"--serve.mode lora: .*BloomForCausalLM: take --serve.mode merged"):
        built(settings("Bloom", serve__mode="lora"))
    assert built(settings("Bloom")).findings


def test_vllm_serves_the_layers_of_a_llama(settings: Callable[..., Settings]) -> None:
    assert built(settings(serve__mode="lora")).findings


@pytest.mark.parametrize(
    "changes",
    [
        {"lora__use_dora": "true"}, {"lora__modules_to_save": "lm_head"}, {"lora__init_lora_weights": "pissa"},
        {"lora__use_rslora": "true", "lora__target_modules": "q_proj,down_proj"},
    ],
)  # fmt: skip
def test_adapters_of_every_kind_can_be_planned(settings: Callable[..., Settings], changes: dict[str, str]) -> None:
    assert built(settings(**changes)).findings


# --- gradients ---


def bypass(network: Any, *numbers: int) -> None:
    """As the fused kernels of Mamba do: a layer's weight is taken, and the layer is not asked."""
    for number in numbers:
        mlp = network.model.layers[number].mlp

        def forward(x: torch.Tensor, mlp: Any = mlp) -> torch.Tensor:
            hidden = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            return torch.nn.functional.linear(hidden, mlp.down_proj.weight)

        mlp.forward = forward


@pytest.mark.parametrize("fast", [True, False])
def test_all_linear_leaves_out_a_layer_that_gets_no_gradient(
    settings: Callable[..., Settings], fast: bool, tmp_path: Path
) -> None:
    given = settings()
    model, network = loaded(given)
    bypass(network, 1)
    passed, findings = tried(given, model, network, FastPass(model) if fast else None)
    assert findings.left_out == (BYPASSED,) and findings.adapted == 13
    assert BYPASSED not in adapted(network) and len(adapted(network)) == 13
    assert not fast or (passed and passed.layers == 13 and passed.whole)
    for weight in model.parameters():
        weight.data += 0.01 * weight.requires_grad
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(networks.load(given.model.folder, torch.float32, "cpu"), tmp_path / "adapter")
    assert adapted(again.base_model.model) == adapted(network)


def test_a_named_layer_that_gets_no_gradient_is_refused_with_the_names_of_the_others(
    settings: Callable[..., Settings],
) -> None:
    given = settings(lora__target_modules="q_proj,up_proj,down_proj")
    model, network = loaded(given)
    bypass(network, 0, 1)
    with pytest.raises(UserError) as raised:
        tried(given, model, network, FastPass(model))
    assert str(raised.value) == (
        "2 of 6 adapted modules get no gradient, so they would not be trained: model.layers.0.mlp.down_proj, "
        "model.layers.1.mlp.down_proj; leave them out: --lora.target_modules q_proj,up_proj"
    )


def test_all_linear_does_not_leave_out_half_of_a_model(settings: Callable[..., Settings]) -> None:
    given = settings()
    model, network = loaded(given)
    network.model.layers[1].register_forward_hook(lambda _, inputs, output: inputs[0])
    with pytest.raises(UserError, match=r"7 of 14 adapted modules get no gradient.* and 4 more; leave them out"):
        tried(given, model, network, FastPass(model))


def test_layers_that_only_longer_rows_reach_are_trained_where_there_are_such_rows(
    settings: Callable[..., Settings],
) -> None:
    """As attention that compresses blocks of tokens: shorter rows never reach what does that."""
    given = settings(data__max_length="200")
    for longest, left_out in ((150, ()), (40, (BYPASSED,))):
        model, network = loaded(given)
        mlp = network.model.layers[1].mlp
        mlp.register_forward_hook(lambda _, __, output: output if output.shape[1] > 100 else 0 * output)
        mlp.gate_proj, mlp.up_proj = (layer.base_layer for layer in (mlp.gate_proj, mlp.up_proj))
        _, findings = dry_run.check_passes(given, model, network, FastPass(model), rows(longest))
        assert findings.left_out == left_out


def test_an_expert_that_no_token_reaches_is_no_error_and_a_stack_of_them_is(settings: Callable[..., Settings]) -> None:
    given = settings("Qwen3-MoE")
    model, network = loaded(given)
    for layer in network.model.layers:
        layer.mlp.gate.weight.data[3] = 0
        layer.mlp.gate.weight.data[:3] = layer.mlp.gate.weight.data[:1]
    fast, findings = tried(given, model, network, FastPass(model))
    assert findings.slow is None and findings.adapted == 12
    network.model.layers[0].mlp.experts.register_forward_hook(lambda _, __, output: 0 * output)
    with pytest.raises(UserError, match=r"2 of 12 .* model.layers.0.mlp.experts.\w+_proj, model.layers.0.mlp.experts"):
        tried(given, model, network, fast)


# --- numbers ---


@DTYPES
def test_numbers_that_are_none_are_refused_before_the_first_step(settings: Callable[..., Settings], dtype: str) -> None:
    given = settings(train__dtype=dtype)
    model, network = loaded(given)
    network.model.layers[0].mlp.up_proj.base_layer.weight.data[3, 5] = torch.inf
    with pytest.raises(UserError, match="before the first step, the loss is nan: the base overflows, or"):
        tried(given, model, network, None)


def test_a_gradient_that_is_none_is_refused(settings: Callable[..., Settings]) -> None:
    given = settings()
    model, network = loaded(given)
    network.model.layers[1].register_forward_hook(
        lambda _, __, output: output.register_hook(lambda gradient: gradient * torch.nan) and None
    )
    with pytest.raises(UserError, match=r"the gradient of model\.layers\.\d.* is not finite"):
        tried(given, model, network, None)


@DTYPES
def test_a_model_that_looks_ahead_is_refused(settings: Callable[..., Settings], dtype: str) -> None:
    given = settings(train__dtype=dtype)
    model, network = loaded(given)
    network.model.layers[0].mlp.register_forward_hook(lambda _, __, output: output + 1e-6 * output.roll(-1, 1))
    with pytest.raises(UserError, match="LlamaForCausalLM is no causal language model"):
        tried(given, model, network, FastPass(model))


def test_a_pass_that_fails_is_one_line(settings: Callable[..., Settings]) -> None:
    given = settings()
    model, network = loaded(given)

    def broken(*_: Any) -> None:
        raise RuntimeError("expected\n  another shape")

    network.model.layers[0].register_forward_hook(broken)
    line = "LlamaForCausalLM cannot be trained here: its first pass fails with RuntimeError: expected another shape"
    with pytest.raises(UserError, match=f"^{line}$"):
        tried(given, model, network, FastPass(model))


# --- the fast pass ---


@DTYPES
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("fault", ["scale", "factors"])
def test_a_fast_pass_that_is_not_pefts_gives_way_to_it(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, fault: str, method: str, dtype: str
) -> None:
    given = settings(method=method, train__dtype=dtype)
    model, network = loaded(given)
    fast = FastPass(model)
    for group in fast.groups:
        if fault == "scale":
            group.scales = tuple(1.3 * scale for scale in group.scales)
        else:
            count = len(group.layers)
            group.factors[:count] = reversed(group.factors[:count])
    passed, findings = tried(given, model, network, fast)
    assert findings.slow and "differs from PEFT's own by" in findings.slow
    assert passed and passed.layers == 0 and not any("forward" in vars(layer) for layer in layers(fast))


def test_outputs_that_a_model_changes_in_place_are_computed_by_peft(settings: Callable[..., Settings]) -> None:
    """Of layers that share their input the fast pass returns views, which autograd lets nobody change."""
    given = settings()
    model, network = loaded(given)
    network.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _, __, output: output.mul_(1.5))
    passed, findings = tried(given, model, network, FastPass(model))
    assert findings.slow and "is a view and is being modified inplace" in findings.slow
    assert passed and passed.layers == 0 and findings.adapted == 14


def test_outputs_that_share_no_input_can_be_changed_in_place(settings: Callable[..., Settings]) -> None:
    given = settings()
    model, network = loaded(given)
    network.model.layers[0].self_attn.o_proj.register_forward_hook(lambda _, __, output: output.mul_(1.5))
    passed, findings = tried(given, model, network, FastPass(model))
    assert findings.slow is None and passed and passed.layers == 14


# --- attention and layout ---


def test_attention_that_a_class_lacks_is_refused_in_one_line(settings: Callable[..., Settings]) -> None:
    with pytest.raises(UserError) as raised:
        built(settings("gpt-oss", train__attn_implementation="sdpa"))
    line = "--train.attn_implementation sdpa: GptOssForCausalLM has no such attention: take eager, or leave it out"
    assert str(raised.value) == line
    made = built(settings("gpt-oss"))
    assert made.trainer.network.config._attn_implementation == "eager" and not made.trainer.collate.packed


def test_rows_of_a_hybrid_are_padded_and_laid_end_to_end_on_no_request(settings: Callable[..., Settings]) -> None:
    assert not built(settings("LFM2")).trainer.collate.packed
    with pytest.raises(UserError, match=r"--train.padding_free: rows of this model would see each other"):
        built(settings("LFM2", train__padding_free="true"))


def test_layers_that_cannot_be_merged_are_refused_before_weights_are_loaded(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "load", lambda *_: pytest.fail("weights were loaded"))
    for method in ("lora", "qlora"):
        with pytest.raises(UserError, match="is a Conv1D"):
            built(settings("GPT-2", method=method))


def test_what_is_trained_is_listed_part_by_part(settings: Callable[..., Settings]) -> None:
    _, network = loaded(settings("Mixtral", lora__modules_to_save="lm_head"))
    parts = peft_adapter.trained_parts(network)
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.experts.down_proj"} <= parts.keys()
    listed = [name for names in parts.values() for name in names]
    assert sorted(listed) == sorted(name for name, weight in network.named_parameters() if weight.requires_grad)
    assert any("lm_head" in part for part in parts) and fast_lora.NAME in listed[0]
