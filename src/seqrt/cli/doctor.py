"""`seqrt doctor`: what this machine can do, and what to install for the rest."""

import ctypes.util
import importlib.util
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import typer

from seqrt.cli.common import Json, command
from seqrt.cli.console import FAILURE, emit, fail
from seqrt.errors import first_line

_PROBE: Final = Path(__file__).with_name("opset24.onnx")  # one TensorScatter; made by tests/cli/test_doctor.py
_EXPORT: Final = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "gguf")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that was looked at. `state`: ok, failed (the CPU needs it) or absent (others need it)."""

    name: str
    state: Literal["ok", "failed", "absent"]
    detail: str
    advice: str | None = None


@command("seqrt doctor --json")
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to install for the rest.

    Exit code 0 when inference on the CPU works.
    """
    conditions = [_python(), _package("numpy"), _package("tokenizers"), _onnxruntime(), _opset(), _export()]
    conditions += [_cuda(), _tensorrt()]
    works = all(condition.state != "failed" for condition in conditions)
    if as_json:
        emit({"cpu_inference": works, "conditions": [asdict(condition) for condition in conditions]})
    else:
        for condition in conditions:
            advice = f"; {condition.advice}" if condition.advice else ""
            print(f"{condition.state:8}{condition.name}: {condition.detail}{advice}")
    if not works:
        fail("inference on the CPU does not work here; mend what is marked failed")
        raise typer.Exit(FAILURE)


def _python() -> Condition:
    detail = f"{platform.python_version()} on {platform.machine()}"
    is_old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    advice = "onnxruntime with opset 24 needs Python 3.11 or later" if is_old else None
    return Condition("python", "ok", detail, advice)


def _package(name: str) -> Condition:
    version = _version(name)
    if version is None:
        return Condition(name, "failed", "not installed", f"run: pip install {name}")
    return Condition(name, "ok", version)


def _onnxruntime() -> Condition:
    try:
        import onnxruntime
    except ImportError as error:
        return Condition("onnxruntime", "failed", first_line(error), "run: pip install 'seqrt[cpu]'")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Condition("onnxruntime", "ok", f"{onnxruntime.__version__} with {providers}")


def _opset() -> Condition:
    """Runs one TensorScatter: the newest operator that bundles use."""
    from seqrt.errors import EngineError
    from seqrt.runtime.engines.ort import OrtEngine

    advice = "install onnxruntime 1.25 or later: pip install -U 'seqrt[cpu]'"
    try:
        engine = OrtEngine(_PROBE, threads=1)
        engine.input("past", (1, 1, 2, 1))[:] = 0
        engine.input("update", (1, 1, 1, 1))[:] = 1
        engine.input("write", (1,))[0] = 1
        present = engine.output("present", (1, 1, 2, 1))
        engine.run()
    except EngineError as error:
        return Condition("opset 24", "failed", str(error), advice)
    if present.ravel().tolist() != [0, 1]:
        return Condition("opset 24", "failed", f"TensorScatter gave {present.ravel().tolist()}, not [0, 1]", advice)
    return Condition("opset 24", "ok", "TensorScatter runs")


def _export() -> Condition:
    missing = [name for name in _EXPORT if importlib.util.find_spec(name) is None]
    if missing:
        return Condition(
            "export", "absent", f"no {', '.join(missing)}", "to export models: pip install 'seqrt[export]'"
        )
    return Condition("export", "ok", f"torch {_version('torch')}, transformers {_version('transformers')}")


def _cuda() -> Condition:
    library = ctypes.util.find_library("cuda")
    if library is None:
        return Condition("cuda driver", "absent", "no libcuda", "only needed for NVIDIA GPUs")
    return Condition("cuda driver", "ok", library)


def _tensorrt() -> Condition:
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name) is not None:
            return Condition("tensorrt", "ok", f"{name} {_version(name)}")
    advice = "only needed for NVIDIA GPUs: pip install 'seqrt[tensorrt]' or 'seqrt[rtx]'"
    return Condition("tensorrt", "absent", "not installed", advice)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
