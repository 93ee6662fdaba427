"""Stands in for `cuda.bindings.runtime` on a machine without a GPU, and minds everything that real hardware forgives.

Memory of the GPU is numpy memory under made-up addresses. What is put on a stream is done when the stream is waited
for, not before, so that a result that is read too early is an old one. Every misuse is an error at once: an address
that was never given out or was given back, a copy beyond the end, a wait or an allocation while a stream records, a
graph that is launched after its end. `leaks()` says what was not given back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

_PAGE: Final = 1 << 12


class Code(IntEnum):
    """Of cudaError_t, those that are used here."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    """Directions of a copy."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    """How strictly a recording forbids other calls."""

    cudaStreamCaptureModeThreadLocal = 1


class Attribute(IntEnum):
    """Facts about a device."""

    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


Operation = Callable[[], None]
Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Stream:
    waiting: list[Operation] = field(default_factory=list)
    recording: list[Operation] | None = None
    is_invalid: bool = False


@dataclass(frozen=True, slots=True)
class _Properties:
    name: bytes


class StandInCuda:
    """One device.

    Args:
        memory: its bytes.
        capability: its compute capability.
        devices: how many there are; without one every call fails, as it does without a driver.

    Attributes:
        calls: names of all calls so far.
        refuse: calls that fail from now on, and with which code.
    """

    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaDeviceAttr = Attribute
    cudaStreamNonBlocking = 1

    def __init__(
        self, memory: int = 1 << 32, capability: tuple[int, int] = (8, 6), devices: int = 1, name: str = "stand-in"
    ) -> None:
        self.total, self.capability, self.devices, self.name = memory, capability, devices, name
        self.calls: list[str] = []
        self.refuse: dict[str, Code] = {}
        self._device: dict[int, Bytes] = {}
        self._host: dict[int, Bytes] = {}
        self._streams: dict[int, _Stream] = {}
        self._recorded: dict[int, list[Operation]] = {}
        self._graphs: dict[int, list[Operation]] = {}
        self._next = 0x7000_0000_0000
        self._failure = Code.cudaSuccess  # of something that ran later than it was asked for

    def leaks(self) -> list[str]:
        """What was not given back."""
        kinds: dict[str, Iterable[int]] = {
            "device memory": self._device,
            "host memory": self._host,
            "stream": self._streams,
            "recording": self._recorded,
            "graph": self._graphs,
        }
        return [f"{kind} {address:#x}" for kind, held in kinds.items() for address in held]

    def at(self, address: int, size: int) -> Bytes:
        """Memory of the device.

        Raises:
            LookupError: it was not given out, was given back, or ends before.
        """
        for start, memory in self._device.items():
            if start <= address and address + size <= start + memory.size:
                return memory[address - start : address - start + size]
        raise LookupError(f"{size} bytes at {address:#x} are not the device's")

    def enqueue(self, handle: int, operation: Operation) -> Code:
        """Puts something on a stream, or into what it records."""
        stream = self._streams.get(int(handle))
        if stream is None:
            return Code.cudaErrorInvalidResourceHandle
        (stream.waiting if stream.recording is None else stream.recording).append(operation)
        return Code.cudaSuccess

    def is_recording(self) -> bool:
        """Whether any stream is."""
        return any(stream.recording is not None for stream in self._streams.values())

    def _begin(self, name: str, *, records: bool = False) -> Code:
        """What every call does first: notes itself, fails where it is to fail, spoils a recording that forbids it."""
        self.calls.append(name)
        if not self.devices:
            return Code.cudaErrorInsufficientDriver
        if name in self.refuse:
            return self.refuse[name]
        if not records and self.is_recording():
            for stream in self._streams.values():
                stream.is_invalid = stream.is_invalid or stream.recording is not None
            return Code.cudaErrorStreamCaptureUnsupported
        return Code.cudaSuccess

    # --- calls, each as cuda.bindings has it: a tuple with the code first ---

    def cudaSetDevice(self, device: int) -> tuple[Code]:
        """Chooses a device."""
        code = self._begin("cudaSetDevice")
        return (code if code or device < self.devices else Code.cudaErrorInvalidValue,)

    def cudaGetDeviceCount(self) -> tuple[Code, int | None]:
        """How many devices there are."""
        code = self._begin("cudaGetDeviceCount")
        return code, None if code else self.devices

    def cudaDeviceGetAttribute(self, kind: Attribute, device: int) -> tuple[Code, int | None]:
        """A fact about a device."""
        code = self._begin("cudaDeviceGetAttribute")
        is_major = kind == Attribute.cudaDevAttrComputeCapabilityMajor
        return code, None if code else self.capability[0 if is_major else 1]

    def cudaGetDeviceProperties(self, device: int) -> tuple[Code, _Properties | None]:
        """Its name."""
        code = self._begin("cudaGetDeviceProperties")
        return code, None if code else _Properties(self.name.encode())

    def cudaMemGetInfo(self) -> tuple[Code, int, int]:
        """Free and total memory."""
        code = self._begin("cudaMemGetInfo")
        return code, self.total - sum(memory.size for memory in self._device.values()), self.total

    def cudaGetLastError(self) -> tuple[Code]:
        """What failed late; it is forgotten."""
        self.calls.append("cudaGetLastError")
        failure, self._failure = self._failure, Code.cudaSuccess
        return (failure,)

    def cudaMalloc(self, size: int) -> tuple[Code, int | None]:
        """Memory of the device, full of garbage."""
        code = self._begin("cudaMalloc")
        if not code and size > self.total - sum(memory.size for memory in self._device.values()):
            code = Code.cudaErrorMemoryAllocation
        if code:
            return code, None
        address = self._give(size)
        self._device[address] = np.full(size, 0xA5, np.uint8)
        return code, address

    def cudaFree(self, address: int) -> tuple[Code]:
        """Gives device memory back; it waits for everything first, as the real one does."""
        code = self._begin("cudaFree")
        if not code:
            self._run_all()
            code = Code.cudaSuccess if self._device.pop(int(address), None) is not None else Code.cudaErrorInvalidValue
        return (code,)

    def cudaMallocHost(self, size: int) -> tuple[Code, int | None]:
        """Real memory of this process."""
        code = self._begin("cudaMallocHost")
        if code:
            return code, None
        memory = np.full(size, 0x5A, np.uint8)
        address = memory.ctypes.data
        self._host[address] = memory
        return code, address

    def cudaFreeHost(self, address: int) -> tuple[Code]:
        """Gives it back."""
        code = self._begin("cudaFreeHost")
        if not code and self._host.pop(int(address), None) is None:
            code = Code.cudaErrorInvalidValue
        return (code,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: CopyKind, stream: int) -> tuple[Code]:
        """A copy, done when its turn comes; what it reads is what is there then."""
        code = self._begin("cudaMemcpyAsync", records=True)
        if code:
            return (code,)
        to_device = kind != CopyKind.cudaMemcpyDeviceToHost
        from_device = kind != CopyKind.cudaMemcpyHostToDevice

        def side(address: int, is_device: bool) -> Bytes:
            return self.at(address, size) if is_device else self._host_at(address, size)

        def copy() -> None:
            side(target, to_device)[:] = side(source, from_device)

        try:
            side(target, to_device), side(source, from_device)
        except LookupError:
            return (Code.cudaErrorInvalidValue,)
        return (self.enqueue(stream, copy),)

    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: int) -> tuple[Code]:
        """Fills memory when its turn comes."""
        code = self._begin("cudaMemsetAsync", records=True)
        if code:
            return (code,)
        try:
            self.at(target, size)
        except LookupError:
            return (Code.cudaErrorInvalidValue,)

        def fill() -> None:
            self.at(target, size)[:] = value

        return (self.enqueue(stream, fill),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Code, int | None]:
        """A stream; one that waits for the default stream is refused here."""
        code = self._begin("cudaStreamCreateWithFlags")
        if not code and flags != self.cudaStreamNonBlocking:
            code = Code.cudaErrorInvalidValue
        if code:
            return code, None
        handle = self._give(1)
        self._streams[handle] = _Stream()
        return code, handle

    def cudaStreamSynchronize(self, handle: int) -> tuple[Code]:
        """Does what is on the stream."""
        code = self._begin("cudaStreamSynchronize")
        if code:
            return (code,)
        if int(handle) not in self._streams:
            return (Code.cudaErrorInvalidResourceHandle,)
        self._run_all()
        failure, self._failure = self._failure, Code.cudaSuccess
        return (failure,)

    def cudaStreamDestroy(self, handle: int) -> tuple[Code]:
        """Ends a stream; one with work left is a mistake here."""
        code = self._begin("cudaStreamDestroy")
        if not code:
            stream = self._streams.pop(int(handle), None)
            code = Code.cudaSuccess if stream is not None and not stream.waiting else Code.cudaErrorInvalidValue
        return (code,)

    def cudaStreamBeginCapture(self, handle: int, mode: CaptureMode) -> tuple[Code]:
        """From now on the stream records."""
        code = self._begin("cudaStreamBeginCapture")
        stream = self._streams.get(int(handle))
        if stream is None:
            return (Code.cudaErrorInvalidResourceHandle,)
        if not code:
            stream.recording, stream.is_invalid = [], False
        return (code,)

    def cudaStreamEndCapture(self, handle: int) -> tuple[Code, int | None]:
        """What was recorded."""
        code = self._begin("cudaStreamEndCapture", records=True)
        stream = self._streams.get(int(handle))
        if stream is None or stream.recording is None:
            return code or Code.cudaErrorInvalidValue, None
        recorded, stream.recording = stream.recording, None
        if code or stream.is_invalid:
            return code or Code.cudaErrorStreamCaptureInvalidated, None
        graph = self._give(1)
        self._recorded[graph] = recorded
        return code, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Code, int | None]:
        """Makes a recording ready to launch."""
        code = self._begin("cudaGraphInstantiate")
        if not code and graph not in self._recorded:
            code = Code.cudaErrorInvalidValue
        if code:
            return code, None
        ready = self._give(1)
        self._graphs[ready] = list(self._recorded[graph])
        return code, ready

    def cudaGraphDestroy(self, graph: int) -> tuple[Code]:
        """Ends a recording; what was made of it stays."""
        code = self._begin("cudaGraphDestroy")
        if not code and self._recorded.pop(graph, None) is None:
            code = Code.cudaErrorInvalidValue
        return (code,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Code]:
        """Ends what was ready to launch."""
        code = self._begin("cudaGraphExecDestroy")
        if not code and self._graphs.pop(graph, None) is None:
            code = Code.cudaErrorInvalidValue
        return (code,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Code]:
        """Puts all of a recording on a stream."""
        code = self._begin("cudaGraphLaunch", records=True)
        if not code and graph not in self._graphs:
            code = Code.cudaErrorInvalidResourceHandle
        if code:
            return (code,)
        for operation in self._graphs[graph]:
            code = code or self.enqueue(stream, operation)
        return (code,)

    def _give(self, size: int) -> int:
        address = self._next
        self._next += -(-max(size, 1) // _PAGE) * _PAGE + _PAGE  # a gap, so that no copy runs on into a neighbour
        return address

    def _host_at(self, address: int, size: int) -> Bytes:
        for start, memory in self._host.items():
            if start <= address and address + size <= start + memory.size:
                return memory[address - start : address - start + size]
        raise LookupError(f"{size} bytes at {address:#x} are not page-locked memory of the host")

    def _run_all(self) -> None:
        for stream in self._streams.values():
            waiting, stream.waiting = stream.waiting, []
            for operation in waiting:
                try:
                    operation()
                except LookupError:
                    self._failure = Code.cudaErrorIllegalAddress
