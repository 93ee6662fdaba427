"""What rewrites of a graph share: the place of a node that others are to stand in for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from seqrt.exporter.origins import origin, set_origin

_MADE = "seqrt.made"  # key of a graph's meta data: values that several rewrites share, by name


@dataclass(frozen=True, slots=True)
class Site:
    """A node of a graph that is being replaced.

    Attributes:
        graph: it is in.
        node: the node.
        owner: the node whose origin new ones have, if it is another.
    """

    graph: ir.Graph
    node: ir.Node
    owner: ir.Node | None = None

    def of(self, value: ir.Value) -> "Site":
        """The same place, for nodes that have their origin where `value` has it, if a node makes that."""
        return replace(self, owner=value.producer())

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        **attributes: int | float | Sequence[int] | ir.TensorProtocol,
    ) -> ir.Value:
        """The output, called `name`, of a new node of one output in front of this one."""
        made = ir.node(op, inputs, attributes)
        made.outputs[0].name = name
        self.insert(made)
        return made.outputs[0]

    def insert(self, made: ir.Node) -> None:
        """Puts a new node in front of this one."""
        set_origin(made, origin(self.owner or self.node))
        self.graph.insert_before(self.node, made)

    def constant(self, name: str, array: npt.ArrayLike, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """The initialiser `name`; made at the first call with that name."""
        if name not in self.graph.initializers:
            values = np.asarray(array).astype(dtype.numpy())
            tensor = ir.tensor(values, dtype=dtype, name=name)
            value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(values.shape), const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` made at the first call with that name; nodes that come later in the graph may use it too."""
        known: dict[str, ir.Value] = self.graph.meta.setdefault(_MADE, {})
        if name not in known:
            known[name] = make()
        return known[name]

    def take_over(self, value: ir.Value) -> None:
        """Puts `value` in the place of the node's only output, name and shape included, and removes the node."""
        old = self.node.outputs[0]
        value.shape, value.type = old.shape, old.type
        if old.is_graph_output():
            value.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
