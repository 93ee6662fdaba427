"""Standard ONNX operators that torch has no name for, as torch custom operators.

The exporter translates each to the operator named in its docstring; eagerly they run the reference semantics below.
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
