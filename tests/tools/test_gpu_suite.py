"""The checks for a GPU run from end to end on the stand-ins, and notice a backend that computes something else."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tools.gpu import synthetic
from tools.gpu.__main__ import examine, main, open_stand_in
from tools.gpu.standin_cuda import StandInCuda
from tools.gpu.suite import Sizes

from seqrt.errors import EngineError
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.model import Model
from seqrt.runtime.profiling.pulse import device_copy

FEW = Sizes(prompts=2, new_tokens=8, repeats=6, trees=12, past=20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("synthetic") / "bundle"
    sizes = ["--layers", "2", "--hidden", "128", "--vocab", "300", "--capacity", "128"]
    synthetic.main([str(path), *sizes])
    return open_bundle(path)


def test_a_synthetic_bundle_is_of_half_precision_for_both_engines(bundle: Bundle) -> None:
    assert bundle.manifest.variants == ("ort-fp16", "rtx-fp16")
    assert bundle.manifest.decoder.num_kv_heads == 1


def test_every_finding_is_in_the_file(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    sizes = ["--num-repeats", "6", "--num-trees", "12", "--num-past", "20"]
    assert main([str(bundle.path), "--stand-in", "--output", str(output), *sizes]) == 0
    document = json.loads(output.read_text())
    found = document["backends"]["rtx"]
    assert json.loads(capsys.readouterr().out) == document["backends"]
    assert found["engine"].startswith("TensorRT-RTX")
    assert found["device"] == "stand-in"
    assert list(found["steps"]["run_ms"]) == ["1", "8"]
    assert found["steps"]["plain_step_ms"] > 0
    assert found["bandwidth"]["bytes_per_step"] > bundle.manifest.graphs[0].weight_bytes
    assert found["bandwidth"]["share"] == pytest.approx(
        found["bandwidth"]["gb_per_second"] / found["bandwidth"]["copy_gb_per_second"]
    )
    assert found["compaction"]["top1_agreement"] > 0.98
    assert found["compaction"]["largest_logsumexp_difference"] < 0.01


def test_a_cache_that_is_moved_wrongly_shows(bundle: Bundle) -> None:
    def broken(backend: str) -> Model:
        model = open_stand_in(bundle, backend)
        model._decoder._compact = lambda keep, write: None  # type: ignore[method-assign]
        return model

    def difference(how: Callable[[str], Model]) -> float:
        document = examine(bundle, ["rtx"], [], FEW, how)["backends"]["rtx"]["compaction"]
        return float(document["largest_logsumexp_difference"])

    assert difference(broken) > 20 * difference(partial(open_stand_in, bundle))


def test_what_a_backend_refuses_is_recorded_in_its_words(bundle: Bundle) -> None:
    def refuse(backend: str) -> Model:
        if backend == "rtx":
            raise EngineError("sm_90 is not supported")
        return open_stand_in(bundle, backend)

    found: dict[str, Any] = examine(bundle, ["rtx", "trt"], [], FEW, refuse)["backends"]
    assert found["rtx"]["error"] == "sm_90 is not supported"
    assert "steps" in found["trt"]


def test_the_copy_that_bandwidth_is_measured_with_leaves_nothing() -> None:
    cuda = StandInCuda()
    assert device_copy(Cuda(cuda), 1 << 12) > 0
    assert cuda.leaks() == []
