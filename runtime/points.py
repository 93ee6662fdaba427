"""Instances as files: arrays of numpy, tables, and the text format of the pointer networks' released data.

    .npy     one instance [n, d], or several [m, n, d]; of numbers (d = 1) [n] or [m, n]
    .csv     one instance, a point a line; a first line of names is skipped
    .txt, -  an instance a line: x1 y1 x2 y2 ... [output i1 i2 ...], labels counted from 1; - is the standard input

Lines are read one after the other as they are asked for, however many there are.
"""

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import RequestError, first_line

SUFFIXES: Final = (".npy", ".csv", ".txt")
STDIN: Final = "-"
_LABELS: Final = "output"
_MARK: Final = "\ufeff"  # begins files of some editors


@dataclass(frozen=True, slots=True)
class Instance:
    """One line: points `[n, d]`, and labels counted from 1 as they stand there, if it has any."""

    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64] | None = None


def read_points(file: Path, dim: int) -> Iterator[Instance | RequestError]:
    """The instances of a file, as they are read; a line that is none comes as its error.

    Args:
        file: a path, or `-`.
        dim: numbers of a point.

    Raises:
        RequestError: the file cannot be read, or is of no known format.
    """
    if str(file) == STDIN:
        if sys.stdin is None:
            raise RequestError("--points - is closed; give a file")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is no text is no number, which is said of its line
        return read_lines(sys.stdin, dim)
    if file.suffix not in SUFFIXES:
        raise RequestError(f"--points {file} is of no known format; give a name that ends in {', '.join(SUFFIXES)}")
    try:
        if file.suffix == ".npy":
            return map(Instance, _array(file, dim))
        if file.suffix == ".csv":
            return iter([Instance(_table(file, dim))])
        if not file.is_fifo():  # which would be read by being opened
            file.open("rb").close()  # what cannot be opened is said now
        return _lines(file, dim)
    except OSError as error:
        raise RequestError(f"--points {file} cannot be read: {error.strerror or error}; give another file") from error


def read_lines(lines: Iterable[str], dim: int) -> Iterator[Instance | RequestError]:
    """Instances of lines of text; empty lines are skipped, and so are labels that are none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        left, _, right = line.removeprefix(_MARK).replace(",", " ").partition(_LABELS)
        try:
            values = np.array(left.split(), np.float64)
        except ValueError as error:
            yield RequestError(f"line {number} holds no numbers ({error}); give x1 y1 x2 y2 ...")
            continue
        if len(values) % dim:
            yield RequestError(f"line {number} has {len(values)} numbers, which {dim} do not divide; give whole points")
            continue
        yield Instance(values.reshape(-1, dim), _labels(right))


def _labels(text: str) -> npt.NDArray[np.int64] | None:
    try:
        return np.array(text.split(), np.int64) if text.strip() else None
    except (ValueError, OverflowError):
        return None


def line_of(instance: Instance) -> str:
    """The line that `read_lines` reads as this, to the last bit."""
    text = " ".join(repr(float(value)) for value in instance.points.ravel())
    return text if instance.labels is None else f"{text} {_LABELS} {' '.join(map(str, instance.labels))}"


def _lines(file: Path, dim: int) -> Iterator[Instance | RequestError]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from read_lines(lines, dim)


def _array(file: Path, dim: int) -> npt.NDArray[np.float64]:
    """`[m, n, d]`, not read into memory as a whole."""
    try:
        values: npt.NDArray[np.float64] = np.lib.format.open_memmap(file, mode="r")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"it is of type {values.dtype}")
    except OSError:
        raise
    except Exception as error:  # whatever numpy's parser of a damaged header raises
        raise RequestError(
            f"--points {file} is no array of numbers ({first_line(error)}); write it with numpy.save"
        ) from error
    shape = list(values.shape)
    if dim == 1 and values.ndim in (1, 2) and shape[-1] != 1:
        values = values[..., None]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[2] != dim:
        raise RequestError(f"--points {file} has shape {shape}; give [n, {dim}] or [m, n, {dim}]")
    return values


def _table(file: Path, dim: int) -> npt.NDArray[np.float64]:
    """`[n, d]`."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    found: list[list[float]] = []
    is_first = "\n" in text.strip()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        are_names, is_first = is_first and not any(map(_is_number, line.split(","))), False
        if are_names:
            continue
        try:
            values = [float(cell) for cell in line.split(",")]
        except ValueError as error:
            raise RequestError(f"--points {file}: line {number} holds no numbers ({error}); give x,y a line") from error
        if len(values) != dim:
            raise RequestError(f"--points {file}: line {number} has {len(values)} numbers; give {dim}, a point a line")
        found.append(values)
    return np.array(found, np.float64).reshape(-1, dim)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
