"""The package as users get it: every module in it, regular files only, working away from the checkout."""

import importlib.util
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("exporter", "graphs", "runtime")  # root folders that src/seqrt links to


def sources() -> list[str]:
    """What a wheel must hold of the package, as paths in it: modules and data alike."""
    folders = {f"seqrt/{part}": ROOT / part for part in PARTS} | {"seqrt/cli": ROOT / "src/seqrt/cli"}
    found = {"seqrt/__init__.py", "seqrt/errors.py", "seqrt/py.typed"}
    for name, folder in folders.items():
        paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        found |= {f"{name}/{path.relative_to(folder).as_posix()}" for path in paths}
    return sorted(found)


PATHS = [name for name in sources() if name.endswith(".py")]
MODULES = [path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in PATHS]


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source archive of this checkout and the wheel that is built from it."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    for name in ("src", *PARTS):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore)
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: the build needs no network, and the pinned setuptools does it.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(archives: Path) -> Path:
    (path,) = archives.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it, and what seqrt requires borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder)]
    command = [*pip, "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    # A path named in a .pth file comes last, and the .pth files in it (the editable seqrt) do not count.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_part_is_linked(part: str) -> None:
    link = ROOT / "src/seqrt" / part
    assert link.is_symlink(), f"{link} must be a link; with core.symlinks=false git writes a file instead"
    assert link.resolve() == ROOT / part


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_found(module: str) -> None:
    assert importlib.util.find_spec(module)


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        infos = file.infolist()
    names = sorted(info.filename for info in infos if ".dist-info/" not in info.filename)
    assert names == sources()
    assert not [info.filename for info in infos if stat.S_ISLNK(info.external_attr >> 16)]
    assert any(info.filename.endswith("licenses/LICENSE") for info in infos)


@pytest.mark.slow
def test_source_archive_holds_regular_files_only(archives: Path) -> None:
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as file:
        members = file.getmembers()
    assert not [member.name for member in members if not (member.isfile() or member.isdir())]
    names = {member.name.split("/", 2)[-1] for member in members if "/src/seqrt/" in member.name}
    assert names >= set(sources())


@pytest.mark.slow
def test_runtime_requires_neither_torch_nor_onnx(metadata: Message) -> None:
    lines = metadata.get_all("Requires-Dist", [])
    plain = [line for line in lines if "extra ==" not in line]
    cpu = [line for line in lines if 'extra == "cpu"' in line]
    names = {re.split(r"[^\w-]", line)[0] for line in plain + cpu}
    assert names == {"jinja2", "numpy", "onnxruntime", "rich", "tokenizers", "typer"}


@pytest.mark.slow
def test_metadata(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "cpu",
        "gpu",
        "tensorrt",
        "rtx",
        "export",
        "ocr",
        "plot",
        "train",
        "dev",
    }


@pytest.mark.slow
def test_installed_wheel_runs_away_from_the_checkout(environment: Path, tmp_path: Path) -> None:
    code = """
import importlib.resources, pathlib, sys
import seqrt, seqrt.exporter.export, seqrt.graphs.decoder, seqrt.runtime.model
for module in (seqrt, seqrt.exporter.export, seqrt.graphs.decoder, seqrt.runtime.model):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
assert importlib.resources.files("seqrt").joinpath("py.typed").is_file()
assert importlib.resources.files("seqrt.exporter").joinpath("quality.txt").is_file()
"""
    command = [str(environment / "bin/python"), "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_installed_command_runs_away_from_the_checkout(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "bin/seqrt"), "inspect", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a bundle" in done.stderr
    assert "Traceback" not in done.stderr
