"""One graph to one TensorRT engine: parse, profiles, settings, attention taken apart only where it must be."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from seqrt.errors import EngineError
from seqrt.runtime.engines.flavour import Flavour, sm
from seqrt.runtime.engines.record import BuildSettings, BuiltGraph
from seqrt.runtime.files import write_whole

Profile = Mapping[str, tuple[int, int, int]]  # of symbols: least, best and most


@dataclass(slots=True)
class Builder:
    """Builds engines of one TensorRT, with the same settings for all graphs."""

    flavour: Flavour
    settings: BuildSettings
    timing_cache: Path | None = None
    layers: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def build(self, role: str, graph: Path, profiles: Sequence[Profile], half: bool) -> tuple[Any, BuiltGraph]:
        """The engine of a graph, and what is known of it but for its source and files.

        Raises:
            EngineError: TensorRT cannot parse or build it.
        """
        start = perf_counter()
        self.flavour.logger.errors.clear()
        plan, shapes, decomposed = self._attempt(role, graph, profiles, decompose=not half)
        if plan is None:
            plan, shapes, decomposed = self._attempt(role, graph, profiles, decompose=True)
        return plan, BuiltGraph(
            role=role,
            source="",
            size=int(plan.nbytes),
            sha256="",
            shapes=shapes,
            profiles=tuple(dict(profile) for profile in profiles),
            decomposed=decomposed,
            seconds=round(perf_counter() - start, 3),
        )

    def _attempt(
        self, role: str, graph: Path, profiles: Sequence[Profile], *, decompose: bool
    ) -> tuple[Any, dict[str, tuple[str, ...]], str | None]:
        """An engine, its shapes, and what attention was taken apart; no engine where that may help and was not done.

        Raises:
            EngineError: TensorRT cannot parse or build the graph.
        """
        api = self.flavour.api
        builder = api.Builder(self.flavour.logger)
        network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = api.OnnxParser(network, self.flavour.logger)
        if not parser.parse_from_file(str(graph)):
            why = _parse_error(parser) or self.flavour.why()
            raise EngineError(
                f"{self.flavour.name} cannot read {graph.name}: {_line(why)}; export for another --target"
            )
        decomposed = _let_decompose(api, network) if decompose else None
        config = self._config(builder)
        shapes = _shapes(network)
        for profile in profiles:
            made = builder.create_optimization_profile()
            for name in (tensor.name for tensor in map(network.get_input, range(network.num_inputs))):
                if any(not size.isdigit() for size in shapes[name]):
                    ranges = ([_size(size, profile, i) for size in shapes[name]] for i in range(3))
                    made.set_shape(name, *ranges)
            config.add_optimization_profile(made)
        with _interruptible(api, config), _without_stderr():
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            why = self.flavour.why()
            if decompose or _let_decompose(api, network) is None:
                advice = "" if self.settings.workspace is None else "; try a larger --workspace, or none"
                raise EngineError(f"{self.flavour.name} cannot build {graph.name}: {_line(why)}{advice}")
            return None, shapes, None
        self._keep_timings(config)
        self.layers[role] = [_layer(network.get_layer(i)) for i in range(network.num_layers)]
        return plan, shapes, decomposed

    def _config(self, builder: Any) -> Any:
        api, config = self.flavour.api, builder.create_builder_config()
        if self.settings.workspace is not None:
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, self.settings.workspace)
        if self.flavour.backend == "rtx":
            config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or CUDA graphs could not record its runs
            config.num_compute_capabilities = len(self.settings.compute_capabilities)
            for i, text in enumerate(self.settings.compute_capabilities):
                kind = getattr(api.ComputeCapability, sm(text), None)
                if kind is None or not config.set_compute_capability(kind, i):
                    kinds = (name for name in api.ComputeCapability.__members__ if name.startswith("SM"))
                    able = [f"{name[2:-1]}.{name[-1]}" for name in kinds]
                    raise EngineError(
                        f"--cc {text}: {self.flavour.name} builds for {', '.join(able)}; use --backend trt for others"
                    )
        elif self.timing_cache is not None:
            known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
            if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # of another GPU
        return config

    def _keep_timings(self, config: Any) -> None:
        timings = None if self.timing_cache is None else config.get_timing_cache()
        if self.timing_cache is None or timings is None:
            return
        data = bytes(timings.serialize())
        try:
            self.timing_cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.timing_cache, lambda new: new.write_bytes(data))
        except OSError:
            pass  # the next build times its kernels again


@contextmanager
def _interruptible(api: Any, config: Any) -> Iterator[None]:
    """Ctrl-C ends a build: TensorRT would swallow the exception that Python raises in a function that it calls."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        pressed = True

    if hasattr(api, "IProgressMonitor"):

        class Monitor(api.IProgressMonitor):  # type: ignore[misc]
            """Is asked at every step of a build whether to go on."""

            def __init__(self) -> None:
                api.IProgressMonitor.__init__(self)

            def phase_start(self, *_: object) -> None:
                pass

            def phase_finish(self, *_: object) -> None:
                pass

            def step_complete(self, *_: object) -> bool:
                return not pressed

        config.progress_monitor = Monitor()
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def _without_stderr() -> Iterator[None]:
    """TensorRT prints some errors past its logger, straight to the process's stderr, even those that are dealt with."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _let_decompose(api: Any, network: Any) -> str | None:
    """Lets TensorRT take attention apart, which it does not do by itself; returns of what kind it is, None for none."""
    kind = None
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if getattr(api.LayerType, "ATTENTION_INPUT", None) == layer.type:
            layer.__class__ = api.IAttentionInputLayer
            layer.attention.decomposable = True
            query = layer.attention.get_input(0)
            kind = f"{query.dtype.name} with {query.shape[1]} heads of {query.shape[3]}"
    return kind


def _shapes(network: Any) -> dict[str, tuple[str, ...]]:
    """Sizes of inputs and outputs as text; a symbol's name where ONNX names it, "?" elsewhere."""
    inputs = map(network.get_input, range(network.num_inputs))
    outputs = map(network.get_output, range(network.num_outputs))
    return {
        tensor.name: tuple(
            str(size) if size >= 0 else tensor.get_dimension_name(axis) or "?" for axis, size in enumerate(tensor.shape)
        )
        for tensor in (*inputs, *outputs)
    }


def _size(size: str, profile: Profile, which: int) -> int:
    return int(size) if size.isdigit() else profile[size][which]


def _layer(layer: Any) -> dict[str, object]:
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "outputs": [
            {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
            for tensor in outputs
            if tensor is not None
        ],
    }


def _parse_error(parser: Any) -> str | None:
    """What of the first node that it does not take is wrong, as far as the parser says."""
    if not parser.num_errors:
        return None
    error = parser.get_error(0)
    said = "" if error.desc() in ("", "false") else f", {error.desc()}"
    return f"{error.node_operator() or 'the file'} {error.node_name()} ({error.code().name}{said})"


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
