"""From a checkpoint to a bundle: read it, assemble the graphs, and only then give the directory its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from seqrt.errors import ExportError
from seqrt.exporter.assemble import Assembly
from seqrt.exporter.checkpoints import Checkpoint, open_checkpoint
from seqrt.exporter.checkpoints.lud import Merged, merge
from seqrt.exporter.heads.read import read_heads
from seqrt.exporter.parts import Progress
from seqrt.exporter.quantize import METHODS, Method, require_blocks
from seqrt.exporter.staging import check_replaceable, staged
from seqrt.exporter.targets import variants
from seqrt.exporter.weights import DecoderWeights, projection_names
from seqrt.graphs.decoder import NUM_CANDIDATES
from seqrt.runtime.bundle import MANIFEST, RESERVED_NAMES, Manifest, ModelInfo, describe_files

DEFAULT_CAPACITY: Final = 4096
DEFAULT_TARGETS: Final = ("ort",)


@dataclass(frozen=True, slots=True)
class Report:
    """What an export did.

    Attributes:
        bundle: what was made.
        name: of the source, for people.
        kept: with --quantize source, the weights that have the source's own blocks, and their bytes in the bundle.
        rounded: with --quantize source, those whose blocks could not be kept and are int8 now, likewise.
        differences: largest difference from torch per graph file and output; empty without checks.
        notes: what was taken for granted.
    """

    bundle: Path
    name: str
    kept: Mapping[str, int]
    rounded: Mapping[str, int]
    differences: Mapping[str, Mapping[str, float]]
    notes: Sequence[str] = ()


def export(
    source: Path,
    bundle: Path,
    *,
    heads: Mapping[str, Path] | None = None,
    lud: Path | None = None,
    quantize: Method = "none",
    targets: Sequence[str] = DEFAULT_TARGETS,
    dtypes: Sequence[str] = (),
    capacity: int | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Exports a model, and draft heads for it, as a bundle. Nothing appears at `bundle` before it is complete.

    Args:
        source: Hugging Face directory or GGUF file.
        bundle: directory to make.
        heads: draft heads by the name that --draft will take.
        lud: adapter of lexical units, merged into the weights.
        quantize: weight quantisation.
        targets: engines to export for, names of `targets.TARGETS`.
        dtypes: types of floats, each for every target; the target's own if none is given.
        capacity: most tokens of prompt and answer; the model's own limit or 4096, whichever is less, if None.
        check: compare every graph with torch on random inputs.
        force: replace what is at `bundle`.
        progress: told what is being done.

    Raises:
        CheckpointError: the source, the heads or the adapter cannot be read.
        ExportError: bad arguments, a target that lacks an operator, a failed check, or the directory cannot be written.
    """
    if quantize not in METHODS:
        raise ExportError(f"--quantize {quantize} is unknown; choose one of {', '.join(METHODS)}")
    wanted = variants(tuple(targets), tuple(dtypes))
    if taken := sorted(set(heads or {}) & set(RESERVED_NAMES)):
        raise ExportError(f"draft heads cannot be called {taken[0]}; choose another name")
    check_replaceable(bundle, force)
    if lud is not None and quantize == "source":
        raise ExportError(
            f"--lud {lud} changes weights, so that --quantize source has no blocks to keep; use int8 or int4"
        )
    checkpoint = open_model(source, lud)
    limit = checkpoint.config.max_positions
    if capacity is not None and not 1 <= capacity <= limit:
        raise ExportError(f"--capacity {capacity} is out of range; {checkpoint.name} takes 1 to {limit}")
    weights = DecoderWeights(checkpoint)
    if quantize == "source":
        require_blocks(weights, projection_names(checkpoint.config.num_layers))
    with staged(bundle) as folder:
        graphs = folder / "graphs"
        graphs.mkdir()
        _write_texts(folder, checkpoint)
        all_heads = [read_heads(name, path, weights) for name, path in (heads or {}).items()]
        made = Assembly(weights, all_heads, quantize, capacity or min(limit, DEFAULT_CAPACITY))
        made.write(graphs, wanted, check=check, progress=progress)
        _write_manifest(folder, checkpoint, made)
    sizes = made.stored if quantize == "source" else {}
    kept = {name: size for name, size in sizes.items() if made.blocks[name].exact}
    rounded = {name: size for name, size in sizes.items() if name not in kept}
    return Report(bundle, checkpoint.name, kept, rounded, made.differences)


def open_model(source: Path, lud: Path | None) -> Checkpoint:
    """The source, with an adapter of lexical units merged into it if there is one.

    Raises:
        CheckpointError: one of them cannot be read, or the adapter is for another base.
    """
    base = open_checkpoint(source)
    return base if lud is None else merge(base, lud)


def _write_texts(folder: Path, checkpoint: Checkpoint) -> None:
    texts = {"tokenizer.json": checkpoint.tokenizer_json(), "chat_template.jinja": checkpoint.chat_template}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")


def _write_manifest(folder: Path, checkpoint: Checkpoint, made: Assembly) -> None:
    config = checkpoint.config
    model = ModelInfo(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        num_candidates=min(NUM_CANDIDATES, config.vocab_size),
        eos_token_ids=tuple(checkpoint.eos_token_ids),
        bos_token_id=checkpoint.bos_token_id,
    )
    manifest = Manifest(
        name=checkpoint.name,
        family="decoder",
        task="generate",
        capacity=made.capacity,
        quantization=made.quantize,
        model=model,
        graphs=tuple(made.infos),
        heads=tuple(heads.info for heads in made.heads),
        units=checkpoint.info if isinstance(checkpoint, Merged) else None,
        files=describe_files(folder),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
