"""All graphs of a bundle in every variant: traced for each type, filled with weights, lowered, written, checked."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from seqrt.exporter.blocks import rewrite
from seqrt.exporter.check import Arrays, check_compaction, check_decoder, check_graph
from seqrt.exporter.checkpoints import QuantBlocks
from seqrt.exporter.heads import EMBEDDING, Heads
from seqrt.exporter.origins import name_nodes
from seqrt.exporter.parts import Part, Progress, graph_info, place
from seqrt.exporter.passes import fix_dimension
from seqrt.exporter.quantize import BLOCK, Method, as_computed, quantized, round_int8
from seqrt.exporter.stitch import (
    Score,
    compaction_graph,
    decoder_graph,
    logits_graph,
    model_of,
    parameters_of,
    score_graph,
)
from seqrt.exporter.store import WeightStore, weight_store
from seqrt.exporter.targets import TORCH_DTYPES, Dtype, Variant, require
from seqrt.exporter.weights import DecoderWeights, load_decoder
from seqrt.runtime.bundle import STATIC_ROOM, GraphInfo

Graphs = dict[str, ir.Graph]


@dataclass(slots=True)
class Assembly:
    """What the graphs of all variants are made from, and what was made.

    Attributes:
        weights: of the model.
        heads: its draft heads.
        quantize: weight quantisation.
        capacity: most tokens of prompt and answer.
        infos: of each graph that was written.
        differences: from torch, largest by graph and output, if checked.
        stored: bytes of each quantised weight.
        blocks: quantised weights of the model by parameter name.
    """

    weights: DecoderWeights
    heads: Sequence[Heads]
    quantize: Method
    capacity: int
    infos: list[GraphInfo] = field(default_factory=list)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, QuantBlocks] = field(default_factory=dict)
    _head_blocks: dict[str, dict[str, QuantBlocks]] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """The graphs of all draft heads."""
        return [part for heads in self.heads for part in heads.graphs]

    def write(self, folder: Path, variants: Sequence[Variant], *, check: bool, progress: Progress) -> None:
        """Writes every graph of every variant, and their weights.

        Raises:
            ExportError: a target lacks an operator, a weight does not fit its type, or a graph is wrong.
        """
        if self.quantize != "none":
            for variant in variants:
                require(variant.target, "DequantizeLinear", f"--quantize {self.quantize}")
        written: dict[Variant, Graphs] = {}
        with ExitStack() as stack:
            stores: dict[str, WeightStore] = {}
            for dtype in dict.fromkeys(variant.dtype for variant in variants):
                progress("tracing the graphs" if dtype == "fp32" else f"tracing the graphs in {dtype}")
                traced = self._traced(dtype)
                self._quantize(parameters_of(traced["decoder"]), progress)
                for variant in (variant for variant in variants if variant.dtype == dtype):
                    progress(f"writing {variant.name}")
                    name = variant.weights
                    if name not in stores:
                        stores[name] = stack.enter_context(weight_store(folder / name))
                    written[variant] = {
                        role: self._written(graph.clone(), role, variant, stores[name], folder)
                        for role, graph in traced.items()
                    }
        comparable = [variant for variant in written if variant.dtype != "bf16"]  # ONNX Runtime has no such kernels
        if check and comparable:
            self._check(folder, comparable, progress)
        for variant, graphs in written.items():
            if not variant.target.is_native:  # TensorRT wants caches of one size
                for role, graph in graphs.items():
                    fix_dimension(graph, "C", self.capacity + STATIC_ROOM)
                    ir.save(model_of(graph), folder / variant.file(role))
            self.infos += [graph_info(role, variant, graph) for role, graph in graphs.items()]
        first = next(iter(written.values()))["decoder"]
        self.stored = {name: _stored_bytes(first, name) for name in self.blocks}

    def _traced(self, dtype: Dtype) -> Graphs:
        config, kind = self.weights.checkpoint.config, TORCH_DTYPES[dtype]
        graphs = {
            "decoder": decoder_graph(config, {heads.info.hidden_state_offset for heads in self.heads}, kind),
            "logits": logits_graph(config, kind),
            "score": score_graph(config, kind),
            "compaction": compaction_graph(config, kind),
        }
        return graphs | {part.role: part.trace(kind) for part in self.parts}

    def _quantize(self, parameters: Sequence[str], progress: Progress) -> None:
        """Makes the blocks, once; the modules of heads, which graphs are checked against, get the rounded values."""
        if self.blocks or self._head_blocks:
            return
        if self.quantize != "none":
            progress(f"quantising weights ({self.quantize})")
        found = {name: quantized(self.weights, name, self.quantize) for name in parameters}
        self.blocks = {name: made for name, made in found.items() if made is not None}
        for part in self.parts:
            own = self._head_blocks[part.role] = {}
            for key, value in part.module.state_dict().items():
                kept = self._of_head(key, value.numpy())
                if kept is not None:
                    own[key] = kept
                    values = kept.dequantize() if key == EMBEDDING else np.ascontiguousarray(kept.dequantize().T)
                    part.module.get_parameter(key).data = torch.from_numpy(values)

    def _of_head(self, key: str, value: npt.NDArray[np.float32]) -> QuantBlocks | None:
        """With a quantised base matrices of heads are int8: a wrong guess costs time only. Stacks stay floats."""
        if key == EMBEDDING:
            return self.blocks.get(EMBEDDING)
        is_rounded = self.quantize != "none" and value.ndim == 2 and value.shape[0] % BLOCK == 0
        return round_int8(value.T) if is_rounded else None

    def _written(self, graph: ir.Graph, role: str, variant: Variant, store: WeightStore, folder: Path) -> ir.Graph:
        part = next((part for part in self.parts if part.role == role), None)
        signed = not variant.target.is_native
        if part is None:
            self._fill(graph, store, signed=signed)
        else:
            self._fill_heads(graph, part, store, signed=signed)
        variant.lower(model_of(graph))
        name_nodes(graph)
        ir.save(model_of(graph), folder / variant.file(role))
        return graph

    def _fill(self, graph: ir.Graph, store: WeightStore, *, signed: bool) -> None:
        """Gives the parameters of a decoder, logits or score graph their values, quantised where `blocks` says so."""
        blocks = {name: kept for name, kept in self.blocks.items() if name in graph.initializers}
        names = [name for name in parameters_of(graph) if name not in blocks]
        rewrite(graph, blocks, partial(store.initializer, graph), signed=signed)
        tied = self.weights.checkpoint.config.tied_embeddings

        def own(name: str) -> str:
            return "embed.weight" if tied and name == "head.weight" else name

        place(graph, names, own, lambda name: self.weights.tensor(own(name)), store, turn=signed)

    def _fill_heads(self, graph: ir.Graph, part: Part, store: WeightStore, *, signed: bool) -> None:
        """The same for a graph of draft heads."""
        blocks = self._head_blocks[part.role]
        state = {key: value.numpy() for key, value in part.module.state_dict().items()}
        names = [key for key in state if key in graph.initializers and key not in blocks]
        rewrite(
            graph,
            blocks,
            lambda key, array, dtype: store.initializer(graph, part.own(key), array, dtype),
            signed=signed,
        )
        place(graph, names, part.own, state.__getitem__, store, turn=signed)

    def _check(self, folder: Path, variants: Sequence[Variant], progress: Progress) -> None:
        """Each graph against torch with the weights as quantised, so that only the graph is judged."""
        replaced = {name: partial(as_computed, name, kept) for name, kept in self.blocks.items()}
        decoder = load_decoder(self.weights, replaced)
        progress("comparing the graphs with torch")
        hidden = np.random.default_rng(0).standard_normal((2, decoder.config.hidden_size)).astype(np.float32)
        with torch.device("meta"):
            score = Score(decoder.config)
        scored: Arrays = {"hidden": hidden, "token_ids": np.arange(2)}
        score.head = decoder.readout.head
        for variant in variants:
            half = variant.dtype != "fp32"
            files = {role: folder / variant.file(role) for role in ("decoder", "logits", "score", "compaction")}
            found = {
                "decoder": check_decoder(files["decoder"], decoder, half=half),
                "logits": check_graph(files["logits"], decoder.readout.head, {"hidden": hidden}, ["logits"], half=half),
                "score": check_graph(files["score"], score, scored, ["log_probabilities", "top1_ids"], half=half),
                "compaction": check_compaction(files["compaction"], decoder.config, half=half),
            }
            for part in self.parts:
                inputs = {name: value.numpy() for name, value in part.inputs.items()}
                file = folder / variant.file(part.role)
                found[part.role] = check_graph(file, part.module, inputs, list(part.outputs), half=half)
            self.differences |= {variant.file(role).removesuffix(".onnx"): worst for role, worst in found.items()}


def _stored_bytes(graph: ir.Graph, name: str) -> int:
    """What the parts of the quantised weight `name` take: codes, scales and the rest."""
    parts = (value.const_value for key, value in graph.initializers.items() if key.startswith(f"{name}."))
    return sum(tensor.nbytes for tensor in parts if tensor is not None)
