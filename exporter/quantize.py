"""Weight-only quantisation: blocks of a weight as standard operators that engines fuse into their own kernels.

A projection becomes MatMul(x, DequantizeLinear(codes, scale, zero)), blocked along axis 0. Blocks of 4 bits whose
offset is no whole number of steps (GGUF Q4_1, HQQ) keep it exactly this way: with the nearest whole zero point z

    w = scale * code + offset = scale * (code - z) + r,     |r| <= scale / 2

so y = x @ scale * (code - z) + blocksum(x) @ r. The residual r is itself written in 4-bit digits, as extra rows of
the same matrix that read the block sums, appended to x: one kernel call instead of two products and a sum, which
costs a third more. Two digits leave an error below 1/390 of the largest quantisation step among 32 neighbouring
blocks, less than the last bit of the fp16 offset that GGUF stores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from seqrt.errors import ExportError
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.weights import DecoderWeights, is_projection

Method = Literal["none", "int8", "int4", "source"]
METHODS: Final[tuple[Method, ...]] = ("none", "int8", "int4", "source")

BLOCK = 32
_DIGITS = 2  # of the residual; each takes it down by a factor of 14


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as DequantizeLinear's inputs.

    Attributes:
        bits: 4 (codes 0..15) or 8 (signed).
        codes: `[K, N]`, one a byte.
        scale: float32 `[K / block, N]`.
        zero: uint8 `[K / block, N]`, or None for zero.
        num_sums: how many block sums of the input the matrix expects behind it, times two; 0 for none.
    """

    bits: int
    codes: npt.NDArray[np.integer]
    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8] | None
    num_sums: int = 0

    @property
    def block(self) -> int:
        """Rows that share a scale."""
        return int(self.codes.shape[0] // self.scale.shape[0])

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight that the graph multiplies with, float32 `[K, N]`, the digits of the residual included."""
        width = self.scale.shape[1]
        steps = self.codes.reshape(-1, self.block, width).astype(np.float32)
        if self.zero is not None:
            steps -= np.expand_dims(self.zero, 1)
        steps *= np.expand_dims(self.scale, 1)
        rows = steps.reshape(-1, width)
        if not self.num_sums:
            return rows
        size = self.num_sums * self.block
        digits = rows[size:].reshape(_DIGITS, -1, width)[:, : self.num_sums].sum(0)
        weight: npt.NDArray[np.float32] = rows[:size] + np.repeat(digits, self.block, axis=0)
        return weight


def quantized(weights: DecoderWeights, name: str, method: Method) -> QuantBlocks | None:
    """Blocks of parameter `name`, or None when it stays as it is.

    Projections are quantised by `method`; embedding and output layer to int8, because 4 bits there cost the
    most quality for the least time. Weights whose input is no multiple of the block stay float. With `source`, what
    the source holds as numbers stays that, and blocks that cannot be kept (of Q6_K, or of different kinds in
    projections that are fused here) become int8.

    Raises:
        ExportError: `source` of a checkpoint that is not quantised.
    """
    is_table = name in ("embed.weight", "head.weight")
    if method == "none" or not (is_table or is_projection(name)):
        return None
    if method == "source":
        kept = weights.blocks(name)
        if kept is not None or not weights.is_quantized(name):
            return kept
    matrix = weights.tensor(name) if is_table else weights.tensor(name).T
    if matrix.shape[1] % BLOCK:
        return None
    return _round_int4(matrix) if method == "int4" and not is_table else round_int8(matrix)


def require_blocks(weights: DecoderWeights, names: list[str]) -> None:
    """Raises ExportError when --quantize source finds no quantised tensor at all."""
    if not any(weights.blocks(name) is not None for name in names if is_projection(name)):
        raise ExportError(f"--quantize source: {weights.checkpoint.name} has no blocks to keep; use int8, int4 or none")


def round_int8(matrix: npt.NDArray[np.float32]) -> QuantBlocks:
    """`[out, in]` to the nearest int8 of each block."""
    blocks = matrix.reshape(matrix.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(-1) / np.float32(127)
    codes = np.rint(blocks / np.where(scale == 0, 1, scale)[..., None])
    return QuantBlocks(bits=8, codes=codes.astype(np.int8).reshape(matrix.shape), scale=scale, offset=None, exact=False)


def _round_int4(matrix: npt.NDArray[np.float32]) -> QuantBlocks:
    """Half-quadratic quantisation (HQQ, Badri and Shaji 2023), in ONNX Runtime's implementation."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        HQQWeightOnlyQuantConfig,
        HQQWeightOnlyQuantizer,
    )

    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4))
    source = torch.from_numpy(np.ascontiguousarray(matrix))
    codes, scale, zero = quantizer.quantize_internal(source, bits=4, group_size=BLOCK, axis=1)
    return QuantBlocks(
        bits=4,
        codes=codes.numpy().astype(np.uint8),
        scale=scale.numpy(),
        offset=(-zero * scale).numpy(),
        exact=False,
    )


def pack(blocks: QuantBlocks) -> Packed:
    """Blocks `[out, in]` as a matrix `[in, out]` for DequantizeLinear."""
    codes, scale = np.ascontiguousarray(blocks.codes.T), np.ascontiguousarray(blocks.scale.T)
    if blocks.bits == 8:
        return Packed(8, codes, scale, None)
    offset = np.zeros_like(scale) if blocks.offset is None else np.ascontiguousarray(blocks.offset.T)
    step = np.where(scale == 0, 1, scale)
    zero = np.clip(np.rint(-offset / step), 0, 15)
    residual = (offset + zero * scale).astype(np.float32)
    packed = Packed(4, codes, scale, zero.astype(np.uint8))
    if np.abs(residual).max() <= 1e-6 * np.abs(scale).max():
        return packed
    return _with_residual(packed, residual)


def _with_residual(packed: Packed, residual: npt.NDArray[np.float32]) -> Packed:
    """Appends the digits of `residual` `[in / block, out]`, each padded to whole blocks of rows."""
    num_sums, width = residual.shape
    rows = -(-num_sums // packed.block) * packed.block
    remaining = np.zeros((rows, width), np.float32)
    remaining[:num_sums] = residual
    codes, scales = [packed.codes], [packed.scale]
    for _ in range(_DIGITS):
        grouped = remaining.reshape(-1, packed.block, width)
        scale = np.abs(grouped).max(1, keepdims=True) / np.float32(7)
        digit = np.rint(grouped / np.where(scale == 0, 1, scale))
        remaining = (grouped - digit * scale).reshape(rows, width)
        codes.append((digit + 8).astype(np.uint8).reshape(rows, width))
        scales.append(scale[:, 0])
    extra = np.full((_DIGITS * rows // packed.block, width), 8, np.uint8)
    zero = extra if packed.zero is None else np.concatenate([packed.zero, extra])
    return Packed(4, np.concatenate(codes), np.concatenate(scales), zero, num_sums)


def as_computed(name: str, blocks: QuantBlocks) -> npt.NDArray[np.float32]:
    """Parameter `name` as the graph computes with it, in the parameter's own layout."""
    return pack(blocks).dequantize() if is_projection(name) else blocks.dequantize()


Store = Callable[[str, npt.NDArray[np.generic], ir.DataType], ir.Value]


class Rewriter:
    """Puts quantised weights into a graph: requires MatMul, Gemm or Gather of an initialiser; leaves its name free."""

    def __init__(self, graph: ir.Graph, store: Store) -> None:
        self.graph, self.store = graph, store
        self._augmented: dict[ir.Value, ir.Value] = {}
        self._padding: dict[int, ir.Value] = {}

    def replace(self, name: str, blocks: QuantBlocks) -> None:
        """Replaces the weight `name` wherever it is used."""
        for node, _ in list(self.graph.initializers[name].uses()):
            if node.op_type == "Gather":
                self._gather(node, name, blocks)
            else:
                self._matmul(node, name, pack(blocks))
        del self.graph.initializers[name]

    def _matmul(self, node: ir.Node, name: str, packed: Packed) -> None:
        dtype = ir.DataType.INT8 if packed.bits == 8 else ir.DataType.UINT4
        inputs = [
            self.store(f"{name}.codes", packed.codes, dtype),
            self.store(f"{name}.scale", packed.scale, ir.DataType.FLOAT),
        ]
        if packed.zero is not None:
            inputs.append(self.store(f"{name}.zero", packed.zero, dtype))
        weight = self._before(node, "DequantizeLinear", inputs, f"{name}.value", axis=0, block_size=packed.block)
        x = node.inputs[0]
        assert x is not None
        if packed.num_sums:
            x = self._with_sums(node, x, packed)
        product = self._before(node, "MatMul", [x, weight], f"{name}.product")
        self._take_over(node, product)

    def _with_sums(self, node: ir.Node, x: ir.Value, packed: Packed) -> ir.Value:
        """`x` followed, for each digit, by the sums of its blocks and zeros up to a whole block."""
        if x in self._augmented:
            return self._augmented[x]
        kept = 1 if node.op_type == "Gemm" else 2  # axes before the last: rows, or batch and rows
        shape = np.array([0] * kept + [packed.num_sums, packed.block])  # 0 keeps the input's dimension
        split = self.store(f"block_shape.{kept}.{packed.num_sums}", shape, ir.DataType.INT64)
        last = self.store(f"last_axis.{kept}", np.array([kept + 1]), ir.DataType.INT64)
        grouped = self._before(node, "Reshape", [x, split], f"{x.name}.blocks")
        sums = self._before(node, "ReduceSum", [grouped, last], f"{x.name}.sums", keepdims=0)
        padding = -packed.num_sums % packed.block
        if padding and kept == 1:
            ends = self.store(f"ends.{padding}", np.array([0, 0, 0, padding]), ir.DataType.INT64)
            sums = self._before(node, "Pad", [sums, ends], f"{x.name}.padded")
        parts = [sums, self._zeros(padding)] if padding and kept == 2 else [sums]
        result = self._before(node, "Concat", [x, *(parts * _DIGITS)], f"{x.name}.extended", axis=kept)
        self._augmented[x] = result
        return result

    def _zeros(self, width: int) -> ir.Value:
        """Zeros `[1, T, width]`, made once at the head of the graph."""
        if width not in self._padding:
            first = self.graph[0]
            shape = self._before(first, "Shape", [self.graph.inputs[0]], f"query_shape.{width}")
            size = self.store(f"padding.{width}", np.array([width]), ir.DataType.INT64)
            full = self._before(first, "Concat", [shape, size], f"padding_shape.{width}", axis=0)
            self._padding[width] = self._before(first, "ConstantOfShape", [full], f"zeros.{width}")
        return self._padding[width]

    def _gather(self, node: ir.Node, name: str, blocks: QuantBlocks) -> None:
        """Embedding: gathers codes and scales of the rows wanted, and dequantises only these."""
        rows, (num_rows, width) = node.inputs[1], blocks.codes.shape
        num_blocks, codes, offset = blocks.scale.shape[1], blocks.codes, blocks.offset
        if offset is not None:  # 4 bits: the middle of the range is the zero point, which leaves Q4_0 no offset
            codes, offset = codes.astype(np.int8) - np.int8(8), offset + 8 * blocks.scale
        parts = [
            self.store(f"{name}.rows", codes.astype(np.int8), ir.DataType.INT8),
            self.store(f"{name}.row_scale", blocks.scale, ir.DataType.FLOAT),
        ]
        picked = [self._before(node, "Gather", [part, rows], f"{part.name}.picked", axis=0) for part in parts]
        block = width // num_blocks
        value = self._before(node, "DequantizeLinear", picked, f"{name}.value", axis=2, block_size=block)
        if offset is not None and offset.any():
            split = self.store(f"{name}.split", np.array([0, 0, num_blocks, block]), ir.DataType.INT64)
            join = self.store(f"{name}.join", np.array([0, 0, width]), ir.DataType.INT64)
            table = self.store(f"{name}.offset", offset.reshape(num_rows, num_blocks, 1), ir.DataType.FLOAT)
            added = self._before(node, "Gather", [table, rows], f"{name}.offset.picked", axis=0)
            grouped = self._before(node, "Reshape", [value, split], f"{name}.grouped")
            moved = self._before(node, "Add", [grouped, added], f"{name}.moved")
            value = self._before(node, "Reshape", [moved, join], f"{name}.joined")
        self._take_over(node, value)

    def _take_over(self, node: ir.Node, value: ir.Value) -> None:
        """Puts `value` in the place of the node's output, name and shape included."""
        old = node.outputs[0]
        value.shape, value.type = old.shape, old.type
        if old.is_graph_output():
            value.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _before(
        self, node: ir.Node, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int
    ) -> ir.Value:
        made = ir.node(op, inputs, attributes)
        made.outputs[0].name = name
        self.graph.insert_before(node, made)
        return made.outputs[0]


def rewrite(graph: ir.Graph, blocks: Mapping[str, QuantBlocks], store: Store) -> None:
    """Replaces every weight of `graph` that `blocks` names."""
    rewriter = Rewriter(graph, store)
    place = {node: i for i, node in enumerate(graph)}
    uses = {name: graph.initializers[name].uses() for name in blocks if name in graph.initializers}
    # in order of use: block sums that several products share are made where the first one needs them
    for name in sorted(uses, key=lambda name: min((place[node] for node, _ in uses[name]), default=0)):
        rewriter.replace(name, blocks[name])
