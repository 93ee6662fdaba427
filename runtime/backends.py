"""What `--backend` takes: from a bundle to engines by role, each made when it is first asked for."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.bundle import Bundle
from seqrt.runtime.engines import Engine
from seqrt.runtime.engines.ort import OrtEngine
from seqrt.runtime.engines.probed import ProbedEngine
from seqrt.runtime.machine import version
from seqrt.runtime.probe import OFF, Probe

if TYPE_CHECKING:
    from seqrt.runtime.engines.cuda import Cuda
    from seqrt.runtime.engines.flavour import Flavour

BACKENDS: Final = ("cpu", "cuda", "trt", "rtx")
_SPINNING: Final = ("decoder", "recognizer", "step")
_CPU: Final = ("ort-fp32", "ort-fp16")
_CUDA: Final = ("ort-fp16", "ort-fp32")


class Engines(dict[str, Engine]):
    """Engines by role.

    Attributes:
        backend: what --backend said.
        variant: whose graphs they run.
        description: engine and version.
        cuda: what talks to the GPU; None on a CPU, and where ONNX Runtime does so by itself.
        device: the GPU's name, None for a CPU.
        probe: hears of their runs.
    """

    def __init__(
        self,
        backend: str,
        variant: str,
        description: str,
        make: Callable[[str], Engine],
        cuda: "Cuda | None" = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.backend, self.variant, self.description, self.cuda = backend, variant, description, cuda
        self.device = None if cuda is None else cuda.device_name()
        self._make, self._close = make, close
        self.probe: Probe = OFF

    def __missing__(self, role: str) -> Engine:
        engine = self[role] = ProbedEngine(self._make(role), role, self)
        return engine

    def close(self) -> None:
        """Gives back what engines hold; they cannot be used any more."""
        with ExitStack() as stack:  # whatever fails, all else is given back
            stack.callback(self._close)
            for engine in self.values():
                stack.callback(engine.close)
            self.clear()


def open_engines(bundle: Bundle, backend: str, threads: int, *, operators: bool = False) -> Engines:
    """Engines for a bundle.

    Args:
        bundle: whose graphs they run.
        backend: of BACKENDS.
        threads: for one model call on a CPU; 0 takes one a core.
        operators: keep the time of every operator, which makes runs slower.

    Raises:
        RequestError: unknown backend, negative number of threads, or threads for a GPU.
        BundleError: the bundle has no graphs for it.
        EngineError: the backend is not installed or does not work here, or its engines are missing.
    """
    if backend not in BACKENDS:
        raise RequestError(f"--backend {backend} is unknown; choose one of {', '.join(BACKENDS)}")
    if threads < 0:
        raise RequestError(f"--threads is {threads}; give 0 (one a core) or more")
    if backend != "cpu" and threads:
        raise RequestError(f"--threads {threads} is of no use to --backend {backend}; leave it out")
    if backend == "cpu":
        variant = _held(bundle, backend, _CPU)
        return Engines(backend, variant, _onnxruntime(), partial(_cpu_engine, bundle, variant, threads, operators))
    if backend == "cuda":
        return cuda_engines(bundle, operators=operators)
    from seqrt.runtime.engines.cuda import Cuda
    from seqrt.runtime.engines.flavour import load_flavour

    return tensorrt_engines(bundle, load_flavour(backend), Cuda(), operators=operators)


def _cpu_engine(bundle: Bundle, variant: str, threads: int, operators: bool, role: str) -> Engine:
    # The threads of what a loop runs spin between its steps; what runs between them must not bring more that do.
    own = threads if role in bundle.manifest.roles and role != "compaction" else 1
    return OrtEngine(
        bundle.graph(role, variant),
        threads=own,
        spin=role in _SPINNING or role.startswith("step."),
        operators=operators,
    )


def cuda_engines(bundle: Bundle, ort: Any = None, *, operators: bool = False) -> Engines:
    """Engines on ONNX Runtime's CUDA provider.

    Args:
        bundle: whose graphs they run.
        ort: what stands in for onnxruntime.
        operators: keep the time of every operator.

    Raises:
        EngineError: the bundle has no graphs for it.
    """
    from seqrt.runtime.engines.ort_cuda import OrtCudaEngine

    variant = _held(bundle, "cuda", _CUDA)

    def make(role: str) -> Engine:
        # What is recorded is run several times at once the first time, and moving rows twice is not moving them once.
        graph = bundle.graph(role, variant)
        return OrtCudaEngine(graph, record=role != "compaction", operators=operators, ort=ort)

    return Engines("cuda", variant, _onnxruntime(), make, _cuda())


def tensorrt_engines(bundle: Bundle, flavour: "Flavour", cuda: "Cuda", *, operators: bool = False) -> Engines:
    """Engines that `seqrt build` made, on TensorRT and CUDA as given.

    Raises:
        EngineError: none fit, or they do not work here.
    """
    from seqrt.runtime.engines.record import find_engines
    from seqrt.runtime.engines.tensorrt import Gpu, TensorRTEngine

    find_engines(bundle, flavour.backend, flavour.version, None)  # what the bundle lacks is said before what is here
    folder, record = find_engines(bundle, flavour.backend, flavour.version, cuda.compute_capability())
    gpu = Gpu.open(flavour, cuda)
    variant = record.settings.variant
    in_place = not variant.startswith("trt10.3-")  # it has no TensorScatter

    def make(role: str) -> Engine:
        built = record.graph(role)
        return TensorRTEngine(gpu, folder / built.file, built, in_place=in_place, operators=operators)

    buckets = ",".join(map(str, record.graph(bundle.manifest.roles[0]).buckets))
    description = f"{flavour.name}, buckets {buckets}"
    return Engines(flavour.backend, variant, description, make, cuda, gpu.stream.close)


def _held(bundle: Bundle, backend: str, wanted: tuple[str, ...]) -> str:
    held = bundle.manifest.variants
    for variant in wanted:
        if variant in held:
            return variant
    raise EngineError(
        f"{bundle.path} holds no graphs for --backend {backend}, only {', '.join(held)};"
        " export with --target ort, or choose another --backend"
    )


def _cuda() -> "Cuda | None":
    """None where cuda-bindings is not installed or finds no GPU, which ONNX Runtime does without."""
    from seqrt.runtime.engines.cuda import Cuda

    try:
        cuda = Cuda()
        cuda.device_name()
    except EngineError:
        return None
    return cuda


def _onnxruntime() -> str:
    return f"onnxruntime {version('onnxruntime') or version('onnxruntime-gpu')}"
