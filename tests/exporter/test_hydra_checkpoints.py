"""Hydra heads in their authors' layout: official archs, trimmed files of our own, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.head_tensors import open_heads
from seqrt.exporter.checkpoints.hydra import HydraWeights, is_hydra, read_hydra

HEADS, HIDDEN, VOCAB = 3, 8, 20
SIZES = {"hidden": HIDDEN, "queries": HIDDEN, "keys": 4, "inner": 12}
Tensors = dict[str, torch.Tensor]
PREFIX_SHAPES = {
    "layers.0.input_layernorm": (HIDDEN,),
    "layers.0.post_attention_layernorm": (HIDDEN,),
    "layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
    "layers.0.self_attn.k_proj": (4, HIDDEN),
    "layers.0.self_attn.v_proj": (4, HIDDEN),
    "layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
    "layers.0.mlp.gate_proj": (12, HIDDEN),
    "layers.0.mlp.up_proj": (12, HIDDEN),
    "layers.0.mlp.down_proj": (HIDDEN, 12),
    "norm": (HIDDEN,),
    "embed_tokens": (VOCAB, HIDDEN),
}


def official(arch: str, num_layers: int, *, grounded: bool = True) -> Tensors:
    """What the authors' modules save: blocks after the first are one module under several keys."""
    torch.manual_seed(0)
    has_dropout = arch == "prefix-mlp"
    tensors: Tensors = {"input_embed_fn.weight": torch.randn(VOCAB, HIDDEN)}
    for head in range(HEADS):
        width = HIDDEN * (head + 2 if grounded else 1)
        places = [2 * layer + 1 if has_dropout else layer for layer in range(num_layers)]
        for name in ("linear", "res_connection"):
            tensors[f"hydra_mlp.{head}.{places[0]}.{name}.weight"] = torch.randn(HIDDEN, width)
            tensors[f"hydra_mlp.{head}.{places[0]}.{name}.bias"] = torch.randn(HIDDEN)
        shared = torch.randn(HIDDEN, HIDDEN), torch.randn(HIDDEN)
        for place in places[1:]:
            block = f"hydra_mlp.{head}.{place}.linear"
            tensors[f"{block}.weight"], tensors[f"{block}.bias"] = shared
        output = f"hydra_lm_head.{head}.1" if has_dropout else f"hydra_lm_head.{head}"
        tensors[f"{output}.weight"], tensors[f"{output}.bias"] = torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB)
    if has_dropout:
        for name, shape in PREFIX_SHAPES.items():
            tensors[f"prefix_embeding_layer.{name}.weight"] = torch.randn(shape)
        tensors["prefix_embeding_layer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.randn(4)
    return tensors


def write(directory: Path, tensors: Tensors, name: str = "hydra_lm_head.pt", **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if name.endswith(".pt"):
        torch.save(tensors, directory / name)
    else:
        save_file(tensors, directory / name)
    return directory


def read(path: Path) -> HydraWeights:
    tensors = open_heads(path)
    assert is_hydra(tensors)
    return read_hydra(tensors, SIZES, VOCAB)


@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
@pytest.mark.parametrize("num_layers", [1, 4])
@pytest.mark.parametrize("grounded", [True, False])
def test_official_layout(tmp_path: Path, arch: str, num_layers: int, grounded: bool) -> None:
    tensors = official(arch, num_layers, grounded=grounded)
    config: dict[str, Any] = {
        "grounded_heads": grounded,
        "hidden_state_offset": 2,
        "hydra_head_arch": arch,
        "hydra_num_heads": HEADS,
        "hydra_num_layers": num_layers,
    }
    weights = read(write(tmp_path / "heads", tensors, **config))
    assert (weights.num_heads, weights.is_grounded, weights.hidden_state_offset) == (HEADS, grounded, 2)
    assert weights.token_map is None
    offset = arch == "prefix-mlp"
    for head, (inner, straight) in enumerate(weights.first):
        block = f"hydra_mlp.{head}.{int(offset)}"
        np.testing.assert_array_equal(inner.weight, tensors[f"{block}.linear.weight"].numpy())
        np.testing.assert_array_equal(straight.weight, tensors[f"{block}.res_connection.weight"].numpy())
        assert inner.bias is not None
        np.testing.assert_array_equal(inner.bias, tensors[f"{block}.linear.bias"].numpy())
        assert len(weights.later[head]) == num_layers - 1
        for layer, later in enumerate(weights.later[head], start=1):
            key = f"hydra_mlp.{head}.{2 * layer + 1 if offset else layer}.linear.weight"
            np.testing.assert_array_equal(later.weight, tensors[key].numpy())
    assert weights.outputs is not None
    for head, output in enumerate(weights.outputs):
        key = f"hydra_lm_head.{head}.1" if offset else f"hydra_lm_head.{head}"
        np.testing.assert_array_equal(output.weight, tensors[f"{key}.weight"].numpy())
        assert output.bias is not None
        np.testing.assert_array_equal(output.bias, tensors[f"{key}.bias"].numpy())
    if weights.prefix is None:
        assert not offset
    else:
        assert len(weights.prefix) == len(PREFIX_SHAPES) - 1, "the copy of the embedding is not read"
        gate = tensors["prefix_embeding_layer.layers.0.mlp.gate_proj.weight"]
        np.testing.assert_array_equal(weights.prefix["layer.mlp.gate.weight"], gate.numpy())


@pytest.mark.parametrize("keeps_output", [True, False])
def test_reduced_vocabulary(tmp_path: Path, keeps_output: bool) -> None:
    tensors = official("mlp", 1) | {"token_map": torch.tensor([7, 0, 19])}
    if not keeps_output:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(("hydra_lm", "input"))}
    weights = read(write(tmp_path / "heads", tensors, "model.safetensors"))
    assert weights.token_map is not None
    assert weights.token_map.tolist() == [7, 0, 19]
    if weights.outputs is None:
        assert not keeps_output
    else:
        np.testing.assert_array_equal(weights.outputs[1].weight, tensors["hydra_lm_head.1.weight"].numpy()[[7, 0, 19]])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hydra_num_heads": 4}, r"config.json: hydra_num_heads is 4, the tensors say 3"),
        ({"hydra_num_layers": 4}, r"hydra_num_layers is 4, the tensors say 1"),
        ({"grounded_heads": False}, r"grounded_heads is False, the tensors say True"),
        ({"hydra_head_arch": "prefix-mlp"}, r"hydra_head_arch is 'prefix-mlp', the tensors say 'mlp'"),
        ({"hydra_head_arch": "eagle-attn"}, r"hydra_head_arch 'eagle-attn' is not supported; use one of mlp"),
    ],
)
def test_config_that_contradicts_the_tensors(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(write(tmp_path / "heads", official("mlp", 1), **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hydra_mlp.1.0.linear.weight": None}, r"has no hydra_mlp.1.0.linear.weight; download it again"),
        ({"hydra_mlp.2.0.res_connection.weight": torch.ones(8, 24)}, r"another hidden size: \S+ is \[8, 24\]"),
        ({"hydra_lm_head.0.weight": None}, r"lacks output layers of its 3 heads"),
        ({"hydra_lm_head.0.weight": torch.ones(30, 8)}, r"another vocabulary and hidden size: \S+ is \[30, 8\]"),
        ({"hydra_mlp.1.1.linear.weight": torch.ones(8, 8)}, r"has heads of \[1, 1, 2\] blocks"),
        ({"hydra_attn.weight": torch.ones(1)}, r"unknown kind: hydra_attn.weight has no place in mlp or prefix-mlp"),
        ({"prefix_embeding_layer.layers.0.mlp.up_proj.weight": torch.ones(12, 8)}, "has no prefix_embeding_layer"),
    ],
)
def test_incomplete_heads(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {name: value for name, value in (official("mlp", 1) | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        read(write(tmp_path / "heads", tensors))
    assert "\n" not in str(caught.value)


def test_matrices_may_be_int8_with_scales(tmp_path: Path) -> None:
    tensors = official("mlp", 1)
    name = "hydra_mlp.1.0.linear.weight"
    scale = torch.rand(HIDDEN, 6)
    codes = torch.randint(-127, 128, tensors[name].shape, dtype=torch.int8)
    stored = tensors | {name: codes, f"{name}_scale": scale}
    expected = np.array([[codes[i, j] * scale[i, j // 4] for j in range(24)] for i in range(HIDDEN)])
    for file in ("hydra_lm_head.pt", "hydra_lm_head.safetensors"):
        found = read(write(tmp_path / file, {key: value.clone() for key, value in stored.items()}, file))
        np.testing.assert_allclose(found.first[1][0].weight, expected, rtol=1e-6)
        np.testing.assert_array_equal(found.first[0][0].weight, tensors["hydra_mlp.0.0.linear.weight"])
    for wrong in (torch.rand(HIDDEN), torch.rand(HIDDEN, 5), torch.rand(HIDDEN - 1, 6), torch.rand(HIDDEN, 0)):
        with pytest.raises(
            CheckpointError, match=r"scales for hydra_mlp.1.0.linear.weight, which is \[8, 24\]; make it again"
        ):
            read(write(tmp_path / "wrong", stored | {f"{name}_scale": wrong}))
