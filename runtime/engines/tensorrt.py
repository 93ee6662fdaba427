"""TensorRT, enterprise or RTX: engines that `seqrt build` made, run in place and under CUDA graphs.

Every set of shapes has an execution context of its own; all share one scratch buffer, because they run one after the
other. The first run with new shapes is an ordinary one, which warms kernels up; the second is recorded with its copies
from and to the host, and it and later ones are one launch. Where recording fails, runs stay ordinary, and the log says
why.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from seqrt.errors import EngineError
from seqrt.runtime.engines import Array, Engine, Operator, TensorInfo
from seqrt.runtime.engines.cuda import Cuda, DeviceBuffer, Graph, HostBuffer, Stream
from seqrt.runtime.engines.flavour import Flavour
from seqrt.runtime.engines.kernels import Kernels
from seqrt.runtime.engines.record import BuiltGraph

_DTYPES: Final = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,  # only caches are: they stay on the GPU
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
}
_MOST_PLANS: Final = 32  # sets of shapes that are kept ready
_PAST, _PRESENT = "past", "present"
_OTHER_SHAPES: Final = "build with other --buckets or a larger --prefill"

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the engines of a bundle share: CUDA, one stream, TensorRT and its runtime."""

    flavour: Flavour
    cuda: Cuda
    stream: Stream
    runtime: Any

    @classmethod
    def open(cls, flavour: Flavour, cuda: Cuda) -> "Gpu":
        """The first GPU.

        Raises:
            EngineError: there is none, or no driver for it.
        """
        cuda.call("cudaSetDevice", 0)
        return cls(flavour, cuda, Stream(cuda), flavour.api.Runtime(flavour.logger))


@dataclass(slots=True)
class _Tensor:
    """An input or output: page-locked memory on the host, its twin on the GPU, and arrays over it by shape."""

    host: HostBuffer
    device: DeviceBuffer
    views: dict[tuple[int, ...], Array] = field(default_factory=dict)

    def close(self) -> None:
        """Gives both back."""
        self.views.clear()
        self.host.close()
        self.device.close()


@dataclass(slots=True)
class _Plan:
    """All that a run with one set of shapes needs: a context with these bound, what to copy, the recording."""

    context: Any
    uploads: list[tuple[DeviceBuffer, HostBuffer, int]]
    downloads: list[tuple[HostBuffer, DeviceBuffer, int]]
    graph: Graph | None = None
    is_warm: bool = False

    def close(self) -> None:
        """Gives the recording back before the context that it recorded."""
        if self.graph is not None:
            self.graph.close()
        self.graph = self.context = None


class TensorRTEngine:
    """One built engine.

    Args:
        gpu: shared by all engines that share state.
        file: the engine.
        built: what is known of it.
        in_place: caches must be updated in place; else they may be copied back after each run (TensorRT below 10.15).
        record: launch recorded CUDA graphs.
        operators: keep the time of every layer; nothing is recorded then.

    Attributes:
        buckets: of a decoder, the rows that it takes at once, and how many of them get logits; empty for others.

    Raises:
        EngineError: TensorRT refuses the file, or does not update caches in place.
    """

    def __init__(
        self,
        gpu: Gpu,
        file: Path,
        built: BuiltGraph,
        *,
        in_place: bool = True,
        record: bool = True,
        operators: bool = False,
    ) -> None:
        self.gpu, self.built = gpu, built
        self._name, self._record = file.name, record and not operators
        self._layers = layer_times(gpu.flavour.api) if operators else None
        self._tensors: dict[str, _Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._plans: dict[tuple[object, ...], _Plan] = {}
        self._plan: _Plan | None = None  # of the shapes as they are
        self._spare: dict[int, Any] = {}  # contexts that no plan has taken yet, by profile
        self._states: dict[tuple[str, str], DeviceBuffer] = {}
        self._copied: dict[tuple[str, str], DeviceBuffer] = {}  # what is written beside a state that is not aliased
        self._owned: list[DeviceBuffer] = []
        self._scratch: DeviceBuffer | None = None
        self._engine = self._load(file)
        rtx = gpu.flavour.backend == "rtx"
        self.kernels = Kernels(gpu.flavour.api, self._engine, built.sha256) if rtx else None
        self.inputs: Mapping[str, TensorInfo] = self._infos("INPUT")
        self.outputs: Mapping[str, TensorInfo] = self._infos("OUTPUT")
        self._aliased = self._check_aliases(in_place)
        self.buckets = built.buckets
        try:
            self._scratch = self._new(int(self._engine.device_memory_size_v2))
            self._spare = {i: self._context(i) for i in range(len(built.profiles))}
            self._reserve()
        except BaseException:  # memory that ran out, above all
            self.close()
            raise

    def input(self, name: str, shape: Sequence[int]) -> Array:
        """Page-locked array of `shape` that the next run reads."""
        return self._array(name, self.inputs[name].dtype, tuple(shape))

    def output(self, name: str, shape: Sequence[int]) -> Array:
        """Page-locked array of `shape` that the next run fills."""
        return self._array(name, self.outputs[name].dtype, tuple(shape))

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        """Binds one zeroed buffer on the GPU; its shape is the engine's.

        Raises:
            EngineError: another shape than the engine was built for.
        """
        info = self.inputs[past]
        if tuple(shape) != info.shape:
            raise EngineError(
                f"{self._name} was built for {past} of {info.shape}, {tuple(shape)} is asked for;"
                " export with another --capacity and build again"
            )
        if (past, present) not in self._states:
            buffer = self._new(prod(shape) * info.dtype.itemsize)
            self.gpu.stream.clear(buffer)
            self._bind_state(past, present, buffer)

    def share_state(self, owner: Engine) -> None:
        """Binds the caches of `owner`.

        Raises:
            EngineError: it is another kind of engine, or on another stream.
        """
        if not isinstance(owner, TensorRTEngine) or owner.gpu is not self.gpu:
            raise EngineError(f"{self._name} cannot share the buffers of another kind of engine; use one backend")
        for names, buffer in owner._states.items():
            if names in owner._copied:
                self._copied[names] = owner._copied[names]  # one run at a time writes to it
            self._bind_state(*names, buffer)

    def run(self) -> None:
        """Runs the engine on what is bound, and waits for its outputs.

        Raises:
            EngineError: no profile takes these shapes, or TensorRT or CUDA fails.
        """
        plan = self._plan or self._prepare()
        stream = self.gpu.stream
        if self._layers is not None:
            self._layers.run += 1
        if plan.graph is None and plan.is_warm and self._record:
            self._capture(plan)
        if plan.graph is not None:
            stream.launch(plan.graph)
        else:
            self._enqueue(plan)
            plan.is_warm = True
        stream.wait()

    def operators(self) -> list[Operator]:
        """Layers of all runs, if it was made to keep them."""
        return [] if self._layers is None else self._layers.found

    def close(self) -> None:
        """Gives back everything that it holds on the GPU, and keeps compiled kernels for the next time."""
        if self._engine is None:
            return
        with ExitStack() as stack:  # whatever fails, all else is given back
            for buffer in self._owned:
                stack.callback(buffer.close)
            for tensor in self._tensors.values():
                stack.callback(tensor.close)
            stack.callback(self._forget)
            if self.kernels is not None:
                stack.callback(self.kernels.keep)
            stack.callback(self._drop_plans)
            self.gpu.stream.wait()

    def _forget(self) -> None:
        """Lets go of what TensorRT made, and of buffers that are about to be given back."""
        self._engine = self.kernels = None
        self._spare.clear()
        self._owned.clear()
        self._tensors = {}
        self._states.clear()

    def _array(self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        if self._shapes.get(name) != shape:
            self._shapes[name] = shape
            self._plan = None
        return self._view(name, dtype, shape)

    def _view(self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        tensor = self._tensors[name]
        view = tensor.views.get(shape)
        if view is None:
            if prod(shape) * dtype.itemsize > tensor.host.size:
                raise EngineError(f"{self._name} was not built for {name} of {shape}; {_OTHER_SHAPES}")
            view = tensor.views[shape] = tensor.host.array(dtype, shape)
        return view

    def _reserve(self) -> None:
        """Memory for every input and output at its largest, caches excepted: nothing is allocated in the loop."""
        sizes: dict[str, int] = {}
        for context, profile in zip(self._spare.values(), self.built.profiles, strict=True):
            for name, info in self.inputs.items():
                shape = tuple(size if isinstance(size, int) else profile[size][2] for size in info.shape)
                self._must(context.set_input_shape(name, shape), f"takes no {name} of {shape}")
            for name, info in {**self.inputs, **self.outputs}.items():
                size = prod(context.get_tensor_shape(name)) * info.dtype.itemsize
                sizes[name] = max(size, sizes.get(name, 0))
        cuda = self.gpu.cuda
        for name, size in sizes.items():
            if not name.startswith((f"{_PAST}_key", f"{_PAST}_value", _PRESENT)):
                host = HostBuffer(cuda, size)
                try:
                    self._tensors[name] = _Tensor(host, DeviceBuffer(cuda, size))
                except BaseException:
                    host.close()
                    raise

    def _new(self, size: int) -> DeviceBuffer:
        buffer = DeviceBuffer(self.gpu.cuda, size)
        self._owned.append(buffer)
        return buffer

    def _bind_state(self, past: str, present: str, buffer: DeviceBuffer) -> None:
        self._drop_plans()
        self._states[past, present] = buffer
        if present not in self._aliased and (past, present) not in self._copied:
            self._copied[past, present] = self._new(buffer.size)

    def _load(self, file: Path) -> Any:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise EngineError(f"{file} cannot be read: {error.strerror}; run seqrt build again") from error
        if hasattr(self.gpu.runtime, "get_engine_validity"):
            why = validity(self.gpu.flavour, self.gpu.runtime, data)
            if why is not None:
                raise EngineError(f"{file} cannot run here: {why}; run seqrt build again")
        engine = self.gpu.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                f"{self.gpu.flavour.name} refuses {file}: {self.gpu.flavour.why()}; run seqrt build again"
            )
        return engine

    def _infos(self, mode: str) -> dict[str, TensorInfo]:
        engine, found = self._engine, {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name).name == mode:
                dtype = np.dtype(_DTYPES[engine.get_tensor_dtype(name).name])
                shape = tuple(int(size) if size.isdigit() else size for size in self.built.shapes[name])
                found[name] = TensorInfo(dtype, shape)
        return found

    def _check_aliases(self, in_place: bool) -> dict[str, str]:
        """Outputs that TensorRT writes where an input lies, and these inputs."""
        aliased: dict[str, str] = {}
        ask = getattr(self._engine, "get_aliased_input_tensor", lambda _: None)
        for present in self.outputs:
            if not present.startswith(_PRESENT):
                continue
            past, found = present.replace(_PRESENT, _PAST, 1), ask(present)
            if found not in (None, past) or (in_place and found is None):
                raise EngineError(
                    f"{self._name} writes {present} {f'over {found}' if found else 'apart'}, expected over {past};"
                    " export and build again"
                )
            if found is not None:
                aliased[present] = past
        return aliased

    def _prepare(self) -> _Plan:
        """The plan for the shapes as they are, made at their first use."""
        key = tuple(sorted(self._shapes.items()))
        plan = self._plans.pop(key, None)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.pop(next(iter(self._plans))).close()  # the one that was not used for longest
            plan = self._new_plan()
        self._plan = self._plans[key] = plan
        return plan

    def _new_plan(self) -> _Plan:
        self.gpu.flavour.logger.errors.clear()
        states = {past: buffer for (past, _), buffer in self._states.items()}
        shapes = {**self._shapes, **{past: self._fixed(past) for past in states}}
        if missing := self.inputs.keys() - shapes.keys():
            raise EngineError(f"{self._name} was run without {', '.join(sorted(missing))}; bind every input first")
        context = self._context(self._profile(shapes))
        for name in self.inputs:
            self._must(context.set_input_shape(name, shapes[name]), f"takes no {name} of {shapes[name]}")
        addresses = {past: buffer.address for past, buffer in states.items()}
        for (past, present), buffer in self._states.items():
            addresses[present] = self._copied.get((past, present), buffer).address
        uploads, downloads = [], []
        for name, info in {**self.inputs, **self.outputs}.items():
            if name in addresses:
                continue
            shape = tuple(context.get_tensor_shape(name))
            if name in self.outputs and self._shapes.setdefault(name, shape) != shape:
                raise EngineError(f"{self._name} gives {name} of {shape}, {self._shapes[name]} is asked for")
            self._view(name, info.dtype, shape)
            tensor, size = self._tensors[name], prod(shape) * info.dtype.itemsize
            addresses[name] = tensor.device.address
            if name in self.inputs:
                uploads.append((tensor.device, tensor.host, size))
            else:
                downloads.append((tensor.host, tensor.device, size))
        for name, address in addresses.items():
            self._must(context.set_tensor_address(name, address), f"takes no memory for {name}")
        return _Plan(context, uploads, downloads)

    def _fixed(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self.inputs[name].shape)

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that takes the shapes."""
        for i, profile in enumerate(self.built.profiles):
            if all(_fits(self.inputs[name].shape, shapes[name], profile) for name in self.inputs):
                return i
        asked = ", ".join(f"{name} {shapes[name]}" for name in self.inputs if name in self._shapes)
        raise EngineError(f"{self._name} was not built for {asked}; {_OTHER_SHAPES}")

    def _context(self, profile: int) -> Any:
        if (spare := self._spare.pop(profile, None)) is not None:
            return spare
        api = self.gpu.flavour.api
        how = self.kernels.config if self.kernels else api.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(how)
        if context is None:
            raise EngineError(f"{self._name} has no execution context: {self.gpu.flavour.why()}")
        if self._layers is not None:
            context.profiler = self._layers  # hears of a run's layers before execute_async_v3 returns
        assert self._scratch is not None
        context.set_device_memory(self._scratch.address, self._scratch.size)
        handle = self.gpu.stream.handle
        self._must(context.set_optimization_profile_async(profile, handle), f"has no profile {profile}")
        return context

    def _enqueue(self, plan: _Plan) -> None:
        stream = self.gpu.stream
        for device, host, size in plan.uploads:
            stream.upload(device, host, size)
        self._must(plan.context.execute_async_v3(stream.handle), "failed to run")
        for names, written in self._copied.items():
            stream.copy(self._states[names], written)
        for host, device, size in plan.downloads:
            stream.download(host, device, size)

    def _capture(self, plan: _Plan) -> None:
        """Records a run; where that cannot be done, no more are tried."""
        stream, ask = self.gpu.stream, getattr(plan.context, "is_stream_capturable", None)
        try:
            if ask is not None and not ask(stream.handle):
                raise EngineError("TensorRT cannot be recorded with these shapes")
            stream.begin_capture()
            try:
                self._enqueue(plan)
                plan.graph = stream.end_capture()
            except BaseException:
                stream.abandon_capture()
                raise
        except EngineError as error:
            self._record = False
            _log.warning("%s runs without CUDA graphs: %s", self._name, error)

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"{self._name} {what}: {self.gpu.flavour.why()}")

    def _drop_plans(self) -> None:
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        self._plan = None


def layer_times(api: Any) -> Any:
    """A profiler for execution contexts of `api`: counts `run`, and keeps what it is told in `found`."""

    class LayerTimes(api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.run, self.found = -1, list[Operator]()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            last = self.found[-1] if self.found else None
            start = last.start + last.seconds if last is not None and last.run == self.run else 0.0
            self.found.append(Operator(self.run, layer_name, "layer", start, ms / 1e3))

    return LayerTimes()


def validity(flavour: Flavour, runtime: Any, data: bytes) -> str | None:
    """Why an engine cannot run here, as TensorRT sees from its header; None if it can."""
    api = flavour.api
    status, found = runtime.get_engine_validity(data)
    if status != api.EngineValidity.INVALID:
        return None
    kinds = api.EngineInvalidityDiagnostics.__members__
    named = [name for name, bit in kinds.items() if int(found) & int(bit)]
    return ", ".join(named) or f"diagnostics {int(found)}"


def _fits(shape: Sequence[int | str], asked: Sequence[int], profile: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a shape with symbols can be `asked` under a profile."""
    if len(shape) != len(asked):
        return False
    for size, value in zip(shape, asked, strict=True):
        least, _, most = (size,) * 3 if isinstance(size, int) else profile[size]
        if not least <= value <= most:
            return False
    return True
