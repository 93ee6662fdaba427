"""What `seqrt doctor` reads from files: JetPack, power mode and clocks. What cannot be read has no line."""

import re
from pathlib import Path
from typing import Final

from seqrt.cli.condition import Condition

_PACKAGE: Final = "nvidia-jetpack"
_JETPACK_OF: Final = (  # of a release of L4T, the first JetPack that came with it
    ((39,), "7.2"),
    ((38, 4), "7.1"),
    ((38,), "7.0"),
    ((36, 4), "6.1"),
    ((36,), "6.0"),
)
_ADVICE: Final = (  # from which JetPack on, what to do
    ((7, 2, 2), "its TensorRT is 10.16: export with --target trt10.16, or trt11 after installing 11.4.1 for SBSA"),
    ((7, 2), "its TensorRT is 10.16: export with --target trt10.16"),
    ((7,), "its TensorRT is 10.13: export with --target trt10.3"),
    ((6, 1), "its TensorRT is 10.3: export with --target trt10.3"),
)
_TOO_OLD: Final = "its TensorRT is older than 10.3: install JetPack 6.1 or later"
_MODE: Final = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_DEFAULT_MODE: Final = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>")
_FASTEST: Final = ("MAXN_SUPER", "MAXN")


def conditions(root: Path) -> list[Condition]:
    """Of the machine whose files are below `root`."""
    found = (jetpack(root), power_mode(root), clocks(root))
    return [condition for condition in found if condition is not None]


def is_jetson(root: Path) -> bool:
    """Whether JetPack, or the Linux that it is made of, is installed."""
    return _l4t(root) is not None or _installed(root) is not None


def jetpack(root: Path) -> Condition | None:
    """Which JetPack, and what to export for it."""
    release, version = _l4t(root), _installed(root)
    linux = f"L4T {release}" if release else "L4T unknown"
    if version is not None:
        detail = f"{version} ({linux})"
    elif release is not None:
        version = next((name for first, name in _JETPACK_OF if _numbers(release) >= first), "5")
        detail = f"{version} or later by its {linux}; {_PACKAGE} is not installed"
    else:
        return None
    advice = next((text for first, text in _ADVICE if _numbers(version) >= first), None)
    return Condition("JetPack", "absent" if advice is None else "ok", detail, advice or _TOO_OLD)


def power_mode(root: Path) -> Condition | None:
    """The mode that nvpmodel set, by name."""
    config = _read(root / "etc/nvpmodel.conf") or ""
    chosen = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status") or "") or _DEFAULT_MODE.search(config)
    if chosen is None:
        return None
    mode = int(chosen[1])
    names = {int(number): name for number, name in _MODE.findall(config)}
    numbers = {name: number for number, name in names.items()}
    fastest = next((name for name in _FASTEST if name in numbers), None)
    advice = None
    if fastest is not None and numbers[fastest] != mode:
        advice = f"for full speed ({fastest}): sudo nvpmodel -m {numbers[fastest]}"
    return Condition("power mode", "ok", f"{names.get(mode, 'without a name')} ({mode})", advice)


def power_mode_here() -> str | None:
    """This machine's, in short; None where there are none."""
    mode = power_mode(Path("/"))
    return None if mode is None else mode.detail


def clocks(root: Path) -> Condition | None:
    """Whether the clocks of CPU and, on Jetson, GPU change with the load."""
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    frequencies = _gpu_clocks(root)
    found, varies = [], False
    if governor:
        found.append(f"CPU governor {governor}")
        varies = governor != "performance"
    if frequencies is not None:
        least, now, most = frequencies
        found.append(f"GPU at {now} MHz of {least} to {most}")
        varies = varies or least < most
    if not found:
        return None
    command = "sudo jetson_clocks" if is_jetson(root) else "sudo cpupower frequency-set -g performance"
    return Condition("clocks", "ok", ", ".join(found), f"for stable timings: {command}" if varies else None)


def _l4t(root: Path) -> str | None:
    """Such as "36.4.3"."""
    text = _read(root / "etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def _installed(root: Path) -> str | None:
    """Version of the package nvidia-jetpack, as dpkg says."""
    for entry in (_read(root / "var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if re.match(r"[\w-]+: ", line))
        if fields.get("Package") == _PACKAGE and fields.get("Status") == "install ok installed":
            return fields.get("Version", "").partition("+")[0] or None
    return None


def _gpu_clocks(root: Path) -> tuple[int, int, int] | None:
    """Least, present and most MHz."""
    folder = root / "sys/class/devfreq"
    for device in sorted([*folder.glob("*gpu*"), *folder.glob("*ga10b*")]):
        values = [_read(device / f"{name}_freq") or "" for name in ("min", "cur", "max")]
        if all(value.isdigit() for value in values):
            least, now, most = (int(value) // 1_000_000 for value in values)
            return least, now, most
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
