"""What `seqrt profile` does with a recogniser: batch sizes in turn, where the time of a batch goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from seqrt.cli.console import emit, note, print_table, progress
from seqrt.cli.doctor_jetson import power_mode_here
from seqrt.cli.ocr import image_files
from seqrt.cli.report.tables import FORMATS, Table, markdown, print_csv, warnings
from seqrt.cli.session import open_recognizer
from seqrt.errors import RequestError
from seqrt.runtime.bundle import sha256
from seqrt.runtime.recognizer import STAGES

BUILT_IN: Final = Path(__file__).with_name("words")
_PERCENTILES: Final = ("mean", "p50", "p90", "p95", "p99")


def profile_words(
    bundle: Path,
    images: Sequence[Path] | None,
    batch: str | None,
    repeat: int,
    warmup: int,
    as_format: str,
    backend: str,
    threads: int,
    *,
    as_json: bool,
) -> None:
    """Measures a recogniser and prints it; the options are those of `seqrt profile`.

    Raises:
        RequestError: an option is out of range, or an image cannot be read.
        BaseException: what ended the measurement early, once what was measured by then is printed.
    """
    from seqrt.runtime.profiling.words import DEFAULT_BATCHES, profile

    files = image_files(images or [BUILT_IN])
    batches = list(DEFAULT_BATCHES) if batch is None else _batches(batch)
    model = open_recognizer(bundle, backend, threads)
    settings = {
        "backend": model.backend,
        "bundle": model.bundle.manifest.name,
        "quantization": model.bundle.manifest.quantization,
        "variant": model.engines.variant,
        "images": len(files),
        "images_sha256": [sha256(file) for file in files],
        "batches": batches,
        "repeat": repeat,
        "warm_up": f"{warmup} passes with each batch, not counted" if warmup else "none",
    }
    with progress("profiling", len(batches) * repeat) as advance:
        document, stopped_by = profile(
            model,
            files,
            batches,
            repeat=repeat,
            warm_up=warmup,
            threads=threads,
            settings=settings,
            advance=advance,
        )
    document["environment"]["power_mode"] = power_mode_here()
    if as_json:
        emit(document)
    elif as_format == FORMATS[2]:
        print_csv(document["rows"])
    else:
        _print(document, as_format)
    if as_json or as_format == FORMATS[2]:
        for warning in warnings(document):
            note(warning)
    if stopped_by is not None:
        raise stopped_by


def _batches(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise RequestError(f"--batch is {text!r:.40}; give sizes with commas between, such as 1,16") from error


def _print(document: dict[str, Any], as_format: str) -> None:
    machine, settings = document["environment"], document["settings"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads'] or machine['cores']} threads"
    print(
        f"{settings['bundle']} ({settings['variant']}) on {where}, {machine['engine']}, seqrt {machine['seqrt']},"
        f" {machine['date'][:10]}: {settings['images']} images, {settings['repeat']} times"
    )
    for table in _tables(document["rows"]):
        if as_format == FORMATS[1]:
            print(f"\n{markdown(table)}")
        else:
            print_table(*table)
    for line in warnings(document):
        print(line)


def _tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    speed = [
        (str(row["batch"]), f"{row['images_per_second']:.1f}", *(_ms(row["batch_ms"][name]) for name in _PERCENTILES))
        for row in rows
    ]
    stages = [(str(row["batch"]), *(_ms(row["stages_ms"][name]["mean"]) for name in (*STAGES, "host"))) for row in rows]
    return [(("batch", "images/s", *_PERCENTILES), speed), (("ms a batch", *STAGES, "host"), stages)]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
