"""Who sees whom, by gradients that are zero or not: of real classes of every kind, and of planted faults."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import families, rounding
from torch import Tensor, nn
from transformers.models.lfm2 import modeling_lfm2
from transformers.models.qwen3_5 import modeling_qwen3_5

from lockstep.data.collator import Collator, PackingCollator
from lockstep.errors import UserError
from lockstep.training import loss, packed_attention, probes, row_isolation

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
WAYS = (PackingCollator(share_prefix=True), PackingCollator(), PackingCollator(sequence_ids=True))
# One of each kind of layer; all families are tried in the slow set.
STATELESS = (
    "Llama 3", "Phi-3", "OLMo 3", "Cohere 2", "Gemma 3 text", "Gemma 4 text", "MiniCPM3", "Qwen3-MoE", "Mixtral", "Gemma 3",
    "Qwen3-VL", "OPT", "GPT-NeoX", "Gemma 3n text",
)  # fmt: skip
STATEFUL = (
    "Qwen3.5 text", "LFM2", "Granite 4 hybrid", "Falcon-H1", "Nemotron-H", "Jamba", "Mamba 2", "OLMo hybrid", "Qwen3.5",
)  # fmt: skip
OTHERWISE = ("Gemma 2", "gpt-oss", "GLM-5", "DeepSeek-V4", "StableLM", "Bloom")  # attention that ours does not compute
LONGEST = 32  # tokens, shorter than any sliding window here


def network(name: str, dtype: torch.dtype = torch.float32, attention: str = packed_attention.NAME) -> Any:
    packed_attention.register()
    made = families.network(families.ALL[name])
    made = made.float() if dtype == torch.float32 else made
    made.set_attn_implementation(attention)
    return made


def apart(tried: Any) -> list[bool]:
    return [row_isolation.rows_stay_apart(tried, LONGEST, way) for way in WAYS]


@DTYPES
@pytest.mark.parametrize("name", STATELESS)
def test_models_without_a_state_keep_rows_apart(name: str, dtype: torch.dtype) -> None:
    tried = network(name, dtype)
    row_isolation.require_causal(tried)
    assert apart(tried) == [True, True, True]
    assert not tried.training and tried.config._attn_implementation == packed_attention.NAME


@DTYPES
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_crosses_the_border_between_rows_and_is_seen(name: str, dtype: torch.dtype) -> None:
    """On CPUs none of them listens to `seq_idx` or `cu_seq_lens`."""
    tried = network(name, dtype)
    row_isolation.require_causal(tried)
    for way in WAYS:
        batch = way(probes.probe_rows(tried))
        assert not row_isolation._sees_itself_alone(tried, batch, training=True)
        assert not row_isolation._sees_itself_alone(tried, batch, training=False)
    assert apart(tried) == [False, False, False]


@pytest.mark.parametrize("name", OTHERWISE)
def test_attention_of_other_kinds_is_left_to_the_model(name: str) -> None:
    tried = network(name)
    row_isolation.require_causal(tried)
    assert apart(tried) == [False, False, False]


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("name", [name for name in families.ALL if name not in (*STATELESS, *STATEFUL, "T5", "BERT")])
def test_every_family_is_causal_and_those_with_a_state_are_seen(name: str, dtype: torch.dtype) -> None:
    tried = network(name, dtype)
    row_isolation.require_causal(tried)
    hybrid = families.ALL[name].layers.startswith("hybrid") or "linear_attention" in str(families.ALL[name].values)
    unknown = (*OTHERWISE, "Seed-OSS", "Nemotron", "GPT-2")
    assert apart(tried) == [not hybrid and name not in unknown] * 3


@DTYPES
@pytest.mark.parametrize("attention", ["sdpa", "eager", packed_attention.NAME])
def test_a_model_that_looks_ahead_is_refused_by_name(dtype: torch.dtype, attention: str) -> None:
    """Our own attention would compute it as if it were causal."""
    tried = network("BERT", dtype, attention)
    with pytest.raises(UserError, match="BertLMHeadModel is no causal language model"):
        row_isolation.require_causal(tried)
    assert apart(tried) == [False] * 3


def leak(places: int, share: float, only: Callable[[nn.Module], bool]) -> Callable[..., Tensor]:
    """A forward hook that adds a share of another place's output: from `places` before, or after where negative."""

    def add(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        moved = output.roll(places, 1)
        moved[:, slice(None, places) if places > 0 else slice(places, None)] = 0
        return output + share * moved if only(module) else output

    return add


@DTYPES
@pytest.mark.parametrize("mode", [None, True, False], ids=["always", "in training", "in evaluation"])
@pytest.mark.parametrize("share", [0.1, 1e-7], ids=["large", "below rounding"])
def test_a_leak_below_rounding_is_found_and_in_one_mode_alone(
    dtype: torch.dtype, mode: bool | None, share: float
) -> None:
    tried = network("Llama 3", dtype)
    logits, _ = loss.supervised_logits(tried, PackingCollator()(probes.probe_rows(tried)))
    hook = leak(1, share, lambda module: mode in (None, module.training))
    tried.model.layers[0].mlp.register_forward_hook(hook)
    leaking, _ = loss.supervised_logits(tried, PackingCollator()(probes.probe_rows(tried)))
    if share < 1e-6:  # not to be seen in numbers
        assert (leaking - logits).abs().max() < 1e-3 * logits.std()
    row_isolation.require_causal(tried)  # it looks back only
    assert apart(tried) == [False] * 3


@DTYPES
@pytest.mark.parametrize("share", [0.1, 1e-7], ids=["large", "below rounding"])
def test_a_glance_ahead_and_at_other_rows_is_refused(dtype: torch.dtype, share: float) -> None:
    tried = network("Llama 3", dtype)
    hook = tried.model.layers[0].mlp.register_forward_hook(leak(-1, share, lambda module: True))
    with pytest.raises(UserError, match="LlamaForCausalLM is no causal language model"):
        row_isolation.require_causal(tried)
    hook.remove()
    tried.model.layers[1].mlp.register_forward_hook(lambda _, __, output: output + share * output.roll(1, 0))
    with pytest.raises(UserError, match="rows of a batch see each other in LlamaForCausalLM"):
        row_isolation.require_causal(tried)


@DTYPES
def test_experts_that_pass_over_tokens_when_they_are_full_are_found(dtype: torch.dtype) -> None:
    """No gradient tells: who comes too late is a discrete choice."""
    tried = network("Mixtral", dtype)

    def at_most_twelve(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, experts, weights = given
        for expert in range(4):
            chosen = experts == expert
            late = chosen & (chosen.flatten().cumsum(0).view_as(chosen) > 12)
            weights = weights.masked_fill(late, 0)
        return hidden, experts, weights

    for layer in tried.model.layers:
        layer.mlp.experts.register_forward_pre_hook(at_most_twelve)
    assert row_isolation._sees_itself_alone(tried, PackingCollator()(probes.probe_rows(tried)), training=True)
    assert not row_isolation.rows_stay_apart(tried, LONGEST)


def test_positions_that_do_not_begin_again_are_found() -> None:
    tried = network("OPT")

    def count_on(_: nn.Module, __: Any, named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        if named.get("position_ids") is not None:
            named["position_ids"] = torch.arange(named["input_ids"].shape[1])[None]
        return (), named

    assert row_isolation.rows_stay_apart(tried, LONGEST)
    tried.register_forward_pre_hook(count_on, with_kwargs=True)
    assert not row_isolation.rows_stay_apart(tried, LONGEST)


@pytest.mark.parametrize("name", ["OLMo 3", "Llama 4 text"])  # a sliding window, and chunks, of 64 tokens
def test_a_window_shorter_than_the_rows_is_left_to_the_model(name: str) -> None:
    tried = network(name)
    assert row_isolation.rows_stay_apart(tried, 64) and not row_isolation.rows_stay_apart(tried, 65)


def gradients(tried: Any, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The summed loss of all batches, and its gradients by name."""
    tried.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        part, _ = loss.loss_sum(tried, batch)
        part.backward()
        total += part.detach()
    assert all(weight.grad is not None for weight in tried.parameters())
    return {name: weight.grad.clone() for name, weight in tried.named_parameters()} | {"loss": total}


@pytest.mark.parametrize("name", ["Qwen3.5 text", "LFM2", "Falcon-H1", "Mamba 2", "OLMo hybrid"])
def test_padded_rows_of_hybrids_have_the_loss_and_gradients_that_they_have_alone(name: str) -> None:
    tried = network(name, attention="sdpa" if name != "Mamba 2" else "eager").train()
    rows = probes.probe_rows(tried)
    alone = [Collator(0, 1)([row]) for row in rows]
    assert Collator(0)(rows)["attention_mask"].tolist()[0].count(0), "nothing is padded"
    single, exact = gradients(tried, alone), gradients(rounding.in_float64(tried), alone)
    rounding.assert_as_exact(gradients(tried, [Collator(0)(rows)]), single, exact)


def convolution_by_rows(whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As causal_conv1d's kernel: no row sees another one, as `seq_idx` tells them apart."""

    def convolved(hidden: Tensor, *rest: Any, seq_idx: Tensor | None = None, **named: Any) -> Tensor:
        if seq_idx is None:
            return whole(hidden, *rest, **named)
        sizes = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([whole(part, *rest, **named) for part in hidden.split(sizes, -1)], -1)

    return convolved


def delta_rule_by_rows(whole: Callable[..., Any]) -> Callable[..., Any]:
    """As fla's kernel: the state begins again where `cu_seqlens` says."""

    def ruled(q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, cu_seqlens: Any = None, **named: Any) -> Any:
        if cu_seqlens is None:
            return whole(q, k, v, g=g, beta=beta, **named)
        sizes = cu_seqlens.diff().tolist()
        rows = zip(*(tensor.split(sizes, 1) for tensor in (q, k, v, g, beta)), strict=True)
        outputs = [whole(*row[:3], g=row[3], beta=row[4], **named)[0] for row in rows]
        return torch.cat(outputs, 1), None

    return ruled


@pytest.mark.parametrize("name", ["LFM2", "Qwen3.5 text"])
def test_kernels_that_listen_to_the_borders_let_hybrids_be_laid_end_to_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run on GPUs only; what takes their place here is called as they are."""
    for module in (modeling_lfm2, modeling_qwen3_5):
        monkeypatch.setattr(module, "causal_conv1d_fn", convolution_by_rows(module.causal_conv1d_fn))
    plain = modeling_qwen3_5.torch_chunk_gated_delta_rule
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", delta_rule_by_rows(plain))
    tried = network(name)
    assert apart(tried) == [False, False, True]
    rows = probes.probe_rows(tried)
    alone = [Collator(0, 1)([row]) for row in rows]
    with packed_attention.implementation(tried, "sdpa"):
        single, exact = gradients(tried, alone), gradients(rounding.in_float64(tried), alone)
    rounding.assert_as_exact(gradients(tried, [PackingCollator(sequence_ids=True)(rows)]), single, exact)
    if name != "LFM2":  # a kernel for the convolution alone is not enough
        monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", plain)
        assert apart(tried) == [False] * 3
