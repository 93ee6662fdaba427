"""`seqrt build` as a user sees it, with the real TensorRT-RTX, and what --backend says where an engine cannot run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.exporter.export import export
from seqrt.runtime.build import build
from seqrt.runtime.bundle import open_bundle

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")

Seqrt = Callable[..., Any]


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for CPUs and RTX cards, with engines."""
    bundle = tmp_path_factory.mktemp("made") / "bundle"
    export(source, bundle, targets=("ort", "rtx"), capacity=64)
    build(open_bundle(bundle), "rtx", buckets=(1, 4), prefill=16)
    return bundle


def test_an_export_says_for_what_it_is(seqrt: Seqrt, source: Path, tmp_path: Path) -> None:
    wanted = ("--target", "ort", "--target", "rtx:bf16", "--capacity", 64)
    result = seqrt("export", source, tmp_path / "bundle", *wanted)
    assert result.code == 0, result.err
    assert ", ort-fp32, rtx-bf16, quantization none," in result.out


def test_a_second_build_finds_all_done(seqrt: Seqrt, made: Path) -> None:
    again = ("build", made, "--backend", "rtx", "--buckets", "4", "--prefill", 16)
    result = seqrt(*again)
    assert (result.code, result.err) == (0, "")
    assert ": up to date, " in result.out
    document = json.loads(seqrt(*again, "--json").out)
    assert document["built"] is False
    assert Path(document["engines"]).is_dir()
    assert [graph["role"] for graph in document["graphs"]] == ["decoder", "logits", "score", "compaction"]


def test_what_was_built_is_printed(seqrt: Seqrt, made: Path) -> None:
    result = seqrt("build", made, "--backend", "rtx", "--buckets", "1", "--prefill", 8, "--cc", "8.6, 12.0")
    assert result.code == 0, result.err
    first, *rest = result.out.splitlines()
    assert "-sm86+sm120-fp16: 4 engines, " in first
    assert [line.split()[0] for line in rest] == ["decoder", "logits", "score", "compaction"]


def test_the_cpu_still_answers(seqrt: Seqrt, made: Path) -> None:
    assert seqrt("run", made, "--prompt", "hello", "--max-new-tokens", 4).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--backend", "rtx", "--buckets", "1,x"), 2, "--buckets '1,x' are no numbers; give such as 1,8,16,32,64"),
        (("--backend", "rtx", "--buckets", "500"), 2, "--buckets 500 are out of range; give numbers from 1 to 127"),
        (("--backend", "rtx", "--prefill", 9), 2, "--prefill 9 is out of range; give 64 (the largest bucket) to 512"),
        (("--backend", "rtx", "--workspace", 0), 2, "--workspace is 0 MB; give 1 or more"),
        (("--backend", "rtx", "--cc", "ampere"), 2, "--cc 'ampere' is no compute capability; give such as 8.6 or 12.0"),
        (("--backend", "rtx", "--dtype", "bf16"), 2, "; use fp16"),
        (("--backend", "cpu"), 2, "'cpu' is not one of 'rtx', 'trt'"),
        ((), 2, "Missing option '--backend'"),
    ],
)
def test_mistakes_are_one_line(
    seqrt: Seqrt, made: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    result = seqrt("build", made, *arguments)
    assert result.code == code, result.err
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_a_bundle_for_cpus_only(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt("build", bundle, "--backend", "rtx")
    assert result.code == 1
    assert "reads, only ort-fp32; export with --target rtx" in result.err


def test_engines_that_cannot_run_here_say_why(seqrt: Seqrt, made: Path, tmp_path: Path) -> None:
    result = seqrt("run", made, "--backend", "rtx", "--prompt", "hello")
    if result.code == 0:
        pytest.skip("this machine has a GPU")
    assert "there is no NVIDIA driver" in result.err or "no NVIDIA GPU" in result.err
    assert len(result.err.splitlines()) == 1
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    shutil.rmtree(copy / "engines")
    assert seqrt("run", copy, "--backend", "rtx", "--prompt", "hello", "--threads", 2).code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "tpu"), "--target tpu is unknown; choose from ort, rtx, trt11, trt10.16, trt10.3"),
        (("--dtype", "fp8"), "--dtype fp8 is unknown; choose from fp32, fp16, bf16"),
        (("--dtype", "bf16"), "--dtype bf16 is not for --target ort; use fp32 or fp16"),
        (("--target", "rtx:fp8"), "--target rtx:fp8: 'fp8' is unknown; choose from fp32, fp16, bf16"),
        (("--target", "rtx:"), "--target rtx:: '' is unknown; choose from fp32, fp16, bf16"),
        (
            ("--target", "trt10.3", "--quantize", "int8"),
            "--target trt10.3: --quantize int8 needs the operator DequantizeLinear, which TensorRT 10.3 lacks; use",
        ),
    ],
)
def test_targets_that_cannot_be(
    seqrt: Seqrt, source: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    result = seqrt("export", source, tmp_path / "bundle", *arguments)
    assert result.code == 2, result.err
    assert result.err.startswith(f"seqrt: error: {message}")
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
