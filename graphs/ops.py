"""Operators that the graphs share.

`tensor_scatter` is a standard ONNX operator that torch has no name for, as a torch custom operator. The exporter
translates it to the operator named in its docstring; eagerly it runs the reference semantics below.
RotaryEmbedding, RMSNormalization and Attention need nothing here: torch.onnx.ops and nn.RMSNorm cover them.
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


def log_sum_exp(logits: Tensor, largest: Tensor) -> Tensor:
    """Logsumexp over the last dimension `[..., 1]`, given the largest logits `[..., 1]`.

    In ONNX Runtime this takes a third of the time of ReduceLogSumExp, which looks for the largest itself.
    """
    return largest + (logits - largest).exp().sum(-1, keepdim=True).log()
