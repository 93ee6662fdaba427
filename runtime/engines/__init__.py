"""Engines: what runs one graph. `Engine` is all that the rest of the runtime knows of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

__all__ = ["Array", "Engine", "Operator", "TensorInfo", "resized"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Element type and shape of a graph input or output; symbolic dimensions are strings."""

    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator, or layer, of one run of a graph.

    Attributes:
        run: of the engine, counted from 0.
        name: of the node; it begins with the module that it was made from, up to a slash.
        op_type: what it computes, as the engine calls it.
        start, seconds: when it began after the run did, and how long it took.
    """

    run: int
    name: str
    op_type: str
    start: float
    seconds: float


def resized(old: Array | None, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
    """Zeros of `shape` with what of `old` fits into it: a cache that grows keeps its rows."""
    made: Array = np.zeros(tuple(shape), dtype)
    if old is not None:
        both = tuple(slice(min(sizes)) for sizes in zip(old.shape, shape, strict=True))
        made[both] = old[both]
    return made


class Engine(Protocol):
    """One graph with named buffers, bound once and again only when a shape changes.

    Usage of a step: write into `input(name, shape)` of each input, announce `output(name, shape)` of each output,
    `run()`, and read the arrays that `output` returned. State (caches) is bound by `state` and stays on the device.
    """

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Graph inputs by name."""

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Graph outputs by name."""

    def input(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run reads; valid until `input` is called with another shape."""

    def output(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run fills; overwritten by each run."""

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        """Binds one zeroed buffer as input `past` and output `present`; another shape keeps what fits into both."""

    def share_state(self, owner: "Engine") -> None:
        """Binds the state buffers of `owner` under the same names; again whenever they have grown."""

    @property
    def buckets(self) -> Mapping[int, int]:
        """Of an engine for fixed numbers of rows, or images: these, ascending, and how many of them get an answer."""

    def run(self) -> None:
        """Runs the graph once, and waits for its outputs."""

    def operators(self) -> Sequence[Operator]:
        """Of all runs, if it was made to keep them; asked once, after the last run."""

    def close(self) -> None:
        """Gives back what it holds; it cannot be used any more."""
