"""From a bundle's graphs to TensorRT engines, on the machine that runs them or, for TensorRT-RTX, on any.

The decoder gets a profile of fixed shape for every bucket of tree rows and one for chunks of a prompt; other graphs one
profile with a range. Nothing here imports torch, onnx or transformers: TensorRT reads the ONNX files itself.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.bundle import STATIC_ROOM, Bundle, GraphInfo, cache_folder, sha256, weights_path
from seqrt.runtime.decoder import MAX_ROWS
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import Flavour, load_flavour, sm
from seqrt.runtime.engines.record import (
    FILE,
    FOLDER,
    BuildSettings,
    BuiltGraph,
    EngineRecord,
    read_record,
    source_hash,
)
from seqrt.runtime.files import write_whole

DEFAULT_BUCKETS: Final = (1, 8, 16, 32, 64)
_SHORT_PREFILL: Final = 128
LAYERS: Final = "layers.json"
TARGETS: Final = (((11, 0), "trt11"), ((10, 16), "trt10.16"), ((10, 3), "trt10.3"))  # the first TensorRT of each
RANGES: Final[Mapping[str, tuple[int, int, int]]] = {  # of symbols in other graphs than the decoder
    "R": (1, 1, 128),
    "A": (1, 4, MAX_ROWS),
    "P": (1, 8, MAX_ROWS),
    "N": (1, 8, STATIC_ROOM),
}
_HOST_FACTOR: Final = 5.0  # memory of the host that building takes, in weights: SmolLM2 in fp16 with six profiles 4.6
_HOST_BASE: Final = 300e6

Profile = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` did.

    Attributes:
        folder: of the engines.
        record: what is in it.
        is_new: whether anything was built; else what was there is what was asked for.
        host_bytes: estimate of the memory that building took.
    """

    folder: Path
    record: EngineRecord
    is_new: bool
    host_bytes: int


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
        with _without_stderr():
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            why = self.flavour.why()
            if decompose or _let_decompose(api, network) is None:
                raise EngineError(f"{self.flavour.name} cannot build {graph.name}: {_line(why)}")
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
                    able = [name for name in api.ComputeCapability.__members__ if name.startswith("SM")]
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


def build(
    bundle: Bundle,
    backend: str,
    *,
    dtype: str | None = None,
    compute_capabilities: Sequence[str] = (),
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    prefill: int = STATIC_ROOM,
    workspace: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Built:
    """Builds engines for every graph of a bundle into `engines/` inside it; nothing where they are there already.

    Args:
        bundle: exported for this TensorRT.
        backend: "trt" or "rtx".
        dtype: of the graphs, where the bundle holds several.
        compute_capabilities: such as "8.6"; none for those that TensorRT-RTX takes by itself. TensorRT takes the GPU's.
        buckets: rows of a tree that the decoder takes at once; 1 is always among them.
        prefill: rows of a prompt that it takes at once.
        workspace: most bytes of scratch memory.
        progress: told what is being done.

    Raises:
        RequestError: an option is out of range.
        BundleError: the bundle holds no graphs for this TensorRT.
        EngineError: TensorRT is missing or fails, there is no GPU although it needs one, or memory does not suffice.
    """
    buckets = tuple(sorted({1, *buckets}))
    if not 1 <= buckets[0] <= buckets[-1] <= MAX_ROWS:
        raise RequestError(
            f"--buckets {','.join(map(str, buckets))} are out of range; give numbers from 1 to {MAX_ROWS}"
        )
    if not buckets[-1] <= prefill <= STATIC_ROOM:
        raise RequestError(
            f"--prefill {prefill} is out of range; give {buckets[-1]} (the largest bucket) to {STATIC_ROOM}"
        )
    if workspace is not None and workspace < 1 << 20:
        raise RequestError(f"--workspace is {workspace} bytes; give 1 MB or more")
    for text in compute_capabilities:
        sm(text)
    flavour = load_flavour(backend)
    variant = choose_variant(bundle, flavour, dtype)
    capabilities = tuple(dict.fromkeys(compute_capabilities))
    if backend == "trt":
        capabilities = (_own_capability(capabilities),)
    settings = BuildSettings(
        backend=backend,
        variant=variant,
        compute_capabilities=capabilities,
        buckets=buckets,
        prefill=prefill,
        workspace=workspace,
    )
    infos = [graph for graph in bundle.manifest.graphs if f"{graph.profile}-{graph.dtype}" == variant]
    folder = bundle.path / FOLDER / folder_name(flavour, settings)
    needed = _host_bytes(bundle, variant)
    if (known := _up_to_date(bundle, folder, flavour, settings, infos)) is not None:
        return Built(folder, known, is_new=False, host_bytes=needed)
    _check_memory(needed)
    timings = cache_folder() / "timing" / f"{flavour.version}-{capabilities[0]}" if backend == "trt" else None
    maker = Builder(flavour, settings, timings)
    with _staged(folder) as stage:
        graphs = []
        for info in infos:
            progress(f"building {info.role}")
            profiles = decoder_profiles(buckets, prefill) if info.role == "decoder" else [RANGES]
            plan, made = maker.build(info.role, bundle.path / info.path, profiles, info.dtype != "fp32")
            with (stage / made.file).open("wb") as file:
                file.write(plan)
            graphs.append(_described(made, stage, source_hash(bundle, info.role, variant)))
        record = EngineRecord(settings=settings, version=flavour.version, graphs=tuple(graphs))
        (stage / LAYERS).write_text(json.dumps(maker.layers), encoding="utf-8")
        (stage / FILE).write_text(record.to_json(), encoding="utf-8")
    return Built(folder, record, is_new=True, host_bytes=needed)


def decoder_profiles(buckets: Sequence[int], prefill: int) -> list[Profile]:
    """One of fixed shape for each bucket, all of whose rows need logits, and for prompts, whose last row does.

    Of the latter one is for whole chunks, and one for prompts that are a good deal shorter.
    """
    fixed = [{"T": (rows,) * 3, "R": (rows,) * 3} for rows in buckets]
    chunks = [rows for rows in (_SHORT_PREFILL, prefill) if buckets[-1] < rows <= prefill]
    return [*fixed, *({"T": (rows,) * 3, "R": (1,) * 3} for rows in dict.fromkeys(chunks))]


def choose_variant(bundle: Bundle, flavour: Flavour, dtype: str | None) -> str:
    """The bundle's graphs for a TensorRT: of several targets the newest that it can read, of several types the first.

    Raises:
        RequestError: the bundle has no such type for it.
        BundleError: it has no graphs for it at all.
    """
    fitting = []
    for variant in bundle.manifest.variants:
        profile, _, own = variant.rpartition("-")
        if profile == "rtx" and flavour.backend == "rtx":
            fitting.append(((0, 0), own, variant))
        elif profile.startswith("trt") and flavour.backend == "trt":
            major, _, minor = profile.removeprefix("trt").partition(".")
            if flavour.release >= (int(major), int(minor or 0)):
                fitting.append(((int(major), int(minor or 0)), own, variant))
    if not fitting:
        target = "rtx" if flavour.backend == "rtx" else target_for(flavour.release) or TARGETS[-1][1]
        raise EngineError(
            f"{bundle.path} holds no graphs that {flavour.name} reads, only {', '.join(bundle.manifest.variants)};"
            f" export with --target {target}"
        )
    typed = [each for each in fitting if dtype in (None, each[1])]
    if not typed:
        raise RequestError(
            f"--dtype {dtype} is not in {bundle.path} for {flavour.name}; use {', '.join(own for _, own, _ in fitting)}"
        )
    newest = max(version for version, _, _ in typed)
    return next(variant for version, _, variant in typed if version == newest)


def folder_name(flavour: Flavour, settings: BuildSettings) -> str:
    """Backend, version, architectures and type: what engines cannot be shared across."""
    architectures = "+".join(sm(text).lower() for text in settings.compute_capabilities) or "any"
    dtype = settings.variant.rpartition("-")[2]
    return f"{flavour.backend}-{flavour.version}-{architectures}-{dtype}"


def target_for(release: tuple[int, int]) -> str | None:
    """What to export with for a TensorRT of that version; None if it is too old."""
    return next((target for first, target in TARGETS if release >= first), None)


def _own_capability(wanted: Sequence[str]) -> str:
    """Of the GPU here, which is what TensorRT builds for."""
    here = Cuda().compute_capability()
    if wanted and list(wanted) != [here]:
        raise RequestError(f"--cc {','.join(wanted)}: TensorRT builds for the GPU of this machine, which has {here}")
    return here


def _up_to_date(
    bundle: Bundle, folder: Path, flavour: Flavour, settings: BuildSettings, infos: Sequence[GraphInfo]
) -> EngineRecord | None:
    """What is there, if it is just what would be built."""
    try:
        record = read_record(folder)
    except EngineError:
        return None
    sources = {graph.role: graph.source for graph in record.graphs}
    wanted = {info.role: source_hash(bundle, info.role, settings.variant) for info in infos}
    whole = all(
        (folder / graph.file).is_file() and sha256(folder / graph.file) == graph.sha256 for graph in record.graphs
    )
    is_same = record.settings == settings and record.version == flavour.version and sources == wanted and whole
    return record if is_same else None


def _host_bytes(bundle: Bundle, variant: str) -> int:
    profile, _, dtype = variant.rpartition("-")
    weights = bundle.manifest.files.get(weights_path(profile, dtype))
    return int(_HOST_FACTOR * (weights.size if weights else 0) + _HOST_BASE)


def _check_memory(needed: int) -> None:
    """Raises EngineError if building would not fit into the memory that is free."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is not None and needed > free:
        raise EngineError(
            f"building takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free;"
            " close other programs, add swap space, or build on another machine"
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden directory that takes the place of `folder` at the end, or vanishes."""
    try:
        folder.parent.mkdir(exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield stage
            stage.chmod(0o755)  # mkdtemp makes it private
            shutil.rmtree(folder, ignore_errors=True)
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise EngineError(
            f"cannot write {folder}: {error.strerror}; free some space or copy the bundle elsewhere"
        ) from error


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


def _described(made: BuiltGraph, stage: Path, source: str) -> BuiltGraph:
    file = stage / made.file
    return BuiltGraph(
        role=made.role,
        source=source,
        size=file.stat().st_size,
        sha256=sha256(file),
        shapes=made.shapes,
        profiles=made.profiles,
        decomposed=made.decomposed,
        seconds=made.seconds,
    )


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
