"""From a bundle to engines, with the real TensorRT-RTX, which needs no GPU for it; and what happens when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx.parser
import pytest
from tools.gpu.standin_cuda import StandInCuda

from seqrt.errors import EngineError, RequestError, SeqrtError
from seqrt.exporter.recognizer import export_recognizer
from seqrt.runtime import build as module
from seqrt.runtime.build import build, choose_variant, decoder_profiles
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.engines.builder import Builder
from seqrt.runtime.engines.cuda import Cuda
from seqrt.runtime.engines.flavour import Flavour, load_flavour, sm
from seqrt.runtime.engines.record import BuildSettings, find_engines, read_record, verify_engines

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")

VERSION = load_flavour("rtx").version


@pytest.fixture(scope="module")
def built(gpu_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with engines for two buckets."""
    bundle = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(gpu_bundle, bundle)
    opened = open_bundle(bundle)
    assert build(opened, "rtx", buckets=(4,), prefill=32).is_new
    return opened


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(built.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def test_what_is_built_is_described(built: Bundle) -> None:
    folder, record = find_engines(built, "rtx", VERSION, None)
    assert folder.name == f"rtx-{VERSION}-any-fp32"
    assert [graph.role for graph in record.graphs] == [
        graph.role for graph in built.manifest.graphs if graph.profile == "rtx"
    ]
    decoder = record.graph("decoder")
    assert decoder.profiles == tuple(
        {"T": (rows,) * 3, "R": (wanted,) * 3} for rows, wanted in ((1, 1), (4, 4), (32, 1))
    )
    assert decoder.shapes["token_ids"] == ("1", "T")
    assert decoder.shapes["past_key.0"] == ("1", "2", "768", "16"), "256 tokens and the room of a prompt"
    assert decoder.shapes["topk_ids"] == ("?", "256")
    assert decoder.decomposed == "FLOAT with 4 heads of 16", "TensorRT has fused attention for half precision only"
    assert record.graph("logits").decomposed is None
    layers = json.loads((folder / "layers.json").read_text())
    assert {layer["type"] for layer in layers["decoder"]} >= {"KV_CACHE_UPDATE", "ATTENTION_INPUT", "TOPK"}
    assert not [file for file in folder.parent.iterdir() if file.name.startswith(".")]


def test_nothing_is_built_again_unless_something_changed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "build", None)
    assert not build(bundle, "rtx", buckets=(1, 4), prefill=32).is_new
    monkeypatch.undo()
    made = build(bundle, "rtx", buckets=(1, 2), prefill=32)
    assert made.is_new
    assert made.record.graph("decoder").profiles[1]["T"] == (2, 2, 2)
    file = made.folder / "logits.engine"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert build(bundle, "rtx", buckets=(1, 2), prefill=32).is_new, "a damaged file is built anew"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_was_there_survives_a_build_that_ends_early(
    bundle: Bundle, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = find_engines(bundle, "rtx", VERSION, None)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_described", fail)
    with pytest.raises((KeyboardInterrupt, EngineError)) as caught:
        build(bundle, "rtx", buckets=(1, 2), prefill=32)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"cannot write {folder}: No space left on device; free some space")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]
    assert read_record(folder) == record


def test_ctrl_c_ends_a_build(bundle: Bundle) -> None:
    """TensorRT would swallow an exception that is raised in a function that it calls."""
    code = "import sys; from seqrt.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", code, "build", str(bundle.path), "--backend", "rtx", "--prefill", "300"]
    done = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    stages = bundle.path / "engines"
    while done.poll() is None and not list(stages.glob(".*")):
        time.sleep(0.01)
    time.sleep(0.3)
    done.send_signal(signal.SIGINT)
    _, said = done.communicate()
    assert (done.returncode, said) == (130, "seqrt: error: interrupted\n")
    assert not list(stages.glob(".*"))


def test_what_a_killed_build_left_is_swept_away(bundle: Bundle) -> None:
    folder = bundle.path / "engines"
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = (folder / f".rtx-1.7.1.116-any-fp32.{pid}.abc" for pid in (int(process.stdout), os.getpid()))
    fresh = dead.with_suffix(".def")
    for path in (dead, alive, fresh):
        path.mkdir()
    for path in (dead, alive):
        os.utime(path, (0, 0))
    build(bundle, "rtx", buckets=(1,), prefill=8)
    assert sorted(folder.glob(".*")) == sorted([alive, fresh])


def test_engines_are_verified(bundle: Bundle) -> None:
    folder, _ = find_engines(bundle, "rtx", VERSION, None)
    verify_engines(folder)
    file = folder / "logits.engine"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(EngineError, match=r"logits.engine is not the engine that was built \(SHA-256 differs\)"):
        verify_engines(folder)


def test_memory_that_does_not_suffice_is_said_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HOST_FACTOR", 1e9)
    with pytest.raises(
        EngineError, match=r"^building takes about [\d.]+ GB of memory, [\d.]+ GB are free; close other"
    ):
        build(bundle, "rtx", buckets=(1, 2), prefill=32)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"buckets": (0, 4)}, RequestError, r"^--buckets 0,4 are out of range; give numbers from 1 to 127"),
        ({"buckets": (128,)}, RequestError, r"^--buckets 128 are out of range"),
        ({"prefill": 513}, RequestError, r"^--prefill 513 is out of range; give 64 \(the largest bucket\) to 512"),
        ({"prefill": 63}, RequestError, r"^--prefill 63 is out of range"),
        ({"workspace": 1 << 19}, RequestError, r"^--workspace is 0.5 MB; give 1 or more"),
        ({"compute_capabilities": ("8,6",)}, RequestError, r"^--cc '8,6' is no compute capability; give such as 8.6"),
        (
            {"compute_capabilities": ("9.0",)},
            EngineError,
            r"^--cc 9.0: TensorRT-RTX .* builds for 7.5, 8.0, 8.6, .*; use",
        ),
        ({"dtype": "bf16"}, RequestError, r"^--dtype bf16 is not in .* for TensorRT-RTX .*; use fp32"),
    ],
)
def test_options_out_of_range(bundle: Bundle, options: dict[str, Any], kind: type[SeqrtError], message: str) -> None:
    with pytest.raises(kind, match=message):
        build(bundle, "rtx", **options)


def test_a_bundle_for_other_engines(llama_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"holds no graphs that TensorRT-RTX .* reads, only ort-fp32; export with"):
        build(open_bundle(llama_bundle), "rtx")


def test_compute_capabilities_are_in_the_name(bundle: Bundle) -> None:
    made = build(bundle, "rtx", buckets=(1,), prefill=8, compute_capabilities=("12.0", "8.6", "12.0"))
    assert made.folder.name == f"rtx-{VERSION}-sm86+sm120-fp32"
    assert made.record.settings.compute_capabilities == ("8.6", "12.0")
    assert find_engines(bundle, "rtx", VERSION, "12.0")[0] == made.folder, "the newest that fits"
    assert find_engines(bundle, "rtx", VERSION, "8.9")[0].name.endswith("-any-fp32")


def test_a_graph_that_tensorrt_does_not_take(tmp_path: Path) -> None:
    graph = '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 2] x) => (float y) { y = Det(x) }'
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "no.onnx")
    settings = BuildSettings(
        backend="rtx", variant="rtx-fp32", compute_capabilities=(), buckets=(1,), prefill=8, workspace=None
    )
    with pytest.raises(
        EngineError, match=r"^TensorRT-RTX .* cannot read no.onnx: Det .*UNSUPPORTED_NODE.*; export for another"
    ):
        Builder(load_flavour("rtx"), settings).build("no", tmp_path / "no.onnx", [], False)


def test_attention_without_a_fused_kernel_is_taken_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two query heads of half precision and one row: TensorRT-RTX 1.7 has no kernel, and does not say so before."""
    graph = """<ir_version: 11, opset_import: ["" : 24]>
    g (float16[1, 2, T, 64] q, float16[1, 2, 128, 64] k, float16[1, 2, 128, 64] v, float16[1, 1, T, 128] mask)
    => (float16[1, 2, T, 64] y) { y = Attention<scale = 1.0>(q, k, v, mask) }"""
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "g.onnx")
    settings = BuildSettings(
        backend="rtx", variant="rtx-fp16", compute_capabilities=(), buckets=(1,), prefill=8, workspace=None
    )
    builder = Builder(load_flavour("rtx"), settings)
    _, one = builder.build("g", tmp_path / "g.onnx", [{"T": (1, 1, 1)}], True)
    assert capfd.readouterr() == ("", ""), "TensorRT prints what it thinks of the first attempt"
    assert one.decomposed == "HALF with 2 heads of 64"
    _, many = builder.build("g", tmp_path / "g.onnx", [{"T": (16, 16, 16)}], True)
    assert many.decomposed is None


def flavour_of(version: str) -> Flavour:
    return Flavour("trt", SimpleNamespace(__version__=version), None)


@pytest.mark.parametrize(
    ("version", "held", "expected"),
    [
        ("10.3.0.26", ("trt10.3-fp16", "trt10.16-fp16", "trt11-fp16"), "trt10.3-fp16"),
        ("10.16.2.10", ("trt10.3-fp16", "trt10.16-fp16", "trt11-fp16"), "trt10.16-fp16"),
        ("11.4.0.106", ("trt11-bf16", "trt11-fp16", "trt10.3-fp16"), "trt11-bf16"),
        ("11.4.0.106", ("trt10.3-fp16",), "trt10.3-fp16"),
    ],
)
def test_the_newest_graphs_that_a_tensorrt_reads(version: str, held: tuple[str, ...], expected: str) -> None:
    bundle: Any = SimpleNamespace(path=Path("b"), manifest=SimpleNamespace(variants=("ort-fp32", *held)))
    assert choose_variant(bundle, flavour_of(version), None) == expected


@pytest.mark.parametrize(("version", "target"), [("10.3.0", "trt10.3"), ("10.16.2", "trt10.16"), ("11.4.0", "trt11")])
def test_no_graphs_that_a_tensorrt_reads(version: str, target: str) -> None:
    bundle: Any = SimpleNamespace(path=Path("b"), manifest=SimpleNamespace(variants=("ort-fp32", "rtx-fp16")))
    with pytest.raises(EngineError, match=rf"b holds no graphs that TensorRT {version} reads, .*--target {target}$"):
        choose_variant(bundle, flavour_of(version), None)


def test_recognisers_are_built_by_batch_size(recognizer_source: Path, tmp_path: Path) -> None:
    made = export_recognizer(recognizer_source, tmp_path / "reader", targets=("ort", "rtx"), check=False).bundle
    opened = open_bundle(made)
    built = build(opened, "rtx", compute_capabilities=("8.6",))
    (graph,) = built.record.graphs
    assert (graph.role, dict(graph.buckets)) == ("recognizer", {1: 1, 8: 8, 16: 16, 32: 32})
    assert graph.shapes["image"] == ("B", "3", "32", "64")
    assert built.record.settings.prefill == 0
    assert built.device_bytes > 0
    assert not build(opened, "rtx", compute_capabilities=("8.6",)).is_new
    few = build(opened, "rtx", compute_capabilities=("8.6",), buckets=(4,))
    assert list(few.record.graphs[0].buckets) == [1, 4]
    with pytest.raises(RequestError, match="--prefill 8 is of no use to a bundle that has no prompt"):
        build(opened, "rtx", prefill=8)


def test_profiles() -> None:
    assert decoder_profiles((1, 8), 64) == [
        {"T": (1, 1, 1), "R": (1, 1, 1)},
        {"T": (8, 8, 8), "R": (8, 8, 8)},
        {"T": (64, 64, 64), "R": (1, 1, 1)},
    ]
    assert [profile["T"][0] for profile in decoder_profiles((1, 64), 512)] == [1, 64, 128, 512]
    assert [profile["T"][0] for profile in decoder_profiles((1, 127), 128)] == [1, 127, 128]
    assert [profile["R"][0] for profile in decoder_profiles((1, 64), 64)] == [1, 64], "all of whose rows get logits"


@pytest.mark.parametrize(("text", "expected"), [("8.6", "SM86"), ("12.0", "SM120"), ("7.5", "SM75")])
def test_compute_capabilities(text: str, expected: str) -> None:
    assert sm(text) == expected


@pytest.mark.parametrize("text", ["86", "8.", ".6", "sm86", "8.6.1", ""])
def test_what_is_no_compute_capability(text: str) -> None:
    with pytest.raises(RequestError, match="is no compute capability"):
        sm(text)


class Timings:
    """What a builder's configuration does with timings of kernels."""

    def __init__(self, known: bytes = b"") -> None:
        self.known, self.given = known, b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, data: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = b"?" not in data
        self.given = data if fits else self.given
        return fits

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.given + b"+")


def test_timings_are_kept_for_the_next_build(tmp_path: Path) -> None:
    """Of TensorRT; TensorRT-RTX times nothing."""
    made: list[Timings] = []

    def config() -> Timings:
        made.append(Timings())
        return made[-1]

    settings = BuildSettings(
        backend="trt", variant="trt11-fp16", compute_capabilities=("8.7",), buckets=(1,), prefill=8, workspace=None
    )
    builder = Builder(flavour_of("11.4.0"), settings, tmp_path / "cache" / "timings")
    for _ in range(3):
        builder._keep_timings(builder._config(SimpleNamespace(create_builder_config=config)))
    assert [each.given for each in made] == [b"", b"+", b"++"]
    (tmp_path / "cache" / "timings").write_bytes(b"of another GPU?")
    builder._keep_timings(builder._config(SimpleNamespace(create_builder_config=config)))
    assert made[-1].given == b""


BLOCKED = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")


def test_building_needs_neither_torch_nor_onnx_nor_transformers(bundle: Bundle) -> None:
    code = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\nfrom seqrt.cli import main\nsys.exit(main())"
    arguments = ["build", str(bundle.path), "--backend", "rtx", "--buckets", "1,2", "--prefill", "8", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["built"]
    assert document["settings"]["buckets"] == [1, 2]
    assert [graph["role"] for graph in document["graphs"]][:4] == ["decoder", "logits", "score", "compaction"]


def test_a_gpu_that_is_too_small_is_said_before() -> None:
    with pytest.raises(EngineError, match=r"^running takes about 2.0 GB of the GPU's memory, it has 1.0 GB; export"):
        module._check_memory(1, 2_000_000_000, Cuda(StandInCuda(memory=1_000_000_000)))
    module._check_memory(1, 900_000_000, Cuda(StandInCuda(memory=1_000_000_000)))
