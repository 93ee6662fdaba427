"""What single operators take, and of which module of the graph they are part.

Engines that keep these times are slower, so they are loaded beside the measured ones and answer one prompt more.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from seqrt.runtime.conversation import play
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.probe import Recorder, Span, Timeline
from seqrt.runtime.prompts import Prompt

_STEPS: Final = 8  # of an answer; each is a thousand operators
_MODULE: Final = re.compile(r"([A-Za-z_][\w+-]*(?:\.[\w+-]+)*)/[A-Z]\w*_\d+")
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator of a run: its span, named by its node, and what it computes."""

    role: str
    span: Span
    op_type: str

    @property
    def module(self) -> str:
        """Of the graph, as the exporter named the node."""
        return module_of(self.span.name)


@dataclass(frozen=True, slots=True)
class Traced:
    """An answer with the operators of its runs."""

    draft: str
    timeline: Timeline
    operations: tuple[Operation, ...]


def module_of(node: str) -> str:
    """The module that a node was made from, layers by number: `layers.3.mlp.up` of `layers.3.mlp.up/MatMul_71`.

    TensorRT joins the nodes that it fuses in the name of a layer: then it is the module that holds all of them, or ""
    where there is none.
    """
    found = [match.split(".") for match in _MODULE.findall(node)]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*found, strict=False))
    return ".".join(parts[0] for parts in common)


def trace_operators(model: Model, prompt: Prompt, wanted: Sequence[Options]) -> list[Traced]:
    """Answers the first turn of a prompt with each of `wanted`, for a few steps.

    Args:
        model: loaded with `operators`; nothing may be asked of it afterwards.
        prompt: what is answered.
        wanted: options of each drafter.
    """
    recorder, timelines = Recorder(), list[tuple[str, Timeline]]()
    with model.attached(recorder):
        for options in wanted:
            short = replace(options, max_new_tokens=min(options.max_new_tokens, _STEPS + 1))
            for _ in range(2):  # the first run of a shape binds buffers
                model.forget(learnt=True)
                next(play(model, prompt, short)).finish()
                timelines.append((options.draft, recorder.take()))
    placed = _placed(model, [timeline for _, timeline in timelines])
    return [Traced(draft, timeline, tuple(placed[i])) for i, (draft, timeline) in enumerate(timelines) if i % 2]


def by_module(traced: Sequence[Traced]) -> list[dict[str, Any]]:
    """Time of operators by graph, module and kind, layers together, as a share of their graph; longest first.

    Of each graph the steps of the first answer in which it runs: those of the decoder are steps of plain decoding.
    """
    found: list[dict[str, Any]] = []
    for role in dict.fromkeys(operation.role for one in traced for operation in one.operations):
        ours = next((each for one in traced if (each := _in_steps(one, role))), [])
        times, calls = defaultdict[tuple[str, str], float](float), Counter[tuple[str, str]]()
        for operation in ours:
            key = (_NUMBER.sub("*", operation.module), operation.op_type)
            times[key] += operation.span.seconds
            calls[key] += 1
        total, runs = sum(times.values()), len({operation.span.step for operation in ours})
        found += [
            {
                "graph": role,
                "module": module,
                "op_type": op_type,
                "calls_per_step": round(calls[module, op_type] / runs, 2),
                "ms_per_step": round(1e3 * seconds / runs, 4),
                "share": round(seconds / total, 4) if total else 0.0,
            }
            for (module, op_type), seconds in sorted(times.items(), key=lambda item: -item[1])
        ]
    return found


def _in_steps(one: Traced, role: str) -> list[Operation]:
    return [operation for operation in one.operations if operation.role == role and operation.span.step]


def _placed(model: Model, timelines: Sequence[Timeline]) -> list[list[Operation]]:
    """Operators of each timeline, at their time. An engine's last runs are those that were recorded."""
    runs = defaultdict[str, list[tuple[int, Span]]](list)
    for place, timeline in enumerate(timelines):
        for run in timeline.runs:
            runs[run.name].append((place, run))
    placed: list[list[Operation]] = [[] for _ in timelines]
    for role, engine in model.engines.items():
        operators = engine.operators()
        before = max((one.run for one in operators), default=-1) + 1 - len(runs[role])
        for one in operators if before >= 0 else ():  # fewer runs than were recorded: the engine stopped counting
            if one.run >= before:
                place, run = runs[role][one.run - before]
                start = run.start + one.start
                placed[place].append(Operation(role, Span(one.name, start, start + one.seconds, run.step), one.op_type))
    return placed
