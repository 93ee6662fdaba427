"""Points and answers of `seqrt solve` as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqrt.runtime.geometry import Doubles
    from seqrt.runtime.solution import Solution


def draw(found: "Sequence[tuple[Doubles, Solution]]", task: str, file: Path) -> None:
    """A panel an instance: lines for tours, hulls and triangles; of numbers, each at the place that it takes."""
    import numpy as np
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(found)))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.6, 3.4 * rows), layout="constrained")
    for panel, (points, solution) in zip(figure.subplots(rows, columns, squeeze=False).flat, found, strict=False):
        told = "" if solution.cost is None else f" {solution.cost:.4g}"
        panel.set_title(f"{task}{told}, {'valid' if solution.valid else 'not valid'}", fontsize=9)
        if points.shape[1] == 1:
            panel.plot(points[solution.order, 0], marker="o", markersize=3)
            panel.set(xlabel="place in the order", ylabel="number")
            continue
        polygons = np.array(solution.order, np.int64).reshape(-1, 3 if task == "triangulation" else len(solution.order))
        for polygon in polygons:
            panel.plot(*points[np.append(polygon, polygon[0])].T, color="tab:blue", linewidth=1)
        panel.plot(*points.T, "o", color="black", markersize=3)
        panel.set_aspect("equal")
    for panel in figure.axes[len(found) :]:
        panel.set_axis_off()
    figure.savefig(file, dpi=150)
