"""From a checkpoint to a bundle: read, trace, quantise, write, check, and only then give the directory its name."""

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from seqrt.errors import ExportError
from seqrt.exporter.check import check_compaction, check_decoder, check_graph
from seqrt.exporter.checkpoints import Checkpoint, QuantBlocks, open_checkpoint
from seqrt.exporter.heads import EMBEDDING, HeadGraph
from seqrt.exporter.heads.read import read_heads
from seqrt.exporter.quantize import (
    BLOCK,
    METHODS,
    Method,
    as_computed,
    quantized,
    require_blocks,
    rewrite,
    round_int8,
)
from seqrt.exporter.stitch import compaction_graph, decoder_graph, model_of, parameters_of
from seqrt.exporter.store import WeightStore, weight_store
from seqrt.exporter.trace import OPSET, trace
from seqrt.exporter.weights import DecoderWeights, load_decoder, projection_names
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import NUM_CANDIDATES
from seqrt.runtime.bundle import (
    MANIFEST,
    RESERVED_NAMES,
    GraphInfo,
    HeadInfo,
    Manifest,
    ModelInfo,
    describe_files,
)

DEFAULT_CAPACITY: Final = 4096
_PROFILE: Final = "ort"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What an export did.

    Attributes:
        bundle: what was made.
        name: of the source, for people.
        kept: with --quantize source, the weights that have the source's own blocks, and their bytes in the bundle.
        rounded: with --quantize source, those whose blocks could not be kept and are int8 now, likewise.
        differences: largest difference from torch per graph and output; empty without checks.
    """

    bundle: Path
    name: str
    kept: Mapping[str, int]
    rounded: Mapping[str, int]
    differences: Mapping[str, Mapping[str, float]]


def export(
    source: Path,
    bundle: Path,
    *,
    heads: Mapping[str, Path] | None = None,
    quantize: Method = "none",
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
        quantize: weight quantisation.
        capacity: most tokens of prompt and answer; the model's own limit or 4096, whichever is less, if None.
        check: compare every graph with torch on random inputs.
        force: replace what is at `bundle`.
        progress: told what is being done.

    Raises:
        CheckpointError: the source or the heads cannot be read.
        ExportError: bad arguments, a failed check, or the directory cannot be written.
    """
    if quantize not in METHODS:
        raise ExportError(f"--quantize {quantize} is unknown; choose one of {', '.join(METHODS)}")
    if taken := sorted(set(heads or {}) & set(RESERVED_NAMES)):
        raise ExportError(f"draft heads cannot be called {taken[0]}; choose another name")
    _check_replaceable(bundle, force)
    checkpoint = open_checkpoint(source)
    limit = checkpoint.config.max_positions
    if capacity is not None and not 1 <= capacity <= limit:
        raise ExportError(f"--capacity {capacity} is out of range; {checkpoint.name} takes 1 to {limit}")
    weights = DecoderWeights(checkpoint)
    if quantize == "source":
        require_blocks(weights, projection_names(checkpoint.config.num_layers))
    with _staged(bundle) as folder:
        kept, rounded, differences = _write(
            folder, weights, dict(heads or {}), quantize, capacity or min(limit, DEFAULT_CAPACITY), check, progress
        )
    return Report(bundle, checkpoint.name, kept, rounded, differences)


@contextmanager
def _staged(bundle: Path) -> Iterator[Path]:
    """A temporary directory beside `bundle` that takes its name at the end, or vanishes."""
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=bundle.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {bundle.parent}: {error.strerror}; {_advice(error)}") from error
    previous = folder.with_name(f"{folder.name}.previous")
    try:
        yield folder
        if bundle.exists():
            bundle.rename(previous)
        folder.chmod(0o755)  # mkdtemp makes it private
        folder.rename(bundle)
    except OSError as error:
        if previous.exists() and not bundle.exists():
            previous.rename(bundle)
        raise ExportError(f"cannot write {bundle}: {error.strerror}; {_advice(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _advice(error: OSError) -> str:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another disk" if is_full else "choose a directory that you may write to"


def _check_replaceable(bundle: Path, force: bool) -> None:
    """Raises ExportError unless nothing but a bundle (or an empty directory, with `force`) would be replaced."""
    if not bundle.exists():
        return
    if not force:
        raise ExportError(f"{bundle} exists; choose another directory or replace it with --force")
    if not bundle.is_dir() or bundle.is_symlink() or (any(bundle.iterdir()) and not (bundle / MANIFEST).is_file()):
        raise ExportError(f"{bundle} is no bundle, and --force replaces nothing else; choose another directory")
    if bundle.resolve() == Path.cwd():
        raise ExportError(f"{bundle} is the current directory; change to another one to replace it")


def _write(
    folder: Path,
    weights: DecoderWeights,
    head_paths: Mapping[str, Path],
    quantize: Method,
    capacity: int,
    check: bool,
    progress: Progress,
) -> tuple[dict[str, int], dict[str, int], dict[str, dict[str, float]]]:
    """Writes everything; returns what Report says of it."""
    checkpoint, config = weights.checkpoint, weights.checkpoint.config
    (folder / "graphs").mkdir()
    _write_texts(folder, checkpoint)
    all_heads = [read_heads(name, path, weights) for name, path in head_paths.items()]
    parts = [part for heads in all_heads for part in heads.graphs]
    progress("tracing the decoder")
    graphs = {
        "decoder": decoder_graph(config, {heads.info.hidden_state_offset for heads in all_heads}),
        "logits": _logits_graph(config),
        "compaction": compaction_graph(config),
    }
    parameters = parameters_of(graphs["decoder"])
    progress("writing weights" if quantize == "none" else f"quantising weights ({quantize})")
    found = {name: quantized(weights, name, quantize) for name in parameters}
    blocks = {name: made for name, made in found.items() if made is not None}
    with weight_store(folder / "graphs" / "weights.bin") as store:
        for graph in graphs.values():
            _fill(graph, store, blocks, weights)
        for part in parts:
            graphs[part.role] = _fill_heads(part, store, blocks, quantize)
    for role, graph in graphs.items():
        ir.save(model_of(graph), folder / "graphs" / f"{role}.onnx")
    differences: dict[str, dict[str, float]] = {}
    if check:
        progress("comparing the graphs with torch")
        differences = _check(folder / "graphs", weights, blocks, parts)
    _write_manifest(folder, checkpoint, graphs, [heads.info for heads in all_heads], quantize, capacity)
    sizes = {name: _stored_bytes(graphs["decoder"], name) for name in blocks} if quantize == "source" else {}
    kept = {name: size for name, size in sizes.items() if blocks[name].exact}
    rounded = {name: size for name, size in sizes.items() if name not in kept}
    return kept, rounded, differences


def _fill(graph: ir.Graph, store: WeightStore, blocks: Mapping[str, QuantBlocks], weights: DecoderWeights) -> None:
    """Gives the parameters of a decoder or logits graph their values, quantised where `blocks` says so."""
    names = [name for name in parameters_of(graph) if name not in blocks]
    rewrite(
        graph,
        {name: kept for name, kept in blocks.items() if name in graph.initializers},
        partial(store.initializer, graph),
    )
    tied = weights.checkpoint.config.tied_embeddings
    for name in names:
        value = graph.initializers[name]
        own = "embed.weight" if tied and name == "head.weight" else name
        value.const_value = store.tensor(own, partial(weights.tensor, own), value)


def _fill_heads(part: HeadGraph, store: WeightStore, base: Mapping[str, QuantBlocks], quantize: Method) -> ir.Graph:
    """A graph of draft heads with its weights; with a quantised base these are int8: a wrong guess costs time only.

    Stacks of matrices stay in float32. The module, which the graph is checked against, gets the rounded values.
    """
    graph, names = part.trace(), part.shared
    state = {key: value.numpy() for key, value in part.module.state_dict().items()}
    blocks = {key: kept for key in state if (kept := _head_blocks(key, state[key], base, quantize)) is not None}
    for key, kept in blocks.items():
        values = kept.dequantize() if key == EMBEDDING else np.ascontiguousarray(kept.dequantize().T)
        part.module.get_parameter(key).data = torch.from_numpy(values)

    def own(key: str) -> str:
        """Name in the store of a parameter, or of a part of it."""
        shared = next((name for name in names if key == name or key.startswith(f"{name}.")), None)
        return f"{part.role}.{key}" if shared is None else names[shared] + key.removeprefix(shared)

    for key in state.keys() & graph.initializers.keys() - blocks.keys():
        value = graph.initializers[key]
        value.const_value = store.tensor(own(key), partial(state.__getitem__, key), value)
    rewrite(graph, blocks, lambda key, array, dtype: store.initializer(graph, own(key), array, dtype))
    return graph


def _head_blocks(
    key: str, value: npt.NDArray[np.float32], base: Mapping[str, QuantBlocks], quantize: Method
) -> QuantBlocks | None:
    if key == EMBEDDING:
        return base.get(EMBEDDING)
    return None if quantize == "none" or value.ndim != 2 or value.shape[0] % BLOCK else round_int8(value.T)


class _Logits(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.head(hidden)
        return result


def _logits_graph(config: DecoderConfig) -> ir.Graph:
    """Hidden `[R, H]` -> logits `[R, V]`, for what the top K do not answer."""
    graph = trace(_Logits(config), {"hidden": torch.zeros(2, config.hidden_size)}, ["logits"], {"hidden": {0: "R"}})
    graph.name = "logits"
    return graph


def _check(
    folder: Path, weights: DecoderWeights, blocks: Mapping[str, QuantBlocks], parts: Sequence[HeadGraph]
) -> dict[str, dict[str, float]]:
    """Each graph against torch with the weights as quantised, so that only the graph is judged."""
    decoder = load_decoder(weights, {name: partial(as_computed, name, kept) for name, kept in blocks.items()})
    hidden = np.random.default_rng(0).standard_normal((2, decoder.config.hidden_size)).astype(np.float32)
    differences = {
        "decoder": check_decoder(folder / "decoder.onnx", decoder),
        "logits": check_graph(folder / "logits.onnx", decoder.readout.head, {"hidden": hidden}, ["logits"]),
        "compaction": check_compaction(folder / "compaction.onnx", decoder.config),
    }
    for part in parts:
        inputs = {name: value.numpy() for name, value in part.inputs.items()}
        differences[part.role] = check_graph(folder / f"{part.role}.onnx", part.module, inputs, list(part.outputs))
    return differences


def _weight_bytes(graph: ir.Graph) -> int:
    """What a run reads of the initialisers; of a table that rows are gathered from, next to nothing."""
    read = (
        value.const_value
        for value in graph.initializers.values()
        if any(node.op_type not in ("Gather", "GatherND") for node, _ in value.uses())
    )
    return sum(tensor.nbytes for tensor in read if tensor is not None)


def _stored_bytes(graph: ir.Graph, name: str) -> int:
    """What the parts of the quantised weight `name` take: codes, scales and the rest."""
    parts = (value.const_value for key, value in graph.initializers.items() if key.startswith(f"{name}."))
    return sum(tensor.nbytes for tensor in parts if tensor is not None)


def _write_texts(folder: Path, checkpoint: Checkpoint) -> None:
    texts = {"tokenizer.json": checkpoint.tokenizer_json(), "chat_template.jinja": checkpoint.chat_template}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")


def _write_manifest(
    folder: Path,
    checkpoint: Checkpoint,
    graphs: Mapping[str, ir.Graph],
    heads: list[HeadInfo],
    quantize: Method,
    capacity: int,
) -> None:
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
        capacity=capacity,
        quantization=quantize,
        model=model,
        graphs=tuple(
            GraphInfo(
                role=role,
                path=f"graphs/{role}.onnx",
                dtype="fp32",
                profile=_PROFILE,
                opset=OPSET,
                weight_bytes=_weight_bytes(graph),
            )
            for role, graph in graphs.items()
        ),
        heads=tuple(heads),
        files=describe_files(folder),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
