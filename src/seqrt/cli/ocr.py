"""`seqrt ocr`: words in images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Json, Threads, command
from seqrt.cli.console import FAILURE, emit, progress
from seqrt.cli.session import open_recognizer
from seqrt.errors import RequestError

if TYPE_CHECKING:
    from seqrt.runtime.recognizer import Recognition, Recognizer

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

    A line an image: confidence, text, file. What cannot be read is said, the others come out all the same, and the
    exit code is 1.
    """
    files = image_files(images)
    if annotate is not None:
        _check_folder(annotate)
    recognizer = open_recognizer(bundle, backend, threads)
    items: list[dict[str, Any]] = []
    with progress("reading", len(files)) as advance:
        for file, found in _in_order(recognizer, files, batch):
            advance()
            items.append(_item(file, found))
            if annotate is not None and not isinstance(found, RequestError):
                _annotate(file, found, annotate, len(items))
            if not as_json:
                _print(items[-1])
    if as_json:
        emit({"items": items})
    if any(item["error"] for item in items):
        raise typer.Exit(FAILURE)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the images in the folders named.

    Raises:
        RequestError: a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not inside:
            raise RequestError(f"{path} has no image in it; give a folder with PNG, JPEG or the like")
        found += inside
    return found


def _in_order(
    recognizer: "Recognizer", files: Sequence[Path], batch: int
) -> Iterator[tuple[Path, "Recognition | RequestError"]]:
    """What was read, in the order of the files, as soon as that can be."""
    waiting: dict[int, Recognition | RequestError] = {}
    due = 0
    for number, found in recognizer.each(files, batch=batch):
        waiting[number] = found
        while due in waiting:
            yield files[due], waiting.pop(due)
            due += 1


def _item(file: Path, found: "Recognition | RequestError") -> dict[str, Any]:
    if isinstance(found, RequestError):
        return {"path": str(file), "text": None, "confidence": None, "error": str(found)}
    return {"path": str(file), "text": found.text, "confidence": round(found.confidence, 4), "error": None}


def _print(item: dict[str, Any]) -> None:
    if item["error"]:
        print(f"error   {item['error']}")
    else:
        print(f"{item['confidence']:.4f}  {item['text']}\t{item['path']}")


def _check_folder(folder: Path) -> None:
    """Makes it.

    Raises:
        RequestError: it cannot be made or is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--annotate {folder} cannot be made: {error.strerror}; give a folder") from error


def _annotate(file: Path, found: "Recognition", folder: Path, number: int) -> None:
    """Writes the image with a line of text under it."""
    from seqrt.runtime.images import annotated, read_image

    target = folder / f"{number:04d}-{file.stem}.png"
    try:
        annotated(read_image(file), f"{found.text}  {found.confidence:.2f}").save(target)
    except OSError as error:
        raise RequestError(f"--annotate: {target} cannot be written: {error.strerror}; give another folder") from error
