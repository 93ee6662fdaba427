"""The bundle format: what the exporter writes and every runtime reads. docs/bundle.md describes it file by file.

A bundle is a directory. Its `seqrt.json` names every other file with size and SHA-256. Loading trusts nothing: the
schema, all paths (inside the bundle, no links) and all sizes are checked before an engine sees a byte; hashes are
checked when a bundle is first loaded, when a file has changed since, and by `seqrt inspect --verify`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from seqrt.errors import BundleError
from seqrt.runtime.files import write_whole
from seqrt.runtime.records import parse as parse  # the exporter reads settings with it too

SCHEMA: Final = 1
MANIFEST: Final = "seqrt.json"
_TASKS: Final = {  # the command of each, and what a bundle of another cannot do
    "generate": ("run", "generates no text"),
    "ocr": ("ocr", "reads no images"),
    "solve": ("solve", "solves no instances"),
}
_ROLES: Final = ("decoder", "logits", "score", "compaction")  # graphs of every bundle that generates
RESERVED_NAMES: Final = ("none", "lookup", "recycling", "corpus", "lud", *_ROLES)  # not for heads
CHUNK: Final = 128  # rows of a prompt in one call of the decoder graph; it computes fewer in another way (decision 6)
STATIC_ROOM: Final = 512  # rows of caches beyond the capacity in graphs for TensorRT: most of a prompt in one call
CHARACTERS: Final = "characters.txt"  # of a recogniser, one a line, in the order of its classes
SOLVER_TASKS: Final = ("tour", "hull", "triangulation", "permutation", "none")  # what the answers of a solver are
SOLVER_ROWS: Final[Mapping[str, int]] = {"B": 64, "K": 128}  # of engines of TensorRT, most instances and rows of each
RECIPES: Final = ("svtr_bgr_stretch", "svtr_bgr_pad", "tv_rgb_bicubic")  # how images are made ready (runtime/images.py)
INNER: Final = "hidden."  # begin of the decoder's outputs of inner layers: hidden.1 comes before the last layer
_MAX_MANIFEST_BYTES: Final = 1 << 24
_MAX_DIMENSION: Final = 1 << 31
_MAX_PIXELS: Final = 1 << 24

Size = tuple[int, ...]  # height and width in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Shape of the decoder, as far as running it needs it."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_candidates: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInfo:
    """One ONNX file.

    Attributes:
        role: "decoder", "logits", "score", "compaction" or the name of draft heads.
        dtype: of its floats: fp32, fp16 or bf16.
        profile: whose operators it uses: ort, rtx, trt11, trt10.16 or trt10.3.
        weight_bytes: what one run reads of the weights; of a table that rows are gathered from, nothing counts.
    """

    role: str
    path: str
    dtype: str
    profile: str
    opset: int
    weight_bytes: int

    @property
    def variant(self) -> str:
        """Profile and type, such as "rtx-fp16": one form of every graph of a bundle."""
        return f"{self.profile}-{self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInfo:
    """Draft heads.

    Attributes:
        name: what --draft takes.
        kind: the method.
        top_k: candidates of each head.
        graphs: roles of the graphs that guess, in the order in which they run.
        prefix: role of the graph that makes a state of accepted rows (Hydra++), if there is one.
        hidden_state_offset: how many layers before the last their hidden state is taken; 0 is the final one.
        tree: rank paths, best first, where the heads came with them.
        accuracy: by head and rank, likewise.
    """

    name: str
    kind: str
    num_heads: int
    top_k: int
    graphs: tuple[str, ...]
    prefix: str | None = None
    hidden_state_offset: int = 0
    tree: tuple[str, ...] = ()
    accuracy: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsInfo:
    """What makes a decoder one of lexical units (Lexical Unit Decoding).

    Attributes:
        pad_token_id: the token that stands for one not known yet; the decoder graph reads it and never says it.
        lookahead: most tokens of a unit k that it was trained on: k - 1 PADs.
        beta: confidence above which the paper's mode takes a token.
        base: the model that it was trained from.
    """

    pad_token_id: int
    lookahead: int
    beta: float
    base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizerInfo:
    """What reads words in images.

    Attributes:
        kind: "cppd" reads a word in one pass, "nrtr" a character a step.
        recipe: of RECIPES.
        sizes: height and width of its images; of several, the first takes images as wide as high, the second those
            twice as wide, and so on.
        num_classes: the end of a word, and the characters of `characters.txt`.
    """

    kind: str
    recipe: str
    sizes: tuple[Size, ...]
    num_classes: int

    @property
    def roles(self) -> tuple[str, ...]:
        """Of its graphs: one a size, or an encoder and a step."""
        if self.kind == "nrtr":
            return ("encoder", "step")
        if len(self.sizes) == 1:
            return ("recognizer",)
        return tuple(f"recognizer.{height}x{width}" for height, width in self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """What points at its inputs.

    Attributes:
        kind: of graph: "ptrnet", "set" or "attention".
        task: what its answers are, of SOLVER_TASKS.
        input_dim: numbers of a point.
        sizes: most points of the graphs, ascending; an instance goes to the first that holds it.
        has_end: it says itself where an answer ends.
        needs_start: it must be told where to begin.
    """

    kind: str
    task: str
    input_dim: int
    sizes: tuple[int, ...]
    has_end: bool
    needs_start: bool

    def lacks(self, task: str) -> str | None:
        """What answers of a task would need and the model has not; None if it can give them."""
        if task in ("tour", "hull", "triangulation") and self.input_dim != 2:
            return f"is for points in the plane, the model takes {self.input_dim} numbers a point"
        if task == "triangulation" and not self.has_end:
            return "is for a model that says where it ends, which this one does not"
        return None if task in SOLVER_TASKS else f"is unknown; choose from {', '.join(SOLVER_TASKS)}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Of its graphs: for each size one that reads an instance, and one that points."""
        return tuple(f"{graph}.{size}" for size in self.sizes for graph in ("encode", "step"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What quantisation cost, measured on `tokens` tokens: perplexities and how often the top token is the same."""

    tokens: int
    perplexity: float
    source_perplexity: float
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of `seqrt.json`.

    Attributes:
        task: "generate", "ocr" or "solve"; the bundle has `model`, `recognizer` or `solver` accordingly.
        capacity: most tokens of prompt and answer, characters of a word, or points.
    """

    name: str
    family: str
    task: str
    capacity: int
    quantization: str
    model: ModelInfo | None = None
    recognizer: RecognizerInfo | None = None
    solver: SolverInfo | None = None
    graphs: tuple[GraphInfo, ...]
    heads: tuple[HeadInfo, ...] = ()
    units: UnitsInfo | None = None
    quality: Quality | None = None
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    schema: int = SCHEMA

    def require(self, task: str) -> None:
        """Checks that the bundle is for a task.

        Raises:
            BundleError: it is for another one.
        """
        if self.task != task:
            (command, _), (_, lacking) = _TASKS[self.task], _TASKS[task]
            raise BundleError(f"{self.name} is a bundle for `seqrt {command}` and {lacking}; pass another one")

    @property
    def decoder(self) -> ModelInfo:
        """Shape of the decoder.

        Raises:
            BundleError: the bundle is for another task.
        """
        self.require("generate")
        assert self.model is not None  # loading checks it
        return self.model

    @property
    def reader(self) -> RecognizerInfo:
        """What reads images.

        Raises:
            BundleError: the bundle is for another task.
        """
        self.require("ocr")
        assert self.recognizer is not None
        return self.recognizer

    @property
    def pointer(self) -> SolverInfo:
        """What points at its inputs.

        Raises:
            BundleError: the bundle is for another task.
        """
        self.require("solve")
        assert self.solver is not None
        return self.solver

    @property
    def roles(self) -> tuple[str, ...]:
        """Graphs that every variant has, draft heads excepted."""
        for part in (self.recognizer, self.solver):
            if part is not None:
                return part.roles
        return _ROLES

    @property
    def variants(self) -> tuple[str, ...]:
        """In which forms every graph is there: whose operators, and the type of the floats, such as "rtx-fp16"."""
        return tuple(dict.fromkeys(graph.variant for graph in self.graphs))

    @property
    def is_exact(self) -> bool:
        """Whether products are computed in float, so that the shape of a tree makes no difference that counts."""
        return self.quantization == "none"

    def to_json(self) -> str:
        """The text of `seqrt.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle whose paths and sizes have been checked."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: it lists no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name}; export the model again")
        return self.path / name

    def text(self, name: str) -> str | None:
        """Contents of a text file, None if the bundle has none of that name."""
        return self.file(name).read_text(encoding="utf-8") if name in self.manifest.files else None

    def info(self, role: str, variant: str) -> GraphInfo:
        """The graph that plays `role` in a variant such as "ort-fp32".

        Raises:
            BundleError: the bundle has none.
        """
        for graph in self.manifest.graphs:
            if graph.role == role and graph.variant == variant:
                return graph
        held = ", ".join(dict.fromkeys(graph.role for graph in self.manifest.graphs))
        raise BundleError(
            f"{self.path} has no {role!r} graph for {variant}; it has {held} for {', '.join(self.manifest.variants)};"
            " export the model again"
        )

    def graph(self, role: str, variant: str = "ort-fp32") -> Path:
        """Path of that graph.

        Raises:
            BundleError: the bundle has none.
        """
        return self.file(self.info(role, variant).path)

    def verify(self) -> None:
        """Checks the hash of every file.

        Raises:
            BundleError: a file differs from what was exported.
        """
        for name, info in self.manifest.files.items():
            if sha256(self.path / name) != info.sha256:
                raise BundleError(
                    f"{self.path / name} is not the file that was exported (SHA-256 differs); export again"
                )


def open_bundle(path: Path) -> Bundle:
    """Opens a bundle after checking its manifest, paths, sizes and, when it is new here or changed, its hashes.

    Raises:
        BundleError: it is not a bundle, or fails a check.
    """
    bundle = Bundle(path, read_manifest(path))
    for name, info in bundle.manifest.files.items():
        _check_file(path, name, info)
    listed = bundle.manifest.files
    for graph in bundle.manifest.graphs:
        if graph.path not in listed:
            raise BundleError(
                f"{path / MANIFEST} names the graph {graph.path!r} but does not list the file; export again"
            )
    stamp = _stamp_path(bundle)
    if not stamp.exists():
        bundle.verify()
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        except OSError:
            pass  # a read-only home costs the hashing once more, nothing else
    return bundle


def record_quality(path: Path, quality: Quality) -> None:
    """Writes into the manifest of the bundle at `path` what its quantisation costs; the manifest is replaced whole.

    Raises:
        BundleError: it is not a bundle, or cannot be written.
    """
    manifest = dataclasses.replace(read_manifest(path), quality=quality)
    try:
        write_whole(path / MANIFEST, lambda new: new.write_text(manifest.to_json(), encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot write {path / MANIFEST}: {error.strerror}; free some space") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def weights_path(profile: str, dtype: str) -> str:
    """The file with the weights of a variant; variants with the same one share it."""
    kinds = (*(() if profile == "ort" else ("trt",)), *(() if dtype == "fp32" else (dtype,)))
    return ".".join(("graphs/weights", *kinds, "bin"))


def describe_files(path: Path) -> dict[str, FileInfo]:
    """Size and hash of every file below `path`, the manifest excepted."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(path).as_posix(): FileInfo(size=file.stat().st_size, sha256=sha256(file)) for file in files
    }


def cache_folder() -> Path:
    """Where seqrt keeps what can be recomputed: $XDG_CACHE_HOME/seqrt or ~/.cache/seqrt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqrt"


def _stamp_path(bundle: Bundle) -> Path:
    """A file that exists once this state of the bundle (place, sizes, times of change) was hashed and found good."""
    state = [str(bundle.path.resolve()), bundle.manifest.to_json()]
    state += [f"{name} {(bundle.path / name).stat().st_mtime_ns}" for name in bundle.manifest.files]
    return cache_folder() / "verified" / hashlib.sha256("\n".join(state).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """What the bundle at `path` says of itself; its files are not looked at.

    Raises:
        BundleError: it is not a bundle, or its manifest is damaged.
    """
    file = path / MANIFEST
    if not file.is_file():
        why = f"it has no {MANIFEST}" if path.exists() else "it does not exist"
        raise BundleError(f"{path} is not a bundle: {why}; make one with: seqrt export SOURCE {path}")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{file} has {file.stat().st_size} bytes; a manifest has at most {_MAX_MANIFEST_BYTES}; export again"
        )
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is no valid JSON ({error}); export again") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise BundleError(f"{file} has schema {schema!r}, this seqrt reads {SCHEMA}; export again with this version")
    try:
        manifest: Manifest = parse(Manifest, raw, str(file))
    except ValueError as error:
        raise BundleError(f"{error}; export again with this version of seqrt") from error
    _check_task(manifest, file)
    _check_shapes(manifest, file)
    _check_units(manifest, file)
    _check_roles(manifest, file)
    return manifest


def _check_task(manifest: Manifest, file: Path) -> None:
    parts = {"generate": manifest.model, "ocr": manifest.recognizer, "solve": manifest.solver}
    held = [task for task, part in parts.items() if part is not None]
    if held != [manifest.task]:
        raise BundleError(f"{file}: the task is {manifest.task!r}, the bundle is made for {held}; export again")


def _check_shapes(manifest: Manifest, file: Path) -> None:
    sizes = {"capacity": manifest.capacity}
    if manifest.model is not None:
        shape = dataclasses.asdict(manifest.model)
        sizes |= {name: value for name, value in shape.items() if name not in ("eos_token_ids", "bos_token_id")}
    if (reader := manifest.recognizer) is not None:
        sizes["num_classes"] = reader.num_classes
        for size in reader.sizes or ((),):
            if len(size) != 2 or not all(0 < side < _MAX_PIXELS for side in size) or size[0] * size[1] > _MAX_PIXELS:
                raise BundleError(f"{file}: images of {list(size)} pixels, expected height and width; export again")
        if reader.recipe not in RECIPES or reader.kind not in ("cppd", "nrtr"):
            raise BundleError(
                f"{file}: a recogniser {reader.kind!r} with recipe {reader.recipe!r} is unknown; export again with this"
                " version of seqrt"
            )
    if (solver := manifest.solver) is not None:
        sizes |= {"input_dim": solver.input_dim, **{f"sizes[{i}]": size for i, size in enumerate(solver.sizes)}}
        if not solver.sizes or list(solver.sizes) != sorted(set(solver.sizes)) or solver.task not in SOLVER_TASKS:
            raise BundleError(
                f"{file}: a solver of {solver.task!r} with sizes {list(solver.sizes)} is unknown; export again with"
                " this version of seqrt"
            )
    for head in manifest.heads:
        sizes |= {f"heads.{head.name}.num_heads": head.num_heads, f"heads.{head.name}.top_k": head.top_k}
    for name, value in sizes.items():
        if not 0 < value < _MAX_DIMENSION:
            raise BundleError(f"{file}: {name} is {value}, expected 1 to {_MAX_DIMENSION - 1}; export again")


def _check_units(manifest: Manifest, file: Path) -> None:
    units = manifest.units
    if units is None:
        return
    if units.pad_token_id != manifest.decoder.vocab_size:
        raise BundleError(
            f"{file}: units.pad_token_id is {units.pad_token_id}, expected the token after the vocabulary,"
            f" {manifest.decoder.vocab_size}; export again"
        )
    if units.lookahead < 2 or not 0 < units.beta <= 1:
        raise BundleError(
            f"{file}: units has lookahead {units.lookahead} and beta {units.beta}, expected 2 or more and 0 to 1;"
            " export again"
        )


def _check_roles(manifest: Manifest, file: Path) -> None:
    if taken := {head.name for head in manifest.heads} & set(RESERVED_NAMES):
        raise BundleError(f"{file} has draft heads called {min(taken)}, a reserved name; export again")
    needed = [role for head in manifest.heads for role in (*head.graphs, head.prefix) if role is not None]
    for variant in manifest.variants or ("any engine",):
        roles = [graph.role for graph in manifest.graphs if graph.variant == variant]
        for role in (*manifest.roles, *needed):
            if roles.count(role) != 1:
                raise BundleError(
                    f"{file} has {roles.count(role)} graphs for {role!r} and {variant}, expected 1; export again"
                )


def _check_file(path: Path, name: str, info: FileInfo) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or not parts.parts:
        raise BundleError(f"{path / MANIFEST} lists {name!r}, a path outside the bundle; do not use this bundle")
    file = path
    for part in parts.parts:
        file = file / part
        if file.is_symlink():
            raise BundleError(f"{file} is a link; a bundle holds regular files only, copy them in")
    if not file.is_file():
        raise BundleError(f"{file} is missing; export again")
    if file.stat().st_size != info.size:
        raise BundleError(f"{file} has {file.stat().st_size} bytes, the manifest says {info.size}; export again")
