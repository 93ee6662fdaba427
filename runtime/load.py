"""`seqrt.load`: a bundle as what its task is."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from seqrt.runtime.bundle import open_bundle

# What loads a bundle of each task; a module that is not asked for is not imported.
_MODULES: Final = {"generate": "seqrt.runtime.model", "ocr": "seqrt.runtime.recognizer"}


def load(path: str | Path, *, backend: str = "cpu", threads: int = 0, operators: bool = False) -> Any:
    """Loads a bundle: a `Model` that generates text, or a `Recognizer` that reads words in images.

    `seqrt.runtime.model.load` and `seqrt.runtime.recognizer.load` do the same with a type that a checker knows.

    Args:
        path: the bundle's directory.
        backend: "cpu"; "cuda" for ONNX Runtime, "trt" or "rtx" for TensorRT on an NVIDIA GPU.
        threads: for one model call on a CPU; 0 takes one a core.
        operators: keep the time of every operator for a profile, which makes runs slower.

    Raises:
        BundleError: it is not a bundle, or damaged.
        EngineError: the engine is missing or refuses the graphs.
        RequestError: unknown backend, negative number of threads, or threads for a GPU.
    """
    module = import_module(_MODULES[open_bundle(Path(path)).manifest.task])
    return module.load(path, backend=backend, threads=threads, operators=operators)
