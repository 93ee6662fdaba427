"""Weights that PaddlePaddle saved, `.pdparams`: a pickle of numpy arrays by name; nothing else in it is run."""

import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.reading import one_line

# What numpy's arrays are made of, whichever numpy wrote them.
_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}
_STRUCTURED: Final = "StructuredToParameterName@@"  # Paddle's own names of the same tensors


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return super().find_class(module, name)


def read_paddle(file: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, as stored: matrices of Linear layers are `[in, out]`.

    Raises:
        CheckpointError: it is damaged, or holds anything but arrays.
    """
    try:
        with file.open("rb") as opened:
            held = _Unpickler(opened).load()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; give a readable file") from error
    except Exception as error:  # whatever a damaged pickle raises
        raise CheckpointError(
            f"{file} is damaged or holds more than arrays ({one_line(error)}); download it again"
        ) from error
    arrays = {name: value for name, value in held.items() if name != _STRUCTURED} if isinstance(held, dict) else {}
    kinds = {type(name) for name in arrays} | {getattr(value, "dtype", np.dtype("O")).kind for value in arrays.values()}
    if not arrays or not kinds <= {str, "f", "i", "u", "b"}:
        raise CheckpointError(f"{file} holds no dictionary of numbers; pass a .pdparams file of a trained model")
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
