"""Files of torch read without running anything in them: tensors, plain containers, and stand-ins for all else.

`torch.load(weights_only=True)` refuses a file that names any other class. Checkpoints of Lightning do: beside weights
they hold whole policies, environments and optimisers.
"""

import pickle
import types
import zipfile
from pathlib import Path
from typing import Any, Final

import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.reading import one_line

_REBUILDS: Final = frozenset(["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"])
_TYPES: Final = frozenset(["float16", "bfloat16", "float32", "float64", "int64", "int32", "bool", "uint8"])


def read_inert(path: Path) -> Any:
    """What `torch.save` wrote, with objects of other classes as stand-ins that do nothing.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is a TorchScript archive, which holds code.
    """
    try:
        if zipfile.is_zipfile(path):  # torch would run the code of an archive that it takes for TorchScript
            with zipfile.ZipFile(path) as archive:
                if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                    raise CheckpointError(f"{path} is a TorchScript archive; save the state_dict of the model instead")
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT)
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give a readable file") from error
    except Exception as error:  # whatever a damaged pickle raises
        raise CheckpointError(f"{path} is damaged or no torch file ({one_line(error)}); download it again") from error


class _Stub:
    """Stands for an object of a class that is not known here; takes whatever a pickle does to it."""

    def __new__(cls, *_: Any, **__: Any) -> "_Stub":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> "_Stub":
        return self

    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None:
        """Does nothing."""

    def extend(self, _: Any) -> None:
        """Does nothing."""


class _Unpickler(pickle.Unpickler):
    """Finds what tensors and plain containers are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_tensor = module == "torch._utils" and name in _REBUILDS
        is_storage = module in ("torch", "torch.storage") and (name.endswith("Storage") or name in _TYPES)
        if is_tensor or is_storage or (module, name) == ("collections", "OrderedDict"):
            return super().find_class(module, name)
        return _Stub


_INERT: Final = types.SimpleNamespace(  # what torch.load takes in the place of the module pickle
    Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load(), __name__="inert"
)
