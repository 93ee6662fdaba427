"""What `seqrt doctor` says of NVIDIA GPUs: driver, CUDA, GPU, both TensorRTs, CUDA provider of ONNX Runtime."""

import ctypes.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from seqrt.cli.condition import ONLY_GPU, Condition, absent, parts
from seqrt.errors import EngineError, first_line
from seqrt.runtime.build import TARGETS, target_for
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import EXTRAS, MODULES, NAMES, Flavour, load_flavour, sm
from seqrt.runtime.engines.ort_cuda import OrtCudaEngine, check_provider
from seqrt.runtime.machine import version

_RTX_RUNS_ON: Final = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # 1.7; what is installed is asked itself
_OLDEST: Final = (7, 5)  # compute capability that TensorRT takes
_OLDEST_RTX: Final = (1, 7)  # the first TensorRT-RTX with the operators of bundles
_SILENT: Final = 4  # severities of ONNX Runtime's logger
_DEFAULT: Final = 2

Loader = Callable[[str], Flavour]


@dataclass(frozen=True, slots=True)
class Machine:
    """What works here.

    Attributes:
        capability: of the first GPU, such as "8.6"; None where there is none.
        flavours: each TensorRT that can be loaded, by backend.
        backends: for GPUs, those that can run here.
    """

    capability: str | None
    flavours: Mapping[str, Flavour]
    backends: tuple[str, ...]


def look(
    root: Path,
    probe: Path,
    *,
    cuda_api: Any = None,
    load: Loader | None = None,
    ort: Any = None,
    is_jetson: bool = False,
) -> tuple[list[Condition], Machine]:
    """All conditions, and what follows from them.

    Args:
        root: of the files.
        probe: a graph for ONNX Runtime.
        cuda_api: what stands in for cuda.bindings.runtime.
        load: what stands in for `load_flavour`.
        ort: onnxruntime, None where it is not installed.
        is_jetson: where JetPack brings TensorRT.
    """
    cuda = _cuda(cuda_api)
    has_driver = driver(root, cuda)
    has_cuda = cuda_runtime(cuda, has_driver.is_ok)
    kinds = {backend: tensorrt(backend, load or load_flavour, is_jetson=is_jetson) for backend in NAMES}
    flavours = {backend: flavour for backend, (_, flavour) in kinds.items() if flavour is not None}
    usable = cuda if isinstance(cuda, Cuda) and has_cuda.is_ok else None
    has_gpu, capability, able = gpu(usable, flavours.get("rtx"))
    has_provider = provider(ort, probe, capability is not None)
    works = (*flavours, *(("cuda",) if has_provider.is_ok else ()))
    found = [has_driver, has_cuda, has_gpu, *(condition for condition, _ in kinds.values()), has_provider]
    return found, Machine(capability, flavours, tuple(backend for backend in able if backend in works))


def driver(root: Path, cuda: Cuda | EngineError) -> Condition:
    """Its version, and the newest CUDA that it is for."""
    module = _kernel_module(root)
    newest = 0 if isinstance(cuda, EngineError) else _number(cuda, "cudaDriverGetVersion")
    if newest:
        return Condition("NVIDIA driver", "ok", f"{module or 'version unknown'}, for CUDA up to {_dotted(newest)}")
    if module and not isinstance(cuda, EngineError):
        advice = "give the container the GPU (--gpus all, on Jetson --runtime nvidia), or install the driver again"
        return Condition("NVIDIA driver", "absent", f"{module} in the kernel, but libcuda cannot be loaded", advice)
    if module or (module := ctypes.util.find_library("cuda")):
        return Condition("NVIDIA driver", "ok", module)
    return Condition("NVIDIA driver", "absent", "none", f"{ONLY_GPU}: install one that is made for yours")


def cuda_runtime(cuda: Cuda | EngineError, has_driver: bool) -> Condition:
    """Versions, and how many GPUs it shows."""
    if isinstance(cuda, EngineError):
        detail, advice = parts(cuda)
        return Condition("CUDA", "absent", detail, f"{ONLY_GPU}; {advice}")
    versions = f"cuda-bindings {version('cuda-bindings')}, runtime {_dotted(_number(cuda, 'cudaRuntimeGetVersion'))}"
    if not has_driver:
        return Condition("CUDA", "absent", f"{versions}, but no driver", ONLY_GPU)
    try:
        count = int(cuda.call("cudaGetDeviceCount"))
    except EngineError as error:
        detail, advice = parts(error)
        return Condition("CUDA", "absent", f"{versions}, but {detail}", advice)
    if not count:
        return Condition("CUDA", "absent", f"{versions}, but no GPU", "check CUDA_VISIBLE_DEVICES and nvidia-smi")
    several = "CUDA_VISIBLE_DEVICES says which is the first, which seqrt uses" if count > 1 else None
    return Condition("CUDA", "ok", f"{versions}, {count} GPU{'s' if count > 1 else ''}", several)


def gpu(cuda: Cuda | None, rtx: Flavour | None) -> tuple[Condition, str | None, tuple[str, ...]]:
    """The first GPU, its compute capability, and the backends that are made for such a GPU."""
    if cuda is None:
        return Condition("GPU", "absent", "none that CUDA can use", ONLY_GPU), None, ()
    try:
        name, capability = cuda.device_name(), cuda.compute_capability()
    except EngineError as error:
        return absent("GPU", error), None, ()
    detail = f"{name}, compute capability {capability}"
    try:
        free, total = cuda.memory()
        detail += f", {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    except EngineError as error:
        detail += f", {parts(error)[0]}"
    if tuple(map(int, capability.split("."))) < _OLDEST:
        advice = f"TensorRT needs {'.'.join(map(str, _OLDEST))} or later: use --backend cuda or cpu"
        return Condition("GPU", "ok", detail, advice), capability, ("cuda",)
    if sm(capability) not in _rtx_runs_on(rtx):
        advice = f"TensorRT-RTX does not run on {sm(capability)}: use --backend trt or cuda"
        return Condition("GPU", "ok", detail, advice), capability, ("trt", "cuda")
    return Condition("GPU", "ok", f"{detail}, for --backend rtx, trt and cuda"), capability, ("rtx", "trt", "cuda")


def tensorrt(backend: str, load: Loader, *, is_jetson: bool = False) -> tuple[Condition, Flavour | None]:
    """One of the two, loaded."""
    name, from_jetpack = NAMES[backend], is_jetson and backend == "trt"
    try:
        flavour = load(backend)
        release, full = flavour.release, flavour.version
    except Exception as error:  # a library that is broken may raise anything
        reason = error.__cause__ or error
        if isinstance(reason, ModuleNotFoundError) and reason.name == MODULES[backend]:
            advice = f"only needed for --backend {backend} on NVIDIA GPUs: pip install 'seqrt[{EXTRAS[backend]}]'"
            if from_jetpack:
                advice = "JetPack has it for its own Python: make the environment with --system-site-packages"
            return Condition(name, "absent", "not installed", advice), None
        advice = f"install it again: pip install --force-reinstall 'seqrt[{EXTRAS[backend]}]'"
        if from_jetpack:
            advice = "install it again: sudo apt install --reinstall python3-libnvinfer"
        return Condition(name, "absent", f"installed, but cannot be loaded: {first_line(reason)}", advice), None
    if backend == "rtx":
        target, oldest = "rtx" if release >= _OLDEST_RTX else None, _OLDEST_RTX
    else:
        target, oldest = target_for(release), TARGETS[-1][0]
    if target is None:
        needed = f"too old for bundles: install {'.'.join(map(str, oldest))} or later"
        return Condition(name, "absent", full, needed), None
    return Condition(name, "ok", full, f"export for it with --target {target}"), flavour


def provider(ort: Any, probe: Path, has_gpu: bool) -> Condition:
    """Whether ONNX Runtime can compute on the GPU: a graph is opened on it."""
    name = "CUDA provider"
    if ort is None:
        return Condition(name, "absent", "no onnxruntime", f"{ONLY_GPU}: pip install 'seqrt[gpu]'")
    try:
        check_provider(ort)
    except EngineError as error:
        detail, advice = parts(error)
        return Condition(name, "absent", detail, f"{ONLY_GPU}; {advice}")
    if not has_gpu:
        return Condition(name, "absent", f"onnxruntime {ort.__version__} has it, but there is no GPU")
    ort.set_default_logger_severity(_SILENT)  # it prints which library it lacks, and so does the error
    try:
        OrtCudaEngine(probe, ort=ort).close()
    except EngineError as error:
        return Condition(name, "absent", parts(error)[0], "run: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    finally:
        ort.set_default_logger_severity(_DEFAULT)
    return Condition(name, "ok", f"of onnxruntime {ort.__version__}")


def _cuda(api: Any) -> Cuda | EngineError:
    try:
        return Cuda(api)
    except EngineError as error:
        return error


def _number(cuda: Cuda, call: str) -> int:
    """What a call answers, 0 where it cannot."""
    try:
        return int(cuda.call(call))
    except EngineError:
        return 0


def _dotted(number: int) -> str:
    """How CUDA writes versions: 13050 is 13.5."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _kernel_module(root: Path) -> str | None:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module\D*?(?:for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def _rtx_runs_on(rtx: Flavour | None) -> tuple[str, ...]:
    kinds = getattr(rtx.api, "ComputeCapability", None) if rtx is not None else None
    return _RTX_RUNS_ON if kinds is None else tuple(name for name in kinds.__members__ if name.startswith("SM"))
