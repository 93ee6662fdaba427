"""The names that `import seqrt` offers."""

import subprocess
import sys
import types

import pytest

import seqrt


def test_all_is_what_is_visible() -> None:
    for name in seqrt.__all__:
        getattr(seqrt, name)
    visible = {
        name
        for name, value in vars(seqrt).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible | {"__version__"} == set(seqrt.__all__)
    assert seqrt.__all__ == sorted(seqrt.__all__, key=lambda name: (name.islower(), name))
    assert set(seqrt.__all__) <= set(dir(seqrt))


def test_names_are_those_of_their_modules() -> None:
    from seqrt.runtime.loaded import load
    from seqrt.runtime.model import Model

    assert seqrt.Model is Model
    assert seqrt.load is load


def test_import_loads_nothing() -> None:
    code = (
        "import sys, seqrt; print([name for name in ('numpy', 'torch', 'importlib.metadata') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'seqrt' has no attribute 'Modle'"):
        _ = seqrt.Modle
