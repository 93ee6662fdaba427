"""A bundle appears under its name when it is complete, and not before."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqrt.errors import ExportError
from seqrt.runtime.bundle import MANIFEST


@contextmanager
def staged(bundle: Path) -> Iterator[Path]:
    """A temporary directory beside `bundle` that takes its name at the end, or vanishes."""
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=bundle.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {bundle.parent}: {error.strerror}; {_advice(error)}") from error
    previous = folder.with_name(f"{folder.name}.previous")
    try:
        yield folder
        if bundle.exists():
            bundle.rename(previous)
        folder.chmod(0o755)  # mkdtemp makes it private
        folder.rename(bundle)
    except OSError as error:
        if previous.exists() and not bundle.exists():
            previous.rename(bundle)
        raise ExportError(f"cannot write {bundle}: {error.strerror}; {_advice(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _advice(error: OSError) -> str:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another disk" if is_full else "choose a directory that you may write to"


def check_replaceable(bundle: Path, force: bool) -> None:
    """Raises ExportError unless nothing but a bundle (or an empty directory, with `force`) would be replaced."""
    if not bundle.exists():
        return
    if not force:
        raise ExportError(f"{bundle} exists; choose another directory or replace it with --force")
    if not bundle.is_dir() or bundle.is_symlink() or (any(bundle.iterdir()) and not (bundle / MANIFEST).is_file()):
        raise ExportError(f"{bundle} is no bundle, and --force replaces nothing else; choose another directory")
    if bundle.resolve() == Path.cwd():
        raise ExportError(f"{bundle} is the current directory; change to another one to replace it")
