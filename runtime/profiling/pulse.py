"""Whether the machine held still: its copy bandwidth, its arithmetic and its clocks, again and again during a run.

The copy bandwidth is also the limit that decoding is held against: a step reads all weights once. It is that of the
host's memory or, where a GPU computes, of the GPU's.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from seqrt.runtime.engines.cuda import Cuda, DeviceBuffer, Stream
from seqrt.runtime.machine import State, state
from seqrt.runtime.profiling.statistics import variation

KINDS: Final = {"copy_gb_per_second": "memory bandwidth", "sha256_mb_per_second": "a core's speed"}
_COPIED: Final = 1 << 27  # bytes of a copy: more than most caches hold
_COPIED_ON_GPU: Final = 1 << 28
_COPIES: Final = 4  # of which the fastest is what memory can do
_HASHED: Final = 1 << 23
_UNSTABLE: Final = 0.1  # coefficient of variation that is worth a warning
_CLOCK: Final = 0.05  # change of a clock, likewise
_HOT: Final = 10.0  # degrees
_STOLEN: Final = 0.02  # of the time of all cores


@dataclass(slots=True)
class Pulse:
    """Taken before each prompt.

    Attributes:
        bandwidth: measures GB a second that a copy reads and writes: of `HostCopy` or `device_copy`.
        has_gpu: whether a GPU computes, whose clocks count.
        copy: one a beat.
        hash: MB of SHA-256 a second on one core: arithmetic that needs no memory.
        before: the machine's state at the first beat, when it has warmed up.
    """

    bandwidth: Callable[[], float]
    has_gpu: bool = False
    copy: list[float] = field(default_factory=list)
    hash: list[float] = field(default_factory=list)
    before: State | None = None
    started: float = 0.0

    def beat(self) -> None:
        """Measures once; some 50 ms."""
        if self.before is None:
            self.before, self.started = state(gpu=self.has_gpu), perf_counter()
        self.copy.append(self.bandwidth())
        data = bytes(_HASHED)
        self.hash.append(_HASHED / _seconds(lambda: hashlib.sha256(data).digest()) / 1e6)

    @property
    def copy_gb_per_second(self) -> float | None:
        """Median of all beats."""
        return round(median(self.copy), 3) if self.copy else None

    def report(self) -> dict[str, Any]:
        """The block "stability" of a profile: what was seen, and warnings in words."""
        after = state(gpu=self.has_gpu)
        before = self.before or after
        found: dict[str, Any] = {"beats": len(self.copy)}
        warnings = []
        for (key, what), values in zip(KINDS.items(), (self.copy, self.hash), strict=True):
            change = variation(values)
            found[key] = {"median": round(median(values), 3) if values else None, "variation": change}
            if change is not None and change > _UNSTABLE:
                warnings.append(f"{what} varied by {change:.0%} (coefficient of variation) during the run")
        found |= {"before": before.to_dict(), "after": after.to_dict()}
        stolen = self._stolen(before, after)
        found["stolen"] = None if stolen is None else round(stolen, 4)
        if stolen is not None and stolen > _STOLEN:
            warnings.append(f"{stolen:.0%} of the cores' time went to other virtual machines")
        found["warnings"] = warnings + before.changes(after, _CLOCK, _HOT)
        return found

    def _stolen(self, before: State, after: State) -> float | None:
        """Share of the cores' time that the host of this virtual machine gave to others."""
        if before.stolen_seconds is None or after.stolen_seconds is None or not self.started:
            return None
        passed = (perf_counter() - self.started) * (os.cpu_count() or 1)
        return (after.stolen_seconds - before.stolen_seconds) / passed


class HostCopy:
    """Copies in the host's memory by as many threads as compute."""

    def __init__(self, threads: int) -> None:
        size = _COPIED // threads
        self._buffers = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    @property
    def num_bytes(self) -> int:
        """Of memory that it holds."""
        return sum(2 * target.nbytes for target, _ in self._buffers)

    def __call__(self) -> float:
        """GB a second."""
        with ThreadPoolExecutor(len(self._buffers)) as pool:

            def copy() -> None:
                list(pool.map(lambda pair: np.copyto(*pair), self._buffers))  # numpy gives the lock away meanwhile

            return _fastest(copy, self.num_bytes)


def device_copy(cuda: Cuda, size: int = _COPIED_ON_GPU) -> float:
    """GB a second that a copy on the GPU reads and writes.

    Raises:
        EngineError: CUDA fails.
    """
    stream, buffers = Stream(cuda), [DeviceBuffer(cuda, size) for _ in range(2)]

    def copy() -> None:
        stream.copy(buffers[0], buffers[1])
        stream.wait()

    try:
        return _fastest(copy, 2 * size)
    finally:
        stream.close()
        for buffer in buffers:
            buffer.close()


def _fastest(copy: Callable[[], None], num_bytes: int) -> float:
    copy()
    return num_bytes / min(_seconds(copy) for _ in range(_COPIES)) / 1e9


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
