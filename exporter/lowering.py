"""What the custom operators of graphs/ops.py become in ONNX, and what that gains on ONNX Runtime."""

from collections.abc import Callable
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript.onnx_opset import opset24 as op

from seqrt.graphs import ops  # noqa: F401  registers the operators that the table below names
from seqrt.runtime.bundle import CHUNK


def _tensor_scatter(past: ir.Value, update: ir.Value, write: ir.Value) -> Any:
    return op.TensorScatter(past, update, write, axis=2)


def _attention(query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value) -> Any:
    """Attention whose rows are folded into its heads while they are few: `[1, Q, T, D]` becomes `[1, Q * T, 1, D]`.

    ONNX Runtime's products of a single row, at scale 1, read the cache as it lies; those of several rows copy it first,
    which costs more than the product itself. And each row is summed in one order, however many there are: a token has
    the same bits alone and in a chain (docs/decisions/0006-one-row.md). The whole
    chunks of a prompt pay for the copy.

    What is made of the mask here is the same in all layers; ONNX Runtime computes it once.
    """
    shape = query.shape
    assert shape is not None
    heads, width = shape[1], shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    few = op.Less(op.Shape(mask, start=2, end=3), op.Constant(value_ints=[CHUNK]))

    def choose(folded: list[int], whole: list[int]) -> Any:
        return op.Where(few, op.Constant(value_ints=folded), op.Constant(value_ints=whole))

    each = op.Expand(mask, choose([1, heads, 1, 1], [1, 1, 1, 1]))
    out, *_ = op.Attention(
        op.Reshape(query, choose([1, -1, 1, width], [1, heads, -1, width])),
        key,
        value,
        op.Reshape(each, choose([1, -1, 1, 0], [1, 1, -1, 0])),
        scale=1.0,
    )
    return op.Reshape(out, op.Constant(value_ints=[1, heads, -1, width]))


TRANSLATIONS: Final[dict[Callable[..., object], Callable[..., object]]] = {
    torch.ops.seqrt.tensor_scatter.default: _tensor_scatter,
    torch.ops.seqrt.attention.default: _attention,
}
