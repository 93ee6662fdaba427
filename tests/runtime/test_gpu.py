"""The real thing: engines on this machine's GPU against the CPU. Skipped, with the reason, where there is none."""

import shutil
from pathlib import Path

import pytest
from tools.gpu.suite import Sizes, compaction

from seqrt.errors import EngineError
from seqrt.runtime.build import build
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.model import Model, load

pytestmark = pytest.mark.gpu

PROMPT = [5, 9, 33, 7] * 12 + [8]


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    try:
        device = Cuda()
        device.compute_capability()
    except EngineError as error:
        pytest.skip(f"no GPU: {error}")
    return device


@pytest.fixture(params=["cuda", "rtx", "trt"])
def model(request: pytest.FixtureRequest, cuda: Cuda, gpu_bundle: Path, tmp_path: Path) -> Model:
    """A model on each backend that works here."""
    bundle = open_bundle(Path(shutil.copytree(gpu_bundle, tmp_path / "bundle")))
    try:
        if request.param != "cuda":
            build(bundle, request.param, buckets=(1, 4, 8), prefill=32)
        return load(bundle.path, backend=request.param)
    except EngineError as error:
        pytest.skip(f"--backend {request.param} does not work here: {error}")


def test_texts_are_those_of_the_cpu(model: Model, gpu_bundle: Path) -> None:
    """Random weights in float32: margins are wide, so that other kernels change no token."""
    cpu = load(gpu_bundle)
    with model:
        for draft in ("none", "recycling"):
            found = model.generate(PROMPT, max_new_tokens=100, ignore_eos=True, draft=draft, adaptive=False)
            expected = cpu.generate(PROMPT, max_new_tokens=100, ignore_eos=True)
            assert found.token_ids == expected.token_ids


def test_caches_are_moved_in_place_under_replay(model: Model, gpu_bundle: Path) -> None:
    with model:
        found = compaction(model, load(gpu_bundle), Sizes(trees=100))
    assert found["top1_agreement"] == 1.0
    assert found["largest_logsumexp_difference"] < 1e-2


def test_memory_is_given_back(model: Model, cuda: Cuda) -> None:
    model.generate(PROMPT, max_new_tokens=4)
    with model:
        used = cuda.memory()[0]
    assert cuda.memory()[0] >= used
