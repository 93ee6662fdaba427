"""`seqrt build`: from a bundle's graphs to TensorRT engines."""

from dataclasses import asdict
from enum import Enum
from time import perf_counter
from typing import Annotated, Final

import typer

from seqrt.cli.common import BundlePath, Json, command
from seqrt.cli.console import emit, everything_to_stderr, note, status
from seqrt.errors import RequestError
from seqrt.runtime.build import DEFAULT_BUCKETS, Built
from seqrt.runtime.build import build as build_engines
from seqrt.runtime.bundle import STATIC_ROOM, open_bundle

_MB: Final = 1 << 20


def _listed(task: str) -> str:
    return ",".join(map(str, DEFAULT_BUCKETS[task]))


class Flavour(str, Enum):
    """TensorRT's flavours."""

    rtx = "rtx"
    trt = "trt"


@command("seqrt build smollm2 --backend rtx --cc 8.6,12.0")
def build(
    bundle: BundlePath,
    backend: Annotated[Flavour, typer.Option(help="TensorRT-RTX (rtx) or TensorRT (trt).", show_default=False)],
    dtype: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Graphs to build, if there are several types; else the first exported."),
    ] = None,
    cc: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Compute capabilities, such as 8.6,12.0. TensorRT-RTX takes those that it supports by itself if none"
            " is given; TensorRT builds for the GPU of this machine.",
        ),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Rows of a tree that a step computes at once, or images that are read at once; 1 is always among them."
            f" {_listed('generate')}, or {_listed('ocr')}, if none are given.",
        ),
    ] = None,
    prefill: Annotated[
        int | None,
        typer.Option(help=f"Rows of a prompt that a step computes at once; {STATIC_ROOM} if not given."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Most scratch memory, in MB; TensorRT's own limit if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build TensorRT engines of a bundle that was exported for it; they lie in the bundle afterwards.

    TensorRT-RTX builds on any machine, with or without a GPU. TensorRT builds on the machine that is to run the
    engines. What is there already, of the same graphs and settings, is not built again.
    """
    start = perf_counter()
    opened = open_bundle(bundle)
    with everything_to_stderr(), status() as progress:
        made = build_engines(
            opened,
            backend.value,
            dtype=dtype,
            compute_capabilities=() if cc is None else [part.strip() for part in cc.split(",")],
            buckets=None if buckets is None else _numbers(buckets),
            prefill=prefill,
            workspace=None if workspace is None else workspace * _MB,
            progress=progress,
        )
    seconds = perf_counter() - start
    if as_json:
        emit(_document(made, seconds))
    else:
        _print(made, seconds)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"--buckets {text!r} are no numbers; give such as 1,8,16,32,64") from error


def _document(made: Built, seconds: float) -> dict[str, object]:
    return {
        "engines": str(made.folder),
        "built": made.is_new,
        "version": made.record.version,
        "settings": asdict(made.record.settings),
        "host_bytes_estimated": made.host_bytes,
        "device_bytes_estimated": made.device_bytes,
        "seconds": round(seconds, 3),
        "graphs": [
            {
                "role": graph.role,
                "bytes": graph.size,
                "sha256": graph.sha256,
                "seconds": graph.seconds,
                "decomposed": graph.decomposed,
            }
            for graph in made.record.graphs
        ],
    }


def _print(made: Built, seconds: float) -> None:
    size = sum(graph.size for graph in made.record.graphs)
    if not made.is_new:
        print(f"{made.folder}: up to date, {size / 1e6:.1f} MB; nothing was built")
        return
    print(f"{made.folder}: {len(made.record.graphs)} engines, {size / 1e6:.1f} MB, {seconds:.1f} s")
    width = max(len(graph.role) for graph in made.record.graphs) + 2
    for graph in made.record.graphs:
        print(f"  {graph.role:{width}}{graph.size / 1e6:8.1f} MB {graph.seconds:7.1f} s")
    if reasons := sorted({graph.decomposed for graph in made.record.graphs if graph.decomposed}):
        note(f"attention is computed in parts, TensorRT has no fused kernel for {', '.join(reasons)}")
