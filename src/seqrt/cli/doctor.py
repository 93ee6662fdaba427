"""`seqrt doctor`: what this machine can do, and what to install for the rest."""

import importlib.util
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from seqrt.cli import doctor_bundle, doctor_gpu, doctor_jetson
from seqrt.cli.common import Json, command
from seqrt.cli.condition import Condition
from seqrt.cli.console import FAILURE, emit, fail
from seqrt.errors import EngineError, first_line
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.engines.ort import OrtEngine, import_onnxruntime
from seqrt.runtime.machine import version

_ROOT: Final = Path("/")
_PROBE: Final = Path(__file__).with_name("opset24.onnx")  # one TensorScatter; made by tests/cli/test_doctor.py
_EXPORT: Final = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "gguf")


@command("seqrt doctor smollm2")
def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle to say the same of: which backends can run it here.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and what to install for the rest.

    With BUNDLE, also whether its graphs and engines fit this machine. Exit code 0 when inference works, on the CPU or
    on a GPU.
    """
    opened = None if bundle is None else open_bundle(bundle)
    conditions = [_python(), _package("numpy"), _package("tokenizers"), _onnxruntime(), _opset(), _export()]
    works = all(condition.state != "failed" for condition in conditions)
    found, machine = doctor_gpu.look(_ROOT, _PROBE, ort=_loaded(), is_jetson=doctor_jetson.is_jetson(_ROOT))
    conditions += [*found, *doctor_jetson.conditions(_ROOT)]
    if opened is not None:
        conditions += doctor_bundle.conditions(opened, machine, cpu_works=works)
    if as_json:
        document = {"cpu_inference": works, "gpu_backends": list(machine.backends)}
        emit(document | {"conditions": [asdict(condition) for condition in conditions]})
    else:
        print("\n".join(condition.line() for condition in conditions))
    if not works and not machine.backends:
        fail("inference does not work here, neither on the CPU nor on a GPU; mend what is marked failed")
        raise typer.Exit(FAILURE)


def _python() -> Condition:
    detail = f"{platform.python_version()} on {platform.machine()}"
    is_old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    advice = "onnxruntime with opset 24 needs Python 3.11 or later" if is_old else None
    return Condition("python", "ok", detail, advice)


def _package(name: str) -> Condition:
    installed = version(name)
    if installed is None:
        return Condition(name, "failed", "not installed", f"run: pip install {name}")
    return Condition(name, "ok", installed)


def _onnxruntime() -> Condition:
    try:
        import onnxruntime
    except ImportError as error:
        return Condition("onnxruntime", "failed", first_line(error), "run: pip install 'seqrt[cpu]'")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Condition("onnxruntime", "ok", f"{onnxruntime.__version__} with {providers}")


def _opset() -> Condition:
    """Runs one TensorScatter: the newest operator that bundles use."""
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
    return Condition("export", "ok", f"torch {version('torch')}, transformers {version('transformers')}")


def _loaded() -> Any:
    """Onnxruntime, None where it cannot be loaded."""
    try:
        return import_onnxruntime()
    except EngineError:
        return None
