"""What answers are worth: lengths of tours, areas of hulls, and whether hulls and triangulations are any."""

from typing import Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_NEAR: Final = 1e-9  # of the square of the extent: an area that is none


def tour_length(points: Doubles, order: npt.NDArray[np.int64]) -> Doubles:
    """Of closed tours: points `[N, 2]` in orders `[..., N]`."""
    sides = points[order] - points[order[..., np.arange(-1, order.shape[-1] - 1)]]
    return np.sqrt((sides**2).sum(-1)).sum(-1)  # type: ignore[no-any-return]


def area(corners: Doubles) -> float:
    """Of a polygon `[n, 2]`; positive if it goes counter-clockwise."""
    x, y = (corners - corners[:1]).T  # far from the origin the products would cancel
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def is_hull(points: Doubles, corners: Doubles) -> bool:
    """Whether a polygon `[n, 2]` is the convex hull of the points `[N, 2]`: no point lies outside of any side.

    It goes counter-clockwise, and once around.
    """
    sides = np.roll(corners, -1, 0) - corners
    is_side = sides.any(1)  # not of a point that comes twice
    corners, sides = corners[is_side], sides[is_side]
    if len(corners) < 3 or area(corners) <= _tolerance(points):
        return False
    outside = cross(sides[:, None], points - corners[:, None]) < -_tolerance(points)
    angles = np.arctan2(sides[:, 1], sides[:, 0])
    turns = (np.roll(angles, -1) - angles + np.pi) % (2 * np.pi) - np.pi
    return not outside.any() and bool(abs(turns.sum() - 2 * np.pi) < 1e-6)


def is_triangulation(points: Doubles, triangles: npt.NDArray[np.int64]) -> bool:
    """Whether triangles `[T, 3]` cover the convex hull of the points `[N, 2]` without overlap and use every point.

    A side that belongs to one triangle lies on the hull, one that belongs to two has them on its two sides, none
    belongs to more, and all triangles together have the area of the hull.
    """
    corners = points[triangles]
    areas = cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    if not len(triangles) or (abs(areas) <= _tolerance(points)).any():
        return False
    sides: dict[tuple[int, int], list[float]] = {}
    for triangle in triangles:
        for i in range(3):
            a, b, other = (int(triangle[(i + turn) % 3]) for turn in range(3))
            first, second = min(a, b), max(a, b)
            which = cross(points[second] - points[first], points[other] - points[first])
            sides.setdefault((first, second), []).append(float(which))
    for (first, second), on in sides.items():
        if len(on) > 2 or (len(on) == 2 and on[0] * on[1] >= 0):
            return False
        beyond = cross(points[second] - points[first], points - points[first]) * -np.sign(on[0])
        if len(on) == 1 and (beyond > _tolerance(points)).any():
            return False
    whole = hull_area(points)
    is_whole = abs(abs(areas).sum() - whole) <= max(1e-7 * whole, _tolerance(points))
    return bool(is_whole) and len(np.unique(triangles)) == len(points)


def hull_area(points: Doubles) -> float:
    """Of the convex hull, by Andrew's monotone chain."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    chains = []
    for run in (ordered, ordered[::-1]):
        chain: list[Doubles] = []
        for point in run:
            while len(chain) > 1 and cross(chain[-1] - chain[-2], point - chain[-2]) <= 0:
                chain.pop()
            chain.append(point)
        chains += chain[:-1]
    return area(np.array(chains)) if len(chains) > 2 else 0.0


def cross(one: Doubles, other: Doubles) -> Doubles:
    """Products of vectors `[..., 2]`: positive where the other one lies to the left."""
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def _tolerance(points: Doubles) -> float:
    return _NEAR * float(np.ptp(points, 0).max()) ** 2
