"""What holds for every command: help, exit codes, one line for each failure."""

import errno
import importlib
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.cli import main
from seqrt.errors import BundleError, RequestError

Seqrt = Callable[..., Any]
COMMANDS = ["export", "build", "run", "chat", "profile", "verify", "inspect", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_common_options(seqrt: Seqrt, command: str) -> None:
    result = seqrt(command, "--help")
    assert result.code == 0
    assert f"Example: seqrt {command} " in result.out
    assert "--debug" in result.out
    assert "--json" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_one_command_a_module(command: str) -> None:
    module = importlib.import_module(f"seqrt.cli.{command}")
    assert inspect.unwrap(getattr(module, command)).__module__ == f"seqrt.cli.{command}"


def test_no_arguments_is_help(seqrt: Seqrt) -> None:
    result = seqrt()
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    codes = "Exit codes: 0 success, 1 failure, 2 an unknown option or a value out of range, 3 slower (compare), 130"
    assert codes in " ".join(result.out.split())


def test_version(seqrt: Seqrt) -> None:
    assert seqrt("--version").out == f"seqrt {importlib.metadata.version('seqrt')}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "No such command 'fly'; see: seqrt --help"),
        (["inspect"], "Missing argument"),
        (["inspect", "a", "b"], "Got unexpected extra argument"),
        (["inspect", "a", "--colour"], "No such option: --colour; see: seqrt inspect --help"),
        (["run", "a", "--seed"], "requires an argument"),
        (["run", "a", "--seed", "x"], "Invalid value for '--seed'"),
        (["export", "a", "b", "--quantize", "int2"], "int2"),
    ],
)
def test_usage_errors(seqrt: Seqrt, arguments: list[str], text: str) -> None:
    result = seqrt(*arguments)
    assert result.code == 2
    assert text in result.error
    assert result.out == ""


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("seqrt.cli.inspect"), "open_bundle", fail)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BundleError("it is\nbroken; mend it"), 1, "it is broken; mend it"),
        (RequestError("the prompt is odd"), 1, "the prompt is odd"),
        (RequestError("--seed is odd"), 2, "--seed is odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("oh"),
            1,
            "unexpected ZeroDivisionError: oh; add --debug for the traceback, and report it",
        ),
        (KeyError(), 1, "unexpected KeyError: no message; add --debug for the traceback, and report it"),
        (MemoryError(), 1, "out of memory; close other programs, use a smaller model or a quantised bundle"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied; choose a path"),
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "/x: Input/output error; check that this path and"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "the output was closed before everything was written"),
    ],
)
def test_failures_are_one_line(
    seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    failing(monkeypatch, error)
    result = seqrt("inspect", "x")
    assert result.code == code
    assert result.error.startswith(text)


@pytest.mark.parametrize("arguments", [["inspect", "x", "--debug"], ["--debug", "inspect", "x"]])
def test_debug_shows_the_traceback(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    failing(monkeypatch, ZeroDivisionError("oh"))
    result = seqrt(*arguments)
    assert result.code == 1
    assert "Traceback (most recent call last)" in result.err
    assert "in fail\n    raise error\n" in result.err
    assert result.err.splitlines()[-1].startswith("seqrt: error: unexpected ZeroDivisionError: oh")


def test_full_disk_and_closed_pipe(spawn: Callable[..., Any], bundle: Path) -> None:
    with open("/dev/full", "w") as full:
        process = spawn("inspect", bundle, "--json", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "seqrt: error: No space left on device; free some space or choose another disk\n"
    process = spawn("inspect", bundle, "--json")
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == "seqrt: error: the output was closed before everything was written\n"
    assert process.wait(timeout=60) == 1


def test_the_command_line_imports_no_exporter() -> None:
    heavy = ["torch", "onnx", "onnx_ir", "transformers", "onnxruntime", "rich.progress", "jinja2", "tokenizers"]
    code = f"import sys, seqrt.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_main_returns_rather_than_exits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    assert "Usage: seqrt run" in capsys.readouterr().out


def test_streams_that_are_not_utf8(spawn: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    named = tmp_path / "b\u00fcndel"
    named.symlink_to(bundle, target_is_directory=True)

    def ascii_only(*arguments: object) -> tuple[int, str, str]:
        process = spawn(*arguments, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    code, out, err = ascii_only("inspect", named, "--json")
    assert code == 0, err
    assert json.loads(out)["path"] == str(named)
    code, _, err = ascii_only("inspect", tmp_path / "m\u00fcll")
    assert code == 1
    assert "m\\xfcll" in err
    code, out, err = ascii_only("run", bundle, "--prompt", "the fox", "--ignore-eos", "--max-new-tokens", 40)
    assert code == 0, err
    assert "\\" in out  # the model is random: some of its bytes are no letters
