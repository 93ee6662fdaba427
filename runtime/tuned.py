"""What `seqrt tune` found for a bundle on a machine: tune.json, and whether it holds here."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from seqrt.errors import BundleError
from seqrt.runtime.backends import Engines
from seqrt.runtime.bundle import Bundle
from seqrt.runtime.files import write_whole
from seqrt.runtime.machine import cpu_model
from seqrt.runtime.options import DYNAMIC, MAX_ROWS, PAPER, Options
from seqrt.runtime.records import read

SCHEMA: Final = 1
_MAX_BYTES: Final = 1 << 22
_MOST_ROWS: Final = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a measured cost depends on; `graph` is the SHA-256 of the decoder's file, `gpu` None on a CPU."""

    cpu: str
    cores: int
    threads: int
    backend: str
    engine: str
    graph: str
    gpu: str | None = None

    @classmethod
    def here(cls, bundle: Bundle, engines: Engines, threads: int) -> "Machine":
        """This machine, for a bundle on some engines with so many threads a model call."""
        path = bundle.info("decoder", engines.variant).path
        return cls(
            cpu=cpu_model(),
            cores=os.cpu_count() or 0,
            threads=threads,
            backend=engines.backend,
            engine=engines.description,
            graph=bundle.manifest.files[path].sha256,
            gpu=engines.device,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best that a drafter can do.

    Attributes:
        draft: its name.
        tree: rank paths of a static tree, "dynamic" for one that its probabilities shape, None for drafters without.
        rows: nodes of a step, the root included; 1: drafting does not pay.
        draft_ms: of a proposal of so many nodes.
        acceptance: by depth and rank: how often that candidate was the right one where its parent was.
        tokens_per_step: predicted from the recorded proposals.
        tokens_per_second: predicted from these and the costs.
        measured_tokens_per_second: with this choice afterwards; None where drafting does not pay.
    """

    draft: str
    tree: str | None
    rows: int
    draft_ms: float
    acceptance: tuple[tuple[float, ...], ...]
    tokens_per_step: float
    tokens_per_second: float
    measured_tokens_per_second: float | None = None


def is_chain(tree: str | None) -> bool:
    """Whether a tree, None for a drafter's own, has no branches: that of a quantised bundle has none."""
    return tree is None or set(tree) <= {"0", " "}


@dataclass(frozen=True, slots=True)
class Plan:
    """The tree that a request drafts with, None for the drafter's own, and the most nodes of a step."""

    tree: str | None
    rows: int

    @classmethod
    def of(cls, options: Options, choice: Choice | None, *, exact: bool) -> "Plan":
        """What options and tuning come to: options first.

        Where the loop adapts, it cuts trees to what pays at each step, so that only the kind of tree is taken over.
        What paper mode says depends on its lookahead, which is no matter of measured times.

        Args:
            options: of the request.
            choice: what was found for its drafter.
            exact: whether products are computed in float; else a branching tree may change the text, and is not taken
                unless the request asks for it.
        """
        rows = options.max_rows or MAX_ROWS
        if choice is None or options.tree is not None or options.lookahead is not None or options.lud_mode == PAPER:
            return cls(options.tree, rows)
        if not exact and not is_chain(choice.tree):
            return cls(None, rows)
        if options.paced:
            return cls(DYNAMIC if choice.tree == DYNAMIC else None, rows)
        return cls(choice.tree, options.max_rows or choice.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Contents of tune.json, or of tune.BACKEND.json on a GPU.

    Attributes:
        rows, step_ms: cost of a step with so many rows.
        plain_tokens_per_second: predicted without drafting, from the same costs.
        measured_plain_tokens_per_second: measured beside the choices.
        positions: places in the answers at which every drafter was asked.
    """

    machine: Machine
    rows: tuple[int, ...]
    step_ms: tuple[float, ...]
    choices: tuple[Choice, ...]
    prompts: int
    positions: int
    plain_tokens_per_second: float
    measured_plain_tokens_per_second: float | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        is_rising = all(a < b for a, b in zip((0, *self.rows), self.rows, strict=False))
        if not self.rows or len(self.rows) != len(self.step_ms) or not is_rising or self.rows[-1] > _MOST_ROWS:
            raise ValueError(f"rows are {self.rows} for {len(self.step_ms)} times, expected rising numbers, one a time")
        if not all(0 < value < np.inf for value in self.step_ms):
            raise ValueError(f"step_ms are {self.step_ms}, expected times above 0")

    @property
    def relative(self) -> tuple[float, ...]:
        """Cost of a step with 1, 2, ... rows, in steps with one row."""
        cost = np.interp(np.arange(1, self.rows[-1] + 1), self.rows, self.step_ms)
        return tuple((cost / cost[0]).tolist())

    def with_others(self, before: "Tuning") -> "Tuning":
        """With the choices of an earlier tuning for drafters that were not tuned now."""
        kept = (choice for choice in before.choices if self.choice(choice.draft) is None)
        return dataclasses.replace(self, choices=(*self.choices, *kept))

    def choice(self, draft: str) -> Choice | None:
        """What was found for a drafter."""
        return next((choice for choice in self.choices if choice.draft == draft), None)

    def save(self, bundle: Bundle) -> Path:
        """Writes its file into the bundle, whole or not at all.

        Raises:
            BundleError: the file cannot be written.
        """
        file = bundle.path / tuning_file(self.machine.backend)
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        try:
            write_whole(file, lambda new: new.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise BundleError(f"cannot write {file}: {error.strerror}; copy the bundle elsewhere") from error
        return file


def tuning_file(backend: str) -> str:
    """Name of the file of a backend in a bundle: what pays on a CPU says nothing of a GPU."""
    return "tune.json" if backend == "cpu" else f"tune.{backend}.json"


def read_tuning(bundle: Bundle, here: Machine) -> tuple[Tuning | None, str | None]:
    """What was found for this bundle on the machine `here`, and what a user should know of it.

    Returns:
        The tuning, None if there is none or it was made elsewhere; and then a line that says why, if there is a file.
    """
    file = bundle.path / tuning_file(here.backend)
    if not file.is_file():
        return None, None
    again = f"run: seqrt tune {bundle.path}" + ("" if here.backend == "cpu" else f" --backend {here.backend}")
    try:
        tuning: Tuning = read(Tuning, file, SCHEMA, _MAX_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{file.name} is ignored: {' '.join(str(error).split())}; {again}"
    made, own = dataclasses.asdict(tuning.machine), dataclasses.asdict(here)
    differs = [f"{name} {made[name]!r:.40}, here {own[name]!r:.40}" for name in made if made[name] != own[name]]
    if differs:
        return None, f"{file.name} is ignored, it was made with {'; '.join(differs)}; {again}"
    return tuning, None
