"""Files that appear whole or not at all."""

from collections.abc import Callable
from pathlib import Path


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a hidden file beside `file` that then takes its name; nothing is left behind by a failure.

    Raises:
        OSError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.part")
    try:
        write(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
