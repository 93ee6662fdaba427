"""Hidden states on disk: npz files that hold ``keys``, ``lengths`` and the states of all, end to end."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float16]


def save(folder: Path, keys: Sequence[str], states: Sequence[Array]) -> None:
    """Write the states ``[length, H]`` of several answers as one file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{zlib.crc32(' '.join(keys).encode()):08x}.npz"
    partial = folder / f"{path.stem}.part"
    with partial.open("wb") as file:
        np.savez(file, keys=np.array(keys), lengths=[len(each) for each in states], hidden=np.concatenate(states))
    partial.replace(path)


def keys(folder: Path) -> set[str]:
    """The keys of all states in a folder."""
    return {str(key) for path in folder.glob("*.npz") for key in np.load(path)["keys"]}


def read(folder: Path) -> Iterator[tuple[str, Array]]:
    """All keys of a folder with their states, file by file."""
    for path in sorted(folder.glob("*.npz")):
        content = np.load(path)
        stops = np.cumsum(content["lengths"])
        for key, states in zip(content["keys"], np.split(content["hidden"], stops[:-1]), strict=True):
            yield str(key), states
