"""What a measurement was made on: machine, versions and state, as far as they bear on speed."""

import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("seqrt", "onnxruntime", "numpy", "tokenizers")
_GPU_QUERY: Final = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.limit", "driver_version")


def environment(threads: int) -> dict[str, object]:
    """Versions and machine; `threads` of a model call, 0 for one a core."""
    return {name: version(name) for name in _PACKAGES} | {
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads or None,
        "driver": gpu_state().get("driver_version"),
    }


def version(package: str) -> str | None:
    """Of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of seqrt, where it was installed from a repository or runs from a checkout; None otherwise."""
    try:
        origin = json.loads(metadata.distribution("seqrt").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    if isinstance(made := origin.get("vcs_info", {}).get("commit_id"), str):
        return made
    git = Path(__file__).resolve().parents[1] / ".git"
    head = _text(git / "HEAD") or ""
    name = head.partition("ref: ")[2]
    if not name:
        return head or None
    packed = re.search(rf"^(\w+) {re.escape(name)}$", _text(git / "packed-refs") or "", re.MULTILINE)
    return _text(git / name) or (packed[1] if packed else None)


def cpu_model() -> str:
    """As Linux names it; on ARM that is the board, such as "NVIDIA Jetson AGX Orin"."""
    named = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    board = (_text(Path("/proc/device-tree/model")) or "").rstrip("\0")
    return (named[1] if named else board) or platform.processor() or platform.machine()


def peak_memory_mb(less: int = 0) -> float | None:
    """Most memory of the host that this process has had so far, `less` so many bytes; None where nobody counts it."""
    held = re.search(r"^VmHWM:\s*(\d+) kB$", _text(Path("/proc/self/status")) or "", re.MULTILINE)
    if held is not None:
        return round((int(held[1]) * 1024 - less) / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - less) / 1e6, 1)  # macOS counts bytes


@dataclass(frozen=True, slots=True)
class State:
    """Clocks and temperatures at a moment; None for what cannot be read here.

    Attributes:
        stolen_seconds: of all cores since the start of a virtual machine: they were ready, and another one ran.
    """

    cpu_mhz: float | None = None
    cpu_governor: str | None = None
    cpu_celsius: float | None = None
    stolen_seconds: float | None = None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_celsius: float | None = None
    gpu_power_limit_watts: float | None = None

    def to_dict(self) -> dict[str, float | str | None]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def changes(self, after: "State", share: float, degrees: float) -> list[str]:
        """What is no longer as it was, in words: clocks by more than a share, temperatures by more than degrees."""
        found = []
        for name, unit, most in (
            ("cpu_mhz", "MHz", None),
            ("gpu_mhz", "MHz", None),
            ("cpu_celsius", "°C", degrees),
            ("gpu_celsius", "°C", degrees),
        ):
            old, new = getattr(self, name), getattr(after, name)
            if old is not None and new is not None and abs(new - old) > (share * old if most is None else most):
                what = f"the {name.partition('_')[0].upper()}'s {'clock' if unit == 'MHz' else 'temperature'}"
                found.append(f"{what} went from {old:.0f} to {new:.0f} {unit} during the run")
        return found


def state(*, gpu: bool = True) -> State:
    """As it is now; of the GPU only if asked."""
    root = Path("/sys/devices/system/cpu")
    clocks = _thousandths(root.glob("cpu*/cpufreq/scaling_cur_freq"))
    if not clocks:
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
        clocks = [float(value) for value in found]
    heat = _thousandths(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    seen = gpu_state() if gpu else {}
    return State(
        cpu_mhz=round(sum(clocks) / len(clocks), 1) if clocks else None,
        cpu_governor=_text(root / "cpu0/cpufreq/scaling_governor"),
        cpu_celsius=max(heat, default=None),
        stolen_seconds=_stolen(),
        gpu_mhz=_number(seen.get("clocks.sm")),
        gpu_memory_mhz=_number(seen.get("clocks.mem")),
        gpu_celsius=_number(seen.get("temperature.gpu")),
        gpu_power_limit_watts=_number(seen.get("power.limit")),
    )


def gpu_state() -> Mapping[str, str]:
    """What nvidia-smi says of the GPU that is used, the first that programs may see; nothing where there is none."""
    import shutil
    import subprocess  # 5 ms, which every start would pay

    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    command = [program, f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    return dict(zip(_GPU_QUERY, values, strict=False))


def _thousandths(files: Iterable[Path]) -> list[float]:
    """Of numbers in files, those that can be read."""
    values = (_number(_text(file)) for file in files)
    return [value / 1e3 for value in values if value is not None]


def _stolen() -> float | None:
    found = re.match(r"cpu\s+(?:\d+\s+){7}(\d+)", _text(Path("/proc/stat")) or "")
    return int(found[1]) / os.sysconf("SC_CLK_TCK") if found else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # "[N/A]"
        return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
