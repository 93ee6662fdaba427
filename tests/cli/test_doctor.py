import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # tools/ is not part of the installed package

from tools.gpu.standin_cuda import Code, StandInCuda
from tools.gpu.standin_ort import StandInOrt
from tools.gpu.standin_tensorrt import EngineValidity, ILogger, Runtime, StandInTensorRT, write_engines

import seqrt.cli
from seqrt.cli import doctor_bundle, doctor_gpu, doctor_jetson
from seqrt.cli.condition import Condition
from seqrt.errors import EngineError
from seqrt.exporter.export import export
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import Flavour, load_flavour
from seqrt.runtime.engines.record import read_record
from seqrt.runtime.engines.tensorrt import validity

doctor_module = importlib.import_module("seqrt.cli.doctor")  # its function has the same name

Seqrt = Callable[..., Any]
PROBE = Path(seqrt.cli.__file__).with_name("opset24.onnx")


def make_probe() -> bytes:
    """The model that `doctor` tries: past [1, 1, 2, 1] with one row of it overwritten."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("TensorScatter", ["past", "update", "write"], ["present"], axis=2)
    shapes = {"past": [1, 1, 2, 1], "update": [1, 1, 1, 1]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("write", TensorProto.INT64, [1]))
    output = helper.make_tensor_value_info("present", TensorProto.FLOAT, [1, 1, 2, 1])
    graph = helper.make_graph([node], "probe", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11, producer_name="seqrt")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def test_the_probe_is_what_make_probe_makes() -> None:
    assert PROBE.read_bytes() == make_probe()


def test_this_machine_works(seqrt: Seqrt) -> None:
    result = seqrt("doctor", "--json")
    document = json.loads(result.out)
    states = {condition["name"]: condition["state"] for condition in document["conditions"]}
    assert result.code == 0
    assert document["cpu_inference"] is True
    assert states["opset 24"] == states["onnxruntime"] == states["numpy"] == states["export"] == "ok"
    lines = seqrt("doctor").out.splitlines()
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in lines] == list(states)


def test_without_onnxruntime(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = seqrt("doctor")
    assert result.code == 1
    assert "failed  onnxruntime: " in result.out
    assert "run: pip install 'seqrt[cpu]'" in result.out
    assert "inference does not work here, neither on the CPU nor on a GPU" in result.error


def test_a_missing_extra_is_no_failure(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = seqrt("doctor")
    assert result.code == 0
    assert "absent  export: no torch, onnx, onnx_ir" in result.out
    assert "pip install 'seqrt[export]'" in result.out


# --- GPUs: on stand-ins ---


class Driven(StandInCuda):
    """A stand-in with versions; `driver` 0 is none."""

    def __init__(self, *, driver: int = 13050, runtime: int = 13050, **device: Any) -> None:
        super().__init__(**device)
        self.driver, self.runtime = driver, runtime

    def cudaDriverGetVersion(self) -> tuple[Code, int]:  # noqa: N802
        return Code.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Code, int]:  # noqa: N802
        return Code.cudaSuccess, self.runtime


class Dlopen(StandInCuda):
    """What cuda-bindings 12 do without libcuda."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetDeviceCount"):
            raise RuntimeError("Failed to dlopen libcuda.so.1")
        return super().__getattribute__(name)


class QuietOrt(StandInOrt):
    """Notes what its logger is told to print."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.severities: list[int] = []

    def set_default_logger_severity(self, severity: int) -> None:
        self.severities.append(severity)


def missing(backend: str) -> EngineError:
    """What `load_flavour` raises where a TensorRT is not installed."""
    name = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}[backend]
    error = EngineError("cannot be loaded")
    error.__cause__ = ModuleNotFoundError(f"No module named {name!r}", name=name)
    return error


def broken(reason: Exception) -> EngineError:
    error = EngineError("cannot be loaded")
    error.__cause__ = reason
    return error


def loader(**versions: str | Exception) -> Callable[[str], Flavour]:
    """Stands in for `load_flavour`: a version or what it raises, by backend."""

    def load(backend: str) -> Flavour:
        found = versions.get(backend, missing(backend))
        if isinstance(found, Exception):
            raise found
        return load_flavour(backend, SimpleNamespace(__version__=found, ILogger=ILogger))

    return load


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def look(root: Path, cuda: Any, **how: Any) -> tuple[dict[str, Condition], doctor_gpu.Machine]:
    conditions, machine = doctor_gpu.look(root, PROBE, cuda_api=cuda, **how)
    return {condition.name: condition for condition in conditions}, machine


MODULE = "NVRM version: NVIDIA UNIX {}  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: gcc 13.3.0\n"
PROC = "proc/driver/nvidia/version"


@pytest.mark.parametrize(
    ("kind", "files", "cuda", "state", "detail"),
    [
        ("x86_64 Kernel Module", True, Driven(), "ok", "580.95.05, for CUDA up to 13.5"),
        ("Open Kernel Module for x86_64", True, Driven(driver=12060), "ok", "580.95.05, for CUDA up to 12.6"),
        ("Open Kernel Module for aarch64", True, Driven(), "ok", "580.95.05, for CUDA up to 13.5"),
        ("", False, Driven(), "ok", "version unknown, for CUDA up to 13.5"),
        ("x86_64 Kernel Module", True, Driven(driver=0), "absent", "580.95.05 in the kernel, but libcuda"),
        ("x86_64 Kernel Module", True, Dlopen(), "absent", "580.95.05 in the kernel, but libcuda"),
        ("x86_64 Kernel Module", True, EngineError("none"), "ok", "580.95.05"),
        ("", False, Driven(driver=0), "absent", "none"),
        ("", False, Dlopen(), "absent", "none"),
    ],
)
def test_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, files: bool, cuda: Any, state: str, detail: str
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    write(tmp_path, {PROC: MODULE.format(kind)} if files else {})
    found = doctor_gpu.driver(tmp_path, cuda if isinstance(cuda, EngineError) else Cuda(cuda))
    assert found.state == state
    assert found.detail.startswith(detail)
    assert (found.advice is None) == (state == "ok")


@pytest.mark.parametrize(
    ("cuda", "has_driver", "state", "says"),
    [
        (Driven(), True, "ok", ["runtime 13.5, 1 GPU"]),
        (Driven(devices=2), True, "ok", ["runtime 13.5, 2 GPUs", "CUDA_VISIBLE_DEVICES"]),
        (Driven(driver=0), False, "absent", ["runtime 13.5, but no driver", "only needed for NVIDIA GPUs"]),
        (Driven(devices=0), True, "absent", ["no NVIDIA driver, or too old a one", "cudaErrorInsufficientDriver"]),
        (Dlopen(), True, "absent", ["Failed to dlopen libcuda.so.1"]),
        (EngineError("cuda-bindings is missing; run: pip"), True, "absent", ["missing; only needed", "run: pip"]),
    ],
)
def test_cuda(cuda: Any, has_driver: bool, state: str, says: list[str]) -> None:
    found = doctor_gpu.cuda_runtime(cuda if isinstance(cuda, EngineError) else Cuda(cuda), has_driver)
    assert found.state == state
    assert all(text in found.line() for text in says), found.line()


def test_no_device_shown() -> None:
    cuda = Driven()
    cuda.refuse["cudaGetDeviceCount"] = Code.cudaErrorNoDevice
    found = doctor_gpu.cuda_runtime(Cuda(cuda), True)
    assert found.state == "absent"
    assert "CUDA_VISIBLE_DEVICES" in str(found.advice)


@pytest.mark.parametrize(
    ("name", "capability", "able", "advice"),
    [
        ("NVIDIA GeForce RTX 3060", (8, 6), ("rtx", "trt", "cuda"), None),
        ("NVIDIA GeForce RTX 5090", (12, 0), ("rtx", "trt", "cuda"), None),
        ("NVIDIA H100", (9, 0), ("trt", "cuda"), "TensorRT-RTX does not run on SM90: use --backend trt or cuda"),
        ("Orin", (8, 7), ("trt", "cuda"), "TensorRT-RTX does not run on SM87: use --backend trt or cuda"),
        ("NVIDIA Thor", (11, 0), ("trt", "cuda"), "TensorRT-RTX does not run on SM110: use --backend trt or cuda"),
        ("Tesla V100", (7, 0), ("cuda",), "TensorRT needs 7.5 or later: use --backend cuda or cpu"),
    ],
)
def test_gpu(name: str, capability: tuple[int, int], able: tuple[str, ...], advice: str | None) -> None:
    cuda = Driven(name=name, capability=capability, memory=12_000_000_000)
    cuda.cudaMalloc(200_000_000)
    found, number, backends = doctor_gpu.gpu(Cuda(cuda), None)
    text = ".".join(map(str, capability))
    assert (found.state, number, backends, found.advice) == ("ok", text, able, advice)
    assert found.detail.startswith(f"{name}, compute capability {text}, 11.8 of 12.0 GB free")


def test_the_installed_tensorrt_rtx_says_where_it_runs() -> None:
    kinds = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM90": 2})
    api = SimpleNamespace(__version__="9.9.0", ILogger=ILogger, ComputeCapability=kinds)
    for capability, able in (((9, 0), ("rtx", "trt", "cuda")), ((8, 6), ("trt", "cuda"))):
        cuda = Cuda(Driven(capability=capability))
        assert doctor_gpu.gpu(cuda, load_flavour("rtx", api))[2] == able


def test_a_gpu_whose_memory_cannot_be_read() -> None:
    cuda = Driven()
    cuda.refuse["cudaMemGetInfo"] = Code.cudaErrorMemoryAllocation
    found, capability, _ = doctor_gpu.gpu(Cuda(cuda), None)
    assert (found.state, capability) == ("ok", "8.6")
    assert "cudaMemGetInfo failed with cudaErrorMemoryAllocation" in found.detail


def test_a_gpu_that_fails() -> None:
    cuda = Driven()
    cuda.refuse["cudaGetDeviceProperties"] = Code.cudaErrorIllegalAddress
    found, capability, able = doctor_gpu.gpu(Cuda(cuda), None)
    assert (found.state, capability, able) == ("absent", None, ())


PIP, APT = "pip install 'seqrt[", "sudo apt install --reinstall python3-libnvinfer"


@pytest.mark.parametrize(
    ("backend", "answer", "jetson", "state", "detail", "advice"),
    [
        ("trt", "11.4.0.106", False, "ok", "11.4.0.106", "export for it with --target trt11"),
        ("trt", "10.16.2.10", True, "ok", "10.16.2.10", "export for it with --target trt10.16"),
        ("trt", "10.13.3", True, "ok", "10.13.3", "export for it with --target trt10.3"),
        ("trt", "10.3.0", True, "ok", "10.3.0", "export for it with --target trt10.3"),
        ("trt", "8.6.2", True, "absent", "8.6.2", "install 10.3 or later"),
        ("rtx", "1.7.1.116", False, "ok", "1.7.1.116", "export for it with --target rtx"),
        ("rtx", "1.2.0", False, "absent", "1.2.0", "install 1.7 or later"),
        ("trt", missing("trt"), False, "absent", "not installed", f"{PIP}tensorrt]'"),
        ("trt", missing("trt"), True, "absent", "not installed", "--system-site-packages"),
        ("rtx", missing("rtx"), True, "absent", "not installed", f"{PIP}rtx]'"),
        ("rtx", broken(OSError("libx.so: no such file\nmore")), False, "absent", "libx.so: no such file", "reinstall"),
        ("trt", broken(ImportError("libnvinfer.so.10")), True, "absent", "cannot be loaded: libnvinfer.so.10", APT),
        ("trt", broken(ModuleNotFoundError("x", name="tensorrt_libs")), False, "absent", "cannot be loaded", "install"),
        ("trt", RuntimeError("no licence"), False, "absent", "cannot be loaded: no licence", "--force-reinstall"),
    ],
)
def test_tensorrt(backend: str, answer: str | Exception, jetson: bool, state: str, detail: str, advice: str) -> None:
    found, flavour = doctor_gpu.tensorrt(backend, loader(**{backend: answer}), is_jetson=jetson)
    assert found.name == {"trt": "TensorRT", "rtx": "TensorRT-RTX"}[backend]
    assert found.state == state
    assert (flavour is not None) == (state == "ok")
    assert detail in found.detail
    assert advice in str(found.advice)


def test_a_package_that_is_there_but_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true import."""
    write(tmp_path, {"tensorrt/__init__.py": "raise OSError('libnvinfer.so.11: cannot open shared object file')"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found, _ = doctor_gpu.tensorrt("trt", load_flavour)
    assert found.detail == "installed, but cannot be loaded: libnvinfer.so.11: cannot open shared object file"


@pytest.mark.parametrize(
    ("ort", "has_gpu", "state", "says"),
    [
        (None, True, "absent", "pip install 'seqrt[gpu]'"),
        (QuietOrt(has_cuda=False), True, "absent", "has no CUDA provider, only CPUExecutionProvider; only needed"),
        (QuietOrt(), False, "absent", "there is no GPU"),
        (QuietOrt(), True, "ok", "of onnxruntime"),
        (QuietOrt(records=False), True, "ok", "of onnxruntime"),
        (QuietOrt(loads=False), True, "absent", "cannot run opset24.onnx on the GPU: it does not say why; run: pip"),
    ],
)
def test_cuda_provider(ort: Any, has_gpu: bool, state: str, says: str) -> None:
    found = doctor_gpu.provider(ort, PROBE, has_gpu)
    assert found.state == state
    assert says in found.line()
    assert ort is None or ort.severities in ([], [4, 2])


@pytest.mark.parametrize(
    ("capability", "versions", "ort", "works"),
    [
        ((8, 6), {"trt": "11.4.0", "rtx": "1.7.1"}, QuietOrt(), ("rtx", "trt", "cuda")),
        ((8, 6), {"rtx": "1.7.1"}, None, ("rtx",)),
        ((9, 0), {"rtx": "1.7.1"}, QuietOrt(), ("cuda",)),
        ((9, 0), {"trt": "11.4.0", "rtx": "1.7.1"}, QuietOrt(loads=False), ("trt",)),
        ((8, 7), {"trt": "10.3.0"}, None, ("trt",)),
    ],
)
def test_backends_that_work(
    tmp_path: Path, capability: tuple[int, int], versions: dict[str, str], ort: Any, works: tuple[str, ...]
) -> None:
    lines, machine = look(tmp_path, Driven(capability=capability), load=loader(**versions), ort=ort)
    assert machine.backends == works
    assert machine.capability == ".".join(map(str, capability))
    assert list(lines) == ["NVIDIA driver", "CUDA", "GPU", "TensorRT", "TensorRT-RTX", "CUDA provider"]


@pytest.mark.parametrize("cuda", [Driven(driver=0, devices=0), Dlopen()])
def test_no_gpu_no_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    """TensorRT-RTX can be loaded all the same."""
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    lines, machine = look(tmp_path, cuda, load=loader(rtx="1.7.1"), ort=QuietOrt())
    assert (machine.capability, machine.backends, list(machine.flavours)) == (None, (), ["rtx"])
    assert {name for name, line in lines.items() if line.is_ok} == {"TensorRT-RTX"}


# --- Jetson: what files say ---


def jetson(release: str = "", package: str = "", status: str = "install ok installed") -> dict[str, str]:
    files = {}
    if release:
        major, _, revision = release.partition(".")
        files["etc/nv_tegra_release"] = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n"
    other = "Package: {}\nStatus: install ok installed\nVersion: 9.9\nDescription: text\n more: text\n"
    files["var/lib/dpkg/status"] = other.format("nvidia-jetpack-dev")
    if package:
        entry = f"Package: nvidia-jetpack\nStatus: {status}\nArchitecture: arm64\nVersion: {package}\n"
        files["var/lib/dpkg/status"] += "\n" + entry + "\n" + other.format("zlib1g")
    return files


@pytest.mark.parametrize(
    ("files", "state", "detail", "advice"),
    [
        (jetson("36.4.3", "6.2+b77"), "ok", "6.2 (L4T 36.4.3)", "is 10.3: export with --target trt10.3"),
        (jetson("38.2.0", "7.0+b128"), "ok", "7.0 (L4T 38.2.0)", "is 10.13: export with --target trt10.3"),
        (jetson("38.4.0", "7.1+b1"), "ok", "7.1 (L4T 38.4.0)", "is 10.13: export with --target trt10.3"),
        (jetson("39.2.0", "7.2+b1"), "ok", "7.2 (L4T 39.2.0)", "is 10.16: export with --target trt10.16"),
        (jetson("39.2.1", "7.2.1+b1"), "ok", "7.2.1 (L4T 39.2.1)", "is 10.16: export with --target trt10.16"),
        (jetson("", "7.2.2+b1"), "ok", "7.2.2 (L4T unknown)", "trt10.16, or trt11 after installing 11.4.1 for SBSA"),
        (jetson("36.3.0", "6.0+b106"), "absent", "6.0 (L4T 36.3.0)", "install JetPack 6.1 or later"),
        (jetson("35.4.1", "5.1.2"), "absent", "5.1.2 (L4T 35.4.1)", "install JetPack 6.1 or later"),
        (jetson("36.4.3"), "ok", "6.1 or later by its L4T 36.4.3; nvidia-jetpack is not", "--target trt10.3"),
        (jetson("36.4.3", "6.2", "deinstall ok config-files"), "ok", "6.1 or later by its L4T 36.4.3", "trt10.3"),
        (jetson("38.2.1"), "ok", "7.0 or later by its L4T 38.2.1", "--target trt10.3"),
        (jetson("39.2.0"), "ok", "7.2 or later by its L4T 39.2.0", "--target trt10.16"),
        (jetson("35.4.1"), "absent", "5 or later by its L4T 35.4.1", "install JetPack 6.1 or later"),
    ],
)
def test_jetpack(tmp_path: Path, files: dict[str, str], state: str, detail: str, advice: str) -> None:
    found = doctor_jetson.jetpack(write(tmp_path, files))
    assert found is not None
    assert doctor_jetson.is_jetson(tmp_path)
    assert found.state == state
    assert found.detail.startswith(detail)
    assert str(found.advice).endswith(advice)


@pytest.mark.parametrize("files", [{}, jetson(), {"etc/nv_tegra_release": "nonsense"}])
def test_no_jetson_no_lines(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert doctor_jetson.conditions(tmp_path) == []
    assert not doctor_jetson.is_jetson(tmp_path)


NANO = """
# < POWER_MODEL ID=id_num NAME=mode_name >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
AGX = "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"
OLD = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
TO_SUPER, TO_MAXN = "(MAXN_SUPER): sudo nvpmodel -m 2", "(MAXN): sudo nvpmodel -m 0"


@pytest.mark.parametrize(
    ("config", "status", "detail", "advice"),
    [
        (NANO, "pmode:0002 fmode:quiet", "MAXN_SUPER (2)", None),
        (NANO, "pmode:0000", "15W (0)", f"for full speed {TO_SUPER}"),
        (NANO, None, "25W (1)", f"for full speed {TO_SUPER}"),
        (AGX, "pmode:0000", "MAXN (0)", None),
        (AGX, "pmode:0002", "MODE_30W (2)", f"for full speed {TO_MAXN}"),
        (AGX, "pmode:0007", "without a name (7)", f"for full speed {TO_MAXN}"),
        (AGX, None, None, None),
        (OLD, "pmode:0001", "7W (1)", None),
        (None, "pmode:0003", "without a name (3)", None),
        (None, "nonsense", None, None),
    ],
)
def test_power_mode(
    tmp_path: Path, config: str | None, status: str | None, detail: str | None, advice: str | None
) -> None:
    files = {"etc/nvpmodel.conf": config, "var/lib/nvpmodel/status": status}
    found = doctor_jetson.power_mode(write(tmp_path, {name: text for name, text in files.items() if text is not None}))
    assert (found and found.detail, found and found.advice) == (detail, advice)


@pytest.mark.parametrize(
    ("governor", "gpu", "release", "detail", "advice"),
    [
        ("performance\n", None, "", "CPU governor performance", None),
        ("powersave\n", None, "", "CPU governor powersave", "cpupower frequency-set -g performance"),
        ("schedutil\n", (306, 306, 918), "36.4.3", "CPU governor schedutil, GPU at 306 MHz of 306 to 918", "clocks"),
        ("performance\n", (306, 510, 918), "36.4.3", "CPU governor performance, GPU at 510 MHz of 306", "clocks"),
        ("performance\n", (918, 918, 918), "36.4.3", "CPU governor performance, GPU at 918 MHz of 918 to 918", None),
        (None, (918, 918, 918), "36.4.3", "GPU at 918 MHz", None),
        (None, None, "36.4.3", None, None),
    ],
)
@pytest.mark.parametrize("device", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_clocks(
    tmp_path: Path,
    device: str,
    governor: str | None,
    gpu: tuple[int, int, int] | None,
    release: str,
    detail: str | None,
    advice: str | None,
) -> None:
    files = jetson(release)
    if governor is not None:
        files["sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] = governor
    for name, value in zip(("min", "cur", "max"), gpu or (), strict=False):
        files[f"sys/class/devfreq/{device}/{name}_freq"] = f"{value}000000\n"
    found = doctor_jetson.clocks(write(tmp_path, files))
    if detail is None:
        assert found is None
        return
    assert found is not None
    assert found.detail.startswith(detail)
    assert str(found.advice).endswith(advice or "None")


def test_files_that_cannot_be_read_have_no_line(tmp_path: Path) -> None:
    """Directories in their place, which not even root reads."""
    for name in ("etc/nv_tegra_release", "etc/nvpmodel.conf", "var/lib/dpkg/status", "var/lib/nvpmodel/status", PROC):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").mkdir(parents=True)
    (tmp_path / "sys/class/devfreq/17000000.gpu").mkdir(parents=True)
    assert doctor_jetson.conditions(tmp_path) == []
    assert doctor_gpu.driver(tmp_path, Cuda(Driven())).detail == "version unknown, for CUDA up to 13.5"


# --- bundles ---


@pytest.fixture(scope="module")
def served(source: Path, heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For ONNX Runtime, TensorRT-RTX and an old TensorRT."""
    path = tmp_path_factory.mktemp("served") / "bundle"
    targets = ("ort", "rtx", "trt10.3")
    export(source, path, heads={"medusa": heads}, targets=targets, dtypes=("fp32",), capacity=256, check=False)
    return path


@pytest.fixture
def own(served: Path, tmp_path: Path) -> Bundle:
    """A copy that may be spoilt, with engines for TensorRT-RTX on 8.6."""
    shutil.copytree(served, tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle")
    write_engines(opened, "rtx-fp32")
    return opened


def machine(capability: str | None = "8.6", *, version: str | None = None, **how: Any) -> doctor_gpu.Machine:
    """One with TensorRT-RTX."""
    api: Any = StandInTensorRT(StandInCuda())
    api.__version__ = version or api.__version__
    flavours = {"rtx": load_flavour("rtx", api)}
    backends = () if capability is None else ("cuda",) if capability == "9.0" else ("rtx", "cuda")
    return doctor_gpu.Machine(**({"capability": capability, "flavours": flavours, "backends": backends} | how))


def check(bundle: Bundle, machine: doctor_gpu.Machine, cpu_works: bool = True) -> dict[str, Condition]:
    found = doctor_bundle.conditions(bundle, machine, cpu_works=cpu_works)
    return {condition.name: condition for condition in found}


ENGINES, DECODER = "engines/rtx-stand-in", "engines/rtx-stand-in/decoder.engine"


def test_engines_that_fit(own: Bundle) -> None:
    found = check(own, machine())
    assert {name: line.state for name, line in found.items()} == dict.fromkeys(
        ("graphs", "--backend cpu", "--backend rtx", "--backend cuda", ENGINES), "ok"
    )
    assert found[ENGINES].detail == "fits this bundle, TensorRT-RTX 1.7.1.116 and this GPU"
    assert found["--backend rtx"].detail == "rtx-fp32 graphs"
    assert found["graphs"].detail == "for ort-fp32, rtx-fp32, trt10.3-fp32"
    assert "--backend cpu" not in check(own, machine(), cpu_works=False)


@pytest.mark.parametrize(
    ("here", "detail", "advice"),
    [
        (machine("12.0"), "was built for compute capability 8.6, this GPU has 12.0", "run: seqrt build"),
        (machine(version="1.8.0.1"), "was built by version 1.7.1.116, this is 1.8.0.1", "run: seqrt build"),
        (machine("9.0"), "TensorRT-RTX does not run on compute capability 9.0", "use another --backend"),
        (machine(None), "fits this bundle and TensorRT-RTX 1.7.1.116, but there is no GPU", "compute capability 8.6"),
        (machine(flavours={}, backends=()), "needs TensorRT-RTX 1.7.1.116, which cannot be loaded here", "see"),
    ],
)
def test_engines_on_another_machine(own: Bundle, here: doctor_gpu.Machine, detail: str, advice: str) -> None:
    found = check(own, here)
    assert found[ENGINES].state == "absent"
    assert found[ENGINES].detail == detail
    assert advice in str(found[ENGINES].advice)
    assert found["--backend cpu"].is_ok
    if "rtx" in here.backends:
        assert found["--backend rtx"].state == "absent"
        assert "no engines that fit; run: seqrt build" in found["--backend rtx"].line()
    else:
        assert "--backend rtx" not in found


def truncate(bundle: Bundle) -> None:
    file = bundle.path / DECODER
    file.write_bytes(file.read_bytes()[:-10])


def scramble(bundle: Bundle) -> None:
    file = bundle.path / DECODER
    file.write_bytes(b"x" * file.stat().st_size)


def remove(bundle: Bundle) -> None:
    (bundle.path / DECODER).unlink()


def rebuild_of_another_graph(bundle: Bundle) -> None:
    edit(bundle, lambda record: record["graphs"][0].update(source="0" * 64))


def of_a_graph_that_is_gone(bundle: Bundle) -> None:
    edit(bundle, lambda record: record["graphs"][0].update(role="hydra.7"))


def of_a_variant_that_is_gone(bundle: Bundle) -> None:
    edit(bundle, lambda record: record["settings"].update(variant="rtx-bf16"))


def without_record(bundle: Bundle) -> None:
    (bundle.path / ENGINES / "engine.json").unlink()


def edit(bundle: Bundle, change: Callable[[Any], None]) -> None:
    file = bundle.path / ENGINES / "engine.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncate, "bytes in decoder.engine, expected"),
        (remove, "has nothing in decoder.engine"),
        (scramble, "refuses decoder.engine: MALFORMED_ENGINE; run: seqrt build"),
        (rebuild_of_another_graph, "was built from another decoder graph; run: seqrt build"),
        (of_a_graph_that_is_gone, "has no 'hydra.7' graph"),
        (of_a_variant_that_is_gone, "was built from rtx-bf16 graphs, which this bundle does not hold"),
        (without_record, "engine.json cannot be read: No such file"),
    ],
)
@pytest.mark.parametrize("capability", ["8.6", None])
def test_engines_that_are_spoilt(
    own: Bundle, spoil: Callable[[Bundle], None], says: str, capability: str | None
) -> None:
    spoil(own)
    found = check(own, machine(capability))[ENGINES]
    assert found.state == "absent"
    assert says in found.line()


def test_several_directories_of_engines(own: Bundle) -> None:
    """One that fits is enough; hidden ones are being built."""
    folder = own.path / ENGINES
    shutil.copytree(folder, folder.with_name("another"))
    shutil.copytree(folder, folder.with_name(".rtx.half-built"))
    truncate(own)
    found = check(own, machine())
    assert (found[ENGINES].state, found["engines/another"].state) == ("absent", "ok")
    assert found["--backend rtx"].is_ok
    assert len(found) == 6


def test_graphs_that_are_missing(bundle: Path) -> None:
    """It was exported for ONNX Runtime only."""
    kinds = {**machine().flavours, "trt": loader(trt="10.16.2")("trt")}
    found = check(open_bundle(bundle), machine(flavours=kinds, backends=("rtx", "trt", "cuda")))
    assert {name for name, line in found.items() if line.is_ok} == {"graphs", "--backend cpu", "--backend cuda"}
    assert found["--backend rtx"].advice == "export with --target rtx"
    assert found["--backend trt"].advice == "export with --target trt10.16"


def test_graphs_for_tensorrt_only(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "b", targets=("rtx",), dtypes=("fp32",), capacity=256, check=False)
    found = check(open_bundle(tmp_path / "b"), machine(None))
    assert list(found) == ["graphs", "--backend cpu"]
    assert found["--backend cpu"].state == "absent"
    assert "export with --target ort" in str(found["--backend cpu"].advice)


def test_an_unnamed_refusal_counts_on_a_gpu_only(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, TensorRT cannot compare an engine with it, and names nothing."""

    def ask(runtime: Runtime, data: bytes) -> tuple[EngineValidity, int]:
        runtime.logger.log(ILogger.ERROR, "Error reading CUDA GPU properties")
        return EngineValidity.INVALID, 0

    monkeypatch.setattr(Runtime, "get_engine_validity", ask)
    assert "refuses decoder.engine: Error reading CUDA GPU properties" in check(own, machine())[ENGINES].detail
    assert "but there is no GPU" in check(own, machine(None))[ENGINES].detail


def test_advice_is_that_of_the_diagnosis(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_bundle, "validity", lambda *_: "OLD_CUDA_DRIVER")
    assert check(own, machine())[ENGINES].advice == "update the NVIDIA driver"
    monkeypatch.setattr(doctor_bundle, "validity", lambda *_: "VERSION_MISMATCH")
    assert check(own, machine())[ENGINES].advice == f"run: seqrt build {own.path} --backend rtx"


@pytest.mark.parametrize("api", [SimpleNamespace(), SimpleNamespace(Runtime=lambda logger: object())])
def test_a_tensorrt_that_cannot_say(own: Bundle, api: Any) -> None:
    """One makes no runtime without a GPU, one is too old to ask."""
    flavour = Flavour("rtx", api, None)
    record = read_record(own.path / ENGINES)
    assert doctor_bundle.header_refused(flavour, own.path / ENGINES, record, True) is None


def test_the_true_tensorrt_rtx_needs_the_header_only(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'seqrt[rtx]'")
    flavour = load_flavour("rtx")
    whole, folder = tiny_engine(flavour), own.path / ENGINES
    runtime = flavour.api.Runtime(flavour.logger)
    size = runtime.engine_header_size
    assert 0 < size < len(whole) / 10
    assert validity(flavour, runtime, whole[:size]) == validity(flavour, runtime, whole)
    assert validity(flavour, runtime, whole[:size]) != "MALFORMED_ENGINE"
    assert validity(flavour, runtime, whole[: size - 1]) == "MALFORMED_ENGINE"

    record = read_record(folder)
    asked: list[int] = []

    def ask(flavour: Flavour, runtime: Any, data: bytes) -> str | None:
        asked.append(len(data))
        return validity(flavour, runtime, data)

    monkeypatch.setattr(doctor_bundle, "validity", ask)
    for graph in record.graphs:
        (folder / graph.file).write_bytes(whole)
    refused = doctor_bundle.header_refused(flavour, folder, record, False)
    assert refused is None or refused[1] == "UNSUPPORTED_CC"  # the GPU of this machine, if it has one
    first = record.graphs[0].file
    (folder / first).write_bytes(b"x" + whole[1:])
    assert doctor_bundle.header_refused(flavour, folder, record, False) == (first, "MALFORMED_ENGINE")
    assert set(asked) == {size}


def tiny_engine(flavour: Flavour) -> bytes:
    """One addition, for every GPU that TensorRT-RTX takes by itself."""
    api = flavour.api
    builder = api.Builder(flavour.logger)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    value = network.add_input("x", api.float32, (4,))
    network.mark_output(network.add_elementwise(value, value, api.ElementWiseOperation.SUM).get_output(0))
    return bytes(builder.build_serialized_network(network, builder.create_builder_config()))


def test_the_command_on_a_bundle(seqrt: Seqrt, own: Bundle) -> None:
    result = seqrt("doctor", own.path, "--json")
    assert result.code == 0
    assert result.err == ""
    found = {condition["name"]: condition for condition in json.loads(result.out)["conditions"]}
    assert found["--backend cpu"] == {
        "name": "--backend cpu",
        "state": "ok",
        "detail": "ort-fp32 graphs",
        "advice": None,
    }
    assert found[ENGINES]["state"] == "absent"  # a stand-in's, which no TensorRT takes
    assert f"absent  {ENGINES}: " in seqrt("doctor", own.path).out


def test_the_command_on_a_jetson(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = jetson("36.4.3", "6.2+b77") | {"etc/nvpmodel.conf": NANO}
    monkeypatch.setattr(doctor_module, "_ROOT", write(tmp_path, files))
    monkeypatch.setattr(doctor_gpu, "load_flavour", loader())
    lines = seqrt("doctor").out.splitlines()
    assert any(line.startswith("ok      JetPack: 6.2 (L4T 36.4.3); its TensorRT is 10.3") for line in lines)
    assert any(line.startswith("ok      power mode: 25W (1); for full speed") for line in lines)
    assert any("TensorRT: not installed; JetPack has it for its own Python" in line for line in lines)


def test_no_bundle_no_conditions(seqrt: Seqrt, tmp_path: Path) -> None:
    result = seqrt("doctor", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert "is not a bundle" in result.error
