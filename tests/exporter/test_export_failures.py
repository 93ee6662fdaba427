"""Exports that fail, are interrupted or refused: one line, and nothing left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seqrt.errors import CheckpointError, ExportError
from seqrt.exporter.assemble import Assembly
from seqrt.exporter.export import export


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports end where tracing would begin, which takes seconds."""

    def stop(*_: object) -> None:
        raise ExportError("tracing began")

    monkeypatch.setattr("seqrt.exporter.assemble.decoder_graph", stop)


def nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_an_existing_bundle_is_not_replaced_unasked(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("kept")
    (tmp_path / "bundle" / "seqrt.json").write_text("{}")
    with pytest.raises(ExportError, match=r"bundle exists; choose another directory or replace it with --force$"):
        export(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "mine").read_text() == "kept"


@pytest.mark.usefixtures("untraced")
def test_a_failed_export_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("kept")
    (tmp_path / "bundle" / "seqrt.json").write_text("{}")
    with pytest.raises(ExportError, match="tracing began"):
        export(source, tmp_path / "bundle", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "mine").read_text() == "kept"


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("is_empty", [True, False])
def test_force_replaces_bundles_and_empty_directories(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    if not is_empty:
        (bundle / "seqrt.json").write_text("{}")

    def write(_: Assembly, folder: Path, *__: object, **___: object) -> None:
        (folder / "new").write_text("")

    monkeypatch.setattr(Assembly, "write", write)
    export(source, bundle, force=True)
    assert [path.name for path in (bundle / "graphs").iterdir()] == ["new"]
    assert json.loads((bundle / "seqrt.json").read_text())["files"].keys() == {"graphs/new"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), ExportError("check failed"), RuntimeError("unexpected")]
)
def test_whatever_ends_an_export_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr("seqrt.exporter.assemble.decoder_graph", stop)
    with pytest.raises(type(error)):
        export(source, tmp_path / "bundle")
    assert nothing_left(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
import seqrt.exporter.assemble as module
from seqrt.exporter.export import export

module.decoder_graph = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
export(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_bundle(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "seqrt.json").write_text("old")
    arguments = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "bundle")]
    ended = subprocess.run(arguments, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["seqrt.json"]
    assert (tmp_path / "bundle" / "seqrt.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "it died with its temporary folder in place"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space or choose another disk"),
        (errno.EROFS, "Read-only file system; choose a directory that you may write to"),
    ],
)
def test_disk_that_is_full_or_read_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def stop(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("seqrt.exporter.assemble.decoder_graph", stop)
    message = rf"^cannot write .*bundle: {advice}$"
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "bundle")
    assert nothing_left(tmp_path)


def test_folder_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"^cannot write to .*file/deep: Not a directory; choose a directory that"):
        export(source, tmp_path / "file" / "deep" / "bundle")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int3"}, r"^--quantize int3 is unknown; choose one of none, int8, int4, source$"),
        ({"targets": ("tpu",)}, r"^--target tpu is unknown; choose from ort, rtx, trt11, trt10.16, trt10.3$"),
        ({"dtypes": ("bf16",)}, r"^--dtype bf16 is not for --target ort; use fp32 or fp16$"),
        ({"capacity": 0}, r"^--capacity 0 is out of range; source\d* takes 1 to 128$"),
        ({"capacity": 129}, r"^--capacity 129 is out of range; source\d* takes 1 to 128$"),
        ({"capacity": -5}, r"^--capacity -5 is out of range"),
    ],
)
def test_arguments_out_of_range(source: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "bundle", **arguments)
    assert nothing_left(tmp_path)


@pytest.mark.usefixtures("untraced")
def test_sources_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(CheckpointError):
            export(path, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"blocks.1.layers.0.weight": torch.ones(32, 32)}), "draft heads of another"),
        (lambda t: t.pop("blocks.1.layers.0.weight"), "no weights for layer 0 of head 1"),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_tracing(
    source: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    names = [f"blocks.{head}.layers.0" for head in range(3)]
    tensors = {f"{name}.weight": torch.ones(64, 64) for name in names} | {
        f"{name}.bias": torch.ones(64) for name in names
    }
    change(tensors)
    (tmp_path / "heads").mkdir()
    save_file(tensors, tmp_path / "heads" / "medusa_lm_head.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export(source, tmp_path / "bundle", heads={"medusa": tmp_path / "heads"})
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]


@pytest.mark.usefixtures("untraced")
def test_source_quantisation_of_a_float_model_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export(source, tmp_path / "bundle", quantize="source")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("make", ["file", "full directory"])
def test_force_replaces_nothing_but_bundles(tmp_path: Path, make: str) -> None:
    target = tmp_path / "home"
    if make == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="is no bundle, and --force replaces nothing else"):
        export(tmp_path / "missing", target, force=True)
    assert (target if make == "file" else target / "thesis.txt").read_text() == "precious"
