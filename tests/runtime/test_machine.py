"""What a measurement was made on."""

import json
import subprocess
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqrt.runtime import machine
from seqrt.runtime.machine import State, commit, environment, gpu_state, peak_memory_mb, state
from seqrt.runtime.profiling.pulse import HostCopy, Pulse

ROOT = Path(__file__).resolve().parents[2]


def test_environment() -> None:
    found = environment(3)
    assert found["threads"] == 3
    assert environment(0)["threads"] is None
    assert found["numpy"] == np.__version__
    json.dumps(found)


def test_commit_of_a_checkout() -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode or not (ROOT / ".git").is_dir():
        pytest.skip("no checkout that git can read")
    assert commit() == done.stdout.strip()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": "abc1\n"}, "abc1"),
        (
            {"HEAD": "ref: refs/heads/main\n", "packed-refs": "# pack\nabc2 refs/heads/main\nabc3 refs/tags/1\n"},
            "abc2",
        ),
        ({"HEAD": "abc4\n"}, "abc4"),
        ({}, None),
    ],
)
def test_commit_by_the_files_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: str | None
) -> None:
    for name, text in files.items():
        file = tmp_path / ".git" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "runtime/machine.py"))
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: None))
    assert commit() == expected


def test_commit_of_an_installation_from_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = json.dumps({"url": "https://example.org/seqrt.git", "vcs_info": {"vcs": "git", "commit_id": "abc5"}})
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: origin))
    assert commit() == "abc5"


def test_memory_is_that_of_this_process() -> None:
    before = peak_memory_mb()
    assert before is not None
    block = np.ones(int(1e6 * before) + 50_000_000, np.uint8)
    after = peak_memory_mb()
    assert after is not None
    assert after > before + 40
    assert block.all()
    assert peak_memory_mb(less=20_000_000) == pytest.approx(after - 20, abs=5)


def test_state_can_be_read() -> None:
    found = state()
    assert found.cpu_mhz is None or 100 < found.cpu_mhz < 10_000
    assert found.cpu_celsius is None or -50 < found.cpu_celsius < 150
    assert found.to_dict().keys() == set(State.__slots__)


def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980, 2619, 41, [N/A], 580.95'\necho '1, 1, 1, 1, 1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu_state()["driver_version"] == "580.95"
    found = state()
    assert (found.gpu_mhz, found.gpu_memory_mhz, found.gpu_celsius) == (1980, 2619, 41)
    assert found.gpu_power_limit_watts is None
    assert environment(0)["driver"] == "580.95"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_state() == {}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"cpu_mhz": 3000.0}, {"cpu_mhz": 2900.0}, []),
        ({"cpu_mhz": 3000.0}, {"cpu_mhz": 2000.0}, ["the CPU's clock went from 3000 to 2000 MHz during the run"]),
        ({"gpu_celsius": 40.0}, {"gpu_celsius": 71.0}, ["the GPU's temperature went from 40 to 71 °C during the run"]),
        ({"gpu_celsius": 40.0}, {}, []),
        ({"cpu_celsius": 0.0}, {"cpu_celsius": 5.0}, []),
    ],
)
def test_changes_in_words(before: dict[str, float], after: dict[str, float], expected: list[str]) -> None:
    made: Any = State
    assert made(**before).changes(made(**after), 0.05, 10.0) == expected


def pulse(values: list[float]) -> Pulse:
    rest = iter(values)
    made = Pulse(lambda: next(rest), before=State(stolen_seconds=0.0), started=perf_counter())
    for _ in values:
        made.beat()
    return made


def test_a_machine_that_held_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrt.runtime.profiling.pulse.state", lambda gpu: State(stolen_seconds=0.0))
    made = pulse([10.0, 10.1, 9.9])
    made.hash = [1000.0, 1001.0, 999.0]
    assert made.copy_gb_per_second == 10.0
    report = made.report()
    assert report["copy_gb_per_second"] == {"median": 10.0, "variation": 0.01}
    assert report["sha256_mb_per_second"] == {"median": 1000.0, "variation": 0.001}
    assert (report["beats"], report["stolen"], report["warnings"]) == (3, 0.0, [])


def test_a_machine_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrt.runtime.profiling.pulse.state", lambda gpu: State(stolen_seconds=1e6))
    made = pulse([10.0, 5.0, 20.0])
    made.hash = [1000.0, 500.0, 900.0]
    first, second, third = made.report()["warnings"]
    assert first == "memory bandwidth varied by 65% (coefficient of variation) during the run"
    assert second == "a core's speed varied by 33% (coefficient of variation) during the run"
    assert third.endswith("of the cores' time went to other virtual machines")


def test_a_pulse_that_never_beat() -> None:
    made = Pulse(lambda: 1.0)
    assert made.copy_gb_per_second is None
    assert made.report()["copy_gb_per_second"] == {"median": None, "variation": None}


@pytest.mark.parametrize("threads", [1, 3])
def test_copies_on_the_host(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are read and written by all threads, and counted so."""
    monkeypatch.setattr("seqrt.runtime.profiling.pulse._seconds", lambda call: (call(), 0.5)[1])
    copy = HostCopy(threads)
    assert copy.num_bytes == pytest.approx(2 << 27, rel=1e-6)
    assert copy() == pytest.approx(copy.num_bytes / 0.5 / 1e9)
    assert all((target == 1).all() for target, _ in copy._buffers)
