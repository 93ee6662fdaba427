"""One external data file that all graphs of a bundle share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from seqrt.errors import ExportError

_ALIGNMENT: Final = 4096  # a page, so that engines can map tensors
_INLINE_BYTES: Final = 1024  # smaller tensors stay in the graph file, where shape inference sees them


class WeightStore:
    """Appends tensors to a file and hands out initialisers that point into it; a name is written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._tensors: dict[str, ir.TensorProtocol] = {}

    def initializer(self, graph: ir.Graph, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        """The initialiser `name` of `graph`, its data written as `dtype` at the first call with that name.

        Raises:
            ExportError: a value does not fit into half precision.
        """
        if name in graph.initializers:
            return graph.initializers[name]
        if name not in self._tensors:
            self._tensors[name] = self._write(name, array, dtype)
        return self._register(graph, name)

    def tensor(self, name: str, read: Callable[[], npt.NDArray[np.generic]], place: ir.Value) -> ir.TensorProtocol:
        """The tensor `name` for the traced parameter `place`, read and written at the first call.

        Raises:
            ExportError: its shape is not the parameter's, or a value does not fit into half precision.
        """
        if name not in self._tensors:
            array = read()
            if place.shape is None or tuple(array.shape) != tuple(place.shape):
                raise ExportError(f"{name} has shape {array.shape}, the graph expects {place.shape}")
            self._tensors[name] = self._write(name, array, place.dtype or ir.DataType.FLOAT)
        return self._tensors[name]

    def close(self) -> None:
        """Writes what is buffered."""
        self._file.close()

    def _register(self, graph: ir.Graph, name: str) -> ir.Value:
        tensor = self._tensors[name]
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        graph.register_initializer(value)
        return value

    def _write(self, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.TensorProtocol:
        if dtype in (ir.DataType.UINT4, ir.DataType.INT4):
            data: npt.NDArray[np.generic] = _packed(array)
        else:
            data = _cast(name, array, dtype)
        if data.nbytes <= _INLINE_BYTES:
            if dtype in (ir.DataType.UINT4, ir.DataType.INT4):
                return ir.PackedTensor(data, dtype, shape=ir.Shape(array.shape), name=name)
            return ir.tensor(data, dtype=dtype, name=name)
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.write(b"\0" * (offset - self._file.tell()))
        self._file.write(data.tobytes())
        return ir.ExternalTensor(
            self.path.name,
            offset,
            data.nbytes,
            dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.path.parent,
        )


def _cast(name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> npt.NDArray[np.generic]:
    """Contiguous values of the type that the graph says."""
    if array.dtype == np.float32 and dtype == ir.DataType.FLOAT16:
        largest = float(np.abs(array.astype(np.float32)).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):  # in fp16 the comparison itself would overflow
            own = name.removesuffix(".turned")
            raise ExportError(f"{own} holds {largest:.3g}, above what fp16 holds (65504); use --dtype bf16 or fp32")
    return np.ascontiguousarray(array, dtype.numpy())


def _packed(codes: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes a byte, the first in the low half."""
    flat = codes.reshape(-1).astype(np.uint8) & np.uint8(15)
    return flat[0::2] | flat[1::2] << np.uint8(4)


@contextmanager
def weight_store(path: Path) -> Iterator[WeightStore]:
    """A store that is closed at the end."""
    store = WeightStore(path)
    try:
        yield store
    finally:
        store.close()
