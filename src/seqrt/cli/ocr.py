"""`seqrt ocr`: words in images."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Json, Threads, command, in_order
from seqrt.cli.console import FAILURE, emit, note, progress
from seqrt.cli.session import open_recognizer
from seqrt.errors import RequestError

if TYPE_CHECKING:
    from seqrt.runtime.recognizer import Recognition

_SUFFIXES: Final = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)


@command("seqrt ocr cppd-tiny crops/ sign.png --batch 16 --json")
def ocr(
    bundle: BundlePath,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="FILES|DIRS...", help="Images of one word each, folders of them.", show_default=False),
    ],
    batch: Annotated[
        int, typer.Option(help="Images read at once; above 1, others are made ready meanwhile: faster in all.")
    ] = 1,
    annotate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each image there with what was read under it.", show_default=False),
    ] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Read the word in each image.

    A line an image: confidence, text, file. What cannot be read is said on stderr, the others come out all the same,
    and the exit code is 1.
    """
    files = image_files(images)
    if annotate is not None:
        _check_folder(annotate)
    recognizer = open_recognizer(bundle, backend, threads)
    items: list[dict[str, Any]] = []
    failed = 0
    # Lines on a terminal show how far it is by themselves.
    with progress("reading", len(files), hidden=not as_json and sys.stdout.isatty()) as advance:
        for number, found in in_order(recognizer.each(files, batch=batch)):
            advance()
            file = files[number]
            items.append(_item(file, found))
            if isinstance(found, RequestError):
                failed += 1
                if not as_json:
                    note(f"error: {found}")
                continue
            if annotate is not None:
                failed += not _annotate(file, found, annotate, len(items))
            if not as_json:
                print(f"{items[-1]['confidence']:.4f}  {found.text}\t{file}")
    if as_json:
        emit({"items": items})
    if failed:
        raise typer.Exit(FAILURE)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the images in the folders named; a folder without any stands for itself."""
    found: list[Path] = []
    for path in paths:
        try:
            inside = [file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file()]
        except OSError:  # a name that is too long, a folder that may not be read: reading it says so
            inside = []
        found += sorted(inside) or [path]
    return found


def _item(file: Path, found: "Recognition | RequestError") -> dict[str, Any]:
    if isinstance(found, RequestError):
        return {"path": str(file), "text": None, "confidence": None, "error": str(found)}
    return {"path": str(file), "text": found.text, "confidence": round(found.confidence, 4), "error": None}


def _check_folder(folder: Path) -> None:
    """Makes it.

    Raises:
        RequestError: it cannot be made or is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--annotate {folder} cannot be made: {error.strerror}; give a folder") from error


def _annotate(file: Path, found: "Recognition", folder: Path, number: int) -> bool:
    """Writes the image with a line of text under it; whether that could be done."""
    from seqrt.runtime.images import annotated, read_image

    target = folder / f"{number:04d}-{file.stem}.png"
    try:
        annotated(read_image(file), f"{found.text}  {found.confidence:.2f}").save(target)
    except OSError as error:
        note(f"error: --annotate: {target} cannot be written: {error.strerror}; free some space or give another folder")
        return False
    return True
