"""Medusa heads (arXiv 2401.10774) in every layout that they are published in.

A head is num_layers residual blocks h + SiLU(W h + b) and an output layer. The layouts, told apart by their
keys alone, because published configs miscount their heads:

    {head}.{layer}.linear.{weight,bias}, {head}.{num_layers}.weight     v0.1; v2 uses the model's output layer
    medusa_head.{head}.{layer}...                                       v1.0: the same inside a full model
    blocks.{head}.layers.{layer}.{weight,bias}, lm_heads.{head}.weight  vLLM and seqrt; `token_map` names the
                                                                        tokens of a reduced draft vocabulary

The layers of a v0.1 head are one shared module saved under several keys; read one by one they are the same.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.reading import Safetensors, one_line, read_json

Array = npt.NDArray[np.float32]

_PREFIXES: Final = ("medusa_head.", "medusa_heads.")
_FILES: Final = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
_LINEAR: Final = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)")
_OUTPUT: Final = re.compile(r"(\d+)\.(\d+)\.weight")
_BLOCK: Final = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_LM_HEAD: Final = re.compile(r"lm_heads\.(\d+)\.weight")
_SHARED: Final = "lm_head.weight"
_TOKEN_MAP: Final = "token_map"

# Where a linear layer of a block stands: head, layer, weight or bias.
Place = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class MedusaWeights:
    """The weights of all heads, head k predicting the token k + 2 places after the row that it reads.

    Attributes:
        blocks: per head and layer, weight `[H, H]` and bias `[H]` or None.
        outputs: per head, `[Vd, H]`; None means the base model's output layer.
        token_map: int64 `[Vd]`: token of each row of the outputs, or row of the base output layer to take;
            None means the whole vocabulary in its order.
    """

    num_heads: int
    num_layers: int
    hidden_size: int
    blocks: list[list[tuple[Array, Array | None]]]
    outputs: list[Array] | None
    token_map: npt.NDArray[np.int64] | None


def read_medusa(path: Path, hidden_size: int, vocab_size: int) -> MedusaWeights:
    """Read heads from a directory or from a single .safetensors or .pt file.

    Args:
        path: what was published.
        hidden_size: of the base model.
        vocab_size: of the base model.

    Raises:
        CheckpointError: files are missing or damaged, hold anything but tensors or an incomplete set of
            heads, or were made for a model of another size.
    """
    keys, read = _open(path)
    places, outputs = _inventory(path, keys)
    num_heads = 1 + max(head for head, _, _ in places)
    num_layers = 1 + max(layer for _, layer, _ in places)

    def linear(head: int, layer: int) -> tuple[Array, Array | None]:
        weight, bias = places.get((head, layer, "weight")), places.get((head, layer, "bias"))
        if weight is None:
            raise CheckpointError(f"{path} has no weights for layer {layer} of head {head}; download it again")
        _check_shape(path, weight, keys[weight], (hidden_size, hidden_size), "hidden size")
        if bias is not None:
            _check_shape(path, bias, keys[bias], (hidden_size,), "hidden size")
        return _float(read(weight)), None if bias is None else _float(read(bias))

    token_map = _token_map(path, read(_TOKEN_MAP), vocab_size) if _TOKEN_MAP in keys else None
    return MedusaWeights(
        num_heads=num_heads,
        num_layers=num_layers,
        hidden_size=hidden_size,
        blocks=[[linear(head, layer) for layer in range(num_layers)] for head in range(num_heads)],
        outputs=_outputs(path, outputs, keys, read, token_map, num_heads, (vocab_size, hidden_size)),
        token_map=token_map,
    )


def _open(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], torch.Tensor]]:
    """Shapes of the heads' tensors, under their names without prefix, and a function that reads one."""
    file = path
    if path.is_dir():
        file = next((path / name for name in _FILES if (path / name).exists()), path)
    elif not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a directory with Medusa heads, or their file")
    if file.suffix in (".pt", ".bin"):
        tensors = _unpickle(file)
        names = _strip(tensors, is_model=False)
        return {name: tuple(tensors[key].shape) for name, key in names.items()}, lambda name: tensors[names[name]]
    store = Safetensors.of_directory(path) if file.is_dir() else Safetensors([file])
    names = _strip(store.entries, is_model=any(key.startswith(_PREFIXES[0]) for key in store.entries))
    shapes = {name: store.entries[key].shape for name, key in names.items()}
    return shapes, lambda name: store.read(names[name])


def _strip(keys: Mapping[str, object], *, is_model: bool) -> dict[str, str]:
    """Key of each tensor under its name without prefix; of a full model only the heads."""
    pattern = re.compile("|".join(map(re.escape, _PREFIXES)))
    return {pattern.sub("", key, count=1): key for key in keys if not is_model or key.startswith(_PREFIXES)}


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a torch file; `weights_only` refuses to run what else a pickle may hold."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors ({one_line(error)}); convert it to safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{file} holds no dictionary of tensors; convert it to safetensors")
    return tensors


def _inventory(path: Path, keys: Mapping[str, object]) -> tuple[dict[Place, str], dict[int, str]]:
    """Key of every linear layer of the blocks, and of every head's own output layer."""
    places: dict[Place, str] = {}
    outputs: dict[int, str] = {}
    for key in keys:
        if match := _LINEAR.fullmatch(key) or _BLOCK.fullmatch(key):
            places[int(match[1]), int(match[2]), match[3]] = key
        elif match := _OUTPUT.fullmatch(key) or _LM_HEAD.fullmatch(key):
            if int(match[1]) in outputs:
                raise CheckpointError(f"{path} has two output layers for head {match[1]}; download it again")
            outputs[int(match[1])] = key
        elif key not in (_TOKEN_MAP, _SHARED):
            raise CheckpointError(f"{path} is not a set of Medusa heads: no layout of theirs has a tensor {key}")
    if not places:
        raise CheckpointError(f"{path} holds no Medusa heads; pass the directory that the heads were published in")
    return places, outputs


def _outputs(
    path: Path,
    outputs: Mapping[int, str],
    keys: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    token_map: npt.NDArray[np.int64] | None,
    num_heads: int,
    full: tuple[int, int],
) -> list[Array] | None:
    """Output layer of every head, reduced to the rows of the draft vocabulary."""
    if _SHARED in keys or (len(outputs) == 1 < num_heads and _shares_output(path)):
        outputs = dict.fromkeys(range(num_heads), _SHARED if _SHARED in keys else outputs[0])
    if not outputs:
        return None
    if sorted(outputs) != list(range(num_heads)):
        raise CheckpointError(f"{path} has {len(outputs)} output layers for {num_heads} heads; download it again")
    layers: dict[str, Array] = {}
    for key in dict.fromkeys(outputs.values()):
        if token_map is not None and keys[key] == (len(token_map), full[1]):
            layers[key] = _float(read(key))
            continue
        _check_shape(path, key, keys[key], full, "vocabulary and hidden size")
        weight = _float(read(key))
        layers[key] = weight if token_map is None else weight[token_map]
    return [layers[outputs[head]] for head in range(num_heads)]


def _shares_output(path: Path) -> bool:
    """Whether a vLLM config says that its single output layer serves all heads."""
    config = path / "config.json"
    return config.exists() and bool(read_json(config).get("original_lm_head"))


def _token_map(path: Path, tensor: torch.Tensor, vocab_size: int) -> npt.NDArray[np.int64]:
    tokens = tensor.to(torch.int64).numpy()
    if tensor.is_floating_point() or tokens.ndim != 1 or not len(tokens) or len(np.unique(tokens)) != tokens.size:
        raise CheckpointError(f"{path} has a token_map that is not a list of different tokens; make it again")
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise CheckpointError(
            f"{path} has a token_map with token {outside[0]}, the model's vocabulary is {vocab_size}; "
            "use heads made for this model"
        )
    return tokens


def _check_shape(path: Path, key: str, got: tuple[int, ...], want: tuple[int, ...], what: str) -> None:
    if got != want:
        raise CheckpointError(
            f"{path} has Medusa heads of another {what}: {key} is {list(got)}, the model needs {list(want)}; "
            "use heads made for this model"
        )


def _float(tensor: torch.Tensor) -> Array:
    return tensor.to(torch.float32).contiguous().numpy()
