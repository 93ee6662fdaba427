"""From a bundle's graphs to TensorRT engines, on the machine that runs them or, for TensorRT-RTX, on any.

The decoder gets a profile of fixed shape for every bucket of tree rows and one for chunks of a prompt; other graphs one
profile with a range. Nothing here imports torch, onnx or transformers: TensorRT reads the ONNX files itself.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Final

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.bundle import SOLVER_ROWS, STATIC_ROOM, Bundle, GraphInfo, cache_folder, sha256, weights_path
from seqrt.runtime.decoder import MAX_ROWS
from seqrt.runtime.engines.builder import Builder, Profile
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

DEFAULT_BUCKETS: Final[Mapping[str, tuple[int, ...]]] = {  # by task: rows of a tree, or images
    "generate": (1, 8, 16, 32, 64),
    "ocr": (1, 8, 16, 32),
    "solve": (1,),  # its engines take any number up to SOLVER_ROWS
}
_SHORT_PREFILL: Final = 128
_STALE_SECONDS: Final = 600.0  # that nothing was written into a directory of a build before it may be removed
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
_DEVICE_FACTOR: Final = 1.2  # of weights: an engine is a little larger, and has scratch memory


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` did.

    Attributes:
        folder: of the engines.
        record: what is in it.
        is_new: whether anything was built; else what was there is what was asked for.
        host_bytes: estimate of the memory that building takes.
        device_bytes: estimate of the memory of the GPU that running takes: weights, caches and some more.
    """

    folder: Path
    record: EngineRecord
    is_new: bool
    host_bytes: int
    device_bytes: int


def build(
    bundle: Bundle,
    backend: str,
    *,
    dtype: str | None = None,
    compute_capabilities: Sequence[str] = (),
    buckets: Sequence[int] | None = None,
    prefill: int | None = None,
    workspace: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Built:
    """Builds engines for every graph of a bundle into `engines/` inside it; nothing where they are there already.

    Args:
        bundle: exported for this TensorRT.
        backend: "trt" or "rtx".
        dtype: of the graphs, where the bundle holds several.
        compute_capabilities: such as "8.6"; none for those that TensorRT-RTX takes by itself. TensorRT takes the GPU's.
        buckets: rows of a tree that the decoder takes at once, or images that a recogniser does; 1 is always among
            them, those of DEFAULT_BUCKETS are if None.
        prefill: rows of a prompt that the decoder takes at once; STATIC_ROOM if None.
        workspace: most bytes of scratch memory.
        progress: told what is being done.

    Raises:
        RequestError: an option is out of range.
        EngineError: TensorRT is missing or fails, the bundle holds no graphs for it, there is no GPU although it needs
            one, or memory does not suffice.
    """
    if buckets is not None and bundle.manifest.task == "solve":
        raise RequestError("--buckets are of no use to a pointer model, which takes any number of rows; leave them out")
    buckets = DEFAULT_BUCKETS[bundle.manifest.task] if buckets is None else buckets
    if not all(1 <= rows <= MAX_ROWS for rows in buckets):
        raise RequestError(
            f"--buckets {','.join(map(str, buckets))} are out of range; give numbers from 1 to {MAX_ROWS}"
        )
    buckets = tuple(sorted({1, *buckets}))
    prefill = _prefill(bundle, buckets, prefill)
    if workspace is not None and workspace < 1 << 20:
        raise RequestError(f"--workspace is {workspace / (1 << 20):g} MB; give 1 or more")
    for text in compute_capabilities:
        sm(text)
    flavour = load_flavour(backend)
    variant = choose_variant(bundle, flavour, dtype)
    capabilities = tuple(sorted(set(compute_capabilities), key=lambda text: tuple(map(int, text.split(".")))))
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
    infos = [graph for graph in bundle.manifest.graphs if graph.variant == variant]
    folder = bundle.path / FOLDER / folder_name(flavour, settings)
    host, device = _memory(bundle, variant)
    if (known := _up_to_date(bundle, folder, flavour, settings, infos)) is not None:
        return Built(folder, known, is_new=False, host_bytes=host, device_bytes=device)
    _check_memory(host, device, Cuda() if backend == "trt" else None)
    timings = cache_folder() / "timing" / f"{flavour.version}-{capabilities[0]}" if backend == "trt" else None
    maker = Builder(flavour, settings, timings)
    with _staged(folder) as stage:
        graphs = []
        for info in infos:
            progress(f"building {info.role}")
            profiles = profiles_of(bundle, info.role, buckets, prefill)
            plan, made = maker.build(info.role, bundle.path / info.path, profiles, info.dtype != "fp32")
            with (stage / made.file).open("wb") as file:
                file.write(plan)
            graphs.append(_described(made, stage, source_hash(bundle, info.role, variant)))
        record = EngineRecord(settings=settings, version=flavour.version, graphs=tuple(graphs))
        (stage / LAYERS).write_text(json.dumps(maker.layers), encoding="utf-8")
        (stage / FILE).write_text(record.to_json(), encoding="utf-8")
    return Built(folder, record, is_new=True, host_bytes=host, device_bytes=device)


def _prefill(bundle: Bundle, buckets: Sequence[int], prefill: int | None) -> int:
    """Rows of a prompt that are taken at once; none where there is no prompt.

    Raises:
        RequestError: out of range, or of no use.
    """
    if bundle.manifest.task != "generate":
        if prefill is not None:
            raise RequestError(f"--prefill {prefill} is of no use to a bundle that has no prompt; leave it out")
        return 0
    prefill = STATIC_ROOM if prefill is None else prefill
    if not buckets[-1] <= prefill <= STATIC_ROOM:
        raise RequestError(
            f"--prefill {prefill} is out of range; give {buckets[-1]} (the largest bucket) to {STATIC_ROOM}"
        )
    return prefill


def profiles_of(bundle: Bundle, role: str, buckets: Sequence[int], prefill: int) -> list[Profile]:
    """What the engine of a graph is built for: fixed shapes for what a loop runs, a range for all else."""
    if bundle.manifest.recognizer is not None:
        return [{"B": (images,) * 3} for images in buckets]
    if bundle.manifest.solver is not None:
        return [{"B": (1, SOLVER_ROWS["B"], SOLVER_ROWS["B"]), "K": (1, 1, SOLVER_ROWS["K"])}]
    return decoder_profiles(buckets, prefill) if role == "decoder" else [RANGES]


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
        EngineError: it has no graphs for it at all.
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
    is_same = record.settings == settings and record.version == flavour.version and sources == wanted
    return record if is_same and all(graph.is_intact(folder) for graph in record.graphs) else None


def _memory(bundle: Bundle, variant: str) -> tuple[int, int]:
    """Bytes of the host that building takes, and of the GPU that running takes, about."""
    profile, _, dtype = variant.rpartition("-")
    file, model = bundle.manifest.files.get(weights_path(profile, dtype)), bundle.manifest.model
    weights, width = file.size if file else 0, 4 if dtype == "fp32" else 2
    host = int(_HOST_FACTOR * weights + _HOST_BASE)
    if model is None:
        return host, int(_DEVICE_FACTOR * weights)
    tables = sum(len(head.graphs) for head in bundle.manifest.heads if head.kind == "hydra")  # each has the embedding
    tables *= model.vocab_size * model.hidden_size * width
    rows = 2 * model.num_layers * model.num_kv_heads * (bundle.manifest.capacity + STATIC_ROOM)
    caches = rows * model.head_dim * width
    return host, int(_DEVICE_FACTOR * (weights + tables)) + caches


def _check_memory(host: int, device: int, cuda: Cuda | None) -> None:
    """Raises EngineError if building would not fit into the memory that is free, or running into that of the GPU."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is not None and host > free:
        raise EngineError(
            f"building takes about {host / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free;"
            " close other programs, add swap space, or build on another machine"
        )
    if cuda is not None and device > (held := cuda.memory()[1]):
        raise EngineError(
            f"running takes about {device / 1e9:.1f} GB of the GPU's memory, it has {held / 1e9:.1f} GB;"
            " export with --quantize int8, or with a smaller --capacity"
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden directory that takes the place of `folder` at the end, or vanishes."""
    try:
        folder.parent.mkdir(exist_ok=True)
        _sweep(folder.parent)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.{os.getpid()}.", dir=folder.parent))
        try:
            yield stage
            stage.chmod(0o755)  # mkdtemp makes it private
            shutil.rmtree(folder, ignore_errors=True)
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if is_full else "copy the bundle to where you may write"
        raise EngineError(f"cannot write {folder}: {error.strerror}; {advice}") from error


def _sweep(folder: Path) -> None:
    """Removes what builds left behind that were killed outright."""
    for stage in folder.glob(".*"):
        pid = stage.name.split(".")[-2] if stage.name.count(".") > 2 else ""
        is_old = time() - stage.stat().st_mtime > _STALE_SECONDS
        if pid.isdigit() and is_old and not Path("/proc", pid).exists():
            shutil.rmtree(stage, ignore_errors=True)


def _described(made: BuiltGraph, stage: Path, source: str) -> BuiltGraph:
    return replace(made, source=source, sha256=sha256(stage / made.file))
