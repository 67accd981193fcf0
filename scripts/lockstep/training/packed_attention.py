"""Attention for rows laid end to end: each row by itself, with no mask over the whole pass.

A mask over a pass of T tokens costs T² everywhere, and given an attention mask or a cache,
transformers would let rows see each other. Here the borders of the rows are known, so no row sees
another. Rows may share a beginning that is computed once (see PackingCollator).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

BEYOND = ("softcap", "s_aux", "position_bias")  # parts of some models' attention that this one lacks
BLOCK = 160  # queries that attend together
NAME = "lockstep_rows"  # as transformers' attn_implementation


class Unknown(Exception):
    """A model asks for attention that is not computed here."""


class _Rows(torch.autograd.Function):
    """Causal attention of each row over the shared beginning and itself; the softmax is kept for the way back.

    On CPUs this is two to four times as fast as torch's flash attention, whose backward pass is
    slow there, most of all for short rows. Grouped heads are one matrix product, without copies. Long
    rows are cut into blocks of queries, which need not look at keys behind their own end.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, ends: tuple[int, ...]) -> Tensor:
        """q [1, heads, tokens, size], k and v [1, kv heads, tokens, size] → [1, tokens, heads, size]."""
        _, heads, tokens, size = q.shape
        kv_heads, value_size = k.shape[1], v.shape[3]
        out = q.new_empty(tokens, heads, value_size)
        hidden = _future(BLOCK, q.dtype, q.device)
        kept: list[Tensor] = []
        for start, end, shared in _spans(ends):
            keys, values = _with_shared(k, start, end, shared), _with_shared(v, start, end, shared)
            kept += [keys, values]
            for first, last in _blocks(start, end):
                length, seen = last - first, shared + last - start
                query = q[0, :, first:last].reshape(kv_heads, -1, size)  # [kv heads, group · length, size]
                scores = torch.matmul(query, keys[:, :seen].transpose(1, 2)).mul_(scale)
                scores.view(kv_heads, -1, length, seen)[..., seen - length :].add_(hidden[:length, :length])
                weights = torch.softmax(scores, -1)
                mixed = torch.matmul(weights, values[:, :seen])
                out[first:last] = mixed.view(heads, length, value_size).transpose(0, 1)
                kept += [query, weights]
        ctx.save_for_backward(*kept)
        ctx.scale, ctx.ends, ctx.heads = scale, ends, heads
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v; those of the shared beginning are summed over all rows, in float32."""
        (gradient,) = gradients
        heads, kept = ctx.heads, iter(ctx.saved_tensors)
        tokens, value_size, first = gradient.shape[1], gradient.shape[3], ctx.ends[0]
        dq = dk = dv = shared_dk = shared_dv = gradient.new_empty(0)
        for start, end, shared in _spans(ctx.ends):
            keys, values = next(kept), next(kept)
            kv_heads, _, size = keys.shape
            if not len(dq):
                dq, dk = (gradient.new_empty(1, tokens, n, size) for n in (heads, kv_heads))
                dv = gradient.new_empty(1, tokens, kv_heads, value_size)
                shared_dk = dk.new_zeros(kv_heads, first, size, dtype=torch.float32)
                shared_dv = dv.new_zeros(kv_heads, first, value_size, dtype=torch.float32)
            row_dk, row_dv = torch.zeros_like(keys), torch.zeros_like(values)
            for begin, last in _blocks(start, end):
                query, weights = next(kept), next(kept)
                seen = shared + last - start
                dout = gradient[0, begin:last].transpose(0, 1).reshape(kv_heads, -1, value_size)
                row_dv[:, :seen].baddbmm_(weights.transpose(1, 2), dout)
                dweights = torch.matmul(dout, values[:, :seen].transpose(1, 2))
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(ctx.scale)
                dq[0, begin:last] = (
                    torch.matmul(dscores, keys[:, :seen]).view(heads, last - begin, size).transpose(0, 1)
                )
                row_dk[:, :seen].baddbmm_(dscores.transpose(1, 2), query)
            if end > first:
                dk[0, start:end] = row_dk[:, shared:].transpose(0, 1)
                dv[0, start:end] = row_dv[:, shared:].transpose(0, 1)
            if first:  # the beginning itself, or a row's view of it
                shared_dk += row_dk[:, :first]
                shared_dv += row_dv[:, :first]
        dk[0, :first], dv[0, :first] = shared_dk.transpose(0, 1), shared_dv.transpose(0, 1)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """A row's queries, cut into equal blocks of at most BLOCK."""
    count = -(-(end - start) // BLOCK)
    for number in range(count):
        yield start + (end - start) * number // count, start + (end - start) * (number + 1) // count


@lru_cache(maxsize=2)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus infinity where a token would see a later one: [size, size], kept for the next layers."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device=device).triu_(1)


def _spans(ends: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(start, end, tokens of the shared beginning that it sees) of the beginning itself and of every row."""
    if ends[0]:
        yield 0, ends[0], 0
    for start, end in pairwise(ends):
        yield start, end, ends[0]


def _with_shared(tensor: Tensor, start: int, end: int, shared: int) -> Tensor:
    """[kv heads, shared + length, size] of the keys or values that a row sees."""
    row = tensor[0, :, start:end]
    return torch.cat([tensor[0, :, :shared], row], 1) if shared else row.contiguous()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    borders: Sequence[int] = (),
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. `borders` came through the model's forward as a keyword of ours."""
    ends = tuple(borders)
    if not ends or dropout or mask is not None or any(more.get(name) is not None for name in BEYOND):
        raise Unknown
    if torch.is_autocast_enabled(query.device.type):  # as it would cast them for torch's own attention
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        return _Rows.apply(query, key, value, scale, ends), None  # type: ignore[no-untyped-call]
    if _flash_computes(query, value, ends):
        return _flash(query, key, value, scale, ends), None
    rows = [
        nn.functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
        for start, end, _shared in _spans(ends)
    ]
    return torch.cat(rows, 2).transpose(1, 2), None


def _flash_computes(query: Tensor, value: Tensor, ends: tuple[int, ...]) -> bool:
    """Whether torch's flash attention takes all rows at once.

    It does on GPUs since Ampere, in two-byte floats, with heads of up to 256.
    """
    size = query.shape[-1]
    fits = query.element_size() == 2 and size == value.shape[-1] <= 256 and size % 8 == 0
    if not (fits and query.is_cuda and torch.backends.cuda.is_flash_attention_available()):
        return False
    return not ends[0] and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _flash(query: Tensor, key: Tensor, value: Tensor, scale: float, ends: tuple[int, ...]) -> Tensor:
    """One kernel for all rows, however short; shapes as of `_Rows`."""
    from torch.nn.attention.varlen import varlen_attn

    borders, longest = _on_device(ends, query.device), max(end - start for start, end in pairwise(ends))
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [tokens, heads, size]
    mixed: Any = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True
    )
    rows: Tensor = mixed[None]
    return rows


@lru_cache(maxsize=2)
def _on_device(ends: tuple[int, ...], device: torch.device) -> Tensor:
    """The borders as int32, kept for the next layers."""
    return torch.tensor(ends, dtype=torch.int32, device=device)


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows are kept apart by their borders."""


def register() -> None:
    """Make the implementation known to transformers under NAME."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)


def plain(network: Any) -> str:
    """The attn_implementation of a model's own attention: sdpa, or eager where its class has no other."""
    return "sdpa" if type(network)._supports_sdpa else "eager"


@contextmanager
def implementation(network: Any, name: str) -> Iterator[None]:
    """Another attn_implementation for as long as the block lasts, such as sdpa for answers with a cache."""
    before = network.config._attn_implementation
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)
