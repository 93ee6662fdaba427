"""ONNX Runtime's CUDA engine over a stand-in: texts as on a CPU, and what it says where the provider is missing."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.gpu.standin_ort import StandInOrt

from seqrt.errors import EngineError
from seqrt.runtime.backends import cuda_engines
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.engines.ort_cuda import OrtCudaEngine, check_provider
from seqrt.runtime.engines.probed import ProbedEngine
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.operators import trace_operators
from seqrt.runtime.prompts import Prompt

PROMPT = [5, 9, 33, 7] * 12 + [8]
Open = Callable[..., Model]


@pytest.fixture
def on_gpu(gpu_bundle: Path) -> Open:
    bundle = open_bundle(gpu_bundle)

    def make(ort: StandInOrt) -> Model:
        return Model(bundle, cuda_engines(bundle, ort))

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draft": "recycling", "adaptive": False},
        {"draft": "hydra", "adaptive": False, "tree": "0 1 00 01 10 000"},
        {"temperature": 1.0, "top_p": 0.9999, "seed": 5},
    ],
    ids=str,
)
def test_texts_are_those_of_the_cpu(on_gpu: Open, gpu_bundle: Path, changes: dict[str, Any]) -> None:
    """Over caches that grow several times, and are moved together."""
    model, cpu = on_gpu(StandInOrt()), load(gpu_bundle, threads=1)
    for prompt in (PROMPT, PROMPT[:3]):
        found = model.generate(prompt, max_new_tokens=240, ignore_eos=True, **changes)
        assert found.token_ids == cpu.generate(prompt, max_new_tokens=240, ignore_eos=True, **changes).token_ids
    model.close()


def test_rows_are_not_moved_by_a_recording(on_gpu: Open) -> None:
    """ONNX Runtime runs what it records three times over, and moving rows thrice is not moving them once."""
    ort = StandInOrt()
    model = on_gpu(ort)
    model.generate(PROMPT, max_new_tokens=60, ignore_eos=True, draft="recycling", adaptive=False)
    assert not model.engines["compaction"].engine._records  # type: ignore[attr-defined]
    assert model.engines["decoder"].engine._records  # type: ignore[attr-defined]
    assert None in ort.recordings


def test_each_set_of_shapes_and_buffers_has_a_recording(on_gpu: Open) -> None:
    """A recording holds addresses: another cache needs another one, the same shapes the same. What is new is none."""
    ort = StandInOrt()
    model = on_gpu(ort)
    model.generate(PROMPT, max_new_tokens=100, ignore_eos=True)
    ids = [int(recording or 0) for recording in ort.recordings]
    assert ids[:3] == [-1, -1, 2], "the prompt, a first plain step, the second"
    caches = 3  # of 64, 128 and 192 rows
    assert sorted(set(ids)) == [-1, *range(2, 2 + caches)]
    assert ids.count(-1) == 1 + caches
    recorded = [recording for recording in ids if recording > 0]
    assert recorded == sorted(recorded)


def test_shapes_that_come_back_find_their_buffers(on_gpu: Open) -> None:
    """Or a recording would be replayed over memory that is no longer what it was."""
    probed = on_gpu(StandInOrt()).engines["logits"]
    assert isinstance(probed, ProbedEngine)
    engine = probed.engine
    assert isinstance(engine, OrtCudaEngine)
    seen: dict[int, list[int]] = {}
    width = int(engine.outputs["logits"].shape[1])
    for rows in (1, 3, 1, 3, 2, 1):
        engine.input("hidden", (rows, 64))[:] = rows
        logits = engine.output("logits", (rows, width))
        engine.run()
        pointers = [engine._tensors[name].device.data_ptr() for name in ("hidden", "logits")]
        assert seen.setdefault(rows, pointers) == pointers
        assert (logits == logits[0]).all()


def test_a_graph_that_cannot_be_recorded_runs_all_the_same(
    on_gpu: Open, gpu_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ort = StandInOrt(records=False)
    with caplog.at_level(logging.INFO):
        found = on_gpu(ort).generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert set(ort.recordings) == {None}
    assert "decoder.onnx runs without CUDA graphs: This session cannot use the graph capture" in caplog.messages[0]
    expected = load(gpu_bundle, threads=1).generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert found.token_ids == expected.token_ids


def test_a_build_without_cuda_says_what_to_install(gpu_bundle: Path) -> None:
    graph = gpu_bundle / "graphs/logits.onnx"
    with pytest.raises(EngineError, match=r"^onnxruntime .* has no CUDA provider, only CPU.*'seqrt\[gpu\]'"):
        OrtCudaEngine(graph, ort=StandInOrt(has_cuda=False))


def test_a_provider_that_does_not_load_is_no_silent_cpu(gpu_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot run logits.onnx on the GPU: .*; see what `seqrt doctor`"):
        OrtCudaEngine(gpu_bundle / "graphs/logits.onnx", ort=StandInOrt(loads=False))


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot run no.onnx on the GPU: .*; see what `seqrt doctor` says"):
        OrtCudaEngine(tmp_path / "no.onnx", ort=StandInOrt())


def test_here_there_is_no_such_provider() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineError, match="has no CUDA provider"):
        check_provider(onnxruntime)


def test_times_of_operators(gpu_bundle: Path) -> None:
    """Nothing is recorded then."""
    ort = StandInOrt()
    model = Model(open_bundle(gpu_bundle), cuda_engines(open_bundle(gpu_bundle), ort, operators=True))
    traced = trace_operators(model, Prompt(turns=("the fox",)), [Options(max_new_tokens=3, ignore_eos=True)])
    assert {one.module for one in traced[0].operations} >= {"layers.0.attention", "layers.1.mlp"}
    assert set(ort.recordings) == {None}
    model.close()
