"""The tensors of published draft heads: a directory, a file, or a part of a full model; nothing of them executed.

A matrix `[out, in]` may be stored as int8, `NAME`, with a scale for each block of inputs, `NAME_scale` `[out, blocks]`:
half the size, and read as one float tensor.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.reading import Safetensors, read_torch

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

TOKEN_MAP: Final = "token_map"
SCALE: Final = "_scale"
_FILES: Final = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "hydra_lm_head.safetensors",
    "hydra_lm_head.pt",
)
_PREFIXES: Final = ("medusa_head.", "medusa_heads.")


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """Shapes by name, without the prefixes that publishers put before them, and the means to read.

    Attributes:
        path: what was opened.
        shapes: of all tensors, by name.
    """

    path: Path
    shapes: Mapping[str, Shape]
    _read: Callable[[str], torch.Tensor]

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as stored."""
        return self._read(name)

    def array(self, name: str, *shapes: Shape, of: str) -> Array:
        """A tensor as float32.

        Args:
            name: one of `shapes`.
            shapes: what it may have.
            of: what a wrong shape means that the heads were made for.

        Raises:
            CheckpointError: its shape is another.
        """
        if self.shapes[name] not in shapes:
            raise CheckpointError(
                f"{self.path} has draft heads of another {of}: {name} is {list(self.shapes[name])}, "
                f"the model needs {' or '.join(str(list(shape)) for shape in shapes)}; use heads made for this model"
            )
        values: Array = self._read(name).to(torch.float32).contiguous().numpy()
        return values

    def output(self, name: str, full: Shape, token_map: npt.NDArray[np.int64] | None) -> Array:
        """An output layer (or its bias) as float32, stored whole or reduced, as the rows of the draft vocabulary.

        Args:
            name: one of `shapes`.
            full: shape over the base's vocabulary.
            token_map: the draft vocabulary; None for all of the base's.

        Raises:
            CheckpointError: its shape is another.
        """
        reduced = full if token_map is None else (len(token_map), *full[1:])
        values = self.array(name, *dict.fromkeys((full, reduced)), of="vocabulary and hidden size")
        return values if token_map is None or values.shape == reduced else values[token_map]

    def token_map(self, vocab_size: int) -> npt.NDArray[np.int64] | None:
        """Tokens of a reduced draft vocabulary, if there is one.

        Raises:
            CheckpointError: they are not different tokens of the base's vocabulary.
        """
        if TOKEN_MAP not in self.shapes:
            return None
        tensor = self._read(TOKEN_MAP)
        tokens: npt.NDArray[np.int64] = tensor.to(torch.int64).numpy()
        if tensor.is_floating_point() or tokens.ndim != 1 or not len(tokens) or len(np.unique(tokens)) != tokens.size:
            raise CheckpointError(f"{self.path} has a token_map that is not a list of different tokens; make it again")
        outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
        if len(outside):
            raise CheckpointError(
                f"{self.path} has a token_map with token {outside[0]}, the model's vocabulary is {vocab_size}; "
                "use heads made for this model"
            )
        return tokens


def open_heads(path: Path) -> HeadTensors:
    """Opens a directory with draft heads, or a single .safetensors or .pt file of them.

    Raises:
        CheckpointError: files are missing or damaged, or hold anything but tensors.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in _FILES if (path / name).exists()), path)
    elif not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a directory with draft heads, or their file")
    if file.suffix in (".pt", ".bin"):
        tensors = read_torch(file)
        return _named(path, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__)
    store = Safetensors.of_directory(path) if file.is_dir() else Safetensors([file])
    return _named(path, {key: entry.shape for key, entry in store.entries.items()}, store.read)


def _named(path: Path, shapes: Mapping[str, Shape], read: Callable[[str], torch.Tensor]) -> HeadTensors:
    """Tensors under their names without prefix, those in int8 with their scales."""
    keys = _strip(shapes)
    scales = {name: f"{name}{SCALE}" for name in keys if f"{name}{SCALE}" in keys}

    def scaled(name: str) -> torch.Tensor:
        if name not in scales:
            return read(keys[name])
        codes, scale = read(keys[name]), read(keys[scales[name]])
        blocks = scale.shape[1] if scale.ndim == codes.ndim == 2 and len(scale) == len(codes) else 0
        if not blocks or codes.shape[1] % blocks:
            raise CheckpointError(
                f"{path} has {list(scale.shape)} scales for {name}, which is {list(codes.shape)}; make it again"
            )
        return (codes.float().reshape(*scale.shape, -1) * scale.float()[:, :, None]).reshape(codes.shape)

    kept = {name: shapes[key] for name, key in keys.items() if name not in scales.values()}
    return HeadTensors(path, kept, scaled)


def _strip(keys: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """Key of each tensor under its name without prefix; of a full model only the heads."""
    pattern = re.compile("|".join(map(re.escape, _PREFIXES)))
    is_model = any(key.startswith(_PREFIXES[0]) for key in keys)
    return {pattern.sub("", key, count=1): key for key in keys if not is_model or key.startswith(_PREFIXES)}
