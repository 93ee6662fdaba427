"""Costs and validity of answers, against scipy's hulls and triangulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, Delaunay

from seqrt.runtime.geometry import area, hull_area, is_hull, is_triangulation, tour_length


def random_points(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 2)) * scale - 0.3 * scale


COUNTS, SEEDS, SCALES = st.integers(4, 30), st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 1e6])


@given(COUNTS, SEEDS, SCALES)
def test_hulls(count: int, seed: int, scale: float) -> None:
    points = random_points(count, seed, scale)
    hull = ConvexHull(points)
    order = np.asarray(hull.vertices)
    assert area(points[order]) == pytest.approx(hull.volume)
    assert hull_area(points) == pytest.approx(hull.volume)
    assert is_hull(points, points[np.roll(order, seed % len(order))])
    assert not is_hull(points, points[order[::-1]])
    if len(order) > 3:
        assert not is_hull(points, points[order[1:]])
        assert not is_hull(points, points[order[[1, 0, *range(2, len(order))]]])
    inside = np.setdiff1d(np.arange(count), order)
    if len(inside):
        assert not is_hull(points, points[[*order, inside[0]]])
    assert not is_hull(points, points[[*order, *order]])  # twice around


@given(COUNTS, SEEDS, SCALES)
def test_triangulations(count: int, seed: int, scale: float) -> None:
    points = random_points(count, seed, scale)
    triangles = np.asarray(Delaunay(points).simplices, np.int64)
    assert is_triangulation(points, triangles)
    assert not is_triangulation(points, triangles[1:])
    assert not is_triangulation(points, np.concatenate([triangles, triangles[:1]]))
    assert not is_triangulation(points, triangles[:0])
    other = np.delete(np.arange(count), triangles[0])[0]
    wrong = triangles.copy()
    wrong[0, 0] = other
    areas = abs(area(points[wrong[0]])) - abs(area(points[triangles[0]]))
    if abs(areas) > 1e-6 * scale**2:
        assert not is_triangulation(points, wrong)


def test_points_that_are_left_out() -> None:
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.25]])
    assert not is_triangulation(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    assert is_triangulation(corners[:4], np.array([[0, 1, 2], [0, 2, 3]]))


def test_tours() -> None:
    square = np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    assert tour_length(square, np.array([[0, 1, 2, 3], [0, 2, 1, 3]])) == pytest.approx([4.0, 2 + 2 * 2**0.5])


def test_points_on_a_line_have_no_hull() -> None:
    line = np.array([[0.0, 0], [1, 1], [2, 2]])
    assert hull_area(line) == 0
    assert not is_hull(line, line)
    assert not is_triangulation(line, np.array([[0, 1, 2]]))


def test_areas_far_from_the_origin() -> None:
    """Products of coordinates would cancel there."""
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert area(square + 1e7) == pytest.approx(1.0)
    assert area(square[::-1] * 1e-6 + 45) == pytest.approx(-1e-12)
    assert is_hull(square + 1e7, square + 1e7)


def test_triangles_that_overlap_beside_a_hole() -> None:
    """Of the area of the hull, no side in three of them, every point used: and wrong all the same."""
    points = np.array([[0.0, 0], [1, 0], [2, 0], [2, 2], [0, 2]])
    assert not is_triangulation(points, np.array([[0, 2, 3], [1, 3, 4]]))
    assert is_triangulation(points, np.array([[0, 1, 4], [1, 3, 4], [1, 2, 3]])) is True
    assert is_triangulation(points, np.array([[0, 1, 4]])) is False


@given(SEEDS)
def test_hulls_of_lines_and_duplicates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = rng.random((4, 1)) * rng.standard_normal(2) + rng.standard_normal(2)
    assert not is_hull(line, line)
    assert not is_hull(line, line[np.lexsort(line.T)])
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    twice = np.insert(square, seed % 4, square[seed % 4], 0)
    assert is_hull(twice, twice)
