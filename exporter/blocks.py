"""Quantised weights in a graph: standard operators that engines fuse into their own kernels.

ONNX Runtime gets unsigned codes with zero points, and what these leave of the offsets as further digits of the same
matrix (exporter/quantize.py). TensorRT reads signed codes without zero points only: there the rest of the offsets is a
small product of its own, y = x @ scale * code + blocksum(x) @ rest, and tables that rows are gathered from stay floats.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.quantize import DIGITS, Packed, pack, pack_signed
from seqrt.exporter.rewriting import Site

Store = Callable[[str, npt.NDArray[np.generic], ir.DataType], ir.Value]

_UNSIGNED: Final = {4: ir.DataType.UINT4, 8: ir.DataType.INT8}
_SIGNED: Final = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


class Rewriter:
    """Puts quantised weights into a graph: requires MatMul, Gemm or Gather of an initialiser; leaves its name free.

    Args:
        graph: of which initialisers are replaced.
        store: makes an initialiser of a name, values and a type.
        signed: for engines that read signed codes only.
    """

    def __init__(self, graph: ir.Graph, store: Store, *, signed: bool) -> None:
        self.graph, self.store, self.signed = graph, store, signed
        self._augmented: dict[ir.Value, ir.Value] = {}
        self._padding: dict[int, ir.Value] = {}

    def replace(self, name: str, blocks: QuantBlocks) -> None:
        """Replaces the weight `name` wherever it is used."""
        weight = self.graph.initializers[name]
        dtype = weight.dtype or ir.DataType.FLOAT
        for node, _ in list(weight.uses()):
            site = Site(self.graph, node)
            if node.op_type == "Gather":
                site.take_over(self._gathered(site, name, blocks, dtype))
            elif self.signed:
                site.take_over(self._signed_product(site, name, blocks, dtype))
            else:
                site.take_over(self._product(site, name, pack(blocks), dtype))
        del self.graph.initializers[name]

    def _product(self, site: Site, name: str, packed: Packed, dtype: ir.DataType) -> ir.Value:
        x = _input(site)
        if packed.num_sums:
            x = self._with_sums(site, x, packed)
        return site.add("MatMul", [x, self._weight(site, name, packed, dtype)], f"{name}.product")

    def _signed_product(self, site: Site, name: str, blocks: QuantBlocks, dtype: ir.DataType) -> ir.Value:
        packed, rest = pack_signed(blocks)
        x = _input(site)
        product = site.add("MatMul", [x, self._weight(site, name, packed, dtype)], f"{name}.product")
        if rest is None:
            return product
        if x not in self._augmented:
            self._augmented[x] = self._sums(site, x, len(rest), packed.block)
        table = self.store(f"{name}.rest", rest, dtype)
        offset = site.add("MatMul", [self._augmented[x], table], f"{name}.offset")
        return site.add("Add", [product, offset], f"{name}.whole")

    def _weight(self, site: Site, name: str, packed: Packed, dtype: ir.DataType) -> ir.Value:
        codes = (_SIGNED if self.signed else _UNSIGNED)[packed.bits]
        inputs = [self.store(f"{name}.codes", packed.codes, codes), self.store(f"{name}.scale", packed.scale, dtype)]
        if packed.zero is not None:
            inputs.append(self.store(f"{name}.zero", packed.zero, codes))
        return site.add("DequantizeLinear", inputs, f"{name}.value", axis=0, block_size=packed.block)

    def _sums(self, site: Site, x: ir.Value, count: int, block: int) -> ir.Value:
        """The sums of the `count` blocks of each row of `x`."""
        kept = _axes_before_last(site)
        shape = np.array([0] * kept + [count, block])  # 0 keeps the input's dimension
        split = self.store(f"block_shape.{kept}.{count}", shape, ir.DataType.INT64)
        last = self.store(f"last_axis.{kept}", np.array([kept + 1]), ir.DataType.INT64)
        grouped = site.add("Reshape", [x, split], f"{x.name}.blocks")
        return site.add("ReduceSum", [grouped, last], f"{x.name}.sums", keepdims=0)

    def _with_sums(self, site: Site, x: ir.Value, packed: Packed) -> ir.Value:
        """`x` followed, for each digit, by the sums of its blocks and zeros up to a whole block."""
        if x in self._augmented:
            return self._augmented[x]
        kept, padding = _axes_before_last(site), -packed.num_sums % packed.block
        sums = self._sums(site, x, packed.num_sums, packed.block)
        if padding and kept == 1:
            ends = self.store(f"ends.{padding}", np.array([0, 0, 0, padding]), ir.DataType.INT64)
            sums = site.add("Pad", [sums, ends], f"{x.name}.padded")
        parts = [sums, self._zeros(padding, x.dtype)] if padding and kept == 2 else [sums]
        result = site.add("Concat", [x, *(parts * DIGITS)], f"{x.name}.extended", axis=kept)
        self._augmented[x] = result
        return result

    def _zeros(self, width: int, dtype: ir.DataType | None) -> ir.Value:
        """Zeros `[1, T, width]`, made once at the head of the graph."""
        if width not in self._padding:
            first = Site(self.graph, self.graph[0])
            shape = first.add("Shape", [self.graph.inputs[0]], f"query_shape.{width}")
            size = self.store(f"padding.{width}", np.array([width]), ir.DataType.INT64)
            full = first.add("Concat", [shape, size], f"padding_shape.{width}", axis=0)
            own = dtype or ir.DataType.FLOAT
            zero = ir.tensor(np.zeros(1, own.numpy()), dtype=own)
            self._padding[width] = first.add("ConstantOfShape", [full], f"zeros.{width}", value=zero)
        return self._padding[width]

    def _gathered(self, site: Site, name: str, blocks: QuantBlocks, dtype: ir.DataType) -> ir.Value:
        """Embedding: gathers codes and scales of the rows wanted, and dequantises only these."""
        rows, (num_rows, width) = site.node.inputs[1], blocks.codes.shape
        if self.signed:
            return site.add("Gather", [self.store(f"{name}.table", blocks.dequantize(), dtype), rows], f"{name}.value")
        num_blocks, codes, offset = blocks.scale.shape[1], blocks.codes, blocks.offset
        if offset is not None:  # 4 bits: the middle of the range is the zero point, which leaves Q4_0 no offset
            codes, offset = codes.astype(np.int8) - np.int8(8), offset + 8 * blocks.scale
        parts = [
            self.store(f"{name}.rows", codes.astype(np.int8), ir.DataType.INT8),
            self.store(f"{name}.row_scale", blocks.scale, dtype),
        ]
        picked = [site.add("Gather", [part, rows], f"{part.name}.picked", axis=0) for part in parts]
        block = width // num_blocks
        value = site.add("DequantizeLinear", picked, f"{name}.value", axis=2, block_size=block)
        if offset is None or not offset.any():
            return value
        split = self.store(f"{name}.split", np.array([0, 0, num_blocks, block]), ir.DataType.INT64)
        join = self.store(f"{name}.join", np.array([0, 0, width]), ir.DataType.INT64)
        table = self.store(f"{name}.offset", offset.reshape(num_rows, num_blocks, 1), dtype)
        added = site.add("Gather", [table, rows], f"{name}.offset.picked", axis=0)
        grouped = site.add("Reshape", [value, split], f"{name}.grouped")
        moved = site.add("Add", [grouped, added], f"{name}.moved")
        return site.add("Reshape", [moved, join], f"{name}.joined")


def rewrite(graph: ir.Graph, blocks: Mapping[str, QuantBlocks], store: Store, *, signed: bool = False) -> None:
    """Replaces every weight of `graph` that `blocks` names."""
    rewriter = Rewriter(graph, store, signed=signed)
    place = {node: i for i, node in enumerate(graph)}
    uses = {name: graph.initializers[name].uses() for name in blocks if name in graph.initializers}
    # in order of use: block sums that several products share are made where the first one needs them
    for name in sorted(uses, key=lambda name: min((place[node] for node, _ in uses[name]), default=0)):
        rewriter.replace(name, blocks[name])


def _input(site: Site) -> ir.Value:
    x = site.node.inputs[0]
    assert x is not None
    return x


def _axes_before_last(site: Site) -> int:
    """Of the product's input: rows, or batch and rows."""
    return 1 if site.node.op_type == "Gemm" else 2
