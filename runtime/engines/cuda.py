"""The CUDA runtime through cuda.bindings: what engines on a GPU need of it, with errors that name the call.

Everything runs on one stream. Owners of memory, graphs and the stream have `close`; closing twice is harmless.
"""

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np

from seqrt.errors import EngineError, first_line
from seqrt.runtime.engines import Array

_ADVICE: Final = {
    "cudaErrorMemoryAllocation": "close other programs, use fewer --buckets, or export with a smaller --capacity",
    "cudaErrorInsufficientDriver": "install one that is at least as new as cuda-bindings",
    "cudaErrorNoDevice": "this machine shows no NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES",
}
_UNKNOWN: Final = "see the CUDA documentation for this code; `seqrt doctor` says what this machine has"


class Cuda:
    """Calls into `cuda.bindings.runtime`, or into what stands in for it.

    Args:
        api: the module.

    Raises:
        EngineError: cuda-bindings is not installed.
    """

    def __init__(self, api: Any = None) -> None:
        self.api = _import() if api is None else api

    def call(self, name: str, *arguments: Any) -> Any:
        """What the call returns beside its code: nothing, a value, or several.

        Raises:
            EngineError: its code is not cudaSuccess, or there is no driver at all.
        """
        try:
            code, *values = getattr(self.api, name)(*arguments)
        except RuntimeError as error:  # older cuda-bindings, where they find no libcuda
            raise EngineError(f"{name} failed: {first_line(error)}; install an NVIDIA driver") from error
        if int(code):
            label = getattr(code, "name", str(code))
            if label == "cudaErrorInsufficientDriver":
                raise EngineError(f"there is no NVIDIA driver, or too old a one ({name}: {label}); {_ADVICE[label]}")
            raise EngineError(f"{name} failed with {label} ({int(code)}); {_ADVICE.get(label, _UNKNOWN)}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def compute_capability(self) -> str:
        """Of the first GPU, such as "8.6"."""
        kinds = self.api.cudaDeviceAttr
        numbers = [
            self.call("cudaDeviceGetAttribute", getattr(kinds, f"cudaDevAttrComputeCapability{part}"), 0)
            for part in ("Major", "Minor")
        ]
        return ".".join(map(str, numbers))

    def device_name(self) -> str:
        """Of the first GPU."""
        name = self.call("cudaGetDeviceProperties", 0).name
        return name.decode() if isinstance(name, bytes) else str(name)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)


class Stream:
    """A stream that does not wait for the default one, with the copies that run on it."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        kind = cuda.api.cudaMemcpyKind
        self._to_device, self._to_host = kind.cudaMemcpyHostToDevice, kind.cudaMemcpyDeviceToHost
        self._on_device = kind.cudaMemcpyDeviceToDevice
        self._handle = cuda.call("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """For TensorRT."""
        return int(self._handle)

    def upload(self, target: "DeviceBuffer", source: "HostBuffer", size: int) -> None:
        """Copies the first `size` bytes of `source` to the GPU."""
        self.cuda.call("cudaMemcpyAsync", target.address, source.address, size, self._to_device, self._handle)

    def download(self, target: "HostBuffer", source: "DeviceBuffer", size: int) -> None:
        """Copies the first `size` bytes of `source` from the GPU."""
        self.cuda.call("cudaMemcpyAsync", target.address, source.address, size, self._to_host, self._handle)

    def copy(self, target: "DeviceBuffer", source: "DeviceBuffer") -> None:
        """Copies a whole buffer to another of the same size."""
        self.cuda.call("cudaMemcpyAsync", target.address, source.address, target.size, self._on_device, self._handle)

    def clear(self, target: "DeviceBuffer") -> None:
        """Fills a buffer with zeros."""
        self.cuda.call("cudaMemsetAsync", target.address, 0, target.size, self._handle)

    def wait(self) -> None:
        """Returns when all that was put on the stream has been done."""
        self.cuda.call("cudaStreamSynchronize", self._handle)

    def begin_capture(self) -> None:
        """What is put on the stream from now on is recorded, not done."""
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda.call("cudaStreamBeginCapture", self._handle, mode)

    def end_capture(self) -> "Graph":
        """The recording, ready to be launched."""
        recorded = self.cuda.call("cudaStreamEndCapture", self._handle)
        try:
            return Graph(self.cuda, self.cuda.call("cudaGraphInstantiate", recorded, 0))
        finally:
            self.cuda.call("cudaGraphDestroy", recorded)

    def abandon_capture(self) -> None:
        """Ends a recording that failed, whatever state it is in; nothing if none was begun."""
        _, *recorded = self.cuda.api.cudaStreamEndCapture(self._handle)
        if recorded and recorded[0] is not None and int(recorded[0]):
            self.cuda.api.cudaGraphDestroy(recorded[0])
        self.cuda.api.cudaGetLastError()

    def launch(self, graph: "Graph") -> None:
        """Puts a recording on the stream."""
        self.cuda.call("cudaGraphLaunch", graph.handle, self._handle)

    def close(self) -> None:
        """Waits for what is under way and gives the stream back."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self.cuda.call("cudaStreamSynchronize", handle)
            self.cuda.call("cudaStreamDestroy", handle)


class Graph:
    """A recorded and instantiated CUDA graph."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.cuda, self.handle = cuda, handle

    def close(self) -> None:
        """Gives it back."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self.cuda.call("cudaGraphExecDestroy", handle)


class DeviceBuffer:
    """Memory of the GPU."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.cuda, self.size = cuda, size
        self.address = int(cuda.call("cudaMalloc", max(size, 1)))

    def close(self) -> None:
        """Gives it back."""
        if self.address:
            address, self.address = self.address, 0
            self.cuda.call("cudaFree", address)


class HostBuffer:
    """Page-locked memory of the host, which copies to and from the GPU need no detour for."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.cuda, self.size = cuda, size
        self.address = int(cuda.call("cudaMallocHost", max(size, 1)))
        ctypes.memset(self.address, 0, max(size, 1))

    def array(self, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
        """The beginning of the memory as an array; valid until the buffer is closed."""
        count = prod(shape)
        raw = (ctypes.c_byte * (count * dtype.itemsize)).from_address(self.address)
        flat: Array = np.frombuffer(memoryview(raw), dtype, count)
        return flat.reshape(tuple(shape))

    def close(self) -> None:
        """Gives it back; arrays over it must not be used any more."""
        if self.address:
            address, self.address = self.address, 0
            self.cuda.call("cudaFreeHost", address)


def _import() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            f"cuda-bindings is missing ({first_line(error)}); run: pip install 'seqrt[rtx]' or 'seqrt[tensorrt]'"
        ) from error
    return runtime
