"""Weight-only quantisation: which blocks a weight becomes, and how they are laid out as a matrix.

A projection becomes MatMul(x, DequantizeLinear(codes, scale, zero)), blocked along axis 0 (exporter/blocks.py). Blocks
of 4 bits whose
offset is no whole number of steps (GGUF Q4_1, HQQ) keep it exactly this way: with the nearest whole zero point z

    w = scale * code + offset = scale * (code - z) + r,     |r| <= scale / 2

so y = x @ scale * (code - z) + blocksum(x) @ r. The residual r is itself written in 4-bit digits, as extra rows of
the same matrix that read the block sums, appended to x: one kernel call instead of two products and a sum, which
costs a third more. Two digits leave an error below 1/390 of the largest quantisation step among 32 neighbouring
blocks, less than the last bit of the fp16 offset that GGUF stores.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from seqrt.errors import ExportError
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.weights import DecoderWeights, is_projection

Method = Literal["none", "int8", "int4", "source"]
METHODS: Final[tuple[Method, ...]] = ("none", "int8", "int4", "source")

BLOCK = 32
DIGITS = 2  # of the residual; each takes it down by a factor of 14


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as DequantizeLinear's inputs.

    Attributes:
        bits: 4 or 8 (signed).
        codes: `[K, N]`, one a byte; those of 4 bits are -8..7 where there is no zero point.
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
        digits = rows[size:].reshape(DIGITS, -1, width)[:, : self.num_sums].sum(0)
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
    for _ in range(DIGITS):
        grouped = remaining.reshape(-1, packed.block, width)
        scale = np.abs(grouped).max(1, keepdims=True) / np.float32(7)
        digit = np.rint(grouped / np.where(scale == 0, 1, scale))
        remaining = (grouped - digit * scale).reshape(rows, width)
        codes.append((digit + 8).astype(np.uint8).reshape(rows, width))
        scales.append(scale[:, 0])
    extra = np.full((DIGITS * rows // packed.block, width), 8, np.uint8)
    zero = extra if packed.zero is None else np.concatenate([packed.zero, extra])
    return Packed(4, np.concatenate(codes), np.concatenate(scales), zero, num_sums)


def pack_signed(blocks: QuantBlocks) -> tuple[Packed, npt.NDArray[np.float32] | None]:
    """Blocks `[out, in]` as signed codes without zero points, which is all that TensorRT reads.

    Returns:
        The matrix `[in, out]`, and what it leaves of the offsets, float32 `[in / block, out]`, None for nothing.
    """
    codes, scale = np.ascontiguousarray(blocks.codes.T), np.ascontiguousarray(blocks.scale.T)
    if blocks.bits == 8:
        return Packed(8, codes, scale, None), None
    packed = Packed(4, codes.astype(np.int8) - np.int8(8), scale, None)
    rest = 8 * scale if blocks.offset is None else np.ascontiguousarray(blocks.offset.T) + 8 * scale
    return packed, rest if np.abs(rest).max() > 1e-6 * np.abs(scale).max() else None


def as_computed(name: str, blocks: QuantBlocks) -> npt.NDArray[np.float32]:
    """Parameter `name` as the graph computes with it, in the parameter's own layout."""
    return pack(blocks).dequantize() if is_projection(name) else blocks.dequantize()
