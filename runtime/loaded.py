"""Bundles as what their tasks are: engines that are given back at the end, and a probe that may listen."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.backends import Engines, open_engines
from seqrt.runtime.bundle import Bundle, open_bundle, read_manifest
from seqrt.runtime.probe import Probe

Self = TypeVar("Self", bound="Loaded")
T = TypeVar("T")

# What loads a bundle of each task; a module that is not asked for is not imported.
_MODULES: Final = {
    "generate": "seqrt.runtime.model",
    "ocr": "seqrt.runtime.recognizer",
    "solve": "seqrt.runtime.solver",
}


def load(path: str | Path, *, backend: str = "cpu", threads: int = 0, operators: bool = False) -> Any:
    """Loads a bundle: a `Model` that generates text, a `Recognizer` of words in images, or a `Solver` of instances.

    `load` of `seqrt.runtime.model`, `recognizer` and `solver` do the same with a type that a checker knows.

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
    module = import_module(_MODULES[read_manifest(Path(path)).task])
    return module.load(path, backend=backend, threads=threads, operators=operators)


class Loaded:
    """A bundle on an engine. Not for several threads at once. Close it, or use it in a `with`.

    Attributes:
        bundle: what was loaded.
        engines: what runs its graphs.
        load_seconds: how long that took.
    """

    def __init__(self, bundle: Bundle, engines: Engines) -> None:
        self.bundle, self.engines, self.load_seconds = bundle, engines, 0.0
        self._is_closed = False

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what the engines hold, memory of a GPU above all; it cannot be used any more."""
        self._is_closed = True
        self.engines.close()

    def require_open(self) -> None:
        """Raises an EngineError if it was closed."""
        if self._is_closed:
            raise EngineError(f"{self.bundle.path} was closed; load it again")

    @property
    def backend(self) -> str:
        """What computes."""
        return self.engines.backend

    @property
    def probe(self) -> Probe:
        """What hears of stages of requests and of runs of engines: `OFF`, or a `Recorder` while one is attached."""
        return self.engines.probe

    @contextmanager
    def attached(self, probe: Probe) -> Iterator[None]:
        """Lets `probe` hear of requests that are begun and ended meanwhile."""
        before, self.engines.probe = self.engines.probe, probe
        try:
            yield
        finally:
            self.engines.probe = before


def collected(numbered: "Generator[tuple[int, T | RequestError], None, None]") -> list[T]:
    """What comes with numbers, in their order; closes it at the end.

    Raises:
        RequestError: the first that comes.
    """
    found: dict[int, T] = {}
    with closing(numbered):
        for number, item in numbered:
            if isinstance(item, RequestError):
                raise item
            found[number] = item
    return [found[number] for number in range(len(found))]


def load_as(
    make: Callable[[Bundle, Engines], Self],
    task: str,
    path: str | Path,
    backend: str,
    threads: int,
    operators: bool,
) -> Self:
    """Loads a bundle of a task; other arguments and errors are those of `seqrt.load`.

    Args:
        make: makes it of a bundle and its engines.
        task: what the bundle must be for.
        path: the bundle's directory.
        backend: what computes.
        threads: for one model call on a CPU; 0 takes one a core.
        operators: keep the time of every operator.

    Raises:
        BundleError: it is for another task, which is said before engines are made.
    """
    start = perf_counter()
    bundle = open_bundle(Path(path))
    bundle.manifest.require(task)
    engines = open_engines(bundle, backend, threads, operators=operators)
    try:
        made = make(bundle, engines)
    except BaseException:
        engines.close()
        raise
    made.load_seconds = perf_counter() - start
    return made
