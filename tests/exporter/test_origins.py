"""Nodes tell which torch module they come from: in every graph of an export, and to ONNX Runtime's profiler."""

import json
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from seqrt.exporter.checkpoints import open_checkpoint
from seqrt.exporter.export import export
from seqrt.exporter.origins import name_nodes, origin, read_origins
from seqrt.exporter.passes import FoldRows
from seqrt.exporter.stitch import Logits, decoder_graph, model_of
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import Compaction, Decoder
from seqrt.graphs.hydra import HydraHead, PrefixLayer, prefix_config
from seqrt.graphs.medusa import MedusaHeads

HIDDEN, INNER, KEYS, VOCAB = 64, 96, 32, 150  # of the fixture `source`
HEADS: Final = 2
QUANTISED, LOWERED = "int4", "none"  # exports of the fixture `bundles`

Bundles = dict[str, Path]


def medusa(path: Path) -> Path:
    path.mkdir()
    tensors = {f"blocks.{head}.layers.0.weight": torch.ones(HIDDEN, HIDDEN) for head in range(HEADS)}
    save_file(tensors, path / "medusa_lm_head.safetensors")
    return path


def hydra(path: Path) -> Path:
    """With a prefix layer, and the hidden states of the last layer but one."""
    shapes = {
        "layers.0.input_layernorm": (HIDDEN,),
        "layers.0.post_attention_layernorm": (HIDDEN,),
        "layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
        "layers.0.self_attn.k_proj": (KEYS, HIDDEN),
        "layers.0.self_attn.v_proj": (KEYS, HIDDEN),
        "layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
        "layers.0.mlp.gate_proj": (INNER, HIDDEN),
        "layers.0.mlp.up_proj": (INNER, HIDDEN),
        "layers.0.mlp.down_proj": (HIDDEN, INNER),
        "norm": (HIDDEN,),
    }
    tensors = {f"prefix_embeding_layer.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    for head in range(HEADS):
        for part in ("linear", "res_connection"):
            tensors[f"hydra_mlp.{head}.1.{part}.weight"] = torch.ones(HIDDEN, HIDDEN * (head + 2))
            tensors[f"hydra_mlp.{head}.1.{part}.bias"] = torch.ones(HIDDEN)
        tensors[f"hydra_lm_head.{head}.1.weight"] = torch.ones(VOCAB, HIDDEN)
    path.mkdir()
    torch.save(tensors, path / "hydra_lm_head.pt")
    (path / "config.json").write_text(json.dumps({"hidden_state_offset": 1}))
    return path


@pytest.fixture(scope="module")
def bundles(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Folders of graphs: quantised and with heads for two engines, lowered the furthest for an old one."""
    folder = tmp_path_factory.mktemp("named")
    heads = {"medusa": medusa(folder / "medusa"), "hydra": hydra(folder / "hydra")}
    export(
        source, folder / QUANTISED, heads=heads, quantize="int4", targets=("ort", "rtx"), dtypes=("fp32",), check=False
    )
    export(source, folder / LOWERED, targets=("trt10.3",), dtypes=("fp16",), check=False)
    return {name: folder / name / "graphs" for name in (QUANTISED, LOWERED)}


@pytest.fixture(scope="module")
def config(source: Path) -> DecoderConfig:
    return open_checkpoint(source).config


def paths(name: str, module: nn.Module) -> set[str]:
    """Of a module called `name` and of all inside that compute something."""
    return {
        ".".join(filter(None, (name, path)))
        for path, inner in module.named_modules()
        if not isinstance(inner, nn.ModuleList | nn.ParameterList | nn.Identity)
    }


def modules(role: str, config: DecoderConfig) -> set[str]:
    """Those that nodes of a graph can come from."""
    match role.split("."):
        case ["decoder"]:
            return paths("", Decoder(config)) - {""}
        case ["logits" | "score"]:
            return paths(role, Logits(config))
        case ["compaction"]:
            return paths(role, Compaction())
        case ["medusa"]:
            return paths(role, MedusaHeads(HIDDEN, HEADS, 1, VOCAB, 10, own_outputs=False))
        case ["hydra", "prefix"]:
            return paths(role, PrefixLayer(prefix_config(config)))
        case _:
            return paths(role, HydraHead(HIDDEN, VOCAB, 1, 1, VOCAB, 10, has_bias=False))


BASE = ("decoder", "logits", "score", "compaction")
ROLES = (*BASE, "medusa", "hydra.0", "hydra.1", "hydra.prefix")
FILES = [(QUANTISED, role, ending) for role in ROLES for ending in ("", ".rtx-fp32")]
FILES += [(LOWERED, role, ".trt10.3-fp16") for role in BASE]


def load(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def module_of(node: onnx.NodeProto) -> str:
    return str(node.name.split("/")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "role", "ending"), FILES)
def test_every_node_has_a_name_of_its_own_that_begins_with_its_module(
    bundles: Bundles, config: DecoderConfig, bundle: str, role: str, ending: str
) -> None:
    nodes = load(bundles[bundle] / f"{role}{ending}.onnx").node
    found = {module_of(node) for node in nodes}
    known = modules(role, config)
    assert [node.name for node in nodes] == [f"{module_of(node)}/{node.op_type}_{i}" for i, node in enumerate(nodes)]
    assert found <= known
    assert known - found <= {"logits"}, "which is nothing but its output layer if there are no casts"


@pytest.mark.slow
def test_files_tell_nothing_else_of_what_torch_noted(bundles: Bundles) -> None:
    files = [path for folder in bundles.values() for path in folder.glob("*.onnx")]
    assert len(files) == len(FILES)
    for path in files:
        text, graph = path.read_bytes(), load(path)
        assert not any(part in text for part in (b"pkg.", b"torch", b".py")), path.name
        holders = (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info)
        assert not any(holder.metadata_props or holder.doc_string for holder in holders)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".rtx-fp32"])
def test_quantised_products_belong_to_their_projection(bundles: Bundles, ending: str) -> None:
    graph = load(bundles[QUANTISED] / f"decoder{ending}.onnx")
    users = {value: node for node in graph.node for value in node.input}
    codes = [tensor.name for tensor in graph.initializer if tensor.name.endswith(".weight.codes")]
    assert len(codes) == 4 * 2 + 1
    for name in codes:
        projection = name.removesuffix(".weight.codes")
        dequantise = users[name]
        product = users[dequantise.output[0]]
        assert (dequantise.op_type, product.op_type) == ("DequantizeLinear", "MatMul")
        expected = "readout.head" if projection == "head" else projection
        assert {module_of(dequantise), module_of(product)} == {expected}
    assert module_of(users["embed.weight.rows" if ending == "" else "embed.weight.table"]) == "frame.embed"


@pytest.mark.slow
def test_rewritten_attention_belongs_to_attention(bundles: Bundles) -> None:
    layers = [f"layers.{i}.attention" for i in range(2)]
    folded, primitive = load(bundles[QUANTISED] / "decoder.onnx"), load(bundles[LOWERED] / "decoder.trt10.3-fp16.onnx")
    makers = {value: node for node in folded.node for value in node.output}
    seen = [node for node in folded.node if node.op_type == "Attention"]
    assert [module_of(node) for node in seen] == layers
    assert [module_of(makers[node.input[0]]) for node in seen] == layers, "the rows as heads"
    assert {module_of(makers[node.input[3]]) for node in seen} == {"frame"}, "the mask, which all layers share"
    for op_type, count in (("Softmax", 1), ("MatMul", 2), ("ScatterElements", 2), ("Add", 1), ("Sub", 1)):
        found = Counter(module_of(node) for node in primitive.node if node.op_type == op_type)
        assert [found[layer] >= count for layer in layers] == [True, True], op_type
    assert {module_of(node) for node in primitive.node if node.op_type == "Softmax"} == set(layers)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "op_type"), [("", "Split"), (".rtx-fp32", "Gather")])
def test_halves_of_the_mlp_belong_to_it(bundles: Bundles, ending: str, op_type: str) -> None:
    """Torch's optimiser makes these nodes and says of none where it comes from."""
    nodes = load(bundles[QUANTISED] / f"decoder{ending}.onnx").node
    makers = {value: node for node in nodes for value in node.output}
    gates = [node for node in nodes if node.op_type == "Sigmoid"]
    assert [makers[gate.input[0]].op_type for gate in gates] == [op_type] * 2
    assert [module_of(makers[gate.input[0]]) for gate in gates] == ["layers.0.mlp", "layers.1.mlp"]


@pytest.mark.slow
def test_the_same_export_has_the_same_names(bundles: Bundles, source: Path, tmp_path: Path) -> None:
    again = export(source, tmp_path / "again", targets=("trt10.3",), dtypes=("fp16",), check=False).bundle
    for path in bundles[LOWERED].glob("*.onnx"):
        assert (again / "graphs" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("role", ["decoder", "medusa", "hydra.1", "hydra.prefix", "logits", "compaction"])
def test_onnxruntime_reports_times_by_module(
    bundles: Bundles, config: DecoderConfig, tmp_path: Path, role: str
) -> None:
    """Names survive what it fuses: what it makes of several nodes is called after one of them."""
    known, events = modules(role, config), kernel_events(bundles[QUANTISED] / f"{role}.onnx", tmp_path)
    found = Counter(event.split("/")[0] for event in events)
    assert sum(found[module] for module in known) > 0.95 * len(events)
    if role == "decoder":
        assert all(found[f"layers.{i}.{name}"] for i in range(2) for name in ("attention", "attention.o", "mlp"))


def kernel_events(path: Path, folder: Path) -> list[str]:
    """Names of all kernels that ran, as ONNX Runtime's profiler reports them."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.intra_op_num_threads = 1
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
    sizes = {"T": 3, "R": 2, "C": 16, "A": 2, "P": 4, "N": 2}
    inputs = {
        value.name: np.zeros([sizes.get(size, size) for size in value.shape], np.dtype(kinds[value.type]))
        for value in session.get_inputs()
    }
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event["name"] for event in events if event["name"].endswith("_kernel_time")]


@pytest.mark.slow
def test_every_module_of_a_layer_with_all_options(stitched: tuple[Decoder, Path]) -> None:
    """Norms behind and of heads, biases, masks of two kinds; an inner hidden state as float32."""
    config = stitched[0].config
    graph = decoder_graph(config, {1}, torch.float16)
    FoldRows()(model_of(graph))
    name_nodes(graph)
    assert {origin(node) for node in graph} == modules("decoder", config)
    (cast,) = (node for node in graph if node.outputs[0].name == "hidden.1")
    assert str(cast.name).startswith("layers.1/Cast_")


TEXT = """<ir_version: 11, opset_import: ["" : 24]> g (float[N] x) => (float[N] y) {
    a = Neg(x)
    b = Abs(a)
    c = Exp(b)
    y = Log(c)
}"""


def read(*scopes: str | None) -> list[str]:
    """Origins of the four nodes, of which torch noted these."""
    graph = ir.from_proto(onnx.parser.parse_model(TEXT)).graph
    for node, noted in zip(graph, scopes, strict=True):
        if noted is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = noted
    graph.name = "part"
    read_origins(graph, {"", "mlp", "mlp.up", "mlp.down"})
    return [origin(node) for node in graph]


def test_what_torch_notes() -> None:
    found = read("['', 'neg']", "['', 'mlp', 'abs']", "['', 'mlp', 'mlp.up', 'exp']", "['made_up', 'log']")
    assert found == ["part", "part.mlp", "part.mlp.up", "part"]
    assert read("[]", "['abs']", "['', 'up', 'exp']", None) == ["part"] * 4


def test_what_torch_says_nothing_of_belongs_to_what_surrounds_it() -> None:
    up, down, mlp = "['', 'mlp', 'mlp.up', 'x']", "['', 'mlp', 'mlp.down', 'x']", "['', 'mlp', 'x']"
    assert read(up, None, down, None) == ["part.mlp.up", "part.mlp", "part.mlp.down", "part.mlp.down"]
    assert read(up, None, None, mlp) == ["part.mlp.up", "part.mlp.up", "part.mlp", "part.mlp"]
    assert read(None, None, None, None) == ["part"] * 4


def test_nodes_of_no_known_origin_are_called_after_the_graph() -> None:
    graph = ir.from_proto(onnx.parser.parse_model(TEXT)).graph
    name_nodes(graph)
    assert [node.name for node in graph] == ["g/Neg_0", "g/Abs_1", "g/Exp_2", "g/Log_3"]
