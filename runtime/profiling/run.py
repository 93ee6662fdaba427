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
from seqrt.runtime.machine import environment, peak_memory_mb
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.measure import Measured, measure
from seqrt.runtime.profiling.pulse import HostCopy, Pulse, device_copy
from seqrt.runtime.profiling.report import SCHEMA, rows
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
    cuda = model.engines.cuda
    loaded_mb = peak_memory_mb()
    if cuda is None:
        copy = HostCopy(threads or os.cpu_count() or 1)
        pulse, held_bytes = Pulse(copy), copy.num_bytes
    else:
        pulse, held_bytes = Pulse(partial(device_copy, cuda), has_gpu=True), 0
    tests = Throughput(model, amount.pp, amount.tg)
    tests.warm_up()
    played = itertools.count()
    whole = len(prompts) * amount.repeat
    due = Counter(int(place) for place in np.linspace(0, whole - 1, REPEATS).round())

    def before() -> None:
        pulse.beat()
        for _ in range(due[next(played)]):
            tests.once()

    measured = measure(
        model, prompts, wanted, repeat=amount.repeat, warm_up=amount.warm_up, before=before, advance=advance
    )
    used_mb = peak_memory_mb(less=held_bytes)  # the buffers of the pulse are ours, not the model's
    free, total = (0, 0) if cuda is None else cuda.memory()
    document = {
        "schema": SCHEMA,
        "task": model.bundle.manifest.task,
        "complete": measured.stopped_by is None,
        "environment": environment(threads)
        | {
            "engine": model.engines.description,
            "gpu": model.engines.device,
            "bundle_sha256": sha256(model.bundle.path / MANIFEST),
        },
        "settings": dict(settings or {}),
        "load_seconds": round(model.load_seconds, 4),
        "stability": pulse.report(),
        "memory": {
            "host_peak_mb": None if used_mb is None else max(loaded_mb or 0.0, used_mb),
            "gpu_used_mb": round((total - free) / 1e6, 1) if total else None,
        },
        "tests": tests.rows,
        "rows": rows(model, measured.rows, [model.plan(one).tree for one in wanted], pulse.copy_gb_per_second),
    }
    return Profile(document, measured)
