"""Lowerings: rewrites of an ONNX graph that leave its meaning, for engines that lack an operator or run another faster.

Each says what it requires of a graph, does its work, and ensures that what it replaces is gone. exporter/targets.py
has the table of who imports what.
"""

from abc import abstractmethod
from collections.abc import Collection
from typing import ClassVar, Final

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from seqrt.exporter.rewriting import Site
from seqrt.runtime.bundle import CHUNK


class Lowering(InPlacePass):
    """Replaces every node of one operator by others.

    Attributes:
        op_type: the operator.
        replaces: whether none of it may be left.
    """

    op_type: ClassVar[str]
    replaces: ClassVar[bool] = True

    def requires(self, model: ir.Model) -> None:
        """Raises PreconditionError for a node of the operator that this lowering does not understand."""
        for node in _nodes(model, self.op_type):
            if (why := self.misfit(node)) is not None:
                raise PreconditionError(f"{type(self).__name__} does not know {node.op_type} {node.name} with {why}")

    def call(self, model: ir.Model) -> PassResult:
        """Lowers all of them."""
        found = _nodes(model, self.op_type)
        for node in found:
            self.lower(Site(model.graph, node), [value for value in node.inputs if value is not None])
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Raises PostconditionError if one is left."""
        if self.replaces and _nodes(model, self.op_type):
            raise PostconditionError(f"{type(self).__name__} left {self.op_type} behind")

    def misfit(self, node: ir.Node) -> str | None:
        """What of this node cannot be lowered, None if it all can."""
        return None

    @abstractmethod
    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Replaces one node."""


class FoldRows(Lowering):
    """Attention's rows as heads while they are few: `[1, Q, T, D]` becomes `[1, Q * T, 1, D]`.

    On a CPU, ONNX Runtime's products of a single row at scale 1 read the cache as it lies; those of several rows copy
    it first, which costs more than the product itself. And each row is summed in one order, however many there are: a
    token has the same bits alone and in a chain (docs/decisions/0006-one-row.md). The whole chunks of a prompt pay for
    the copy. What is made of a mask is made once for all layers.
    """

    op_type = "Attention"
    replaces = False

    def misfit(self, node: ir.Node) -> str | None:
        """Attention as graphs/ops.py defines it."""
        return _attention_misfit(node)

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Reshapes query and mask before the node, and the result behind it."""
        query, key, value, mask = inputs
        heads, width = _heads_and_width(query)
        shared = site.of(mask)

        def choice(folded: list[int], whole: list[int], name: str) -> ir.Value:
            both = [site.constant(f"shape.{'.'.join(map(str, shape))}", shape) for shape in (folded, whole)]
            return site.once(name, lambda: shared.add("Where", [few, *both], name))

        def few_rows() -> ir.Value:
            rows = shared.add("Shape", [mask], f"{mask.name}.rows", start=2, end=3)
            return shared.add("Less", [rows, site.constant("chunk", [CHUNK])], f"{mask.name}.few")

        def row_for_each_head() -> ir.Value:
            repeats = choice([1, heads, 1, 1], [1, 1, 1, 1], f"{mask.name}.repeats.{heads}")
            each = shared.add("Expand", [mask, repeats], f"{mask.name}.each.{heads}")
            return shared.add("Reshape", [each, choice([1, -1, 1, 0], [1, 1, -1, 0], f"{mask.name}.shape")], folded)

        few, folded = site.once(f"{mask.name}.few", few_rows), f"{mask.name}.folded.{heads}"
        shape = choice([1, -1, 1, width], [1, heads, -1, width], f"{mask.name}.query.{heads}.{width}")
        rows = site.add("Reshape", [query, shape], f"{query.name}.folded")
        folded_mask = site.once(folded, row_for_each_head)
        seen = site.add("Attention", [rows, key, value, folded_mask], f"{query.name}.seen", scale=1.0)
        whole = site.constant(f"shape.1.{heads}.-1.{width}", [1, heads, -1, width])
        site.take_over(site.add("Reshape", [seen, whole], f"{query.name}.rows"))


class PrimitiveAttention(Lowering):
    """Attention as MatMul, Add, Softmax, MatMul; query heads of a group share their keys by broadcasting."""

    op_type = "Attention"

    def misfit(self, node: ir.Node) -> str | None:
        """Attention as graphs/ops.py defines it."""
        return _attention_misfit(node)

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Queries `[1, Q, T, D]` are `[KV, Q / KV, T, D]` on the way."""
        query, key, value, mask = inputs
        heads, width = _heads_and_width(query)
        groups, _ = _heads_and_width(key)
        split = site.constant(f"groups.{groups}.{heads}.{width}", [groups, heads // groups, -1, width])
        join = site.constant(f"shape.1.{heads}.-1.{width}", [1, heads, -1, width])
        rows = site.add("Reshape", [query, split], f"{query.name}.grouped")
        keys = site.add("Transpose", [key], f"{query.name}.keys", perm=[1, 0, 3, 2])
        values = site.add("Transpose", [value], f"{query.name}.values", perm=[1, 0, 2, 3])
        scores = site.add("MatMul", [rows, keys], f"{query.name}.scores")
        masked = site.add("Add", [scores, mask], f"{query.name}.masked")
        weights = site.add("Softmax", [masked], f"{query.name}.weights", axis=-1)
        seen = site.add("MatMul", [weights, values], f"{query.name}.seen")
        site.take_over(site.add("Reshape", [seen, join], f"{query.name}.rows"))


class PrimitiveRotary(Lowering):
    """RotaryEmbedding of whole heads as products of their halves."""

    op_type = "RotaryEmbedding"

    def misfit(self, node: ir.Node) -> str | None:
        """4-D input, tables picked already, the half rotation of all dimensions."""
        names = ("interleaved", "num_heads", "rotary_embedding_dim")  # 3-D inputs have num_heads
        set_ = {name for name in names if node.attributes.get_int(name, 0)}
        return f"{len(node.inputs)} inputs and {sorted(set_)} set" if set_ or len(node.inputs) != 3 else None

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """x1 cos - x2 sin, x2 cos + x1 sin."""
        x, *tables = inputs
        axis = site.constant("axis.1", [1])

        def for_heads(table: ir.Value) -> ir.Value:
            name = f"{table.name}.heads"
            return site.once(name, lambda: site.of(table).add("Unsqueeze", [table, axis], name))

        cos, sin = map(for_heads, tables)
        halves = ir.node("Split", [x], {"axis": -1, "num_outputs": 2}, num_outputs=2)
        site.insert(halves)
        first, second = halves.outputs
        first.name, second.name = f"{x.name}.first", f"{x.name}.second"

        def products(of_cos: ir.Value, of_sin: ir.Value, name: str) -> list[ir.Value]:
            return [
                site.add("Mul", [of_cos, cos], f"{x.name}.{name}.cos"),
                site.add("Mul", [of_sin, sin], f"{x.name}.{name}.sin"),
            ]

        left = site.add("Sub", products(first, second, "left"), f"{x.name}.left")
        right = site.add("Add", products(second, first, "right"), f"{x.name}.right")
        site.take_over(site.add("Concat", [left, right], f"{x.name}.rotated", axis=-1))


class PrimitiveNorm(Lowering):
    """RMSNormalization over the last axis, in float32 arithmetic whatever the type of its values."""

    op_type = "RMSNormalization"

    def misfit(self, node: ir.Node) -> str | None:
        """The last axis only."""
        axis = node.attributes.get_int("axis", -1)
        return None if axis == -1 else f"axis {axis}"

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """X / sqrt(mean(x^2) + eps) * scale."""
        x, scale = inputs
        own, single = x.dtype or ir.DataType.FLOAT, ir.DataType.FLOAT
        eps, name = site.node.attributes.get_float("epsilon", 1e-5), str(site.node.outputs[0].name)
        wide = x if own == single else site.add("Cast", [x], f"{name}.wide", to=int(single))
        square = site.add("Mul", [wide, wide], f"{name}.square")
        mean = site.add("ReduceMean", [square, site.constant("axis.last", [-1])], f"{name}.mean")
        shifted = site.add("Add", [mean, site.constant(f"eps.{eps}", eps, single)], f"{name}.shifted")
        unit = site.add("Div", [wide, site.add("Sqrt", [shifted], f"{name}.root")], f"{name}.unit")
        narrow = unit if own == single else site.add("Cast", [unit], f"{name}.narrow", to=int(own))
        site.take_over(site.add("Mul", [narrow, scale], f"{name}.scaled"))


class ScatterCache(Lowering):
    """TensorScatter as ScatterElements; the indices are made once for all caches of a shape."""

    op_type = "TensorScatter"

    def misfit(self, node: ir.Node) -> str | None:
        """Rows of a cache, without wrapping around."""
        axis, mode = node.attributes.get_int("axis", -2), node.attributes.get_string("mode", "linear")
        return None if axis in (2, -2) and mode == "linear" else f"axis {axis} and mode {mode}"

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Row `write` + i of the cache becomes row i of the update."""
        past, update, write = inputs
        heads, width = _heads_and_width(past)
        length = None if update.shape is None else update.shape[2]
        name = f"{write.name}.rows.{heads}.{length}.{width}"

        def indices() -> ir.Value:
            zero, one, two = (site.constant(f"scalar.{i}", i) for i in range(3))
            shape = site.add("Shape", [update], f"{name}.shape")
            count = site.add("Gather", [shape, two], f"{name}.count", axis=0)
            rows = site.add("Add", [site.add("Range", [zero, count, one], f"{name}.range"), write], f"{name}.moved")
            column = site.add("Reshape", [rows, site.constant("shape.column", [1, 1, -1, 1])], f"{name}.column")
            return site.add("Expand", [column, shape], name)

        written = site.add("ScatterElements", [past, site.once(name, indices), update], f"{past.name}.written", axis=2)
        site.take_over(written)


class ExpandSwish(Lowering):
    """Swish as x * sigmoid(alpha x)."""

    op_type = "Swish"

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """An alpha other than one is multiplied in."""
        (x,) = inputs
        alpha, scaled, name = site.node.attributes.get_float("alpha", 1.0), x, str(site.node.outputs[0].name)
        if alpha != 1.0:
            factor = site.constant(f"{name}.alpha", alpha, x.dtype or ir.DataType.FLOAT)
            scaled = site.add("Mul", [x, factor], f"{name}.scaled")
        gate = site.add("Sigmoid", [scaled], f"{name}.gate")
        site.take_over(site.add("Mul", [x, gate], f"{name}.gated"))


class GatherHalves(Lowering):
    """The gate and up halves of a projection `[1, T, 2 I]` by Reshape and Gather instead of Split.

    TensorRT fuses a Split behind a product with what follows, in kernels for one row only and with the weights in an
    order of their own, so that an engine for one row and for several holds them twice (TensorRT-RTX 1.7.1: 411 MB
    for SmolLM2 in fp16 instead of 298 MB).
    """

    op_type = "Split"
    replaces = False

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Nothing but halves of the last of three axes."""
        x, halves = inputs[0], site.node.outputs
        shape, axis = x.shape, site.node.attributes.get_int("axis", 0)
        if shape is None or len(shape) != 3 or len(halves) != 2 or axis not in (2, -1):
            return
        wide = shape[2]
        if not isinstance(wide, int) or any(half.shape is None or half.shape[2] != wide // 2 for half in halves):
            return
        split = site.constant(f"halves.{wide}", [0, 0, 2, wide // 2])
        both = site.add("Reshape", [x, split], f"{x.name}.halves")
        for i, half in enumerate(halves):
            picked = site.add("Gather", [both, site.constant(f"scalar.{i}", i)], f"{x.name}.half.{i}", axis=2)
            picked.shape, picked.type = half.shape, half.type
            ir.convenience.replace_all_uses_with(half, picked)
        site.graph.remove(site.node, safe=True)


class GatherRows(Lowering):
    """Whole rows of `[B, rows, D]` by GatherND, where torch gathers element by element with indices that it expands.

    ONNX Runtime then copies rows at once: with constant shapes, a step of the attention model over 20 points takes it
    19.5 instead of 22.2 microseconds.
    """

    op_type = "GatherElements"
    replaces = False

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Nothing but rows whose indices `[B, K]` were repeated for every element."""
        table, repeated = inputs
        expand = repeated.producer()
        column = expand.inputs[0] if expand is not None and expand.op_type == "Expand" else None
        axis, made = site.node.attributes.get_int("axis", 0), site.node.outputs[0].shape
        if column is None or column.shape is None or table.shape is None or made is None or axis != 1:
            return
        if len(table.shape) != 3 or len(column.shape) != 3 or column.shape[2] != 1 or made[2] != table.shape[2]:
            return
        site.take_over(site.add("GatherND", [table, column], f"{table.name}.rows", batch_dims=1))


class ConstantShapes(Lowering):
    """Reshape to a shape that is known but for dimensions that stay where they are, which is a constant with zeros."""

    op_type = "Reshape"
    replaces = False

    def lower(self, site: Site, inputs: list[ir.Value]) -> None:
        """Nothing where a dimension that is not known comes from elsewhere."""
        x, shape = inputs
        wanted = site.node.outputs[0].shape
        if shape.producer() is None or x.shape is None or wanted is None:
            return
        kept = [
            size if isinstance(size, int) else 0 if _is_dimension(size, x.shape, place) else None
            for place, size in enumerate(wanted)
        ]
        known = [size for size in kept if size is not None]
        if len(known) == len(kept):
            constant = site.constant(f"shape.{'.'.join(map(str, known))}", known)
            site.take_over(site.add("Reshape", [x, constant], f"{x.name}.reshaped"))  # torch's takes zeros literally


# For an operator that a target lacks; what is not here cannot be done without.
LOWERINGS: Final[dict[str, type[Lowering]]] = {
    each.op_type: each for each in (PrimitiveAttention, PrimitiveRotary, PrimitiveNorm, ScatterCache, ExpandSwish)
}


def turn_weights(graph: ir.Graph, names: Collection[str]) -> set[str]:
    """Makes every matrix `[K, N]` of `names` that MatMul reads one `[N, K]` with a Transpose behind it.

    TensorRT folds the Transpose. It then keeps the weights once; of `[K, N]` it keeps a second copy, in another order,
    when an engine has kernels for one row and for several (measured with TensorRT-RTX 1.7.1: 496 MB instead of 284 MB).

    Returns:
        Names of the initialisers that were turned; their values are still those of before.
    """
    turned = set()
    for name in names:
        value = graph.initializers[name]
        users = [node for node, place in value.uses() if node.op_type == "MatMul" and place == 1]
        if not users or value.shape is None or len(value.shape) != 2 or len(users) < len(list(value.uses())):
            continue
        right = Site(graph, users[0]).add("Transpose", [value], f"{name}.right", perm=[1, 0])
        for node in users:
            node.replace_input_with(1, right)
        value.shape = ir.Shape(reversed(list(value.shape)))
        turned.add(name)
    return turned


def fix_dimension(graph: ir.Graph, symbol: str, size: int) -> None:
    """Gives a symbolic dimension of the graph's inputs and outputs its size; nothing where it does not occur."""
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([size if dim == symbol else dim for dim in value.shape])


def _nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type and node.domain == ""]


def _is_dimension(symbol: ir.SymbolicDim, shape: ir.Shape, place: int) -> bool:
    """Whether a shape has it there; two that have no name may differ."""
    return symbol.value is not None and place < len(shape) and shape[place] == symbol


def _heads_and_width(value: ir.Value) -> tuple[int, int]:
    """Of `[1, heads, rows, width]`."""
    assert value.shape is not None, f"{value.name} has no shape"
    _, heads, _, width = value.shape
    assert isinstance(heads, int), f"{value.name} has {heads} heads"
    assert isinstance(width, int), f"{value.name} has width {width}"
    return heads, width


def _attention_misfit(node: ir.Node) -> str | None:
    scale = node.attributes.get_float("scale", 0.0)
    if len(node.inputs) != 4 or len(node.outputs) != 1 or scale != 1.0:
        return f"{len(node.inputs)} inputs, {len(node.outputs)} outputs and scale {scale}"
    shapes = [value.shape for value in node.inputs if value is not None]
    return None if all(shape is not None and len(shape) == 4 for shape in shapes) else "inputs that are not 4-D"
