"""TensorRT in its two flavours, enterprise and RTX: one API under two names."""

import importlib
from dataclasses import dataclass
from typing import Any, Final

from seqrt.errors import EngineError, RequestError, first_line

MODULES: Final = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
NAMES: Final = {"trt": "TensorRT", "rtx": "TensorRT-RTX"}
EXTRAS: Final = {"trt": "tensorrt", "rtx": "rtx"}


@dataclass(frozen=True, slots=True)
class Flavour:
    """An imported TensorRT.

    Attributes:
        backend: what --backend takes: "trt" or "rtx".
        api: the module.
        logger: keeps what TensorRT says for error messages, and prints nothing.
    """

    backend: str
    api: Any
    logger: Any

    @property
    def name(self) -> str:
        """For messages, with its version."""
        return f"{NAMES[self.backend]} {self.version}"

    @property
    def version(self) -> str:
        """Such as "1.7.1.116"."""
        return str(self.api.__version__)

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    def why(self) -> str:
        """The first line of what TensorRT said was wrong since it was asked last; it is forgotten."""
        said = list(self.logger.errors)
        self.logger.errors.clear()
        return first_line(EngineError(said[0])) if said else "TensorRT gives no reason"


def load_flavour(backend: str, api: Any = None) -> Flavour:
    """TensorRT for a backend.

    Args:
        backend: "trt" or "rtx".
        api: what stands in for the module.

    Raises:
        EngineError: it is not installed.
    """
    if api is None:
        try:
            api = importlib.import_module(MODULES[backend])
        except (ImportError, OSError) as error:
            raise EngineError(
                f"{NAMES[backend]}, which --backend {backend} needs, cannot be loaded ({first_line(error)});"
                f" run: pip install 'seqrt[{EXTRAS[backend]}]'"
            ) from error
    return Flavour(backend, api, _logger(api))


def sm(compute_capability: str) -> str:
    """How TensorRT and directory names write a compute capability: "8.6" is "SM86".

    Raises:
        RequestError: it is none.
    """
    major, dot, minor = compute_capability.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise RequestError(f"--cc {compute_capability!r} is no compute capability; give such as 8.6 or 12.0")
    return f"SM{major}{minor}"


def _logger(api: Any) -> Any:
    class Logger(api.ILogger):  # type: ignore[misc]
        """Collects errors; TensorRT's own logger would print them."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
