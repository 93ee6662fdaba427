"""Stands in for TensorRT: engines that ONNX Runtime computes on the stand-in's memory, as strict as they come.

An engine's file names an ONNX file and its profiles. A context computes when the stream comes to it, with the addresses
and shapes that it had when it was put there. Refused with a reason: no profile, a shape outside of it, a tensor without
memory, an input and output apart that must share memory or together that must not, no or too little scratch memory, and
recording what never ran with these shapes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from tools.gpu.standin_cuda import StandInCuda

from seqrt.runtime.build import profiles_of
from seqrt.runtime.bundle import Bundle, sha256
from seqrt.runtime.engines.ort import tensor_infos
from seqrt.runtime.engines.record import FILE, FOLDER, BuildSettings, BuiltGraph, EngineRecord, source_hash

_MAGIC: Final = "seqrt stand-in engine"
_SCRATCH: Final = 1 << 12
_NAMES: Final = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


@dataclass(frozen=True, slots=True)
class _Named:
    """A member of one of TensorRT's enumerations."""

    name: str


class ILogger:
    """Base of loggers."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, message: str) -> None:
        """Takes a message."""
        raise NotImplementedError


class EngineValidity(IntEnum):
    """What a header says of an engine."""

    VALID = 0
    INVALID = 2


class EngineInvalidityDiagnostics(IntEnum):
    """Why."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class ExecutionContextAllocationStrategy(IntEnum):
    """Who gives scratch memory."""

    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    """When kernels for a shape are compiled."""

    LAZY = 0
    EAGER = 1


class CudaGraphStrategy(IntEnum):
    """Who records graphs."""

    DISABLED = 0


class IProfiler:
    """Hears of the time of each layer; made to be derived from."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """A layer of the run that was just enqueued."""
        raise NotImplementedError


class StandInTensorRT:
    """The module, over one device.

    Args:
        cuda: whose memory engines read and write.
        aliases: outputs that must lie where their inputs lie, as TensorScatter makes them; else they must not.
        records: whether contexts say that they can be recorded.
    """

    ILogger = ILogger
    IProfiler = IProfiler
    EngineValidity = EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    __version__ = "1.7.1.116"

    def __init__(self, cuda: StandInCuda, *, aliases: bool = True, records: bool = True) -> None:
        self.cuda, self.aliases, self.records = cuda, aliases, records
        self.contexts = 0

    def Runtime(self, logger: Any) -> "Runtime":
        """What reads engines."""
        return Runtime(self, logger)


@dataclass(slots=True)
class Runtime:
    """Reads engines."""

    api: StandInTensorRT
    logger: Any

    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        """What the header says."""
        if data.startswith(json.dumps({"magic": _MAGIC})[:-1].encode()):
            return EngineValidity.VALID, 0
        return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)

    def deserialize_cuda_engine(self, data: bytes) -> "Engine | None":
        """An engine, None where the file ends early."""
        try:
            raw = json.loads(data)
        except ValueError as error:
            self.logger.log(ILogger.ERROR, f"cannot deserialize: {error}")
            return None
        return Engine(self.api, self.logger, Path(raw["onnx"]), raw["profiles"])


class RuntimeCache:
    """Compiled kernels: here just a few bytes."""

    def __init__(self) -> None:
        self.data = b"kernels"

    def deserialize(self, data: bytes) -> bool:
        """Takes kernels of an earlier run."""
        self.data = data
        return True

    def serialize(self) -> bytes:
        """Gives them for a later one."""
        return self.data


@dataclass(slots=True)
class RuntimeConfig:
    """How contexts are made."""

    cuda_graph_strategy: CudaGraphStrategy | None = None
    dynamic_shapes_kernel_specialization_strategy: DynamicShapesKernelSpecializationStrategy | None = None
    strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        """Who gives scratch memory."""
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        """An empty one."""
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        """Uses one."""
        self.cache = cache


class Engine:
    """A graph with profiles."""

    def __init__(
        self, api: StandInTensorRT, logger: Any, path: Path, profiles: Sequence[Mapping[str, Sequence[int]]]
    ) -> None:
        self.api, self.logger, self.profiles = api, logger, profiles
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tensor_infos(self.session.get_inputs())
        self.outputs = tensor_infos(self.session.get_outputs())
        self.device_memory_size_v2 = _SCRATCH
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        """Inputs first."""
        return self._names[index]

    def get_tensor_mode(self, name: str) -> _Named:
        """Input or output."""
        return _Named("INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> _Named:
        """Of its values."""
        return _Named(_NAMES[{**self.inputs, **self.outputs}[name].dtype.name])

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """The input that must lie at the same address."""
        return name.replace("present", "past", 1) if self.api.aliases and name.startswith("present") else None

    def create_runtime_config(self) -> RuntimeConfig:
        """Defaults."""
        return RuntimeConfig()

    def create_execution_context(self, how: RuntimeConfig | ExecutionContextAllocationStrategy) -> "Context":
        """A context."""
        self.api.contexts += 1
        return Context(self, how.strategy if isinstance(how, RuntimeConfig) else how)


@dataclass(slots=True)
class Context:
    """Shapes and addresses of one run."""

    engine: Engine
    strategy: ExecutionContextAllocationStrategy
    scratch: tuple[int, int] | None = None
    profile: int | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    warm: set[tuple[object, ...]] = field(default_factory=set)
    profiler: IProfiler | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        """Scratch memory."""
        self.scratch = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Chooses a profile."""
        if not 0 <= index < len(self.engine.profiles) or self.engine.api.cuda.is_recording():
            return self._refuse(f"profile {index} cannot be chosen now")
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """The shape of an input, inside the profile."""
        if self.profile is None:
            return self._refuse("no profile is chosen")
        profile = self.engine.profiles[self.profile]
        for size, value in zip(self.engine.inputs[name].shape, shape, strict=True):
            least, _, most = (size,) * 3 if isinstance(size, int) else profile[size]
            if not least <= value <= most:
                return self._refuse(f"{name} of {tuple(shape)} is outside profile {self.profile}")
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an input as set, of an output as it follows; -1 where that is unknown."""
        if name in self.engine.inputs:
            return self.shapes[name]
        known: dict[str, int] = {}
        for other, shape in self.shapes.items():
            for size, value in zip(self.engine.inputs[other].shape, shape, strict=True):
                if isinstance(size, str):
                    known[size] = value
        return tuple(size if isinstance(size, int) else known.get(size, -1) for size in self.engine.outputs[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where a tensor lies; it must be the device's memory."""
        info = {**self.engine.inputs, **self.engine.outputs}[name]
        size = int(np.prod(self.get_tensor_shape(name))) * info.dtype.itemsize
        try:
            self.engine.api.cuda.at(address, size)
        except LookupError as error:
            return self._refuse(f"{name}: {error}")
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether it can be recorded."""
        return self.engine.api.records

    def execute_async_v3(self, stream: int) -> bool:
        """Puts a run on the stream."""
        why = self._misuse()
        if why is not None:
            return self._refuse(why)
        self.warm.add(self._key())
        shapes = {name: self.get_tensor_shape(name) for name in self.addresses}
        addresses = dict(self.addresses)
        if self.profiler is not None:
            if self.engine.api.cuda.is_recording():
                return self._refuse("what is recorded has no times of layers")
            for layer in (
                "{ForeignNode[layers.0.attention/Shape_3...layers.0.attention/MatMul_9]}",
                "layers.0.mlp/MatMul_12",
            ):
                self.profiler.report_layer_time(layer, 0.5)
        code = self.engine.api.cuda.enqueue(stream, lambda: self._compute(shapes, addresses))
        return True if not code else self._refuse(f"the stream is none: {code.name}")

    def _key(self) -> tuple[object, ...]:
        return (self.profile, *sorted(self.shapes.items()), *sorted(self.addresses.items()))

    def _misuse(self) -> str | None:
        engine = self.engine
        if engine.inputs.keys() - self.shapes.keys():
            return f"no shape for {sorted(engine.inputs.keys() - self.shapes.keys())}"
        if missing := (engine.inputs.keys() | engine.outputs.keys()) - self.addresses.keys():
            return f"no memory for {sorted(missing)}"
        if self.strategy == ExecutionContextAllocationStrategy.USER_MANAGED:
            if self.scratch is None or self.scratch[1] < engine.device_memory_size_v2:
                return f"scratch memory is {self.scratch}, {engine.device_memory_size_v2} bytes are needed"
            try:
                engine.api.cuda.at(*self.scratch)
            except LookupError as error:
                return f"scratch memory: {error}"
        for name in engine.outputs:
            past = name.replace("present", "past", 1)
            if name.startswith("present") and (self.addresses[name] == self.addresses[past]) != engine.api.aliases:
                return f"{name} must {'' if engine.api.aliases else 'not '}lie where {past} lies"
        if engine.api.cuda.is_recording() and self._key() not in self.warm:
            return "it was not run with these shapes before it is recorded"
        return None

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        engine, cuda = self.engine, self.engine.api.cuda

        def memory(name: str) -> Any:
            dtype = {**engine.inputs, **engine.outputs}[name].dtype
            raw = cuda.at(addresses[name], int(np.prod(shapes[name])) * dtype.itemsize)
            return raw.view(dtype).reshape(shapes[name])

        if self.scratch is not None:
            cuda.at(*self.scratch)[:] = 0xEE
        found = engine.session.run(list(engine.outputs), {name: memory(name).copy() for name in engine.inputs})
        for name, value in zip(engine.outputs, found, strict=True):
            memory(name)[...] = value

    def _refuse(self, why: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, why)
        return False


def write_engines(
    bundle: Bundle, variant: str, buckets: Sequence[int] = (1, 4, 8), prefill: int = 32, backend: str = "rtx"
) -> Path:
    """Writes a directory of such engines into a bundle, as `seqrt build` does with real ones; for GPUs of 8.6.

    Args:
        bundle: holds the graphs.
        variant: which.
        buckets: rows of a tree.
        prefill: rows of a prompt.
        backend: of the engines.
    """
    folder = bundle.path / FOLDER / f"{backend}-stand-in"
    folder.mkdir(parents=True, exist_ok=True)
    graphs = []
    for info in bundle.manifest.graphs:
        if info.variant != variant:
            continue
        profiles = profiles_of(bundle, info.role, buckets, prefill)
        file, onnx = folder / f"{info.role}.engine", str(bundle.path / info.path)
        file.write_text(json.dumps({"magic": _MAGIC, "onnx": onnx, "profiles": profiles}), encoding="utf-8")
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        infos = {**tensor_infos(session.get_inputs()), **tensor_infos(session.get_outputs())}
        graphs.append(
            BuiltGraph(
                role=info.role,
                source=source_hash(bundle, info.role, variant),
                size=file.stat().st_size,
                sha256=sha256(file),
                shapes={name: tuple(map(str, tensor.shape)) for name, tensor in infos.items()},
                profiles=tuple(profiles),
                decomposed=None,
                seconds=0.0,
            )
        )
    settings = BuildSettings(
        backend=backend,
        variant=variant,
        compute_capabilities=("8.6",),
        buckets=tuple(buckets),
        prefill=prefill,
        workspace=None,
    )
    record = EngineRecord(settings=settings, version=StandInTensorRT.__version__, graphs=tuple(graphs))
    (folder / FILE).write_text(record.to_json(), encoding="utf-8")
    return folder
