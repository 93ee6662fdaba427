"""Medusa heads in every published layout, written as their publishers write them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints import medusa
from seqrt.exporter.checkpoints.head_tensors import open_heads
from seqrt.exporter.checkpoints.medusa import MedusaWeights

HEADS, HIDDEN, VOCAB = 3, 8, 20
Tensors = dict[str, torch.Tensor]


def read_medusa(path: Path, hidden_size: int, vocab_size: int) -> MedusaWeights:
    return medusa.read_medusa(open_heads(path), hidden_size, vocab_size)


def head_tensors(num_layers: int = 1, *, output: bool = True) -> Tensors:
    """v0.1 keys: numbered children of an nn.Sequential a head."""
    torch.manual_seed(0)
    tensors: Tensors = {}
    for head in range(HEADS):
        for layer in range(num_layers):
            tensors[f"{head}.{layer}.linear.weight"] = torch.randn(HIDDEN, HIDDEN)
            tensors[f"{head}.{layer}.linear.bias"] = torch.randn(HIDDEN)
        if output:
            tensors[f"{head}.{num_layers}.weight"] = torch.randn(VOCAB, HIDDEN)
    return tensors


def block_tensors(num_layers: int = 1, *, bias: bool = True) -> Tensors:
    """vLLM keys, without output layers."""
    torch.manual_seed(0)
    tensors: Tensors = {}
    for head in range(HEADS):
        for layer in range(num_layers):
            tensors[f"blocks.{head}.layers.{layer}.weight"] = torch.randn(HIDDEN, HIDDEN)
            if bias:
                tensors[f"blocks.{head}.layers.{layer}.bias"] = torch.randn(HIDDEN)
    return tensors


def write(directory: Path, tensors: Mapping[str, torch.Tensor], name: str, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1} | config))
    if name.endswith(".pt"):
        torch.save(dict(tensors), directory / name)
    else:
        save_file(dict(tensors), directory / name)
    return directory


def assert_blocks(weights: MedusaWeights, tensors: Tensors, pattern: str, num_layers: int = 1) -> None:
    """`pattern` makes a key of head, layer and leaf."""
    assert (weights.num_heads, weights.num_layers, weights.hidden_size) == (HEADS, num_layers, HIDDEN)
    assert [len(layers) for layers in weights.blocks] == [num_layers] * HEADS
    for head, layers in enumerate(weights.blocks):
        for layer, (weight, bias) in enumerate(layers):
            assert weight.dtype == np.float32
            np.testing.assert_array_equal(weight, tensors[pattern.format(head, layer, "weight")].float().numpy())
            expected = tensors.get(pattern.format(head, layer, "bias"))
            if expected is None:
                assert bias is None
            else:
                assert bias is not None
                np.testing.assert_array_equal(bias, expected.float().numpy())


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
@pytest.mark.parametrize("whole", [True, False], ids=["directory", "file"])
def test_v01_counts_heads_from_the_tensors(tmp_path: Path, name: str, whole: bool) -> None:
    """The published config says two heads and the file holds more."""
    tensors = {key: tensor.bfloat16() for key, tensor in head_tensors().items()}
    path = write(tmp_path / "heads", tensors, name)
    weights = read_medusa(path if whole else path / name, HIDDEN, VOCAB)
    assert_blocks(weights, tensors, "{}.{}.linear.{}")
    assert weights.outputs is not None
    assert weights.token_map is None
    for head, output in enumerate(weights.outputs):
        assert output.dtype == np.float32
        np.testing.assert_array_equal(output, tensors[f"{head}.1.weight"].float().numpy())


def test_v01_with_shared_layers(tmp_path: Path) -> None:
    """`[ResBlock(...)] * num_layers` is one module, saved once for every key that names it."""
    tensors = head_tensors(2)
    for head in range(HEADS):
        for leaf in ("weight", "bias"):
            tensors[f"{head}.1.linear.{leaf}"] = tensors[f"{head}.0.linear.{leaf}"]
    weights = read_medusa(write(tmp_path / "heads", tensors, "medusa_lm_head.pt"), HIDDEN, VOCAB)
    assert_blocks(weights, tensors, "{}.{}.linear.{}", num_layers=2)
    assert weights.outputs is not None
    np.testing.assert_array_equal(weights.outputs[2], tensors["2.2.weight"].numpy())


def test_v2_uses_the_output_layer_of_the_model(tmp_path: Path) -> None:
    tensors = head_tensors(output=False)
    weights = read_medusa(write(tmp_path / "heads", tensors, "medusa_lm_head.safetensors"), HIDDEN, VOCAB)
    assert_blocks(weights, tensors, "{}.{}.linear.{}")
    assert (weights.outputs, weights.token_map) == (None, None)


@pytest.mark.parametrize("sharded", [False, True])
def test_v1_inside_a_full_model(tmp_path: Path, sharded: bool) -> None:
    tensors = {f"medusa_head.{key}": tensor for key, tensor in head_tensors().items()}
    base = {"model.norm.weight": torch.ones(HIDDEN), "lm_head.weight": torch.ones(VOCAB, HIDDEN)}
    directory = write(tmp_path / "model", tensors | base, "model.safetensors")
    if sharded:
        (directory / "model.safetensors").unlink()
        shards = {
            "a.safetensors": dict(list(tensors.items())[:4]),
            "b.safetensors": dict(list(tensors.items())[4:]) | base,
        }
        for name, part in shards.items():
            save_file(part, directory / name)
        index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = read_medusa(directory, HIDDEN, VOCAB)
    assert_blocks(weights, tensors, "medusa_head.{}.{}.linear.{}")
    assert weights.outputs is not None
    np.testing.assert_array_equal(weights.outputs[1], tensors["medusa_head.1.1.weight"].numpy())


@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
@pytest.mark.parametrize("bias", [False, True])
def test_vllm(tmp_path: Path, prefix: str, bias: bool) -> None:
    blocks = block_tensors(2, bias=bias)
    outputs = {f"lm_heads.{head}.weight": torch.randn(VOCAB, HIDDEN) for head in range(HEADS)}
    stored = {prefix + key: tensor for key, tensor in (blocks | outputs).items()}
    weights = read_medusa(write(tmp_path / "heads", stored, "model.safetensors"), HIDDEN, VOCAB)
    assert_blocks(weights, blocks, "blocks.{}.layers.{}.{}", num_layers=2)
    assert weights.outputs is not None
    for head, output in enumerate(weights.outputs):
        np.testing.assert_array_equal(output, outputs[f"lm_heads.{head}.weight"].numpy())


@pytest.mark.parametrize("reduced", [True, False])
def test_vllm_with_a_reduced_vocabulary(tmp_path: Path, reduced: bool) -> None:
    """The output layers hold either the rows of the token map or all rows."""
    token_map = torch.tensor([3, 0, 17, 5])
    full = torch.randn(VOCAB, HIDDEN)
    outputs = {f"lm_heads.{head}.weight": full[token_map] if reduced else full.clone() for head in range(HEADS)}
    stored = block_tensors() | outputs | {"token_map": token_map}
    weights = read_medusa(write(tmp_path / "heads", stored, "model.safetensors"), HIDDEN, VOCAB)
    assert weights.token_map is not None
    assert weights.token_map.dtype == np.int64
    assert weights.token_map.tolist() == [3, 0, 17, 5]
    assert weights.outputs is not None
    for output in weights.outputs:
        np.testing.assert_array_equal(output, full.numpy()[[3, 0, 17, 5]])


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_heads.0.weight"])
def test_vllm_with_one_output_layer(tmp_path: Path, key: str) -> None:
    shared = torch.randn(VOCAB, HIDDEN)
    path = write(tmp_path / "heads", block_tensors() | {key: shared}, "model.safetensors", original_lm_head=True)
    weights = read_medusa(path, HIDDEN, VOCAB)
    assert weights.outputs is not None
    assert len(weights.outputs) == HEADS
    for output in weights.outputs:
        np.testing.assert_array_equal(output, shared.numpy())


def test_own_layout(tmp_path: Path) -> None:
    """Base output layer, rows chosen by the token map, and a config whose counts are not believed."""
    tensors = block_tensors() | {"token_map": torch.tensor([2, 19, 7])}
    config = {"model_type": "medusa", "num_heads": 9, "num_layers": 9, "hidden_size": HIDDEN}
    weights = read_medusa(write(tmp_path / "heads", tensors, "model.safetensors", **config), HIDDEN, VOCAB)
    assert_blocks(weights, tensors, "blocks.{}.layers.{}.{}")
    assert weights.outputs is None
    assert weights.token_map is not None
    assert weights.token_map.tolist() == [2, 19, 7]


@pytest.mark.parametrize(
    ("hidden_size", "vocab_size", "message"),
    [
        (
            16,
            VOCAB,
            r"another hidden size: \S+ is \[8, 8\], the model needs \[16, 16\]; use heads made for",
        ),
        (HIDDEN, 30, r"another vocabulary and hidden size: \S+ is \[20, 8\], the model needs \[30, 8\]"),
    ],
)
def test_heads_of_another_model(tmp_path: Path, hidden_size: int, vocab_size: int, message: str) -> None:
    path = write(tmp_path / "heads", head_tensors(), "medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match=message):
        read_medusa(path, hidden_size, vocab_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.layers.0.weight": None}, "has no weights for layer 0 of head 1"),
        (
            {"blocks.0.layers.0.bias": torch.ones(3)},
            r"blocks.0.layers.0.bias is \[3\], the model needs \[8\]",
        ),
        ({"lm_heads.0.weight": torch.ones(VOCAB, HIDDEN)}, "has 1 output layers for 3 heads"),
        ({"model.norm.weight": torch.ones(3)}, r"no layout of theirs has a tensor model.norm.weight"),
        ({"token_map": torch.tensor([1, 20])}, "a token_map with token 20, the model's vocabulary is 20"),
        ({"token_map": torch.tensor([1, -2])}, "a token_map with token -2, the model's vocabulary is 20"),
        ({"token_map": torch.tensor([1, 1])}, "a token_map that is not a list of different tokens"),
        ({"token_map": torch.tensor([1.0, 2.0])}, "a token_map that is not a list of different tokens"),
        (
            {"token_map": torch.tensor([], dtype=torch.int64)},
            "a token_map that is not a list of different tokens",
        ),
        (
            {"0.1.weight": torch.ones(1), "lm_heads.0.weight": torch.ones(1)},
            "has two output layers for head 0",
        ),
    ],
)
def test_incomplete_heads(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {key: tensor for key, tensor in (block_tensors() | changes).items() if tensor is not None}
    path = write(tmp_path / "heads", tensors, "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_medusa(path, HIDDEN, VOCAB)
    assert "\n" not in str(caught.value)


def test_a_model_without_heads(tmp_path: Path) -> None:
    path = write(tmp_path / "model", {"lm_head.weight": torch.ones(VOCAB, HIDDEN)}, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no draft heads; pass the directory"):
        read_medusa(path, HIDDEN, VOCAB)
    with pytest.raises(CheckpointError, match=r"nothing does not exist; pass a directory with draft heads"):
        read_medusa(tmp_path / "nothing", HIDDEN, VOCAB)


class Attack:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("content", [{"0.0.linear.weight": Attack()}, [torch.ones(2)], {"0.0.linear.weight": 1.0}])
def test_pickles_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match=r"convert it to safetensors") as caught:
        read_medusa(tmp_path, HIDDEN, VOCAB)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "heads", head_tensors(), name) / name
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"{name} is damaged,? or"):
            read_medusa(path, HIDDEN, VOCAB)
