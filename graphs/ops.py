"""Operators that the graphs share.

`tensor_scatter` and `attention` are torch custom operators: eagerly they run the reference semantics below, and
exporter/lowering.py says what becomes of them in ONNX. RotaryEmbedding and RMSNormalization need nothing here:
torch.onnx.ops and nn.RMSNorm cover them.
"""

import torch
from torch import Tensor


@torch.library.custom_op("seqrt::tensor_scatter", mutates_args=())
def tensor_scatter(past: Tensor, update: Tensor, write: Tensor) -> Tensor:
    """ONNX TensorScatter-24, axis 2: `past` with `update` in the rows that start at `write`.

    Args:
        past: `[1, heads, capacity, head_dim]`.
        update: `[1, heads, rows, head_dim]`.
        write: int64 `[1]`, first row that is overwritten.
    """
    present = past.clone()
    start = int(write[0])
    present[:, :, start : start + update.shape[2]] = update
    return present


@tensor_scatter.register_fake
def _(past: Tensor, update: Tensor, write: Tensor) -> Tensor:
    return torch.empty_like(past)


@torch.library.custom_op("seqrt::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention, ONNX Attention-24 with scale 1.

    Args:
        query: `[1, query heads, T, D]`, scaled already.
        key: `[1, kv heads, C, D]`; each head serves as many query heads as there are more of these.
        value: as `key`.
        mask: float `[1, 1, T, C]`, added to the products: 0 where a row is seen, -inf elsewhere.

    Returns:
        `[1, query heads, T, D]`.
    """
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0, enable_gqa=True)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(query)


def log_sum_exp(logits: Tensor, largest: Tensor) -> Tensor:
    """Logsumexp over the last dimension `[..., 1]`, given the largest logits `[..., 1]`.

    In ONNX Runtime this takes a third of the time of ReduceLogSumExp, which looks for the largest itself.
    """
    return largest + (logits - largest).exp().sum(-1, keepdim=True).log()
