"""A whole profile: answers in turn, llama-bench's two figures, the machine's pulse, and the document of all that."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from seqrt.runtime.bundle import MANIFEST, sha256
from seqrt.runtime.loaded import Loaded
from seqrt.runtime.machine import environment, peak_memory_mb
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.measure import Measured, measure
from seqrt.runtime.profiling.pulse import HostCopy, Pulse, device_copy
from seqrt.runtime.profiling.report import SCHEMA, Row, rows
from seqrt.runtime.profiling.throughput import REPEATS, Throughput
from seqrt.runtime.prompts import Prompt

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Attributes:
        repeat: so often all prompts are played.
        warm_up: so many prompts are played before, and not counted.
        pp, tg: tokens of llama-bench's tests of these names; 0 for none.
    """

    repeat: int = 1
    warm_up: int = 1
    pp: int = 512
    tg: int = 128


@dataclass(frozen=True, slots=True)
class Profile:
    """The document, and the answers that it was made of."""

    document: Document
    measured: Measured


def profile(
    model: Model,
    prompts: Sequence[Prompt],
    wanted: Sequence[Options],
    amount: Amount,
    *,
    threads: int = 0,
    settings: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Profile:
    """Measures a model; an interrupt or a failure ends it early, with what there is by then.

    Args:
        model: what answers.
        prompts: what it is asked.
        wanted: options of plain decoding and of each drafter, in this order.
        amount: how much is measured.
        threads: the model's.
        settings: what was asked for otherwise, for the document.
        advance: called after each conversation that counts.

    Raises:
        KeyboardInterrupt, SeqrtError: before anything was measured.
    """
    watch = Watch.of(model, threads)
    tests = Throughput(model, amount.pp, amount.tg)
    tests.warm_up()
    played = itertools.count()
    whole = len(prompts) * amount.repeat
    due = Counter(int(place) for place in np.linspace(0, whole - 1, REPEATS).round())

    def before() -> None:
        watch.pulse.beat()
        for _ in range(due[next(played)]):
            tests.once()

    measured = measure(
        model, prompts, wanted, repeat=amount.repeat, warm_up=amount.warm_up, before=before, advance=advance
    )
    trees = [model.plan(one).tree for one in wanted]
    found = rows(model, measured.rows, trees, watch.pulse.copy_gb_per_second)
    complete = measured.stopped_by is None
    return Profile(document(model, threads, settings, watch, found, tests.rows, complete=complete), measured)


@dataclass(frozen=True, slots=True)
class Watch:
    """What is watched while a model is measured: the machine's pulse, and memory."""

    pulse: Pulse
    loaded_mb: float | None
    held_bytes: int

    @classmethod
    def of(cls, model: Loaded, threads: int) -> "Watch":
        """Of the machine that a model runs on."""
        loaded_mb, cuda = peak_memory_mb(), model.engines.cuda
        if cuda is not None:
            return cls(Pulse(partial(device_copy, cuda), has_gpu=True), loaded_mb, 0)
        copy = HostCopy(threads or os.cpu_count() or 1)
        return cls(Pulse(copy), loaded_mb, copy.num_bytes)

    @property
    def host_peak_mb(self) -> float | None:
        """Most memory of the host so far; the buffers of the pulse are ours, not the model's."""
        used_mb = peak_memory_mb(less=self.held_bytes)
        return None if used_mb is None else max(self.loaded_mb or 0.0, used_mb)


def document(
    model: Loaded,
    threads: int,
    settings: Mapping[str, Any] | None,
    watch: Watch,
    found: Sequence[Row],
    tests: Sequence[Row] = (),
    *,
    complete: bool,
) -> Document:
    """A profile of any task.

    Args:
        model: what was measured.
        threads: its.
        settings: what was asked for.
        watch: kept meanwhile.
        found: its rows.
        tests: llama-bench's figures, where there are any.
        complete: whether all that was asked for was measured.
    """
    cuda = model.engines.cuda
    free, total = (0, 0) if cuda is None else cuda.memory()
    return {
        "schema": SCHEMA,
        "task": model.bundle.manifest.task,
        "complete": complete,
        "environment": environment(threads)
        | {
            "engine": model.engines.description,
            "gpu": model.engines.device,
            "bundle_sha256": sha256(model.bundle.path / MANIFEST),
        },
        "settings": dict(settings or {}),
        "load_seconds": round(model.load_seconds, 4),
        "stability": watch.pulse.report(),
        "memory": {
            "host_peak_mb": watch.host_peak_mb,
            "gpu_used_mb": round((total - free) / 1e6, 1) if total else None,
        },
        "tests": list(tests),
        "rows": list(found),
    }
