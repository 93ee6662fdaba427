"""Plain files of a checkpoint directory: JSON objects and safetensors, whole or in shards."""

import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from seqrt.errors import CheckpointError
from seqrt.runtime.bundle import parse

T = TypeVar("T")
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: the file is missing, unreadable or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def one_line(error: BaseException) -> str:
    """The text of `error` on one line, shortened where a library wrote a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def told_of(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a CheckpointError that begins with the path.

    Tensors of another model raise anything: names and dimensions that are not there. `what` says what it should be.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is no {what}, or not whole ({type(error).__name__}: {one_line(error)})"
        ) from error


def read_settings(kind: type[T], folder: Path, key: str, writer: str) -> T:
    """What config.json in a directory of seqrt says under `key`; `writer` is what writes it.

    Raises:
        CheckpointError: it is missing, or says something else.
    """
    where = folder / "config.json"
    try:
        return parse(kind, read_json(where).get(key), str(where))  # type: ignore[no-any-return]
    except ValueError as error:
        told = str(error) if str(where) in str(error) else f"{where}: {error}"
        raise CheckpointError(f"{told}; write it as {writer} does") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies, before it is read; `dtype` is safetensors' name, such as BF16."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Safetensors:
    """The tensors of one or several safetensors files, read on demand."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers of `files`.

        Raises:
            CheckpointError: a file is missing or damaged, or two hold the same tensor.
        """
        self.files = list(files)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            header = _header(file)
            twice = self.entries.keys() & header.keys()
            if twice:
                raise CheckpointError(f"tensor {min(twice)} is in two files of {file.parent}; download it again")
            self.entries.update(header)

    @classmethod
    def of_directory(cls, directory: Path) -> "Safetensors":
        """The weights of a Hugging Face directory, sharded or not.

        Raises:
            CheckpointError: as for the class, or the directory has no safetensors weights.
        """
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if index.exists():
            return cls(_shards(index))
        if single.exists():
            return cls([single])
        pickled = sorted(file.name for file in directory.glob("*.bin"))
        if pickled:
            raise CheckpointError(f"{directory} holds only {pickled[0]}; convert it to model.safetensors")
        raise CheckpointError(f"{directory} has no model.safetensors; download the weights")

    def read(self, key: str) -> torch.Tensor:
        """One tensor, as stored.

        The file is opened for this tensor alone, so that its mapped pages are given back with it and do not
        add up to the size of the model.
        """
        with safe_open(self.entries[key].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor


def read_torch(file: Path, *inside: str) -> dict[str, torch.Tensor]:
    """Tensors of a torch file; `weights_only` refuses to run what else a pickle may hold.

    Args:
        file: what `torch.save` wrote.
        inside: keys of dictionaries that may hold the tensors, beside other things.

    Raises:
        CheckpointError: it is damaged, or holds anything but tensors.
    """
    try:
        is_archive = zipfile.is_zipfile(file)  # torch maps nothing else
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except PermissionError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; give a readable file") from error
    except Exception as error:  # whatever a damaged pickle raises
        why = one_line(error).partition(". ")[0]
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors ({why}); download it again, or convert it to safetensors"
        ) from error
    for key in inside:
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    is_named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not is_named or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{file} holds no dictionary of tensors; convert it to safetensors")
    return tensors  # type: ignore[no-any-return]


def _shards(index: Path) -> list[Path]:
    """Files that an index names, all of them present and beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or name in ("", "..")]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file beside it")
    return [index.parent / name for name in names]


def _header(file: Path) -> dict[str, Entry]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; download it")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118, not a mapping
            return {key: Entry(file, tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({one_line(error)}); download it again") from error
