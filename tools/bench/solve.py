"""Tours of a bundle beside the same policy in torch: instances a second, and whether the tours are the same.

    python -m tools.bench.solve BUNDLE CHECKPOINT --points 20 --points 50 --batch 1 --batch 64 --batch 512 [--compile]

torch runs the graph modules of seqrt eagerly, which compute all that does not depend on the step once, as the authors'
code does in part; with --compile also through torch.compile, step and encoder each, which needs a C++ compiler and is
not counted while it compiles. All take turns, with the same threads; best times of the repeats. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from seqrt.exporter.checkpoints.solver import SolverCheckpoint, open_solver
from seqrt.runtime.solver import Solver, load

Points = npt.NDArray[np.float64]
Solve = Callable[[Points], list[Any]]

_PAUSE_S = 0.05  # the last one's threads spin a little while before they sleep


class Torch:
    """A policy in torch, greedily.

    Args:
        checkpoint: of a policy that knows no end.
        is_compiled: run its graphs through torch.compile.
    """

    def __init__(self, checkpoint: SolverCheckpoint, *, is_compiled: bool) -> None:
        self.model, self.needs_start = checkpoint.model, checkpoint.needs_start
        model = self.model
        self._encode: Any = torch.compile(model.encode) if is_compiled else model.encode
        self._step: Any = torch.compile(model.step) if is_compiled else model.step

    @torch.inference_mode()
    def __call__(self, points: Points) -> list[Any]:
        """Orders of instances of the same size."""
        given = torch.from_numpy(points.astype(np.float32))
        count, size, _ = given.shape
        memory = self._encode(given, torch.full((count,), size))
        allowed = torch.ones(count, 1, size + 1, dtype=torch.bool)
        allowed[..., 1 if self.needs_start else size :] = False
        previous, parent = torch.full((count, 1), size), torch.zeros(count, 1, dtype=torch.int64)
        state = self.model.begin(memory)
        order: list[torch.Tensor] = []
        for _ in range(size):
            found, state = self._step(previous, parent, allowed, state, memory)
            previous = found.argmax(2)
            if self.needs_start and not order:
                allowed[..., 1:size] = True
            allowed = allowed.scatter(2, previous[..., None], False)
            order.append(previous)
        return torch.cat(order, 1).tolist()


def bundled(solver: Solver, batch: int) -> Solve:
    """The bundle's answers."""
    return lambda points: [found.order for found in solver.solve(points, batch=batch)]


def measured(runners: dict[str, Solve], points: Points, batch: int, repeats: int) -> dict[str, Any]:
    """Instances a second of each, in turn, and the share of tours that are the first one's."""
    best = dict.fromkeys(runners, math.inf)
    orders: dict[str, list[Any]] = {}
    for repeat in range(repeats + 1):
        for name, solve in runners.items():
            sleep(_PAUSE_S)
            start = perf_counter()
            found = [order for first in range(0, len(points), batch) for order in solve(points[first : first + batch])]
            if repeat:  # the first warms up
                best[name] = min(best[name], perf_counter() - start)
            orders[name] = found
    expected = next(iter(orders.values()))
    same = {
        name: float(np.mean([a == b for a, b in zip(found, expected, strict=True)])) for name, found in orders.items()
    }
    return {name: {"per_second": len(points) / best[name], "same": same[name]} for name in runners}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--points", type=int, action="append", required=True)
    parser.add_argument("--batch", type=int, action="append", required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    checkpoint = open_solver(arguments.checkpoint)
    rows = []
    for size in arguments.points:
        for batch in arguments.batch:
            points = np.random.default_rng(0).random((max(batch, 20), size, 2))
            with load(arguments.bundle, threads=arguments.threads) as solver:
                runners: dict[str, Solve] = {
                    "seqrt": bundled(solver, batch),
                    "torch": Torch(checkpoint, is_compiled=False),
                }
                if arguments.compile:
                    runners["compiled"] = Torch(checkpoint, is_compiled=True)
                rows.append({"points": size, "batch": batch, **measured(runners, points, batch, arguments.repeats)})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    names = [name for name in rows[0] if name not in ("points", "batch")]
    table = Table("points", "batch", *(f"{name} /s" for name in names), *(f"same as {name}" for name in names[1:]))
    for row in rows:
        speeds = [f"{row[name]['per_second']:.0f}" for name in names]
        table.add_row(
            str(row["points"]), str(row["batch"]), *speeds, *(f"{row[name]['same']:.1%}" for name in names[1:])
        )
    Console().print(table)


if __name__ == "__main__":
    main()
