"""Runs exported sequence models and their draft heads; `seqrt.load` is where to begin.

    model = seqrt.load("smollm2")
    for piece in model.stream("Why is the sky blue?", draft="medusa", max_new_tokens=64):
        print(piece, end="")

Everything but the errors is imported when it is first used, so that `import seqrt` costs nothing.
"""

import typing as _typing

from seqrt.errors import BundleError, CheckpointError, EngineError, ExportError, RequestError, SeqrtError

if _typing.TYPE_CHECKING:
    from seqrt.runtime.loaded import load
    from seqrt.runtime.model import Model
    from seqrt.runtime.options import Options
    from seqrt.runtime.recognizer import Recognition, Recognizer
    from seqrt.runtime.score import Scores
    from seqrt.runtime.stream import Generation, Stream

    __version__: str

__all__ = [
    "BundleError",
    "CheckpointError",
    "EngineError",
    "ExportError",
    "Generation",
    "Model",
    "Options",
    "Recognition",
    "Recognizer",
    "RequestError",
    "Scores",
    "SeqrtError",
    "Stream",
    "__version__",
    "load",
]

_LAZY = {
    "Generation": "seqrt.runtime.stream",
    "Model": "seqrt.runtime.model",
    "Options": "seqrt.runtime.options",
    "Recognition": "seqrt.runtime.recognizer",
    "Recognizer": "seqrt.runtime.recognizer",
    "Scores": "seqrt.runtime.score",
    "Stream": "seqrt.runtime.stream",
    "load": "seqrt.runtime.loaded",
}


def __getattr__(name: str) -> object:
    import importlib
    import importlib.metadata

    if name == "__version__":
        value: object = importlib.metadata.version("seqrt")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'seqrt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
