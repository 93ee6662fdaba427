"""Every shipped graph, parsed and built ahead of time by TensorRT-RTX: that takes no GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import save_file

from seqrt.exporter.export import export
from seqrt.exporter.passes import fix_dimension, turn_weights
from seqrt.exporter.quantize import Method
from seqrt.exporter.stitch import decoder_graph, model_of, parameters_of
from seqrt.exporter.targets import TARGETS, TORCH_DTYPES, variants
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.rope import RopeConfig
from seqrt.runtime.bundle import Bundle, open_bundle

trt: Final[Any] = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'seqrt[rtx]'")

pytestmark = pytest.mark.slow  # the fixtures take it

HIDDEN, INNER, VOCAB, WIDTH, CAPACITY = 128, 192, 300, 64, 64  # width of a head: there are fused kernels for 32 to 256
ROLES = ("decoder", "logits", "compaction", "medusa", "hydra.0", "hydra.1", "hydra.prefix")
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


def build(path: Path, profiles: Sequence[Profile] = (ROWS,), *, decompose: bool = False, capability: str = "SM86") -> Any:
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
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
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
    """A Llama of small size with heads of a usual one, and two kinds of draft heads beside it."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HIDDEN // WIDTH,
        num_key_value_heads=1,
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
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (WIDTH, HIDDEN),
        "self_attn.v_proj": (WIDTH, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    hydra |= {f"prefix_embeding_layer.layers.0.{name}.weight": shape for name, shape in layer.items()}
    random_tensors(
        path / "hydra" / "hydra_lm_head.safetensors", hydra | {"prefix_embeding_layer.norm.weight": (HIDDEN,)}
    )
    return path


def exported(source: Path, bundle: Path, targets: tuple[str, ...], dtypes: tuple[str, ...], **rest: Any) -> Bundle:
    heads = {name: source / name for name in ("medusa", "hydra")}
    export(source, bundle, heads=heads, targets=targets, dtypes=dtypes, capacity=CAPACITY, check=False, **rest)
    return open_bundle(bundle)


@pytest.fixture(scope="module")
def halves(wide_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every target in fp16."""
    return exported(wide_source, tmp_path_factory.mktemp("halves") / "bundle", tuple(TARGETS), ("fp16",))


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
    """A static profile for each number of rows; what they share is stored once."""
    profiles = [dict.fromkeys("TR", (rows,) * 3) for rows in BUCKETS]
    path = halves.graph("decoder", "rtx-fp16")
    assert build(path, profiles).nbytes < len(BUCKETS) * build(path, profiles[:1]).nbytes


@pytest.fixture(scope="module")
def others(wide_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The other types, for TensorRT-RTX."""
    return exported(wide_source, tmp_path_factory.mktemp("others") / "bundle", ("rtx",), ("bf16", "fp32"))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("role", ROLES)
def test_other_types_build(others: Bundle, dtype: str, role: str) -> None:
    build(others.graph(role, f"rtx-{dtype}"), decompose=dtype == "fp32")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_build(wide_source: Path, tmp_path: Path, quantize: Method) -> None:
    bundle = exported(wide_source, tmp_path / "bundle", ("rtx",), (), quantize=quantize)
    for role in ROLES:
        path = bundle.graph(role, "rtx-fp16")
        count = sum(node.op_type == "DequantizeLinear" for node in ir.load(path).graph)
        assert count == {"decoder": 2 * 4 + 1, "logits": 1, "medusa": 2, "hydra.prefix": 4}.get(role, count), role
        build(path)


CONFIG: Final = DecoderConfig(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
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
    ropes={kind: RopeConfig(kind="default", theta=1e4, dim=WIDTH) for kind in ("sliding", "full")},
)
GPT2: Final = replace(
    CONFIG,
    num_kv_heads=4,
    norm="layer",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    qk_norm=False,
    post_norms=False,
    learned_positions=True,
    embedding_scale=1.0,
    layer_kinds=("full", "full"),
    ropes={},
)


def random_decoder(config: DecoderConfig, target: str, dtype: str, *, prepare: Callable[[ir.Graph], object]) -> ir.Model:
    """A lowered decoder whose layers differ."""
    (variant,), rng = variants((target,), (dtype,)), np.random.default_rng(0)
    graph = decoder_graph(config, (), TORCH_DTYPES[dtype])
    names = parameters_of(graph)
    prepare(graph)
    for value in map(graph.initializers.__getitem__, names):
        assert value.shape is not None
        assert value.dtype is not None
        array = rng.standard_normal(value.shape.numpy()) / config.hidden_size**0.5
        value.const_value = ir.tensor(array.astype(value.dtype.numpy()), dtype=value.dtype)
    variant.lower(model_of(graph))
    fix_dimension(graph, "C", 2 * CAPACITY)
    return model_of(graph)


@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["gemma", "gpt2"])
@pytest.mark.parametrize(("target", "dtype"), [("rtx", "fp16"), ("rtx", "bf16"), ("trt10.3", "fp16")])
def test_other_families_build(tmp_path: Path, config: DecoderConfig, target: str, dtype: str) -> None:
    ir.save(random_decoder(config, target, dtype, prepare=turn_weights), tmp_path / "decoder.onnx")
    build(tmp_path / "decoder.onnx")


def test_heads_without_a_fused_kernel_build(tmp_path: Path) -> None:
    narrow = replace(CONFIG, head_dim=12, ropes={kind: replace(rope, dim=12) for kind, rope in CONFIG.ropes.items()})
    ir.save(random_decoder(narrow, "rtx", "fp16", prepare=turn_weights), tmp_path / "decoder.onnx")
    build(tmp_path / "decoder.onnx", decompose=True)


def test_one_row_and_many_share_their_weights(tmp_path: Path) -> None:
    """What turn_weights and GatherHalves are for: an engine holds weights once for each order that its kernels want."""
    silu = replace(GPT2, norm="rms", activation="silu", gated_mlp=True, hidden_size=512, intermediate_size=1536)
    ir.save(random_decoder(silu, "rtx", "fp16", prepare=turn_weights), tmp_path / "decoder.onnx")
    one, many = (dict.fromkeys("TR", (rows,) * 3) for rows in (1, 64))
    both, alone = (build(tmp_path / "decoder.onnx", profiles).nbytes for profiles in ([one, many], [many]))
    assert alone < both < 1.15 * alone
