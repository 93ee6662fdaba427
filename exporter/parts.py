"""Graphs that are one module each: traced whole, filled with its weights, lowered, written and checked."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from seqrt.exporter.check import check_graph
from seqrt.exporter.origins import name_nodes
from seqrt.exporter.passes import turn_weights
from seqrt.exporter.staging import staged
from seqrt.exporter.stitch import model_of
from seqrt.exporter.store import WeightStore, weight_store
from seqrt.exporter.targets import TORCH_DTYPES, Variant
from seqrt.exporter.trace import trace
from seqrt.runtime.bundle import MANIFEST, GraphInfo, Manifest, describe_files

_CACHES: Final = ("past_key", "past_value")  # begins of the names of inputs that have the graph's own type

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A graph before it is traced.

    Attributes:
        role: its name in the bundle.
        module: with its weights in place.
        inputs: example inputs, for the tracer and for the check.
        outputs: names of the outputs.
        symbols: of each input, its symbolic dimensions.
        shared: parameters that other graphs have too, and the names they share.
    """

    role: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    symbols: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    def trace(self, dtype: torch.dtype = torch.float32) -> ir.Graph:
        """The ONNX graph; its initialisers are the module's parameters, its caches and what it computes are `dtype`."""
        module = self.module if dtype == torch.float32 else copy.deepcopy(self.module).to(dtype)
        inputs = {name: value.to(dtype) if name.startswith(_CACHES) else value for name, value in self.inputs.items()}
        return trace(self.role, module, inputs, self.outputs, self.symbols)

    def own(self, key: str) -> str:
        """Name in the store of a parameter, or of a part of it."""
        base = next((name for name in self.shared if key == name or key.startswith(f"{name}.")), None)
        return f"{self.role}.{key}" if base is None else self.shared[base] + key.removeprefix(base)


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_parts` wrote.

    Attributes:
        infos: of each graph.
        differences: from torch, largest by graph and output, if checked.
    """

    infos: list[GraphInfo]
    differences: dict[str, dict[str, float]]


def write_parts(
    folder: Path, parts: Sequence[Part], variants: Sequence[Variant], *, check: bool, progress: Progress
) -> Written:
    """Writes every part in every variant, and their weights.

    Raises:
        ExportError: a target lacks an operator, a weight does not fit its type, or a graph is wrong.
    """
    made = Written([], {})
    with ExitStack() as stack:
        stores: dict[str, WeightStore] = {}
        for dtype in dict.fromkeys(variant.dtype for variant in variants):
            progress("tracing the graphs" if dtype == "fp32" else f"tracing the graphs in {dtype}")
            traced = [part.trace(TORCH_DTYPES[dtype]) for part in parts]
            for variant in (variant for variant in variants if variant.dtype == dtype):
                progress(f"writing {variant.name}")
                if variant.weights not in stores:
                    stores[variant.weights] = stack.enter_context(weight_store(folder / variant.weights))
                for part, original in zip(parts, traced, strict=True):
                    graph = original.clone()
                    state = {key: value.numpy() for key, value in part.module.state_dict().items()}
                    names = [key for key in state if key in graph.initializers]
                    turn = not variant.target.is_native
                    place(graph, names, part.own, state.__getitem__, stores[variant.weights], turn=turn)
                    variant.lower(model_of(graph))
                    name_nodes(graph)
                    ir.save(model_of(graph), folder / variant.file(part.role))
                    made.infos.append(graph_info(part.role, variant, graph))
    if check:
        progress("comparing the graphs with torch")
        for variant in (each for each in variants if each.dtype != "bf16"):  # ONNX Runtime has no such kernels
            for part in parts:
                file, inputs = folder / variant.file(part.role), {k: v.numpy() for k, v in part.inputs.items()}
                worst = check_graph(file, part.module, inputs, list(part.outputs), half=variant.dtype != "fp32")
                made.differences[file.stem] = worst
    return made


def write_bundle(
    bundle: Path,
    parts: Sequence[Part],
    variants: Sequence[Variant],
    manifest: Manifest,
    texts: Mapping[str, str] | None = None,
    *,
    check: bool,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Writes a bundle whose graphs are parts; nothing appears at `bundle` before it is complete.

    Args:
        bundle: directory to make.
        parts: its graphs.
        variants: of each.
        manifest: what is known before they are written.
        texts: further files, by name.
        check: compare every graph with torch.
        progress: told what is being done.

    Returns:
        The largest differences from torch, by graph and output.

    Raises:
        ExportError: as `write_parts`, or the directory cannot be written.
    """
    with staged(bundle) as folder:
        (folder / "graphs").mkdir()
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        made = write_parts(folder / "graphs", parts, variants, check=check, progress=progress)
        whole = replace(manifest, graphs=tuple(made.infos), files=describe_files(folder))
        (folder / MANIFEST).write_text(whole.to_json(), encoding="utf-8")
    return made.differences


def place(
    graph: ir.Graph,
    names: Sequence[str],
    own: Callable[[str], str],
    read: Callable[[str], npt.NDArray[np.generic]],
    store: WeightStore,
    *,
    turn: bool,
) -> None:
    """Gives parameters their values, held by the store under the names that `own` says; matrices turned if asked."""
    turned = turn_weights(graph, names) if turn else set()
    for name in names:
        value = graph.initializers[name]
        if name in turned:
            value.const_value = store.tensor(f"{own(name)}.turned", partial(_turned, read, name), value)
        else:
            value.const_value = store.tensor(own(name), partial(read, name), value)


def graph_info(role: str, variant: Variant, graph: ir.Graph) -> GraphInfo:
    """What the manifest says of a graph."""
    return GraphInfo(
        role=role,
        path=f"graphs/{variant.file(role)}",
        dtype=variant.dtype,
        profile=variant.target.name,
        opset=variant.target.opset,
        weight_bytes=_weight_bytes(graph),
    )


def random_input(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers for the same shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _turned(read: Callable[[str], npt.NDArray[np.generic]], name: str) -> npt.NDArray[np.generic]:
    return read(name).T


def _weight_bytes(graph: ir.Graph) -> int:
    """What a run reads of the initialisers; of a table that rows are gathered from, next to nothing."""
    read = (
        value.const_value
        for value in graph.initializers.values()
        if any(node.op_type not in ("Gather", "GatherND") for node, _ in value.uses())
    )
    return sum(tensor.nbytes for tensor in read if tensor is not None)
