"""Weights on their way into a bundle: draft heads in every layout, quantisation, blocks that are kept."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

from seqrt.exporter.checkpoints import open_checkpoint
from seqrt.exporter.export import export
from seqrt.exporter.weights import DecoderWeights, load_decoder
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.engines.ort import OrtEngine
from seqrt.runtime.model import load

VOCAB, HIDDEN = 150, 64  # of the fixture `source`


def random_tokens(count: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(0).integers(3, VOCAB, count).tolist()
    return tokens


def medusa_heads(path: Path, num_layers: int, *, own: bool, reduced: int | None) -> dict[str, torch.Tensor]:
    """Random heads in vLLM's layout."""
    rng = torch.Generator().manual_seed(num_layers)
    tensors = {}
    for head in range(3):
        for layer in range(num_layers):
            tensors[f"blocks.{head}.layers.{layer}.weight"] = torch.randn(HIDDEN, HIDDEN, generator=rng) / 8
            tensors[f"blocks.{head}.layers.{layer}.bias"] = torch.randn(HIDDEN, generator=rng)
        if own:
            tensors[f"lm_heads.{head}.weight"] = torch.randn(VOCAB, HIDDEN, generator=rng)
    if reduced is not None:
        tensors["token_map"] = torch.randperm(VOCAB, generator=rng)[:reduced]
    path.mkdir()
    save_file(tensors, path / "medusa_lm_head.safetensors")
    return tensors


def head_log_probabilities(
    tensors: dict[str, torch.Tensor], base: torch.Tensor, hidden: torch.Tensor, head: int
) -> dict[int, float]:
    """Log-probability of each token of the draft vocabulary, by the paper's formula."""
    z = hidden
    num_layers = sum(name.startswith(f"blocks.{head}.") for name in tensors) // 2
    for layer in range(num_layers):
        prefix = f"blocks.{head}.layers.{layer}"
        z = z + torch.nn.functional.silu(tensors[f"{prefix}.weight"] @ z + tensors[f"{prefix}.bias"])
    output = tensors.get(f"lm_heads.{head}.weight", base)
    tokens = tensors.get("token_map", torch.arange(VOCAB))
    values = (output[tokens] @ z).log_softmax(0)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_draft_heads_are_exported_in_every_layout(source: Path, tmp_path: Path, quantize: Any) -> None:
    layouts = {
        "tied": medusa_heads(tmp_path / "tied", 1, own=False, reduced=None),
        "reduced": medusa_heads(tmp_path / "reduced", 1, own=False, reduced=40),
        "own": medusa_heads(tmp_path / "own", 2, own=True, reduced=60),
    }
    (tmp_path / "reduced" / "tree.json").write_text(
        json.dumps({"paths": ["0", "00", "1"], "accuracy": [[0.5, 0.25], [0.125, 0]]})
    )
    bundle = tmp_path / "bundle"
    report = export(source, bundle, heads={name: tmp_path / name for name in layouts}, quantize=quantize)
    infos = {head.name: head for head in open_bundle(bundle).manifest.heads}
    assert set(report.differences) == {"decoder", "logits", "score", "compaction", *layouts}
    assert {(head.kind, head.num_heads, head.top_k) for head in infos.values()} == {("medusa", 3, 10)}
    assert infos["reduced"].tree == ("0", "00", "1")
    assert infos["reduced"].accuracy == ((0.5, 0.25), (0.125, 0.0))
    assert (infos["tied"].tree, infos["tied"].accuracy) == ((), ())

    base = torch.from_numpy(open_checkpoint(source).tensor("head.weight"))
    hidden = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
    for name, tensors in layouts.items():
        engine = OrtEngine(bundle / "graphs" / f"{name}.onnx", threads=1, exact=True)
        engine.input("hidden", (1, HIDDEN))[:] = hidden
        tokens, values = engine.output("token_ids", (3, 10)), engine.output("log_probabilities", (3, 10))
        engine.run()
        for head in range(3):
            expected = head_log_probabilities(tensors, base, hidden, head)
            found = dict(zip(tokens[head].tolist(), values[head].tolist(), strict=True))
            assert len(found) == 10
            tolerance = 1e-4 if quantize == "none" else 0.6
            assert all(abs(found[token] - expected[token]) < tolerance for token in found)
            if quantize == "none":
                assert set(found) == set(sorted(expected, key=lambda token: -expected[token])[:10])


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_bundles_stay_near_the_source(source: Path, tmp_path: Path, quantize: Any) -> None:
    report = export(source, tmp_path / "bundle", quantize=quantize)
    assert max(report.differences["decoder"].values()) < 1e-3
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.quantization, manifest.quality) == (quantize, None)
    for name in ("decoder", "logits"):
        path = tmp_path / "bundle" / "graphs" / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
        assert {node.domain for node in model.graph.node} == {""}
        weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert len(weights) == {"decoder": 2 * 4 + 2, "logits": 1}[name]
    tokens = random_tokens(100)
    source_decoder = load_decoder(DecoderWeights(open_checkpoint(source)))
    scores = load(tmp_path / "bundle", threads=1).score(tokens)
    expected = torch_scores(source_decoder, tokens)
    error = np.abs(scores.log_probabilities - expected).mean()
    spread = np.abs(expected - expected.mean()).mean()
    assert 1e-4 < error < (0.15 if quantize == "int8" else 0.6) * spread


def torch_scores(decoder: Any, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities of the tokens after the first, by our module run eagerly."""
    config, size = decoder.config, len(tokens)
    shape = (1, config.num_kv_heads, size, config.head_dim)
    rows = torch.arange(size)
    with torch.no_grad():
        *_, hidden, _ = decoder(
            torch.tensor([tokens]),
            torch.ones(size, size).tril().bool(),
            rows,
            torch.tensor([0]),
            rows[-1:],
            [(torch.zeros(shape), torch.zeros(shape)) for _ in config.layer_kinds],
        )
        log_probabilities = decoder.readout.head(hidden).double().log_softmax(-1)
    found: npt.NDArray[np.float64] = log_probabilities[rows[:-1], torch.tensor(tokens[1:])].numpy()
    return found


def gguf_model(path: Path, kinds: dict[str, Kind]) -> Path:
    """A llama of one layer whose matrices are quantised by the gguf library as `kinds` says, by their last name."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    shapes = {
        "token_embd": (VOCAB, HIDDEN),
        "output": (VOCAB, HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (32, HIDDEN),
        "blk.0.attn_v": (32, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (96, HIDDEN),
        "blk.0.ffn_up": (96, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 96),
    }
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    for name, shape in shapes.items():
        kind = kinds[name.rpartition("_")[2]] if name.rpartition("_")[2] in kinds else kinds[""]
        data = gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32) / 4, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        {"": Kind.Q4_1},
        {"": Kind.Q4_0, "output": Kind.Q8_0, "down": Kind.F16},
        {"": Kind.Q4_1, "v": Kind.Q8_0},
    ],
    ids=["Q4_1 throughout", "Q4_0 and others", "mixed in a fused projection"],
)
def test_source_blocks_are_kept_without_a_second_rounding(tmp_path: Path, kinds: dict[str, Kind]) -> None:
    file = gguf_model(tmp_path / "tiny.gguf", kinds)
    report = export(file, tmp_path / "bundle", quantize="source")
    assert max(report.differences["decoder"].values()) < 1e-4
    tokens = random_tokens(60)
    expected = torch_scores(load_decoder(DecoderWeights(open_checkpoint(file))), tokens)
    exact = score_exactly(tmp_path / "bundle", tokens)
    np.testing.assert_allclose(exact, expected, atol=0.2 if "v" in kinds else 5e-3)
    codes_and_scales = 64 * 128 + 4 * 2 * 128
    assert report.rounded == ({"layers.0.attention.qkv.weight": codes_and_scales} if "v" in kinds else {})
    parts = {"attention.qkv", "attention.o", "mlp.up"} | (set() if "down" in kinds else {"mlp.down"})
    quantised = {"embed.weight", "head.weight"} | {f"layers.0.{part}.weight" for part in parts}
    assert report.kept.keys() == quantised - report.rounded.keys()
    assert 0 < sum(report.kept.values()) < (tmp_path / "bundle" / "graphs" / "weights.bin").stat().st_size
    model = onnx.load(tmp_path / "bundle" / "graphs" / "decoder.onnx", load_external_data=False)
    floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    kept = [name for name in floats if name.endswith(".weight")]
    assert kept == (["layers.0.mlp.down.weight"] if "down" in kinds else [])


def score_exactly(bundle: Path, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities by the decoder graph with float32 activations."""
    engine, size = OrtEngine(bundle / "graphs" / "decoder.onnx", threads=1, exact=True), len(tokens)
    for name, array in (
        ("token_ids", np.array([tokens])),
        ("ancestors", np.tri(size, dtype=np.bool_)),
        ("depth", np.arange(size)),
        ("past_len", np.zeros(1, np.int64)),
        ("logit_rows", np.arange(size)),
    ):
        engine.input(name, array.shape)[:] = array
    engine.state("past_key.0", "present_key.0", (1, 2, 64, 16))
    engine.state("past_value.0", "present_value.0", (1, 2, 64, 16))
    ids, logits = engine.output("topk_ids", (size, VOCAB)), engine.output("topk_logits", (size, VOCAB))
    total = engine.output("logsumexp", (size,))
    engine.output("hidden", (size, HIDDEN))
    engine.run()
    place = ids[:-1].astype(int) == np.array(tokens[1:])[:, None]
    found: npt.NDArray[np.float64] = logits[:-1].astype(np.float64)[place] - total[:-1].astype(np.float64)
    return found
