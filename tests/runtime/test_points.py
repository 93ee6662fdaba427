"""Files of instances."""

import io
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.points import Instance, line_of, read_lines, read_points


def read(file: Path, dim: int = 2) -> list[np.ndarray]:
    found = list(read_points(file, dim))
    assert all(isinstance(item, Instance) for item in found)
    return [item.points for item in found if isinstance(item, Instance)]


def test_arrays(tmp_path: Path) -> None:
    file = tmp_path / "points.npy"
    for values, dim in (
        (np.random.default_rng(0).random((4, 2)), 2),
        (np.random.default_rng(0).random((3, 4, 2)).astype(np.float32), 2),
        (np.arange(12).reshape(2, 3, 2), 2),
        (np.random.default_rng(0).random(5), 1),
        (np.random.default_rng(0).random((2, 5)), 1),
    ):
        np.save(file, values)
        found = read(file, dim)
        assert np.array_equal(np.stack(found).ravel(), values.ravel())
        assert all(points.shape[1] == dim for points in found)


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    for text in ("\n \nx,y\n1,2\n3,4.5\n", "1,2\n3,4.5\n", "x,y\n1, 2\n\n3,4.5", "\ufeff1,2\r\n3,4.5\r\n"):
        file.write_bytes(text.encode())
        assert np.array_equal(read(file)[0], np.array([[1, 2], [3, 4.5]]))


def test_lines_of_the_released_data(tmp_path: Path) -> None:
    file = tmp_path / "hull.txt"
    file.write_text("0.1 0.2 0.3 0.4 0.5 0.9 output 1 2 3 1 \n\n1,2,3,4\n")
    labelled, plain = read_points(file, 2)
    assert isinstance(labelled, Instance)
    assert isinstance(plain, Instance)
    assert np.array_equal(labelled.points, [[0.1, 0.2], [0.3, 0.4], [0.5, 0.9]])
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 2, 3, 1]
    assert plain.labels is None
    assert np.array_equal(plain.points, [[1, 2], [3, 4]])


@given(
    st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=5),
    st.none() | st.lists(st.integers(1, 9), min_size=1),
)
def test_lines_are_read_as_they_were_written(points: list[tuple[float, float]], labels: list[int] | None) -> None:
    given = Instance(np.array(points), None if labels is None else np.array(labels))
    (found,) = read_lines([line_of(given)], 2)
    assert isinstance(found, Instance)
    assert np.array_equal(found.points, given.points)
    assert (found.labels is None) == (labels is None)
    assert found.labels is None or found.labels.tolist() == labels


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_pipes(mark: str, tmp_path: Path) -> None:
    """Are opened once: what is written to them is not written again."""
    os.mkfifo(tmp_path / "pipe.txt")
    writer = threading.Thread(target=(tmp_path / "pipe.txt").write_text, args=(mark + "1 2 3 4\n",))
    writer.start()
    (found,) = read(tmp_path / "pipe.txt")
    writer.join()
    assert np.array_equal(found, [[1, 2], [3, 4]])


def test_a_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match="--points - is closed; give a file"):
        read_points(Path("-"), 2)


def test_lines_are_read_as_they_are_asked_for() -> None:
    def endless() -> io.StringIO:
        return (f"{i} 1 2 3 4 5" for i in range(10**9))  # type: ignore[return-value]

    found = next(read_lines(endless(), 2))
    assert isinstance(found, Instance)


def test_a_bad_line_among_good_ones() -> None:
    lines = ["1 2 3 4", "1 2 3", "a b", "1 2 output x", "1 2 output 99999999999999999999", "5 6 7 8"]
    found = list(read_lines(lines, 2))
    assert [isinstance(item, Instance) for item in found] == [True, False, False, True, True, True]
    assert "line 2 has 3 numbers, which 2 do not divide" in str(found[1])
    assert "line 3 holds no numbers" in str(found[2])


HEADER = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999, 2), }".ljust(117) + b"\n"


def zipped() -> bytes:
    """A file of several arrays."""
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.npy", None, "cannot be read: No such file or directory; give another file"),
        ("a.json", b"[]", "is of no known format; give a name that ends in .npy, .csv, .txt"),
        ("a.npy", b"no array", "is no array of numbers"),
        ("a.npy", b"", "is no array of numbers"),
        ("a.npy", zipped(), "is no array of numbers"),
        ("a.npy", b"\x93NUMPY\x01\x00v\x00" + HEADER.replace(b"'<f8'", b"'<f8"), "is no array of numbers"),
        ("a.npy", b"\x93NUMPY\x01\x00v\x00" + HEADER, "is no array of numbers"),
        ("a.csv", b"x,y\n1,2\n\n3,z\n", "line 4 holds no numbers"),
        ("a.csv", b"1,2\n3,4,5\n", "line 2 has 3 numbers; give 2, a point a line"),
        ("a.csv", b"x\n", "line 1 holds no numbers"),
        ("a.csv", b"0.l,0.2\n3,4\n", "line 1 holds no numbers"),
        ("a.csv", b"0.3,0.4,\n3,4\n", "line 1 holds no numbers"),
    ],
)
def test_files_that_are_none(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RequestError, match=re.escape(message)):
        list(read_points(file, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 3)), "has shape [3, 3]; give [n, 2] or [m, n, 2]"),
        (np.zeros(3), "has shape [3]"),
        (np.array(["a"]), "is no array of numbers"),
        (np.array([1j, 2]), "is no array of numbers"),
    ],
)
def test_arrays_that_are_none(values: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(RequestError, match=re.escape(message)):
        read_points(tmp_path / "a.npy", 2)


def test_a_line_that_is_no_text_is_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf1 2 3 4\ncaf\xe9\n1 2 3 4\n")
    found = list(read_points(tmp_path / "a.txt", 2))
    assert [isinstance(item, Instance) for item in found] == [True, False, True]
    assert "line 2 holds no numbers" in str(found[1])
