"""The GGUF container (github.com/ggml-org/ggml, docs/gguf.md): metadata, tensor directory, tensor bytes.

`gguf.GGUFReader` makes two numpy arrays of every string of the vocabulary, which takes seconds, and slices
past the end of a truncated file without noticing. Constants and dequantisation do come from that library.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import QuantBlocks

_VERSIONS: Final = (2, 3)
_MAX_DIMS: Final = 4
_SCALARS: Final = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
FLOAT_TYPES: Final = ("F32", "F16", "BF16")
SUPPORTED_TYPES: Final = (*FLOAT_TYPES, "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor directory; `shape` is in numpy order, `[out, in]` for a weight."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header has been read; tensor bytes are mapped one tensor at a time."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantised to float32."""
        kind, blocks = self.tensors[name].kind, self.blocks(name)
        if blocks is not None:
            return blocks.dequantize()
        raw = self._bytes(name)
        values: npt.NDArray[np.float32]
        if kind == GGMLQuantizationType.BF16:
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = dequantize(raw, kind)
        return values.reshape(self.tensors[name].shape)

    def blocks(self, name: str) -> QuantBlocks | None:
        """One tensor in blocks of 32 with a scale each; None for plain numbers and Q6_K's blocks of 16."""
        tensor = self.tensors[name]
        if tensor.kind not in _DECODERS or len(tensor.shape) != 2:
            return None
        rows = self._bytes(name).reshape(tensor.shape[0], -1, GGML_QUANT_SIZES[tensor.kind][1])
        return _DECODERS[tensor.kind](rows)

    def _bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes, `[out, bytes per row]`; mapped, and unmapped when the array goes."""
        tensor = self.tensors[name]
        raw = np.memmap(self.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.num_bytes,))
        return raw.view(np.ndarray).reshape(*tensor.shape[:-1], -1)


def read_gguf(path: Path) -> GgufFile:
    """Read the header of `path`.

    Raises:
        CheckpointError: no GGUF file, of another version or byte order, cut short, or with tensor types that
            are not supported.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except (struct.error, IndexError, ValueError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class _Cursor:
    """A position in the header that values are read from."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def string(self) -> str:
        (length,) = self.scalars("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise ValueError(f"a string of {length} bytes ends behind the file")
        return self.data[start : self.position].decode("utf-8", "replace")

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.scalars(_SCALARS[kind])[0]
        item, count = GGUFValueType(self.scalars("I")[0]), self.scalars("Q")[0]
        if count > len(self.data) - self.position:
            raise ValueError(f"an array of {count} values ends behind the file")
        if item in _SCALARS:
            return list(self.scalars(_SCALARS[item], count))
        return [self.value(item) for _ in range(count)]


def _read(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data)
    magic, version = cursor.scalars("I", 2)
    if magic != GGUF_MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {data[:4]!r}")
    if version not in _VERSIONS:
        raise CheckpointError(f"{path} is GGUF version {version} or big-endian; convert it to version 3, little-endian")
    num_tensors, num_values = cursor.scalars("Q", 2)
    metadata = {cursor.string(): cursor.value(GGUFValueType(cursor.scalars("I")[0])) for _ in range(num_values)}
    directory = [_directory_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, {entry[0]: _tensor(path, *entry, start, len(data)) for entry in directory})


def _directory_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, (num_dims,) = cursor.string(), cursor.scalars("I")
    if num_dims > _MAX_DIMS or not name.isprintable():
        raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
    shape = cursor.scalars("Q", num_dims)[::-1]
    kind, offset = cursor.scalars("I")[0], cursor.scalars("Q")[0]
    return name, shape, kind, offset


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, size: int) -> GgufTensor:
    known = {member.value: member.name for member in GGMLQuantizationType}
    if known.get(kind) not in SUPPORTED_TYPES:
        raise CheckpointError(
            f"tensor {name} of {path} is of type {known.get(kind, kind)}; supported are {', '.join(SUPPORTED_TYPES)}"
        )
    member = GGMLQuantizationType(kind)
    block, block_bytes = GGML_QUANT_SIZES[member]
    num_elements = int(np.prod(shape, dtype=object))
    if not shape or shape[-1] % block:
        raise CheckpointError(f"tensor {name} of {path} has shape {list(shape)}, not in blocks of {block}")
    num_bytes = num_elements // block * block_bytes
    end = start + offset + num_bytes
    if end > size:
        raise CheckpointError(
            f"{path} is cut short: tensor {name} ends at byte {end}, the file at {size}; download it again"
        )
    return GgufTensor(shape, member, start + offset, num_bytes)


# Each decoder takes uint8 [out, blocks, bytes of a block]; layouts in ggml's ggml-common.h.


def _half(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Float16 in the last axis's two bytes to float32 without that axis."""
    return np.ascontiguousarray(raw).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(raw: npt.NDArray[np.uint8], num_rows: int) -> npt.NDArray[np.uint8]:
    """Codes `[out, in]` from groups of bytes whose low nibbles come before their high ones."""
    pairs = np.stack([raw & 0x0F, raw >> 4], axis=-2)
    return pairs.reshape(num_rows, -1)


def _q8_0(rows: npt.NDArray[np.uint8]) -> QuantBlocks:
    codes = np.ascontiguousarray(rows[..., 2:]).view(np.int8).reshape(len(rows), -1)
    return QuantBlocks(8, codes, _half(rows[..., :2]), None)


def _q4_0(rows: npt.NDArray[np.uint8]) -> QuantBlocks:
    scale = _half(rows[..., :2])
    return QuantBlocks(4, _nibbles(rows[..., 2:], len(rows)), scale, -8 * scale)


def _q4_1(rows: npt.NDArray[np.uint8]) -> QuantBlocks:
    return QuantBlocks(4, _nibbles(rows[..., 4:], len(rows)), _half(rows[..., :2]), _half(rows[..., 2:4]))


def _q4_k(rows: npt.NDArray[np.uint8]) -> QuantBlocks:
    """Super-blocks of 8 x 32: two float16 factors and, in 12 bytes, 8 scales and 8 minima of 6 bits."""
    low, middle, high = (rows[..., start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    minima = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=-1)
    scale = (_half(rows[..., :2])[..., None] * scales).reshape(len(rows), -1)
    offset = -(_half(rows[..., 2:4])[..., None] * minima).reshape(len(rows), -1)
    codes = _nibbles(rows[..., 16:].reshape(*rows.shape[:2], 4, 32), len(rows))
    return QuantBlocks(4, codes, scale, offset)


_DECODERS: Final = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
}
