"""Every shipped graph, parsed and built ahead of time by TensorRT-RTX: that takes no GPU."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tests.conftest import write_solver

from seqrt.exporter.export import export
from seqrt.exporter.passes import fix_dimension, turn_weights
from seqrt.exporter.quantize import Method
from seqrt.exporter.recognizer import export_recognizer
from seqrt.exporter.solver import export_solver
from seqrt.exporter.stitch import decoder_graph, model_of, parameters_of
from seqrt.exporter.targets import TARGETS, variants
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.rope import RopeConfig
from seqrt.runtime.bundle import Bundle, open_bundle

trt: Final[Any] = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'seqrt[rtx]'")

pytestmark = pytest.mark.slow  # the fixtures take it

HIDDEN, INNER, VOCAB, CAPACITY = 128, 192, 300, 64
HEADS, KV_HEADS, WIDTH = 4, 2, 64  # fused kernels are for widths of 32 to 256, and not for one row of two heads
ROLES = ("decoder", "logits", "score", "compaction", "medusa", "hydra.0", "hydra.1", "hydra.prefix")
BUCKETS = (1, 8, 16, 32, 64)
ROWS = dict.fromkeys(("T", "R", "N", "A", "P"), (1, 8, 64))  # smallest, most likely and largest number of rows

Profile = Mapping[str, tuple[int, int, int]]


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what went wrong; the default prints it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.lines.append(text)


LOG = Log()  # the library keeps the first one for good


def build(path: Path, profiles: Sequence[Profile] = (ROWS,), *, decompose: bool = False) -> Any:
    """The engine of a graph, serialised; `decompose` for attention that no fused kernel computes."""
    del LOG.lines[:]
    builder = trt.Builder(LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    for layer in map(network.get_layer, range(network.num_layers)):
        if decompose and layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for profile in profiles:
        made = builder.create_optimization_profile()
        for value in inputs:
            dims = [value.get_dimension_name(i) if size < 0 else size for i, size in enumerate(value.shape)]
            if any(isinstance(dim, str) for dim in dims):
                made.set_shape(
                    value.name,
                    *([profile[dim][i] if isinstance(dim, str) else dim for dim in dims] for i in range(3)),
                )
        config.add_optimization_profile(made)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, LOG.lines
    assert LOG.lines == []
    return engine


def random_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) / HIDDEN**0.5 for name, shape in shapes.items()}
    path.parent.mkdir()
    save_file(tensors, path)


@pytest.fixture(scope="module")
def wide_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of small size with heads of a usual one, two kinds of draft heads beside it, and what it reads PAD as."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH,
        max_position_embeddings=2 * CAPACITY,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    blocks = {"weight": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    medusa = {f"blocks.{head}.layers.0.{part}": shape for head in range(2) for part, shape in blocks.items()}
    random_tensors(path / "medusa" / "medusa_lm_head.safetensors", medusa)
    hydra: dict[str, tuple[int, ...]] = {f"hydra_lm_head.{head}.1.weight": (VOCAB, HIDDEN) for head in range(2)}
    for head, part in ((head, part) for head in range(2) for part in ("linear", "res_connection")):
        hydra[f"hydra_mlp.{head}.1.{part}.weight"] = (HIDDEN, (head + 2) * HIDDEN)
        hydra[f"hydra_mlp.{head}.1.{part}.bias"] = (HIDDEN,)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * WIDTH, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * WIDTH, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    hydra |= {f"prefix_embeding_layer.layers.0.{name}.weight": shape for name, shape in layer.items()}
    random_tensors(
        path / "hydra" / "hydra_lm_head.safetensors", hydra | {"prefix_embeding_layer.norm.weight": (HIDDEN,)}
    )
    (path / "lud").mkdir()
    (path / "lud" / "lud.json").write_text(json.dumps({"lookahead": 4}))
    learnt = {"pad_embedding": torch.randn(HIDDEN), "base_norm": torch.ones(HIDDEN)}
    save_file(learnt, path / "lud" / "lud.safetensors")
    return path


def exported(source: Path, bundle: Path, dtype: str, *, heads: bool = True, **rest: Any) -> Bundle:
    """For TensorRT-RTX, unless `rest` says otherwise."""
    found = {name: source / name for name in ("medusa", "hydra") if heads}
    options: dict[str, Any] = {"targets": ("rtx",), "capacity": CAPACITY, "check": False}
    export(source, bundle, heads=found, dtypes=(dtype,), **(options | rest))
    return open_bundle(bundle)


@pytest.fixture(scope="module")
def halves(wide_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every target in fp16, with lexical units."""
    folder = tmp_path_factory.mktemp("halves")
    return exported(wide_source, folder / "bundle", "fp16", targets=tuple(TARGETS), lud=wide_source / "lud")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("role", ROLES)
def test_half_precision_of_every_target_builds(halves: Bundle, tmp_path: Path, target: str, role: str) -> None:
    path = halves.graph(role, f"{target}-fp16")
    if TARGETS[target].is_native:  # its caches have any size
        model = ir.load(path)
        fix_dimension(model.graph, "C", 2 * CAPACITY)
        path = path.with_name(f"fixed.{path.name}")
        ir.save(model, path)
    build(path)


def test_one_engine_for_every_step_size(halves: Bundle) -> None:
    """A static profile for each number of rows."""
    build(halves.graph("decoder", "rtx-fp16"), [dict.fromkeys("TR", (rows,) * 3) for rows in BUCKETS])


def test_bf16_builds(wide_source: Path, tmp_path: Path) -> None:
    bundle = exported(wide_source, tmp_path / "bundle", "bf16")
    for role in ROLES:
        build(bundle.graph(role, "rtx-bf16"))


def test_float32_builds(wide_source: Path, tmp_path: Path) -> None:
    bundle = exported(wide_source, tmp_path / "bundle", "fp32", heads=False)
    for role in ROLES[:4]:
        build(bundle.graph(role, "rtx-fp32"), decompose=True)


@pytest.mark.parametrize(("quantize", "heads"), [("int8", True), ("int4", False)])
def test_quantised_weights_build(wide_source: Path, tmp_path: Path, quantize: Method, heads: bool) -> None:
    """Heads are int8 in either case."""
    bundle = exported(wide_source, tmp_path / "bundle", "fp16", quantize=quantize, heads=heads)
    counts = {
        "decoder": 2 * 4 + 1,
        "logits": 1,
        "score": 1,
        "compaction": 0,
        "medusa": 2,
        "hydra.0": 2,
        "hydra.prefix": 4,
    }
    for role in ROLES if heads else ROLES[:4]:
        path = bundle.graph(role, "rtx-fp16")
        count = sum(node.op_type == "DequantizeLinear" for node in ir.load(path).graph)
        assert count == counts.get(role, 2), role
        build(path)


GEMMA: Final = DecoderConfig(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=WIDTH,
    max_positions=2 * CAPACITY,
    norm="rms_plus_one",
    norm_eps=1e-6,
    activation="gelu_tanh",
    qk_norm=True,
    post_norms=True,
    tied_embeddings=False,
    embedding_scale=HIDDEN**0.5,
    attention_scale=1.0,
    layer_kinds=("sliding", "full"),
    sliding_window=16,
    ropes={
        "sliding": RopeConfig(kind="default", theta=1e4, dim=WIDTH),
        "full": RopeConfig(kind="default", theta=1e6, dim=WIDTH),
    },
)
LARGE: Final = replace(
    GEMMA,
    hidden_size=768,
    intermediate_size=3072,
    norm="rms",
    activation="silu",
    qk_norm=False,
    post_norms=False,
    embedding_scale=1.0,
    layer_kinds=("full", "full"),
)
NARROW: Final = replace(
    LARGE,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_kv_heads=HEADS,
    head_dim=12,
    norm="layer",
    activation="gelu",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    learned_positions=True,
    ropes={},
)
CONFIGS: Final = {"gemma": GEMMA, "large llama": LARGE, "narrow gpt2": NARROW}


@cache
def traced(config: str) -> ir.Graph:
    return decoder_graph(CONFIGS[config], (), torch.float16)


def random_decoder(config: str, target: str, path: Path) -> Path:
    """A lowered decoder in fp16 whose layers differ, its weights turned."""
    (variant,), rng, graph = variants((target,), ("fp16",)), np.random.default_rng(0), traced(config).clone()
    names = parameters_of(graph)
    turn_weights(graph, names)
    for value in map(graph.initializers.__getitem__, names):
        assert value.shape is not None
        array = rng.standard_normal(value.shape.numpy()) / HIDDEN**0.5
        value.const_value = ir.tensor(array.astype(np.float16))
    variant.lower(model_of(graph))
    fix_dimension(graph, "C", 2 * CAPACITY)
    ir.save(model_of(graph), path)
    return path


@pytest.mark.parametrize("config", ["gemma", "narrow gpt2"])
@pytest.mark.parametrize("target", ["rtx", "trt10.3"])
def test_other_families_build(tmp_path: Path, config: str, target: str) -> None:
    """One of them has heads that no fused kernel is for."""
    build(random_decoder(config, target, tmp_path / "decoder.onnx"), decompose=config == "narrow gpt2")


def test_one_row_and_many_share_their_weights(tmp_path: Path) -> None:
    """What turn_weights and GatherHalves are for: an engine holds weights once for each order that its kernels want."""
    path = random_decoder("large llama", "rtx", tmp_path / "decoder.onnx")
    one, many = (dict.fromkeys("TR", (rows,) * 3) for rows in (1, 64))
    both, alone = (build(path, profiles).nbytes for profiles in ([one, many], [many]))
    assert alone < both < 1.15 * alone


IMAGES: Final = [{"B": (images,) * 3} for images in (1, 8, 32)]


@pytest.mark.parametrize("wanted", ["rtx:fp16", "rtx:fp32", "rtx:bf16", "trt11", "trt10.16", "trt10.3"])
def test_recognisers_build(recognizer_source: Path, wanted: str, tmp_path: Path) -> None:
    made = export_recognizer(recognizer_source, tmp_path / "bundle", targets=(wanted,)).bundle
    (info,) = open_bundle(made).manifest.graphs
    build(made / info.path, IMAGES)


def test_norms_of_recognisers_sum_in_float32(recognizer_source: Path, tmp_path: Path) -> None:
    """As LayerNormalization says by itself: in half precision its sums would overflow (TensorRT warns of that)."""
    made = export_recognizer(recognizer_source, tmp_path / "bundle", targets=("rtx",)).bundle
    (info,) = open_bundle(made).manifest.graphs
    norms = [node for node in ir.load(made / info.path).graph if node.op_type == "LayerNormalization"]
    assert len(norms) > 10
    assert {node.attributes.get_int("stash_type", 1) for node in norms} == {1}


INSTANCES: Final = [{"B": (1, 8, 64), "K": (1, 1, 128)}]


@pytest.mark.parametrize(
    ("kind", "wanted"), [("attention", "rtx"), ("attention", "trt10.3"), ("ptrnet", "rtx"), ("set", "rtx:fp32")]
)
def test_pointer_models_build(kind: str, wanted: str, tmp_path: Path) -> None:
    source = write_solver(tmp_path / "source", kind, "none")
    made = export_solver(source, tmp_path / "bundle", sizes=(10,), targets=(wanted,)).bundle
    infos = open_bundle(made).manifest.graphs
    assert [info.role for info in infos] == ["encode.10", "step.10"]
    for info in infos:
        operators = {node.op_type for node in ir.load(made / info.path).graph}
        assert not operators & {"LSTM", "Loop", "If", "Scan"}
        build(made / info.path, INSTANCES)
