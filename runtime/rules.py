"""What answers of a pointer model may be: which slots each row may point at, so that its answer is well formed.

An instance of n points has slots 0 ... n - 1, padding, and the slot of the end at N. A row that is finished points at
the end for ever. Masks mean "allowed".
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_CORNERS: Final = 3


class Rules:
    """Every point as often as one likes, until the end: task "none".

    Args:
        length: `[B]`, points of each instance.
        rows: K, of each instance.
        size: N, places of the graphs.
        has_end: whether the model says where an answer ends; else it has as many outputs as points.
    """

    starts: Ints | None = None  # `[B, K]`, where each row has to begin, if it may not choose

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        self.length, self.size, self.has_end = length, size, has_end
        self.count = 0  # outputs so far, the same of all rows
        self.finished = np.zeros((len(length), rows), np.bool_)
        slots = np.arange(size + 1)
        self._points = np.broadcast_to((slots < length[:, None])[:, None], (len(length), rows, size + 1))

    @property
    def most(self) -> int:
        """Most outputs."""
        return int(self.length.max()) + self.has_end

    def allowed(self) -> Bools:
        """`[B, K, N + 1]`, where each row may point."""
        found = self._open()
        if self.count == 0 and self.starts is not None:
            found[:] = False
            np.put_along_axis(found, self.starts[..., None], True, 2)
        found[self.finished] = False
        found[..., self.size] |= self.finished
        return found

    def advance(self, parent: Ints, token: Ints) -> None:
        """Rows go on from `parent` and point at `token`, both `[B, K]`."""
        self.finished = np.take_along_axis(self.finished, parent, 1)
        self._take(parent, token)
        self.count += 1
        self.finished |= self._ends(token)

    def _open(self) -> Bools:
        """`allowed` of rows that are not finished; may be changed."""
        found = self._points & (self.count < self.length)[:, None, None]  # as many outputs as points at most
        found[..., self.size] = self.has_end and self.count > 0
        return found

    def _take(self, parent: Ints, token: Ints) -> None:
        """Updates what a subclass keeps of each row."""

    def _ends(self, token: Ints) -> Bools:
        return token == self.size if self.has_end else np.broadcast_to(self.count >= self.length[:, None], token.shape)


class Permutation(Rules):
    """Every point once: tasks "tour", whose end nobody need point at, and "permutation"."""

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        super().__init__(length, rows, size, has_end)
        self._free = self._points.copy()
        self._first = np.full(self.finished.shape, size)

    @property
    def most(self) -> int:
        """Most outputs."""
        return int(self.length.max())

    def _open(self) -> Bools:
        return self._free.copy()

    def _take(self, parent: Ints, token: Ints) -> None:
        self._free = np.take_along_axis(self._free, parent[..., None], 1)
        np.put_along_axis(self._free, token[..., None], False, 2)

    def _ends(self, token: Ints) -> Bools:
        return np.broadcast_to(self.count >= self.length[:, None], token.shape)


class Hull(Permutation):
    """At least three points, none twice; then the first one again, or the end if there is one, closes the polygon."""

    @property
    def most(self) -> int:
        """Most outputs."""
        return int(self.length.max()) + 1

    def _open(self) -> Bools:
        found = self._free.copy()
        if self.count >= _CORNERS:
            np.put_along_axis(found, self._first[..., None], True, 2)
            found[..., self.size] = self.has_end
        return found

    def _take(self, parent: Ints, token: Ints) -> None:
        super()._take(parent, token)
        self._first = token if self.count == 0 else np.take_along_axis(self._first, parent, 1)

    def _ends(self, token: Ints) -> Bools:
        closes = (token == self._first) & (self.count > 1)
        return np.asarray(closes | (token == self.size))


class Triangulation(Rules):
    """Triples of points, each ascending, one after the other ascending as well: no triangle comes twice."""

    @property
    def most(self) -> int:
        """Most outputs: of n points, 2 n - 5 triangles, and the end."""
        return _CORNERS * int(2 * self.length.max() - 5) + 1

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        super().__init__(length, rows, size, has_end)
        shape = (len(length), rows)
        self._now = np.zeros((*shape, _CORNERS), np.int64)  # this triangle's corners, as far as there are any
        self._last = np.tile(np.array([0, 1, 1]), (*shape, 1))  # comes just before the first that there can be

    def _open(self) -> Bools:
        corner = self.count % _CORNERS
        slots, length = np.arange(self.size + 1), self.length[:, None, None]
        found = self._points & (slots < length - (_CORNERS - 1 - corner))  # room for the corners to come
        # A corner that is the last triangle's leaves something to be done by those to come.
        last = self._last
        has_later = last[..., 2] + 1 < length[..., 0]  # a larger third corner
        lowest = last[..., 0] + (~has_later & (last[..., 1] + 2 >= length[..., 0]))
        if corner == 1:
            same = self._now[..., 0] == last[..., 0]
            lowest = np.where(same, last[..., 1] + ~has_later, self._now[..., 0] + 1)
        elif corner == 2:
            same = (self._now[..., :2] == last[..., :2]).all(2)
            lowest = np.where(same, last[..., 2], self._now[..., 1]) + 1
        found &= slots >= lowest[..., None]
        full = 2 * length[..., 0] - 5
        if corner == 0:
            found &= (self.count // _CORNERS < full)[..., None]
            found[..., self.size] = (self.count > 0) | ~found.any(2)
        return found

    def _take(self, parent: Ints, token: Ints) -> None:
        self._now, self._last = (np.take_along_axis(kept, parent[..., None], 1) for kept in (self._now, self._last))
        corner = self.count % _CORNERS
        self._now[..., corner] = token
        if corner == _CORNERS - 1:
            self._last = self._now.copy()

    def _ends(self, token: Ints) -> Bools:
        return np.asarray(token == self.size)


RULES: Final = {
    "tour": Permutation,
    "permutation": Permutation,
    "hull": Hull,
    "triangulation": Triangulation,
    "none": Rules,
}
