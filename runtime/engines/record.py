"""engine.json: what a directory of built engines was made from, and whether it fits a bundle and a machine."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from seqrt.errors import EngineError, SeqrtError
from seqrt.runtime.bundle import Bundle, sha256, weights_path
from seqrt.runtime.records import read

SCHEMA: Final = 1
FOLDER: Final = "engines"
FILE: Final = "engine.json"
_MAX_BYTES: Final = 1 << 22
_TYPES: Final = ("fp16", "bf16", "fp32")  # what is preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What was asked for.

    Attributes:
        backend: "trt" or "rtx".
        variant: graphs that were built, such as "rtx-fp16".
        compute_capabilities: such as "8.6"; none for those that TensorRT-RTX takes by itself.
        buckets: rows of a tree that the decoder takes at once, or images that a recogniser does; ascending.
        prefill: rows of a prompt; 0 of a recogniser.
        workspace: most bytes of scratch memory; None for TensorRT's own limit.
    """

    backend: str
    variant: str
    compute_capabilities: tuple[str, ...]
    buckets: tuple[int, ...]
    prefill: int
    workspace: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltGraph:
    """One engine file.

    Attributes:
        role: of its graph in the bundle.
        source: SHA-256 of graph and weights.
        size, sha256: of the engine file.
        shapes: of each input and output; a symbol where a size depends on the profile, "?" for an output's.
        profiles: what the symbols may be in each: least, best, most.
        decomposed: attention that is computed in parts, because TensorRT has no fused kernel for it; None for none.
        seconds: that building took.
    """

    role: str
    source: str
    size: int
    sha256: str
    shapes: Mapping[str, tuple[str, ...]]
    profiles: tuple[Mapping[str, tuple[int, ...]], ...]
    decomposed: str | None
    seconds: float

    @property
    def buckets(self) -> Mapping[int, int]:
        """Of a decoder, the rows that it takes at once, ascending, and how many get logits.

        Of a recogniser, the images that it takes at once, all of which are read; empty for other graphs.
        """
        decoder = {each["T"][0]: each["R"][0] for each in self.profiles if set(each) == {"T", "R"}}
        return decoder or {each["B"][0]: each["B"][0] for each in self.profiles if set(each) == {"B"}}

    @property
    def file(self) -> str:
        """Name of the engine file."""
        return f"{self.role}.engine"

    def is_intact(self, folder: Path) -> bool:
        """Whether the file in `folder` is the engine that was built, by its hash."""
        file = folder / self.file
        return file.is_file() and sha256(file) == self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """Contents of engine.json; `version` is TensorRT's."""

    settings: BuildSettings
    version: str
    graphs: tuple[BuiltGraph, ...]
    schema: int = SCHEMA

    def graph(self, role: str) -> BuiltGraph:
        """The engine for a role.

        Raises:
            EngineError: it was not built.
        """
        for graph in self.graphs:
            if graph.role == role:
                return graph
        held = ", ".join(graph.role for graph in self.graphs)
        raise EngineError(f"no engine was built for {role!r}, only for {held}; run seqrt build again")

    def to_json(self) -> str:
        """The text of engine.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def source_hash(bundle: Bundle, role: str, variant: str) -> str:
    """SHA-256s of a graph and of the weights file that it reads."""
    files, info = bundle.manifest.files, bundle.info(role, variant)
    paths = (info.path, weights_path(info.profile, info.dtype))
    return "-".join(files[path].sha256 for path in paths if path in files)


def read_record(folder: Path) -> EngineRecord:
    """The record of a directory of engines.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    file = folder / FILE
    try:
        record: EngineRecord = read(EngineRecord, file, SCHEMA, _MAX_BYTES)
    except OSError as error:
        raise EngineError(f"{file} cannot be read: {error.strerror}; run seqrt build again") from error
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise EngineError(f"{'' if str(file) in why else f'{file}: '}{why}; run seqrt build again") from error
    return record


def engine_folders(bundle: Path) -> list[Path]:
    """Directories of engines with a record, by name; hidden ones are being built."""
    return [file.parent for file in sorted((bundle / FOLDER).glob(f"[!.]*/{FILE}"))]


def find_engines(
    bundle: Bundle, backend: str, version: str, compute_capability: str | None
) -> tuple[Path, EngineRecord]:
    """The directory of engines that fit this bundle, TensorRT and GPU.

    Of several, fp16 goes before other types, and what was built for some GPUs before what was built for any.

    Args:
        bundle: which holds them.
        backend: "trt" or "rtx".
        version: of the TensorRT that is to run them.
        compute_capability: of the GPU, such as "8.6"; None leaves that to TensorRT.

    Raises:
        EngineError: there are none; it says what the nearest lacks.
    """
    again = f"run: seqrt build {bundle.path} --backend {backend}"
    reasons, fitting = [], []
    for folder in engine_folders(bundle.path):
        try:
            record = read_record(folder)
            if record.settings.backend != backend:
                continue
            reason = misfit(bundle, folder, record, version, compute_capability)
        except SeqrtError as error:
            reasons.append(str(error))
            continue
        if reason is None:
            fitting.append((folder, record))
        else:
            reasons.append(f"{FOLDER}/{folder.name} {reason}")
    if fitting:
        return min(fitting, key=lambda each: _preference(each[1]))
    why = f": {reasons[0]}" if reasons else ""
    raise EngineError(f"{bundle.path} has no engines for --backend {backend}{why}; {again}")


def verify_engines(folder: Path) -> None:
    """Checks the hash of every engine in a directory.

    Raises:
        EngineError: one is not what was built.
    """
    for graph in read_record(folder).graphs:
        if not graph.is_intact(folder):
            file = folder / graph.file
            raise EngineError(f"{file} is not the engine that was built (SHA-256 differs); run seqrt build again")


def _preference(record: EngineRecord) -> tuple[int, bool]:
    """Least for what is to be taken first."""
    dtype = record.settings.variant.rpartition("-")[2]
    return _TYPES.index(dtype) if dtype in _TYPES else len(_TYPES), not record.settings.compute_capabilities


def misfit(bundle: Bundle, folder: Path, record: EngineRecord, version: str, cc: str | None) -> str | None:
    """Why engines cannot be used, None if they can."""
    settings = record.settings
    if record.version != version:
        return f"was built by version {record.version}, this is {version}"
    if cc is not None and settings.compute_capabilities and cc not in settings.compute_capabilities:
        return f"was built for compute capability {', '.join(settings.compute_capabilities)}, this GPU has {cc}"
    if settings.variant not in bundle.manifest.variants:
        return f"was built from {settings.variant} graphs, which this bundle does not hold"
    for graph in record.graphs:
        if graph.source != source_hash(bundle, graph.role, settings.variant):
            return f"was built from another {graph.role} graph"
        file = folder / graph.file
        if file.is_symlink():
            return f"has a link for {graph.file}, which engines must not be"
        if not file.is_file() or file.stat().st_size != graph.size:
            held = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            return f"has {held} in {graph.file}, expected {graph.size} bytes"
    return None
