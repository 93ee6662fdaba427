"""How long `import seqrt.runtime.model` takes on top of numpy's own import.

    python -m tools.bench.imports [--repeats N] [--slowest N]

Fresh interpreters take turns, so that a busy moment meets both; the medians and their difference are printed,
then seqrt's slowest imports as `python -X importtime` sees them.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

MODULE = "seqrt.runtime.model"
_CODE = "from time import perf_counter as t; start = t(); import {}; print(t() - start)"


def seconds(module: str) -> float:
    """Time of one import in a fresh interpreter."""
    command = [sys.executable, "-c", _CODE.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def slowest(module: str, count: int) -> list[tuple[float, str]]:
    """The imports that took the most milliseconds of their own, numpy's left out."""
    command = [sys.executable, "-X", "importtime", "-c", f"import numpy; import {module}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    cells = [line.removeprefix("import time:").split("|") for line in lines[1:]]
    rows = [(int(own) / 1e3, name.strip()) for own, _with_children, name in cells]
    numpy = [name for _, name in rows].index("numpy")  # a package is reported after all that it imports
    return sorted(rows[numpy + 1 :], reverse=True)[:count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Import time on top of numpy's own.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--slowest", type=int, default=10)
    options = parser.parse_args(arguments)
    times: dict[str, list[float]] = {"numpy": [], MODULE: []}
    for _ in range(options.repeats):
        for module, found in times.items():
            found.append(seconds(module))
    numpy, ours = (median(found) for found in times.values())
    print(f"numpy {numpy:.3f} s, {MODULE} {ours:.3f} s, difference {ours - numpy:.3f} s")
    for milliseconds, name in slowest(MODULE, options.slowest):
        print(f"{milliseconds:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
