"""What the custom operators of graphs/ops.py become in ONNX: native operators, which passes may lower further."""

from collections.abc import Callable
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript.onnx_opset import opset24 as op

from seqrt.graphs import ops  # noqa: F401  registers the operators that the table below names


def _tensor_scatter(past: ir.Value, update: ir.Value, write: ir.Value) -> Any:
    return op.TensorScatter(past, update, write, axis=2)


def _attention(query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value) -> Any:
    out, *_ = op.Attention(query, key, value, mask, scale=1.0)
    return out


TRANSLATIONS: Final[dict[Callable[..., object], Callable[..., object]]] = {
    torch.ops.seqrt.tensor_scatter.default: _tensor_scatter,
    torch.ops.seqrt.attention.default: _attention,
}
