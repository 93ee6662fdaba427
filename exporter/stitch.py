"""The decoder's ONNX graph: each distinct part is traced once, then repeated for every layer.

Tracing the 30 layers of a small model takes torch half a minute; one layer takes two seconds.
"""

from collections.abc import Collection, Mapping
from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor, nn

from seqrt.exporter.origins import origin, set_origin
from seqrt.exporter.trace import OPSET, trace
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import NUM_CANDIDATES, Compaction, Frame, Layer, Readout, Rows
from seqrt.graphs.ops import log_sum_exp
from seqrt.runtime.bundle import INNER

_IR_VERSION = 11  # what ONNX 1.18 and later write for opset 24
_IR_TYPES: Final = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
_T, _A, _C, _R = 8, 3, 32, 2  # example sizes; all different, so that no two symbols are taken for one


class _LayerStep(Layer):
    """A layer whose `Rows` come as separate tensors."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        write: Tensor,
        mask: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(x, Rows(cos, sin, mask, write), past_key, past_value)


def decoder_graph(config: DecoderConfig, offsets: Collection[int] = (), dtype: torch.dtype = torch.float32) -> ir.Graph:
    """The graph of docs/architecture.md, section "Decoder graph".

    Args:
        config: the model's shape.
        offsets: of inner layers, counted back from the last, whose hidden states are outputs too.
        dtype: of weights, caches and what is computed between them.

    Its initialisers carry the canonical names of `graphs.decoder.Decoder` parameters and placeholder values:
    `exporter.weights` replaces them.
    """
    frame, layer, readout = _trace_frame(config, dtype), _trace_layer(config, dtype), _trace_readout(config, dtype)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="decoder")
    cache = _cache_shape(config)
    inputs = {
        "token_ids": _input("token_ids", ir.DataType.INT64, [1, "T"]),
        "ancestors": _input("ancestors", ir.DataType.BOOL, ["T", "T"]),
        "depth": _input("depth", ir.DataType.INT64, ["T"]),
        "past_len": _input("past_len", ir.DataType.INT64, [1]),
        "logit_rows": _input("logit_rows", ir.DataType.INT64, ["R"]),
    }
    inputs |= {f"past_{name}": _input(f"past_{name}", _IR_TYPES[dtype], cache) for name in _caches(config)}
    graph.inputs.extend(inputs.values())

    shared = _splice(graph, frame, "", {**inputs, "past_key": inputs["past_key.0"]})
    x = shared["x"]
    present, inner = [], []
    for i, kind in enumerate(config.layer_kinds):
        if config.num_layers - i in offsets:
            inner.append(_as_float(graph, x, f"{INNER}{config.num_layers - i}"))
        values = {"x": x, "write": inputs["past_len"]}
        values |= {name: shared[f"{name}_{kind}"] for name in ("mask", "cos", "sin") if f"{name}_{kind}" in shared}
        values |= {f"past_{part}": inputs[f"past_{part}.{i}"] for part in ("key", "value")}
        made = _splice(graph, layer, f"layers.{i}.", values, module=f"layers.{i}")
        x = made["y"]
        present += [_renamed(made[f"present_{part}"], f"present_{part}.{i}") for part in ("key", "value")]
    made = _splice(graph, readout, "", {"x": x, "logit_rows": inputs["logit_rows"]})
    num_candidates = min(NUM_CANDIDATES, config.vocab_size)
    rows: Mapping[str, list[int | str]] = {
        "topk_ids": ["R", num_candidates],
        "topk_logits": ["R", num_candidates],
        "logsumexp": ["R"],
    }
    for name in ("topk_ids", "topk_logits", "logsumexp", "hidden"):
        made[name].shape = ir.Shape(rows.get(name, ["T", config.hidden_size]))
        graph.outputs.append(_renamed(made[name], name))
    for value in inner:
        value.shape = ir.Shape([1, "T", config.hidden_size])
        graph.outputs.append(value)
    for value in present:
        value.shape = ir.Shape(cache)
        graph.outputs.append(value)
    return graph


def logits_graph(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> ir.Graph:
    """Hidden `[R, H]` -> logits `[R, V]`, for what the top K do not answer; both float32."""
    example = {"hidden": torch.zeros(2, config.hidden_size)}
    return trace("logits", Logits(config).to(dtype), example, ["logits"], {"hidden": {0: "R"}})


def score_graph(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> ir.Graph:
    """Hidden `[R, H]`, the tokens that follow `[R]` -> their log-probabilities `[R]` and the best tokens `[R]`."""
    example = {"hidden": torch.zeros(2, config.hidden_size), "token_ids": torch.arange(2)}
    symbols = {name: {0: "R"} for name in example}
    return trace("score", Score(config).to(dtype), example, ["log_probabilities", "top1_ids"], symbols)


class Logits(nn.Module):
    """The output layer alone."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[R, H]` to `[R, V]`."""
        return self.head(hidden.to(self.head.weight.dtype)).float()  # type: ignore[no-any-return]


class Score(Logits):
    """What the output layer says of given tokens; the logits of a vocabulary stay where they are computed."""

    def forward(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """`[R, H]` and int64 `[R]` to float32 and int64 `[R]`."""
        logits = super().forward(hidden)
        best, top1 = torch.topk(logits, 1)
        chosen = torch.gather(logits, 1, token_ids[:, None])
        return (chosen - log_sum_exp(logits, best))[:, 0], top1[:, 0]


def compaction_graph(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> ir.Graph:
    """The graph of docs/architecture.md, section "Compaction graph"; it has no weights."""
    part = trace(
        "compaction",
        Compaction(),
        {
            "past": torch.zeros(1, config.num_kv_heads, _C, config.head_dim, dtype=dtype),
            "keep": torch.arange(_A),
            "write": torch.tensor([0]),
        },
        ["present"],
        {"past": {2: "C"}, "keep": {0: "A"}},
    )
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="compaction")
    keep, write = _input("keep", ir.DataType.INT64, ["A"]), _input("write", ir.DataType.INT64, [1])
    graph.inputs.extend([keep, write])
    for name in _caches(config):
        past = _input(f"past_{name}", _IR_TYPES[dtype], _cache_shape(config))
        graph.inputs.append(past)
        made = _splice(graph, part, f"{name}.", {"past": past, "keep": keep, "write": write})
        made["present"].shape = past.shape
        graph.outputs.append(_renamed(made["present"], f"present_{name}"))
    return graph


def model_of(graph: ir.Graph) -> ir.Model:
    """Wraps a graph as a model of the exporter's opset."""
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="seqrt")


def parameters_of(graph: ir.Graph) -> list[str]:
    """Initialisers that a checkpoint fills; the others are the tracer's constants, named after their part."""
    parts = ("frame.", "layer.", "readout.", "compaction.")
    return [name for name in graph.initializers if "." in name and not name.startswith(parts)]


def _caches(config: DecoderConfig) -> list[str]:
    return [f"{part}.{i}" for i in range(config.num_layers) for part in ("key", "value")]


def _cache_shape(config: DecoderConfig) -> list[int | str]:
    return [1, config.num_kv_heads, "C", config.head_dim]


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _renamed(value: ir.Value, name: str) -> ir.Value:
    value.name = name
    return value


def _as_float(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """`value` under that name, as float32."""
    if value.dtype == ir.DataType.FLOAT:
        return _renamed(value, name)
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    if (maker := value.producer()) is not None:
        set_origin(node, origin(maker))
    graph.append(node)
    return _renamed(node.outputs[0], name)


def _splice(
    graph: ir.Graph, part: ir.Graph, prefix: str, inputs: Mapping[str, ir.Value], module: str | None = None
) -> dict[str, ir.Value]:
    """Appends a copy of `part`, its inputs replaced by values of `graph`; returns its outputs by name.

    Parameters (their names contain a dot) become initialisers `prefix` + name; the tracer's constants are
    shared between the copies of a part, under the part's name. `module` is where nodes have their origin, if it is
    not called as the part is.
    """
    name_of_part = str(part.name)
    values: dict[ir.Value, ir.Value] = {value: inputs[str(value.name)] for value in part.inputs}
    for name, constant in part.initializers.items():
        own = prefix + name if "." in name else f"{part.name}.{name}"
        if own not in graph.initializers:
            value = ir.Value(name=own, type=constant.type, shape=constant.shape, const_value=constant.const_value)
            graph.register_initializer(value)
        values[constant] = graph.initializers[own]
    for node in part:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = f"{prefix}{part.name}.{old.name}", old.type, old.shape
            values[old] = new
        set_origin(copy, (module or name_of_part) + origin(node).removeprefix(name_of_part))
        graph.append(copy)
    return {str(value.name): values[value] for value in part.outputs}


def _trace_frame(config: DecoderConfig, dtype: torch.dtype) -> ir.Graph:
    frame = Frame(config).to(dtype)
    arguments = {
        "token_ids": torch.zeros(1, _T, dtype=torch.int64),
        "ancestors": torch.ones(_T, _T, dtype=torch.bool),
        "depth": torch.arange(_T),
        "past_len": torch.tensor([_A]),
        "past_key": torch.zeros(1, config.num_kv_heads, _C, config.head_dim, dtype=dtype),
    }
    symbols = {
        "token_ids": {1: "T"},
        "ancestors": {0: "T", 1: "T"},
        "depth": {0: "T"},
        "past_key": {2: "C"},
    }
    outputs = ["x"]
    for kind in frame.kinds:
        outputs += [f"{name}_{kind}" for name in _shared_names(config)]
    return trace("frame", frame, arguments, outputs, symbols)


def _shared_names(config: DecoderConfig) -> tuple[str, ...]:
    return ("mask", "cos", "sin") if config.ropes else ("mask",)


def _trace_layer(config: DecoderConfig, dtype: torch.dtype) -> ir.Graph:
    cache = (1, config.num_kv_heads, _C, config.head_dim)
    arguments = {
        "x": torch.zeros(1, _T, config.hidden_size, dtype=dtype),
        "past_key": torch.zeros(cache, dtype=dtype),
        "past_value": torch.zeros(cache, dtype=dtype),
        "write": torch.tensor([0]),
        "mask": torch.zeros(1, 1, _T, _C, dtype=dtype),
    }
    symbols = {
        "x": {1: "T"},
        "past_key": {2: "C"},
        "past_value": {2: "C"},
        "mask": {2: "T", 3: "C"},
    }
    for name in ("cos", "sin") if config.ropes else ():
        arguments[name] = torch.zeros(1, _T, config.head_dim // 2, dtype=dtype)
        symbols[name] = {1: "T"}
    return trace("layer", _LayerStep(config).to(dtype), arguments, ["y", "present_key", "present_value"], symbols)


def _trace_readout(config: DecoderConfig, dtype: torch.dtype) -> ir.Graph:
    arguments = {"x": torch.zeros(1, _T, config.hidden_size, dtype=dtype), "logit_rows": torch.arange(_R)}
    outputs = ["topk_ids", "topk_logits", "logsumexp", "hidden"]
    symbols = {"x": {1: "T"}, "logit_rows": {0: "R"}}
    return trace("readout", Readout(config).to(dtype), arguments, outputs, symbols)
