"""The TensorRT engine on stand-ins for CUDA and TensorRT: texts as on a CPU, and nothing that hardware punishes."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import write_solver
from tools.gpu.standin_cuda import Code, StandInCuda
from tools.gpu.standin_tensorrt import StandInTensorRT, write_engines

from seqrt.errors import EngineError, RequestError
from seqrt.exporter.recognizer import export_recognizer
from seqrt.exporter.solver import export_solver
from seqrt.runtime.backends import open_engines, tensorrt_engines
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.decoder import Decoder
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import Flavour, load_flavour
from seqrt.runtime.engines.probed import ProbedEngine
from seqrt.runtime.engines.record import find_engines
from seqrt.runtime.engines.tensorrt import TensorRTEngine, layer_times
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.operators import trace_operators
from seqrt.runtime.profiling.pulse import device_copy
from seqrt.runtime.profiling.run import Amount, profile
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.recognizer import Recognizer
from seqrt.runtime.recognizer import load as load_recognizer
from seqrt.runtime.solver import Search, Solver
from seqrt.runtime.solver import load as load_solver
from seqrt.runtime.tree import Tree
from seqrt.runtime.tune import tune
from seqrt.runtime.tuned import read_tuning

NATIVE, PRIMITIVE = "rtx-fp32", "trt10.3-fp32"
PROMPT = [5, 9, 33, 7] * 12 + [8]


@dataclass(slots=True)
class Rig:
    """Models on stand-ins that are closed at the end, when nothing may be left on the device."""

    bundle: Path
    cuda: StandInCuda = field(default_factory=StandInCuda)
    models: list[Model] = field(default_factory=list)

    def open(
        self,
        variant: str = NATIVE,
        buckets: Sequence[int] = (1, 4, 8),
        prefill: int = 32,
        operators: bool = False,
        **how: Any,
    ) -> Model:
        """A model on engines of its own, those of `variant`."""
        bundle, backend = open_bundle(self.bundle), "rtx" if variant.startswith("rtx") else "trt"
        write_engines(bundle, variant, buckets, prefill, backend)
        api = StandInTensorRT(self.cuda, aliases=variant == NATIVE, **how)
        flavour = load_flavour(backend, api)
        engines = tensorrt_engines(bundle, flavour, Cuda(self.cuda), operators=operators)
        try:
            model = Model(bundle, engines)
        except EngineError:
            engines.close()
            raise
        self.models.append(model)
        return model


@pytest.fixture
def rig(gpu_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(gpu_bundle, tmp_path / "bundle")
    made = Rig(tmp_path / "bundle")
    yield made
    for model in made.models:
        model.close()
        model.close()
    assert made.cuda.leaks() == []


@pytest.fixture(scope="module")
def cpu(gpu_bundle: Path) -> Model:
    return load(gpu_bundle, threads=1)


def engine_of(model: Model, role: str = "decoder") -> TensorRTEngine:
    probed = model.engines[role]
    assert isinstance(probed, ProbedEngine)
    assert isinstance(probed.engine, TensorRTEngine)
    return probed.engine


REQUESTS: list[dict[str, Any]] = [
    {},
    {"draft": "lookup", "adaptive": False},
    {"draft": "recycling", "adaptive": False},
    {"draft": "hydra", "adaptive": False, "tree": "0 1 00 01 10 000"},
    {"draft": "hydra"},
    {"draft": "recycling", "adaptive": False, "temperature": 0.8, "seed": 3},
    {"draft": "lud", "adaptive": False},
    {"draft": "lud", "lud_mode": "paper", "beta": 0.1},
    {"temperature": 1.0, "top_p": 0.9999, "seed": 5},  # asks for the logits of the whole vocabulary
]


@pytest.mark.parametrize("variant", [NATIVE, PRIMITIVE])
@pytest.mark.parametrize("changes", REQUESTS, ids=str)
def test_texts_are_those_of_the_cpu(rig: Rig, cpu: Model, variant: str, changes: dict[str, Any]) -> None:
    """In place and with copies back, up to the capacity, in trees that are moved together."""
    model = rig.open(variant)
    cpu.forget()
    for prompt in (PROMPT, PROMPT[:3]):
        found = model.generate(prompt, max_new_tokens=240, ignore_eos=True, **changes)
        expected = cpu.generate(prompt, max_new_tokens=240, ignore_eos=True, **changes)
        assert found.token_ids == expected.token_ids
        assert found.new_tokens == min(240, 256 - len(prompt))
    assert model.score(PROMPT).perplexity == pytest.approx(cpu.score(PROMPT).perplexity, rel=1e-5)


@pytest.mark.parametrize("variant", [NATIVE, PRIMITIVE])
def test_words_are_those_of_the_cpu(
    recognizer_source: Path, word_images: list[Path], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are not full are filled up to a size that the engines take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = export_recognizer(
        recognizer_source,
        tmp_path / "reader",
        targets=("ort", *(v.partition("-")[0] for v in (NATIVE, PRIMITIVE))),
        dtypes=("fp32",),
        check=False,
    )
    bundle, cuda, backend = open_bundle(made.bundle), StandInCuda(), "rtx" if variant == NATIVE else "trt"
    write_engines(bundle, variant, (1, 4), 0, backend)
    flavour = load_flavour(backend, StandInTensorRT(cuda))
    with load_recognizer(made.bundle, threads=1) as cpu:
        expected = cpu.recognize(word_images)
    with Recognizer(bundle, tensorrt_engines(bundle, flavour, Cuda(cuda))) as reader:
        for batch in (1, 3, 4):
            found = reader.recognize(word_images, batch=batch)
            assert [one.text for one in found] == [one.text for one in expected]
        with pytest.raises(RequestError, match="--batch is 5; give 1 to 4"):
            reader.recognize(word_images, batch=5)
    assert cuda.leaks() == []


@pytest.mark.parametrize(("kind", "variant"), [("attention", NATIVE), ("ptrnet", PRIMITIVE)])
def test_pointer_models_answer_as_on_a_cpu(
    kind: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of instances and rows, within one profile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = write_solver(tmp_path / "source", kind, "tour")
    targets = ("ort", variant.partition("-")[0])
    made = export_solver(source, tmp_path / "tours", sizes=(8,), targets=targets, dtypes=("fp32",), check=False)
    bundle, cuda, backend = open_bundle(made.bundle), StandInCuda(), "rtx" if variant == NATIVE else "trt"
    write_engines(bundle, variant, (1,), 0, backend)
    flavour = load_flavour(backend, StandInTensorRT(cuda))
    rng = np.random.default_rng(0)
    points = [rng.random((count, 2)) for count in (5, 8, 3, 7, 8)]
    with (
        load_solver(made.bundle, threads=1) as cpu,
        Solver(bundle, tensorrt_engines(bundle, flavour, Cuda(cuda))) as solver,
    ):
        for search in (Search(), Search(beam=3), Search(samples=2), Search(multistart=True), Search()):
            expected = cpu.solve(points, search=search)
            assert [one.order for one in solver.solve(points, search=search, batch=3)] == [
                one.order for one in expected
            ]
        with pytest.raises(RequestError, match="129 rows an instance are more than"):
            solver.solve(points, search=Search(beam=129))
    assert cuda.leaks() == []


@pytest.fixture(scope="module")
def copied(gpu_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose engines are nobody else's."""
    return Path(shutil.copytree(gpu_bundle, tmp_path_factory.mktemp("copied") / "bundle"))


def random_tree(rng: np.random.Generator, nodes: int) -> Tree:
    parents = np.array([-1, *(int(rng.integers(0, i)) for i in range(1, nodes))])
    return Tree(rng.integers(0, 200, nodes), parents)


@pytest.mark.parametrize("variant", [NATIVE, PRIMITIVE])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_of_steps_commits_and_resets(copied: Path, variant: str, seed: int) -> None:
    """Rows of a bucket that are padding must leave no trace, in outputs or in the cache."""
    bundle, backend, rng = open_bundle(copied), variant.partition("-")[0][:3], np.random.default_rng(seed)
    write_engines(bundle, variant, backend=backend)
    cuda = StandInCuda()
    flavour = load_flavour(backend, StandInTensorRT(cuda, aliases=variant == NATIVE))
    kinds = [tensorrt_engines(bundle, flavour, Cuda(cuda)), open_engines(bundle, "cpu", 1)]
    decoders = [Decoder(kind["decoder"], partial(kind.__getitem__, "compaction"), 256) for kind in kinds]
    for _ in range(12):
        action = rng.integers(0, 5)
        if action == 0:
            length = int(rng.integers(0, decoders[0].past_len + 1))
            for decoder in decoders:
                decoder.reset(length)
        elif action == 1 and decoders[0].past_len < 120:
            tokens = rng.integers(0, 200, int(rng.integers(1, 70))).tolist()
            found, expected = (decoder.prefill(tokens)[-1] for decoder in decoders)
            np.testing.assert_allclose(found.topk_logits, expected.topk_logits, rtol=1e-4, atol=1e-4)
        else:
            tree = random_tree(rng, int(rng.integers(1, 9)))
            rows = np.arange(tree.num_nodes)
            found, expected = (d.step(tree.tokens, tree.ancestors, tree.depth, rows) for d in decoders)
            for name in ("topk_logits", "logsumexp", "hidden"):
                ours, theirs = getattr(found, name), getattr(expected, name)
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
            end = int(rng.integers(0, tree.num_nodes))
            path = np.flatnonzero(tree.ancestors[end])
            for decoder in decoders:
                decoder.commit(path)
    for kind in kinds:
        kind.close()
    assert cuda.leaks() == []


def test_a_step_is_one_launch_and_one_wait(rig: Rig) -> None:
    model = rig.open()
    model.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
    before = len(rig.cuda.calls)
    made = model.generate(PROMPT, max_new_tokens=60, ignore_eos=True)  # all but a row of the prompt is in the cache
    calls = rig.cuda.calls[before:]
    assert calls == ["cudaGraphLaunch", "cudaStreamSynchronize"] * (len(made.trace.rows) + 1)


def test_nothing_is_allocated_in_the_loop(rig: Rig) -> None:
    model = rig.open()
    for role in ("decoder", "compaction", "logits"):
        engine_of(model, role)
    model.generate(PROMPT, max_new_tokens=2)
    before = rig.cuda.calls.count("cudaMalloc"), rig.cuda.calls.count("cudaMallocHost")
    for _ in range(2):
        model.generate(PROMPT * 3, max_new_tokens=60, ignore_eos=True, draft="recycling", adaptive=False)
    assert (rig.cuda.calls.count("cudaMalloc"), rig.cuda.calls.count("cudaMallocHost")) == before


def test_every_bucket_is_recorded_at_load(rig: Rig) -> None:
    """What a first run costs would be taken for the cost of its rows, and switch drafting off."""
    model = rig.open()
    recorded = rig.cuda.calls.count("cudaGraphInstantiate")
    assert recorded == 4 + 1, "buckets 1, 4, 8, prompts of 32, compaction"
    model.generate(PROMPT, max_new_tokens=60, ignore_eos=True, draft="recycling", adaptive=False)
    assert rig.cuda.calls.count("cudaGraphInstantiate") <= recorded + 1, "paths longer than four rows"


def test_a_tree_may_be_as_large_as_a_chunk_of_a_prompt(rig: Rig, cpu: Model) -> None:
    model = rig.open(buckets=(1, 8), prefill=8)
    assert list(engine_of(model).buckets.items()) == [(1, 1), (8, 8)]
    found = model.generate(PROMPT, max_new_tokens=20, ignore_eos=True, draft="recycling", adaptive=False)
    cpu.forget()
    assert found.token_ids == cpu.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids
    assert set(found.trace.rows) <= {1, 8}


def test_tuning_keeps_to_the_buckets(rig: Rig) -> None:
    model = rig.open()
    found = tune(model, [Prompt(turns=("the other thing",))], [Options(draft="lookup", max_new_tokens=12)], 0, 5.0)
    assert max(found.rows) <= 8
    assert found.machine.engine.endswith(", buckets 1,4,8,32")
    assert found.machine.gpu == "stand-in"
    assert found.save(model.bundle).name == "tune.rtx.json"
    assert rig.open().tuning is None, "a model that is made by hand reads none"
    assert read_tuning(model.bundle, found.machine) == (found, None)
    assert not (rig.bundle / "tune.json").exists(), "what was found for a CPU stays"


def test_a_damaged_directory_hides_no_good_one(rig: Rig) -> None:
    bundle = open_bundle(rig.bundle)
    good = write_engines(bundle, NATIVE)
    for name, text in (("zz-odd", "{}"), (".half-built", (good / "engine.json").read_text())):
        (good.parent / name).mkdir()
        (good.parent / name / "engine.json").write_text(text)
    odd = good.parent / "zz-other"
    shutil.copytree(good, odd)
    (odd / "engine.json").write_text((odd / "engine.json").read_text().replace('"role": "logits"', '"role": "unknown"'))
    assert find_engines(bundle, "rtx", StandInTensorRT.__version__, "8.6")[0] == good


@pytest.mark.parametrize("spoil", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "context"])
def test_without_graphs_runs_are_ordinary_ones_and_the_log_says_why(
    rig: Rig, cpu: Model, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    if spoil != "context":
        rig.cuda.refuse[spoil] = Code.cudaErrorStreamCaptureInvalidated
    with caplog.at_level(logging.WARNING):
        model = rig.open(records=spoil != "context")
        found = model.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    cpu.forget()
    assert found.token_ids == cpu.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == [
        f"{role}.engine runs without CUDA graphs" for role in ("decoder", "compaction")
    ]
    assert all((spoil if spoil != "context" else "TensorRT cannot be recorded") in line for line in lines)
    assert "cudaGraphLaunch" not in rig.cuda.calls
    rig.cuda.refuse.clear()


def test_a_cache_that_is_not_updated_in_place_is_refused_at_load(rig: Rig) -> None:
    bundle = open_bundle(rig.bundle)
    write_engines(bundle, NATIVE)
    flavour = load_flavour("rtx", StandInTensorRT(rig.cuda, aliases=False))
    engines = tensorrt_engines(bundle, flavour, Cuda(rig.cuda))
    with pytest.raises(EngineError, match=r"decoder.engine writes present_key.0 apart, expected over past_key.0"):
        engines["decoder"]
    engines.close()


OUT_OF_MEMORY = r"^cudaMalloc failed with cudaErrorMemoryAllocation \(2\); close other programs, use fewer --buckets"


def test_memory_that_runs_out_at_load_is_all_given_back(rig: Rig) -> None:
    bundle = open_bundle(rig.bundle)
    write_engines(bundle, NATIVE)
    rig.cuda.total = 1 << 14
    with pytest.raises(EngineError, match=OUT_OF_MEMORY):
        open_decoder(bundle, load_flavour("rtx", StandInTensorRT(rig.cuda)), rig.cuda)
    assert rig.cuda.leaks() == []


def test_memory_that_runs_out_for_the_caches(rig: Rig) -> None:
    rig.cuda.total = 1 << 18
    with pytest.raises(EngineError, match=OUT_OF_MEMORY):
        rig.open()
    assert rig.cuda.leaks() == []


def test_a_driver_that_fails_midway_is_an_error_of_ours(rig: Rig) -> None:
    model = rig.open()
    model.generate(PROMPT, max_new_tokens=2, ignore_eos=True)
    rig.cuda.refuse["cudaStreamSynchronize"] = Code.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match=r"cudaStreamSynchronize failed with cudaErrorIllegalAddress \(700\)"):
        model.generate(PROMPT, max_new_tokens=2, ignore_eos=True)
    rig.cuda.refuse.clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookahead": 5, "draft": "lud"}, r"^--lookahead 5 needs 9 rows, a step takes 8; build with larger --buckets"),
        ({"max_rows": 9, "draft": "lookup"}, r"^--max-rows is 9, a step takes 8; build with larger --buckets"),
        ({"tree": "0 00 000 0000 1 2 3 4 5", "draft": "recycling"}, r"^--tree '0 00.*' has 10 nodes, a step takes 8;"),
    ],
)
def test_a_tree_larger_than_every_bucket(rig: Rig, changes: dict[str, Any], message: str) -> None:
    model = rig.open()
    with pytest.raises(RequestError, match=message):
        model.generate(PROMPT, **changes)


def test_more_rows_than_any_bucket(rig: Rig) -> None:
    decoder = Decoder(rig.open().engines["decoder"], lambda: rig.models[0].engines["compaction"], 256)
    tree = Tree.chain(list(range(9)))
    with pytest.raises(RequestError, match=r"9 rows, 9 of them with logits, do not fit the engine, .* up to 8"):
        decoder.step(tree.tokens, tree.ancestors, tree.depth, np.arange(9))


def test_a_capacity_beyond_the_engine(rig: Rig) -> None:
    with pytest.raises(EngineError, match=r"caches have 768 rows, 1000 tokens need 1032; build and export again"):
        Decoder(rig.open().engines["decoder"], lambda: rig.models[0].engines["compaction"], 1000)


def test_another_shape_of_state(rig: Rig) -> None:
    engine = engine_of(rig.open())
    with pytest.raises(EngineError, match=r"was built for past_key.0 of \(1, 2, 768, 16\), \(1, 2, 64, 16\) is asked"):
        engine.state("past_key.0", "present_key.0", (1, 2, 64, 16))


def test_shapes_that_no_profile_takes(rig: Rig) -> None:
    engine = engine_of(rig.open())
    with pytest.raises(EngineError, match=r"was not built for token_ids of \(1, 33\); build with other --buckets"):
        engine.input("token_ids", (1, 33))
    with pytest.raises(EngineError, match=r"^decoder.engine was not built for token_ids \(1, 5\), ancestors "):
        run_with(engine, "token_ids", (1, 5))
    with pytest.raises(EngineError, match=r"^logits.engine was run without hidden; bind every input first"):
        engine_of(rig.models[0], "logits").run()


def run_with(engine: TensorRTEngine, name: str, shape: tuple[int, ...]) -> None:
    engine.input(name, shape)
    engine.run()


def test_outputs_of_another_shape(rig: Rig) -> None:
    engine = engine_of(rig.open(), "logits")
    engine.input("hidden", (2, 64))
    engine.output("logits", (1, engine.outputs["logits"].shape[1]))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"^logits.engine gives logits of \(2, \d+\), \(1, \d+\) is asked for"):
        engine.run()


def test_state_of_another_kind_of_engine(rig: Rig, cpu: Model) -> None:
    with pytest.raises(EngineError, match=r"^compaction.engine cannot share the buffers of another kind of engine"):
        engine_of(rig.open(), "compaction").share_state(cpu.engines["decoder"])


def test_compiled_kernels_are_kept(rig: Rig, tmp_path: Path) -> None:
    model = rig.open()
    model.generate(PROMPT, max_new_tokens=2)
    assert not list((tmp_path / "cache").rglob("*.cache"))
    name = engine_of(model).built.sha256
    model.close()
    kept = tmp_path / "cache" / "seqrt" / "kernels" / f"{name}.cache"
    kept.write_bytes(b"of an earlier run")
    again = rig.open()
    kernels = [engine_of(again, role).kernels for role in ("decoder", "compaction")]
    assert [one.cache.data for one in kernels if one is not None] == [b"of an earlier run", b"kernels"]


def cut(folder: Path) -> None:
    file = folder / "decoder.engine"
    file.write_bytes(file.read_bytes()[:-5])


def garble(folder: Path) -> None:
    file = folder / "decoder.engine"
    file.write_bytes(b"x" * file.stat().st_size)


def end_early(folder: Path) -> None:
    """As long as it was, but no whole engine."""
    file = folder / "decoder.engine"
    data = file.read_bytes()
    file.write_bytes(data[:-5] + b"     ")


def replace(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "engine.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"has no engines for --backend rtx; run: seqrt build .*bundle --backend rtx"),
        (cut, r"has \d+ bytes in decoder.engine, expected \d+ bytes; run: seqrt build"),
        (replace('"1.7.1.116"', '"1.6.0.1"'), r"was built by version 1.6.0.1, this is 1.7.1.116; run: seqrt build"),
        (replace('"8.6"', '"12.0"'), r"was built for compute capability 12.0, this GPU has 8.6; run: seqrt build"),
        (replace('"source": "', '"source": "0'), r"was built from another decoder graph; run: seqrt build"),
        (
            replace('"variant": "rtx-fp32"', '"variant": "rtx-bf16"'),
            r"was built from rtx-bf16 graphs, which this bundle",
        ),
        (replace('"schema": 1', '"schema": 9'), r"engine.json has not schema 1; run seqrt build again"),
        (replace('"prefill": 32', '"prefill": "many"'), r"prefill is 'many', expected int; run seqrt build again"),
        (garble, r"decoder.engine cannot run here: MALFORMED_ENGINE; run seqrt build again"),
        (end_early, r"TensorRT-RTX 1.7.1.116 refuses .*decoder.engine: cannot deserialize: .*; run seqrt build again"),
        (lambda folder: (folder / "decoder.engine").unlink(), r"has nothing in decoder.engine, expected \d+ bytes"),
    ],
)
def test_engines_that_do_not_fit(rig: Rig, spoil: Callable[[Path], object], message: str) -> None:
    bundle = open_bundle(rig.bundle)
    spoil(write_engines(bundle, NATIVE))
    with pytest.raises(EngineError, match=message):
        open_decoder(bundle, load_flavour("rtx", StandInTensorRT(rig.cuda)), rig.cuda)


def open_decoder(bundle: Bundle, flavour: Flavour, cuda: StandInCuda) -> None:
    engines = tensorrt_engines(bundle, flavour, Cuda(cuda))
    try:
        engines["decoder"]
    finally:
        engines.close()


def test_no_driver(rig: Rig) -> None:
    bundle, cuda = open_bundle(rig.bundle), StandInCuda(devices=0)
    flavour = load_flavour("rtx", StandInTensorRT(cuda))
    with pytest.raises(EngineError, match="has no engines for --backend rtx"):
        tensorrt_engines(bundle, flavour, Cuda(cuda))
    write_engines(bundle, NATIVE)
    with pytest.raises(EngineError, match=r"^there is no NVIDIA driver, or too old a one \(cudaDeviceGetAttribute: "):
        tensorrt_engines(bundle, flavour, Cuda(cuda))


def test_times_of_layers(rig: Rig, cpu: Model) -> None:
    """Nothing is recorded then, and texts are the same; layers lie one after the other in the run of their engine."""
    model = rig.open(operators=True)
    cpu.forget()
    asked: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True}
    assert model.generate(PROMPT, **asked).token_ids == cpu.generate(PROMPT, **asked).token_ids
    prompt, wanted = Prompt(turns=("the fox",)), [Options(max_new_tokens=3, ignore_eos=True)]
    (traced,) = trace_operators(model, prompt, wanted)
    decoder = [run for run in traced.timeline.runs if run.name == "decoder"]
    assert [one.module for one in traced.operations] == ["layers.0.attention", "layers.0.mlp"] * len(decoder)
    pairs = zip(traced.operations[::2], traced.operations[1::2], strict=True)
    for run, (first, second) in zip(decoder, pairs, strict=True):
        assert first.span.start == run.start
        assert second.span.start == first.span.end
        assert (first.span.step, second.span.step) == (run.step, run.step)


def test_the_real_profiler_interface_takes_ours() -> None:
    layers = layer_times(pytest.importorskip("tensorrt_rtx"))
    for run in range(2):
        layers.run = run
        for name in ("a", "b"):
            layers.report_layer_time(name, 2.0)
    assert [(one.run, one.name, one.start, one.seconds) for one in layers.found] == [
        (0, "a", 0.0, 0.002),
        (0, "b", 0.002, 0.002),
        (1, "a", 0.0, 0.002),
        (1, "b", 0.002, 0.002),
    ]


def test_a_profile_of_a_gpu(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is counted, and the pulse is that of its own."""
    monkeypatch.setattr("seqrt.runtime.profiling.run.device_copy", partial(device_copy, size=1 << 16))
    model = rig.open()
    wanted = [Options(max_new_tokens=6, ignore_eos=True, draft=draft) for draft in ("none", "hydra")]
    prompts = [Prompt(turns=(f"the {word} fox",), id=word) for word in ("red", "old", "sly")]
    document = profile(model, prompts, wanted, Amount(pp=8, tg=4)).document
    assert document["memory"]["gpu_used_mb"] is not None
    assert document["environment"]["gpu"] == "stand-in"
    assert document["environment"]["engine"].startswith("TensorRT-RTX")
    assert document["stability"]["copy_gb_per_second"]["median"] > 0
    hydra = document["rows"][1]
    weights = model.bundle.info("decoder", model.engines.variant).weight_bytes
    assert hydra["bytes_per_step"] >= weights + model.cache_bytes
    assert [row["new_tokens"] for row in document["rows"]] == [18, 18]
