"""The torch module that each node of a graph comes from, and names of nodes that tell it: `layers.3.mlp.up/MatMul_81`.

Profilers report times by node: with such names they can be summed by module without a look at the graph.
"""

import ast
from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import Final

import onnx_ir as ir

_ORIGIN: Final = "seqrt.origin"  # key of a node's meta data, which no file gets
_SCOPES: Final = "pkg.torch.onnx.name_scopes"  # "['', 'mlp', 'mlp.up', 'matmul_2']": nested modules, then the operator


def read_origins(graph: ir.Graph, paths: Collection[str]) -> None:
    """Of all that torch noted in a graph, keeps only the modules: the graph's name, then the path inside it.

    What torch's optimiser made belongs to the innermost module that holds everything it is connected with.

    Args:
        graph: as torch traced it.
        paths: of the traced module, which is "", and those inside it.
    """
    found: dict[ir.Node, str] = {}
    for node in graph:
        scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if scopes:
            path = "".join(scopes[-2:-1])
            found[node] = path if path in paths else ""  # torch makes one up for what it finds no module of
    for node in graph:
        if node not in found:
            near = (*node.predecessors(), *node.successors())
            found[node] = _around(found[other] for other in near if other in found)
        set_origin(node, ".".join(filter(None, (graph.name, found[node]))))
    values = (value for node in graph for value in node.outputs)
    for noted in (graph, *graph, *values, *graph.inputs, *graph.initializers.values()):
        noted.metadata_props.clear()  # stack traces with paths of this machine, among others


def origin(node: ir.Node) -> str:
    """Path of the module that a node comes from, "" if nobody said."""
    return str(node.meta.get(_ORIGIN, ""))


def set_origin(node: ir.Node, path: str) -> None:
    """Says which module a node comes from."""
    node.meta[_ORIGIN] = path


def name_nodes(graph: ir.Graph) -> None:
    """Names every node after its origin, its operator and its place in the graph."""
    for place, node in enumerate(graph):
        node.name = f"{origin(node) or graph.name}/{node.op_type}_{place}"


def _around(paths: Iterable[str]) -> str:
    """The innermost module that holds all of these; "" of none."""
    steps = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))
