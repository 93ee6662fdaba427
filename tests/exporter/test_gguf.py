"""GGUF files written with the gguf library: tensors against their origin, blocks against its dequantize."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import Checkpoint, QuantBlocks, open_checkpoint
from seqrt.exporter.quantize import quantized
from seqrt.exporter.weights import DecoderWeights

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS = 256, 512, 32, 4, 2
HEAD_DIM = HIDDEN // HEADS
METADATA: dict[str, Any] = {
    "block_count": 1,
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 50000.0,
}
Array = npt.NDArray[Any]


def weights(**extra: tuple[int, ...]) -> dict[str, Array]:
    """Random tensors of one llama layer under their GGUF names, q and k still in the half-rotation order."""
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": (INNER, HIDDEN),
        "blk.0.ffn_up.weight": (INNER, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INNER),
    } | {name.replace("__", "."): shape for name, shape in extra.items()}
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def permuted(weight: Array, num_heads: int) -> Array:
    """What llama.cpp's convert_hf_to_gguf.py does to q and k: `LlamaModel.permute`."""
    return (
        weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write(
    path: Path,
    tensors: dict[str, Array],
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    kinds: dict[str, Kind] | None = None,
) -> Path:
    """A GGUF file; tensors named in `kinds` are raw bytes of that type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (METADATA | (metadata or {})).items():
        if value is None:
            continue
        name = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
        add: Callable[[str, Any], None] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
            bool: writer.add_bool,
        }[type(value)]
        add(name, value)
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor, raw_dtype=(kinds or {}).get(key))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CANONICAL = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "layers.0.attention_norm.weight": "blk.0.attn_norm.weight",
    "layers.0.mlp_norm.weight": "blk.0.ffn_norm.weight",
    "layers.0.attention.q.weight": "blk.0.attn_q.weight",
    "layers.0.attention.k.weight": "blk.0.attn_k.weight",
    "layers.0.attention.v.weight": "blk.0.attn_v.weight",
    "layers.0.attention.o.weight": "blk.0.attn_output.weight",
    "layers.0.mlp.gate.weight": "blk.0.ffn_gate.weight",
    "layers.0.mlp.up.weight": "blk.0.ffn_up.weight",
    "layers.0.mlp.down.weight": "blk.0.ffn_down.weight",
}


def assert_same_tensors(checkpoint: Checkpoint, expected: dict[str, Array]) -> None:
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensor(name).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)


def test_llama(tmp_path: Path) -> None:
    tensors = weights(output__weight=(VOCAB, HIDDEN))
    stored = tensors | {
        "blk.0.attn_q.weight": permuted(tensors["blk.0.attn_q.weight"], HEADS),
        "blk.0.attn_k.weight": permuted(tensors["blk.0.attn_k.weight"], KV_HEADS),
    }
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", stored, metadata={"general.name": "Tiny"}))

    names = CANONICAL | {"head.weight": "output.weight"}
    assert_same_tensors(checkpoint, {name: tensors[key] for name, key in names.items()})
    assert all(checkpoint.blocks(name) is None for name in names)
    config = checkpoint.config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (VOCAB, HIDDEN, INNER)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (1, 4, 2, 64)
    assert (config.norm, config.activation, config.tied_embeddings) == ("rms", "silu", False)
    assert (config.max_positions, config.attention_scale, config.layer_kinds) == (128, 0.125, ("full",))
    assert config.norm_eps == pytest.approx(1e-5)
    assert (config.ropes["full"].kind, config.ropes["full"].theta) == ("default", 50000.0)
    assert (checkpoint.name, checkpoint.files) == ("Tiny", [tmp_path / "tiny.gguf"])
    assert (checkpoint.tokenizer_json(), checkpoint.chat_template) == (None, None)


def test_mistral_window_biases_and_widths(tmp_path: Path) -> None:
    biases = {
        "blk__0__attn_q__bias": (HEADS * 32,),
        "blk__0__attn_k__bias": (64,),
        "blk__0__attn_v__bias": (64,),
    }
    tensors = weights(
        blk__0__attn_q__weight=(HEADS * 32, HIDDEN),
        blk__0__attn_k__weight=(64, HIDDEN),
        blk__0__attn_v__weight=(64, HIDDEN),
        blk__0__attn_output__weight=(HIDDEN, HEADS * 32),
        **biases,
    )
    sizes = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
    path = write(tmp_path / "tiny.gguf", tensors, metadata=sizes | {"attention.sliding_window": 64})
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.layer_kinds, config.sliding_window, config.head_dim) == (("sliding",), 64, 32)
    assert (config.qkv_bias, config.tied_embeddings) == (True, True)
    bias = checkpoint.tensor("layers.0.attention.q.bias")
    np.testing.assert_array_equal(permuted(bias, HEADS), tensors["blk.0.attn_q.bias"])


def raw_blocks(kind: Kind, shape: tuple[int, int]) -> Array:
    """Bytes of a random tensor: quantised where the library can, else random codes with sensible factors."""
    generator = np.random.default_rng(1)
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        quantised: Array = gguf.quants.quantize(generator.standard_normal(shape, dtype=np.float32), kind)
        return quantised.view(np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = generator.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    factors = generator.uniform(0.001, 0.1, (*raw.shape[:2], 2)).astype(np.float16).view(np.uint8)
    if kind == Kind.Q4_K:
        raw[..., :4] = factors
    else:
        raw[..., -2:] = factors[..., :2]
    return raw.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K])
def test_tensor_types(tmp_path: Path, kind: Kind) -> None:
    """Also for q, whose rows the file holds in another order."""
    raw = {
        "blk.0.ffn_down.weight": raw_blocks(kind, (HIDDEN, INNER)),
        "blk.0.attn_q.weight": raw_blocks(kind, (HIDDEN, HIDDEN)),
    }
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", weights() | raw, kinds=dict.fromkeys(raw, kind)))

    down = gguf.quants.dequantize(raw["blk.0.ffn_down.weight"], kind)
    query = gguf.quants.dequantize(raw["blk.0.attn_q.weight"], kind)
    np.testing.assert_array_equal(checkpoint.tensor("layers.0.mlp.down.weight"), down)
    np.testing.assert_array_equal(permuted(checkpoint.tensor("layers.0.attention.q.weight"), HEADS), query)

    blocks, query_blocks = (checkpoint.blocks(f"layers.0.{name}.weight") for name in ("mlp.down", "attention.q"))
    if kind in (Kind.F16, Kind.BF16, Kind.Q6_K):
        assert blocks is None
        assert query_blocks is None
        return
    assert blocks is not None
    assert query_blocks is not None
    assert blocks.bits == (8 if kind == Kind.Q8_0 else 4)
    assert blocks.codes.dtype == (np.int8 if kind == Kind.Q8_0 else np.uint8)
    assert blocks.codes.shape == (HIDDEN, INNER)
    assert blocks.scale.shape == (HIDDEN, INNER // 32)
    assert (blocks.offset is None) == (kind == Kind.Q8_0)
    if kind != Kind.Q8_0:
        assert (blocks.codes.min(), blocks.codes.max()) == (0, 15)
    for found, expected in ((blocks, down), (query_blocks, checkpoint.tensor("layers.0.attention.q.weight"))):
        weight = found.codes.astype(np.float32) * np.repeat(found.scale, 32, axis=1)
        if found.offset is not None:
            weight += np.repeat(found.offset, 32, axis=1)
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.dequantize(), expected)


def test_source_blocks_that_cannot_be_kept_become_int8(tmp_path: Path) -> None:
    """A file like llama.cpp's Q4_K_M: mixed kinds in what is fused, Q6_K elsewhere, and some plain numbers."""
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    }
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    kinds = {name: Kind.Q6_K if name in ("attn_v", "ffn_down") else Kind.Q4_K for name in shapes}
    raw = {f"blk.0.{name}.weight": raw_blocks(kinds[name], shape) for name, shape in shapes.items()}
    path = write(tmp_path / "m.gguf", weights() | raw, kinds={f"blk.0.{name}.weight": kinds[name] for name in kinds})
    parameters = DecoderWeights(open_checkpoint(path))

    def made(name: str) -> QuantBlocks | None:
        return quantized(parameters, f"layers.0.{name}.weight", "source")

    kept = made("attention.o")
    assert kept is not None
    assert (kept.bits, kept.exact) == (4, True)
    assert made("mlp.up") is None, "plain numbers stay that"
    for name in ("attention.qkv", "mlp.down"):
        rounded, weight = made(name), parameters.tensor(f"layers.0.{name}.weight").T
        assert rounded is not None
        assert (rounded.bits, rounded.exact) == (8, False)
        largest = np.abs(weight.reshape(len(weight), -1, 32)).max(-1)
        error = np.abs(rounded.dequantize() - weight).reshape(len(weight), -1, 32).max(-1)
        assert (error <= largest / 254 * 1.001).all(), "half a step of 1/127"


def test_norms_of_one_dimension_have_no_blocks(tmp_path: Path) -> None:
    raw = raw_blocks(Kind.Q8_0, (1, HIDDEN))[0]
    kinds = {"output_norm.weight": Kind.Q8_0}
    checkpoint = open_checkpoint(write(tmp_path / "a.gguf", weights() | {"output_norm.weight": raw}, kinds=kinds))
    assert checkpoint.blocks("norm.weight") is None
    np.testing.assert_array_equal(checkpoint.tensor("norm.weight"), gguf.quants.dequantize(raw, Kind.Q8_0))


@pytest.mark.parametrize(("architecture", "extra"), [("qwen2", "bias"), ("qwen3", "norm.weight")])
def test_qwen_keeps_the_order_of_its_rows(tmp_path: Path, architecture: str, extra: str) -> None:
    """Qwen 2 has biases on q, k and v; Qwen 3 norms on q and k."""
    shapes = {"q": (HIDDEN,), "k": (KV_HEADS * HEAD_DIM,), "v": (KV_HEADS * HEAD_DIM,)}
    if architecture == "qwen3":
        shapes = {"q": (HEAD_DIM,), "k": (HEAD_DIM,)}
    joint = "." if architecture == "qwen2" else "_"
    names = {f"layers.0.attention.{name}{joint}{extra}": f"blk.0.attn_{name}{joint}{extra}" for name in shapes}
    added = dict(zip(names.values(), shapes.values(), strict=True))
    tensors = weights(**added)
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", tensors, architecture))
    assert_same_tensors(checkpoint, {name: tensors[key] for name, key in (CANONICAL | names).items()})
    assert checkpoint.config.qkv_bias == (architecture == "qwen2")
    assert checkpoint.config.qk_norm == (architecture == "qwen3")


def test_gemma3(tmp_path: Path) -> None:
    names = CANONICAL | {
        "layers.0.attention_post_norm.weight": "blk.0.post_attention_norm.weight",
        "layers.0.mlp_post_norm.weight": "blk.0.post_ffw_norm.weight",
        "layers.0.attention.q_norm.weight": "blk.0.attn_q_norm.weight",
        "layers.0.attention.k_norm.weight": "blk.0.attn_k_norm.weight",
    }
    head_norms = {f"blk.0.attn_{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    post_norms = {f"blk.0.post_{name}_norm.weight": (HIDDEN,) for name in ("attention", "ffw")}
    layer = weights(**head_norms, **post_norms)
    tensors = dict(layer)
    for key, tensor in layer.items():
        tensors |= {key.replace("blk.0.", f"blk.{index}."): tensor for index in range(1, 7)}
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    metadata = {"block_count": 7, "attention.sliding_window": 32, **scaling}
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", tensors, "gemma3", metadata))

    for name, key in names.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensors[key], err_msg=name)
    config = checkpoint.config
    assert (config.norm, config.qk_norm, config.post_norms) == ("rms", True, True)
    assert (config.activation, config.embedding_scale, config.attention_scale) == ("gelu_tanh", 16.0, 0.125)
    assert config.layer_kinds == (*["sliding"] * 5, "full", "sliding")
    assert (config.ropes["sliding"].kind, config.ropes["sliding"].theta) == ("default", 10000.0)
    assert (config.ropes["full"].kind, config.ropes["full"].theta) == ("linear", 50000.0)


def test_gpt2(tmp_path: Path) -> None:
    shapes = {
        "position_embd.weight": (128, HIDDEN),
        "blk.0.attn_qkv.weight": (3 * HIDDEN, HIDDEN),
        "blk.0.attn_qkv.bias": (3 * HIDDEN,),
        "blk.0.ffn_up.bias": (INNER,),
        **{f"{name}.bias": (HIDDEN,) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")},
        **{f"{name}.bias": (HIDDEN,) for name in ("blk.0.attn_output", "blk.0.ffn_down")},
    }
    unused = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")
    tensors = {key: tensor for key, tensor in weights(**shapes).items() if not key.endswith(unused)}
    metadata = {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": None, "rope.freq_base": None}
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", tensors, "gpt2", metadata))

    expected = {name: tensors[key] for name, key in CANONICAL.items() if key in tensors}
    expected |= {"position.weight": tensors["position_embd.weight"], "norm.bias": tensors["output_norm.bias"]}
    biased = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm", "attention.o": "attn_output"}
    for name, key in (biased | {"mlp.up": "ffn_up", "mlp.down": "ffn_down"}).items():
        expected[f"layers.0.{name}.bias"] = tensors[f"blk.0.{key}.bias"]
    for index, name in enumerate("qkv"):
        for leaf in ("weight", "bias"):
            expected[f"layers.0.attention.{name}.{leaf}"] = np.split(tensors[f"blk.0.attn_qkv.{leaf}"], 3)[index]
    assert_same_tensors(checkpoint, expected)
    config = checkpoint.config
    assert (config.norm, config.activation, config.gated_mlp) == ("layer", "gelu_tanh", False)
    assert (config.learned_positions, config.ropes, config.num_kv_heads) == (True, {}, HEADS)


def test_rope_scalings(tmp_path: Path) -> None:
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    rope = open_checkpoint(write(tmp_path / "a.gguf", weights(), metadata=yarn)).config.ropes["full"]
    assert rope.kind == "yarn"
    assert rope.parameters == {"factor": 4.0, "original_max_position_embeddings": 32.0, "beta_fast": 16.0}

    tensors = weights(rope_freqs__weight=(HEAD_DIM // 2,))
    rope = open_checkpoint(write(tmp_path / "b.gguf", tensors)).config.ropes["full"]
    assert rope.kind == "default"
    np.testing.assert_array_equal(np.asarray(rope.factors, np.float32), tensors["rope_freqs.weight"])


def test_end_tokens_and_chat_template(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "</s>", "<|eot_id|>", "<|im_end|>", "x"],
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.chat_template": "{{ messages }}",
    }
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", weights(), metadata=metadata))
    assert checkpoint.eos_token_ids == (1, 4, 2)
    assert checkpoint.bos_token_id == 0
    assert checkpoint.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        (
            "falcon",
            {},
            "architecture 'falcon' is not supported; use one of llama, qwen2, qwen3, gemma3, gpt2",
        ),
        ("llama", {"embedding_length": None}, "has no llama.embedding_length; convert the model again"),
        ("llama", {"embedding_length": "wide"}, "llama.embedding_length is 'wide', expected a number"),
        ("llama", {"attention.head_count": 0}, "the metadata of .* make no sense"),
        ("llama", {"attention.head_count_kv": 3}, "4 attention heads cannot share 3 key-value heads"),
        ("llama", {"attention.head_count_kv": [1, 2]}, "head_count_kv differs between layers"),
        ("llama", {"attention.value_length": 32}, "values and keys of different widths"),
        ("llama", {"block_count": 2}, "has no layer 1 of 2"),
        ("llama", {"block_count": 2**31}, "has no layer 2147483647"),
        (
            "llama",
            {"feed_forward_length": 256},
            r"ffn_gate.weight has shape \[512, 256\], the metadata ask for \[256, 256\]",
        ),
        ("llama", {"rope.dimension_count": 32}, "rope.dimension_count=32, but all 64 must rotate"),
        ("llama", {"rope.scaling.type": "longrope"}, "RoPE type 'longrope' is not supported"),
        ("llama", {"expert_count": 8}, "llama.expert_count=8 is not supported"),
        ("llama", {"split.count": 2}, "one of several parts; join them first"),
        (
            "qwen2",
            {"attention.layer_norm_rms_epsilon": None},
            "has no qwen2.attention.layer_norm_rms_epsilon",
        ),
    ],
)
def test_metadata_that_are_refused(tmp_path: Path, architecture: str, metadata: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "tiny.gguf", weights(), architecture, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tensors = weights()
    del tensors["blk.0.ffn_up.weight"]
    with pytest.raises(CheckpointError, match=r"tensor blk.0.ffn_up.weight is missing from .*; download it again"):
        open_checkpoint(write(path, tensors))
    with pytest.raises(CheckpointError, match=r"tensor blk.0.attn_sinks.weight has no place in a llama model"):
        open_checkpoint(write(path, weights(blk__0__attn_sinks__weight=(4,))))
    raw = np.zeros((HIDDEN, INNER // 256 * 84), np.uint8)
    kinds = {"blk.0.ffn_down.weight": Kind.Q2_K}
    with pytest.raises(CheckpointError, match=r"tensor blk.0.ffn_down.weight of .* is of type Q2_K; supported are F32"):
        open_checkpoint(write(path, weights() | {"blk.0.ffn_down.weight": raw}, kinds=kinds))


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    whole = write(path, weights()).read_bytes()
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(CheckpointError, match=r"is not a GGUF file: it begins with b'PK"):
        open_checkpoint(path)
    for version in (b"\x01\0\0\0", b"\0\0\0\x03"):
        path.write_bytes(whole[:4] + version + whole[8:])
        with pytest.raises(CheckpointError, match=r"is GGUF version \d+ or big-endian; convert it to version 3"):
            open_checkpoint(path)
    path.write_bytes(whole[:-64])
    with pytest.raises(CheckpointError, match=r"is cut short: tensor \S+ ends at byte \d+, the file at \d+; download"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A path to write to, a whole file, and where its tensor data begin."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}
    whole = write(path, weights(), metadata=tokens).read_bytes()
    return path, whole, len(whole) - sum(tensor.nbytes for tensor in weights().values())


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_truncation_is_noticed(header: tuple[Path, bytes, int], data: st.DataObject) -> None:
    path, whole, start = header
    size = data.draw(st.one_of(st.integers(0, start), st.integers(start, len(whole) - 1)))
    path.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match=r"is damaged or cut short|is cut short"):
        open_checkpoint(path)


@given(edits=st.dictionaries(st.floats(0, 1), st.integers(0, 255), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_damaged_headers_never_crash(header: tuple[Path, bytes, int], edits: dict[float, int]) -> None:
    path, whole, start = header
    damaged = bytearray(whole)
    for place, value in edits.items():
        damaged[8 + int(place * (start - 9))] = value
    path.write_bytes(damaged)
    try:
        message = str(open_checkpoint(path).config)
    except CheckpointError as error:
        message = str(error)
    assert message
    assert "\n" not in message
