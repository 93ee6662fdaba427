"""What answers of a pointer model may be: which slots each row may point at, so that its answer is well formed.

An instance of n points has slots 0 ... n - 1, padding, and the slot of the end at N. A row that is finished points at
the end for ever. Masks mean "allowed".
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CORNERS: Final = 3


class Rules:
    """Every point as often as one likes, until the end: task "none".

    Args:
        length: `[B]`, points of each instance.
        rows: K, of each instance.
        size: N, places of the graphs.
        has_end: whether the model says where an answer ends; else it has as many outputs as points.

    Attributes:
        finished: `[B, K]`, rows that have nothing left to say.
        some_finished: whether there are any.
        starts: `[B, K]`, where each row has to begin, if it may not choose.
    """

    starts: Ints | None = None
    some_finished = False  # asked for at every output: reducing `finished` takes longer than all the rest of a rule

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        self.length, self.size, self.has_end = length, size, has_end
        self.count = 0  # outputs so far, the same of all rows
        self.finished = np.zeros((len(length), rows), np.bool_)
        self._instances = np.arange(len(length))[:, None]
        self._shortest = int(length.min())
        is_point = np.arange(size + 1) < length[:, None]
        self._points = np.repeat(is_point[:, None], rows, 1)

    @property
    def max_steps(self) -> int:
        """Most outputs."""
        return int(self.length.max()) + self.has_end

    def allow(self, out: Bools) -> None:
        """Writes `[B, K, N + 1]`, where each row may point."""
        if self.count == 0 and self.starts is not None:
            out[:] = False
            np.put_along_axis(out, self.starts[..., None], True, 2)
            return
        self._open(out)
        if self.some_finished:
            out[self.finished] = False
            out[..., self.size] |= self.finished

    def advance(self, parent: Ints | None, token: Ints) -> None:
        """Rows go on from `parent`, or from themselves, and point at `token`, both `[B, K]`."""
        if parent is not None:
            self.finished = self.finished[self._instances, parent]
            self._inherit(parent)
        self._take(token)
        self.count += 1
        self._end(token)

    def _open(self, out: Bools) -> None:
        """Writes where rows that are not finished may point."""
        np.logical_and(self._points, (self.count < self.length)[:, None, None], out=out)  # as many outputs as points
        out[..., self.size] = self.has_end and self.count > 0

    def _inherit(self, parent: Ints) -> None:
        """Gives each row what a subclass keeps of its parent."""

    def _take(self, token: Ints) -> None:
        """Updates what a subclass keeps of each row."""

    def _end(self, token: Ints) -> None:
        """Notes which rows are finished."""
        if self.has_end:
            self._finish(token == self.size)
        else:
            self._finish_full()

    def _finish(self, rows: Bools) -> None:
        self.finished |= rows
        self.some_finished = bool(self.finished.any())

    def _finish_full(self) -> None:
        """Rows that pointed as often as there are points."""
        if self.count >= self._shortest:
            self._finish((self.count >= self.length)[:, None])


class Permutation(Rules):
    """Every point once: tasks "tour" and "permutation", whose end nobody need point at."""

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        super().__init__(length, rows, size, has_end)
        self._free = self._points.copy()
        self._begins = np.arange(len(length) * rows) * (size + 1)  # of each row's slots

    @property
    def max_steps(self) -> int:
        """Most outputs."""
        return int(self.length.max())

    def _open(self, out: Bools) -> None:
        out[:] = self._free

    def _inherit(self, parent: Ints) -> None:
        self._free = np.ascontiguousarray(self._free[self._instances, parent])  # `_take` writes through a view

    def _take(self, token: Ints) -> None:
        self._free.reshape(-1)[self._begins + token.ravel()] = False

    def _end(self, token: Ints) -> None:
        self._finish_full()


class Hull(Permutation):
    """At least three points, none twice; then the first one again, or the end if there is one, closes the polygon."""

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        super().__init__(length, rows, size, has_end)
        self._first = np.full(self.finished.shape, size)

    @property
    def max_steps(self) -> int:
        """Most outputs."""
        return int(self.length.max()) + 1

    def _open(self, out: Bools) -> None:
        out[:] = self._free
        if self.count >= CORNERS:
            np.put_along_axis(out, self._first[..., None], True, 2)
            out[..., self.size] = self.has_end

    def _inherit(self, parent: Ints) -> None:
        super()._inherit(parent)
        self._first = self._first[self._instances, parent]

    def _take(self, token: Ints) -> None:
        super()._take(token)
        if self.count == 0:
            self._first = token.copy()

    def _end(self, token: Ints) -> None:
        is_end = token == self.size
        self._finish(is_end | (token == self._first) if self.count > 1 else is_end)


class Triangulation(Rules):
    """Triples of points, each ascending, one after the other ascending as well: no triangle comes twice."""

    def __init__(self, length: Ints, rows: int, size: int, has_end: bool) -> None:
        super().__init__(length, rows, size, has_end)
        shape = (len(length), rows)
        self._now = np.zeros((*shape, CORNERS), np.int64)  # this triangle's corners, as far as there are any
        self._last = np.tile(np.array([0, 1, 1]), (*shape, 1))  # comes just before the first that there can be

    @property
    def max_steps(self) -> int:
        """Most outputs: of n points, 2 n - 5 triangles, and the end."""
        return CORNERS * int(2 * self.length.max() - 5) + 1

    def _open(self, out: Bools) -> None:
        corner = self.count % CORNERS
        slots, length = np.arange(self.size + 1), self.length[:, None]
        lowest = (self._lowest_first, self._lowest_second, self._lowest_third)[corner](length)
        out[:] = self._points & (slots < length[..., None] - (CORNERS - 1 - corner))  # room for the corners to come
        out &= slots >= lowest[..., None]
        if corner == 0:
            out &= (self.count // CORNERS < 2 * length - 5)[..., None]
            out[..., self.size] = (self.count > 0) | ~out.any(2)

    def _lowest_first(self, length: Ints) -> Ints:
        """The last triangle's first corner, if a later triangle has it too."""
        first, second, third = np.moveaxis(self._last, 2, 0)
        return np.asarray(first + ((third + 1 >= length) & (second + 2 >= length)))

    def _lowest_second(self, length: Ints) -> Ints:
        """Behind the first; with the same first, the last triangle's second, if a larger third is left."""
        first, second, third = np.moveaxis(self._last, 2, 0)
        is_same = self._now[..., 0] == first
        return np.where(is_same, second + (third + 1 >= length), self._now[..., 0] + 1)

    def _lowest_third(self, length: Ints) -> Ints:
        """Behind the second, and with the same two, behind the last triangle's third."""
        is_same = (self._now[..., :2] == self._last[..., :2]).all(2)
        return np.where(is_same, self._last[..., 2], self._now[..., 1]) + 1

    def _inherit(self, parent: Ints) -> None:
        self._now, self._last = (kept[self._instances, parent] for kept in (self._now, self._last))

    def _take(self, token: Ints) -> None:
        corner = self.count % CORNERS
        self._now[..., corner] = token
        if corner == CORNERS - 1:
            self._last = self._now.copy()

    def _end(self, token: Ints) -> None:
        self._finish(token == self.size)


RULES: Final = {
    "tour": Permutation,
    "permutation": Permutation,
    "hull": Hull,
    "triangulation": Triangulation,
    "none": Rules,
}
