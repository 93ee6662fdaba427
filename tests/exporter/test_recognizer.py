"""Recognisers as bundles: what is asked for, and what is refused."""

import collections
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.exporter import openocr

from seqrt.errors import CheckpointError, ExportError, SeqrtError
from seqrt.exporter.checkpoints.recognizer import is_recognizer
from seqrt.exporter.recognizer import DICTIONARIES, export_recognizer, read_dictionary
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.recognizer import load

BUCKETS = ((64, 64), (48, 96), (40, 112), (32, 128))


@pytest.fixture(scope="module")
def svtrv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SVTRv2 CPPD as OpenOCR saves it."""
    if not openocr.INSTALLED:
        pytest.skip("openocr-python is not installed")
    model = openocr.shaken(
        openocr.cppd(
            "svtrv2_cppd",
            dims=[32, 64, 96],
            depths=[1, 3, 1],
            num_heads=[1, 2, 3],
            mixer=[["Conv"], ["Conv", "FGlobal", "Global"], ["Global"]],
            num_convs=[[2], [2, 2, 2], [2]],
            kernel_sizes=[[3], [3, 3, 3], [3]],
        )
    )
    file = tmp_path_factory.mktemp("svtrv2") / "best.pth"
    torch.save({"state_dict": model.state_dict()}, file)
    return file


def test_the_graph_is_static_but_for_the_batch(recognizer_bundle: Path) -> None:
    model = onnx.load(recognizer_bundle / "graphs/recognizer.onnx", load_external_data=False)
    found = collections.Counter(node.op_type for node in model.graph.node)
    assert not {"If", "Loop", "Scan", "Tile", "BatchNormalization", "GatherND"} & found.keys()
    assert all(node.domain == "" for node in model.graph.node)
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        *("B", 3, 32, 64)
    ]
    names = {value.name for value in model.graph.initializer}
    assert not any(part in name for name in names for part in ("counted", "decoder.count.", "reach", "running"))


def test_images_of_several_shapes_have_a_graph_each(svtrv2: Path, tmp_path: Path) -> None:
    bundle = export_recognizer(svtrv2, tmp_path / "bundle", check=False).bundle
    manifest = open_bundle(bundle).manifest
    assert manifest.reader.sizes == BUCKETS
    assert manifest.reader.recipe == "tv_rgb_bicubic"
    weights = (bundle / "graphs/weights.bin").stat().st_size
    assert all((bundle / f"graphs/recognizer.{height}x{width}.onnx").is_file() for height, width in BUCKETS)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, wide, 3), np.uint8) for wide in (30, 40, 80, 130, 160, 400)]
    with load(bundle) as reader:
        found = reader.recognize(images, batch=4)
        assert [one.text for one in found] == [one.text for one in reader.recognize(images)]
        sizes = [engine.inputs["image"].shape[2:] for engine in reader.engines.values()]
        assert sizes == list(BUCKETS)
    single = export_recognizer(svtrv2, tmp_path / "single", size=(32, 160)).bundle
    assert open_bundle(single).manifest.reader.roles == ("recognizer",)
    assert (single / "graphs/weights.bin").stat().st_size == weights


def test_dictionaries(recognizer_source: Path, tmp_path: Path) -> None:
    own = "".join(chr(0x4E00 + i) for i in range(36))
    file = tmp_path / "dictionary.txt"
    file.write_text("\r\n".join(own) + "\n", encoding="utf-8-sig", newline="")  # as Windows writes it
    bundle = export_recognizer(recognizer_source, tmp_path / "bundle", dictionary=file, check=False).bundle
    assert (bundle / "characters.txt").read_text(encoding="utf-8").split("\n") == [*own, ""]
    usual = export_recognizer(recognizer_source, tmp_path / "usual", check=False).bundle
    assert "".join((usual / "characters.txt").read_text().split()) == "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "has 2 different characters, the checkpoint knows 36; give the dictionary that it was trained with"),
        ("a\n" * 36, "has 1 different characters"),
        ("\n".join("0123456789abcdefghijklmnopqrstuvwxy") + "\n\n", "has 35 different characters"),
    ],
)
def test_dictionaries_of_another_length(recognizer_source: Path, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "dictionary.txt"
    file.write_text(text)
    with pytest.raises(ExportError, match=re.escape(message)):
        export_recognizer(recognizer_source, tmp_path / "bundle", dictionary=file)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(not openocr.INSTALLED, reason="openocr-python is not installed")
@pytest.mark.parametrize(("name", "count"), [("ic15_dict", 36), ("EN_symbol_dict", 94), ("ppocr_keys_v1", 6623)])
def test_dictionaries_of_the_authors(name: str, count: int) -> None:
    found = read_dictionary(openocr.ROOT / f"tools/utils/{name}.txt")
    assert len(found) == len(set(found)) == count
    if count < 100:
        assert "".join(found) == DICTIONARIES[count + 1]


def test_what_is_refused(recognizer_source: Path, speller_source: Path, svtrv2: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    cases: list[tuple[Path, dict[str, Any], type[SeqrtError], str]] = [
        (recognizer_source, {"recipe": "crop"}, ExportError, "--recipe crop is unknown; choose from svtr_bgr_stretch"),
        (
            recognizer_source,
            {"size": (32, 128)},
            CheckpointError,
            "needs [1, 256, 32]; give the --image-size",
        ),
        (recognizer_source, {"size": (30, 64)}, CheckpointError, "images of 30 x 64 are not cut evenly"),
        (recognizer_source, {"dictionary": tmp_path / "none"}, ExportError, "--dictionary"),
        (recognizer_source, {"dictionary": tmp_path / "bytes.txt"}, ExportError, "give a text file in UTF-8"),
        (recognizer_source, {"targets": ("tpu",)}, ExportError, "--target tpu is unknown"),
        (speller_source, {"targets": ("rtx",)}, ExportError, "--target rtx takes no autoregressive recogniser"),
        (svtrv2, {"size": (33, 64)}, CheckpointError, "images of 33 x 64 are not cut evenly"),
        (tmp_path / "none.pth", {}, CheckpointError, "does not exist; pass a file of torch"),
    ]
    for source, options, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            export_recognizer(source, tmp_path / "bundle", **options)
        assert not list(tmp_path.glob("*bundle*"))


def test_sources_are_told_apart(recognizer_source: Path, tmp_path: Path) -> None:
    assert is_recognizer(recognizer_source)
    assert all(is_recognizer(Path(f"best{suffix}")) for suffix in (".pth", ".pt", ".pdparams", ".safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not is_recognizer(tmp_path)
    assert not is_recognizer(Path("model.gguf"))
