"""Reading words with a bundle, against the torch modules that it was exported from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import seqrt
from seqrt.errors import BundleError, EngineError, RequestError
from seqrt.exporter.checkpoints.recognizer import open_recognizer
from seqrt.graphs.cppd import Cppd
from seqrt.graphs.nrtr import Nrtr
from seqrt.runtime.engines import Array
from seqrt.runtime.images import prepare, read_image
from seqrt.runtime.probe import Recorder
from seqrt.runtime.recognizer import Recognition, Recognizer, load

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def reader(recognizer_bundle: Path) -> Iterator[Recognizer]:
    with load(recognizer_bundle, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def speller(speller_bundle: Path) -> Iterator[Recognizer]:
    with load(speller_bundle, threads=1) as made:
        yield made


def pixels(files: list[Path]) -> torch.Tensor:
    made = np.empty((len(files), 3, 32, 64), np.float32)
    for out, file in zip(made, files, strict=True):
        prepare(read_image(file), "tv_rgb_bicubic", (32, 64), out)
    return torch.from_numpy(made)


def said(probabilities: torch.Tensor) -> Recognition:
    """What rows of probabilities say: the definition, step by step."""
    text, confidences = "", []
    for row in probabilities:
        best = int(row.argmax())
        if best == 0:
            break
        text += CHARACTERS[best - 1]
        confidences.append(float(row[best]))
    return Recognition(text, sum(confidences) / len(confidences) if confidences else 0.0)


def assert_same(found: list[Recognition], expected: list[Recognition]) -> None:
    assert [one.text for one in found] == [one.text for one in expected]
    np.testing.assert_allclose([one.confidence for one in found], [one.confidence for one in expected], atol=1e-5)


@pytest.fixture(scope="module")
def expected(recognizer_source: Path, word_images: list[Path]) -> list[Recognition]:
    model = open_recognizer(recognizer_source).model
    assert isinstance(model, Cppd)
    with torch.no_grad():
        words = [said(rows) for rows in model(pixels(word_images))]
    assert len({word.text for word in words}) > 5  # it says something else of each
    return words


def test_words_are_those_of_torch(reader: Recognizer, word_images: list[Path], expected: list[Recognition]) -> None:
    assert_same(reader.recognize(word_images), expected)


@pytest.mark.parametrize("batch", [2, 4, 9, 64])
def test_batches_change_nothing(
    reader: Recognizer, word_images: list[Path], expected: list[Recognition], batch: int
) -> None:
    assert_same(reader.recognize(word_images, batch=batch), expected)
    assert sorted(number for number, _ in reader.each(word_images, batch=batch)) == list(range(len(word_images)))


def test_characters_come_one_by_one_as_in_torch(
    speller: Recognizer, speller_source: Path, word_images: list[Path]
) -> None:
    model = open_recognizer(speller_source).model
    assert isinstance(model, Nrtr)
    expected = []
    with torch.no_grad():
        for visual in model.encoder(pixels(word_images)).split(1):
            tokens = [model.config.begin]
            for _ in range(model.config.num_steps):
                rows = model.decoder.logits(visual, torch.tensor([tokens])).softmax(2)[0]
                tokens.append(int(rows[-1].argmax()))
            expected.append(said(rows))
    assert len({word.text for word in expected}) > 3
    for batch in (1, 4):
        assert_same(speller.recognize(word_images, batch=batch), expected)


def test_a_batch_ends_when_its_words_have(speller: Recognizer, word_images: list[Path]) -> None:
    for file in word_images[:3]:
        recorder = Recorder()
        with speller.attached(recorder):
            (word,) = speller.recognize([file])
        runs = [run.name for run in recorder.take().runs]
        assert runs == ["encoder", *["step"] * min(len(word.text) + 1, 26)]


def test_stages_are_told(reader: Recognizer, word_images: list[Path]) -> None:
    recorder = Recorder()
    with reader.attached(recorder):
        reader.recognize(word_images[:1])
    timeline = recorder.take()
    assert [stage.name for stage in timeline.stages] == ["preprocess", "engine", "decode"]
    assert [run.name for run in timeline.runs] == ["recognizer"]


def test_nothing_read_has_no_confidence(reader: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.zeros((1, 26, 37), np.float32)
    empty[:, :, 0] = 1.0
    engine = reader.engines["recognizer"]
    monkeypatch.setattr(engine, "output", lambda *_: empty)
    assert reader.recognize([np.zeros((20, 40, 3), np.uint8)]) == [Recognition("", 0.0)]
    full = np.zeros((1, 26, 37), np.float32)
    full[:, :, 11] = 0.5  # no end: all places are read
    monkeypatch.setattr(engine, "output", lambda *_: full)
    assert reader.recognize([np.zeros((20, 40, 3), np.uint8)]) == [Recognition("a" * 26, 0.5)]


@pytest.mark.parametrize("batch", [1, 3])
def test_others_are_read_when_one_cannot_be(
    reader: Recognizer, word_images: list[Path], expected: list[Recognition], batch: int
) -> None:
    files = [*word_images[:4], Path("missing.png"), *word_images[4:]]
    found = dict(reader.each(files, batch=batch))
    error = found.pop(4)
    assert isinstance(error, RequestError)
    assert "missing.png" in str(error)
    words = [found[number] for number in sorted(found)]
    assert_same([word for word in words if isinstance(word, Recognition)], expected)
    with pytest.raises(RequestError, match=r"missing\.png"):
        reader.recognize(files, batch=batch)


def test_engines_for_fixed_batches_get_full_ones(
    reader: Recognizer, word_images: list[Path], expected: list[Recognition], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, shapes = reader.engines["recognizer"], []
    ask = engine.input

    def seen(name: str, shape: tuple[int, ...]) -> Array:
        shapes.append(shape[0])
        return ask(name, shape)

    monkeypatch.setattr(engine, "input", seen)
    monkeypatch.setattr(engine, "buckets", {1: 1, 4: 4, 8: 8})
    assert_same(reader.recognize(word_images, batch=6), expected)
    assert shapes == [8, 4]  # six and three images
    with pytest.raises(RequestError, match="--batch is 9; give 1 to 8"):
        reader.recognize(word_images, batch=9)


@pytest.mark.parametrize("batch", [0, -1, 65])
def test_batches_out_of_range(reader: Recognizer, batch: int) -> None:
    with pytest.raises(RequestError, match=f"--batch is {batch}; give 1 to 64"):
        reader.recognize([], batch=batch)


def test_load_gives_what_the_task_asks_for(recognizer_bundle: Path, llama_bundle: Path) -> None:
    with seqrt.load(recognizer_bundle) as reader, seqrt.load(llama_bundle) as model:
        assert isinstance(reader, Recognizer)
        assert isinstance(model, seqrt.Model)
    with pytest.raises(BundleError, match="is a bundle for `seqrt run` and reads no images"):
        load(llama_bundle)
    with pytest.raises(BundleError, match="is a bundle for `seqrt ocr` and generates no text"):
        seqrt.runtime.model.load(recognizer_bundle)
    with pytest.raises(RequestError, match="--threads is -1"):
        seqrt.load(recognizer_bundle, threads=-1)


def test_characters_must_be_as_many_as_classes(recognizer_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(recognizer_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "seqrt.json").read_text())
    manifest["recognizer"]["num_classes"] = 38
    (copy / "seqrt.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"characters\.txt has 36 characters, the recogniser knows 37; export again"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, "images of \\[\\] pixels"),
        ({"sizes": [[32, 0]]}, "images of \\[32, 0\\] pixels"),
        ({"sizes": [[1 << 20, 1 << 20]]}, "pixels, expected height and width"),
        ({"recipe": "stretch"}, "recipe 'stretch' is unknown"),
        ({"kind": "ctc"}, "recogniser 'ctc'"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"sizes": [[32, 64], [32, 128]]}, "0 graphs for 'recognizer.32x64'"),
        ({"kind": "nrtr"}, "0 graphs for 'encoder'"),
    ],
)
def test_damaged_manifests_are_refused(
    recognizer_bundle: Path, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(recognizer_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "seqrt.json").read_text())
    manifest["recognizer"] |= change
    (copy / "seqrt.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        load(copy)


def test_a_bundle_has_one_task(recognizer_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(recognizer_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "seqrt.json").read_text())
    (copy / "seqrt.json").write_text(json.dumps(manifest | {"task": "generate"}))
    with pytest.raises(BundleError, match="the task is 'generate', the bundle is made for \\['ocr'\\]"):
        load(copy)


@pytest.mark.parametrize(
    "one", ["sign.jpg", Path("sign.jpg"), b"bytes", np.zeros((20, 40, 3), np.uint8), Image.new("L", (9, 9))]
)
def test_one_image_is_no_list_of_them(reader: Recognizer, one: Any) -> None:
    with pytest.raises(RequestError, match=r"recognize takes several images, not one .*; give \[image\]"):
        reader.recognize(one)
    assert len(reader.recognize(np.zeros((2, 20, 40, 3), np.uint8))) == 2


def test_pillow_images_need_no_file(reader: Recognizer, word_images: list[Path], expected: list[Recognition]) -> None:
    assert_same(reader.recognize(Image.open(file) for file in word_images), expected)


def test_a_reader_that_is_closed_says_so(recognizer_bundle: Path) -> None:
    closed = load(recognizer_bundle, threads=1)
    closed.close()
    with pytest.raises(EngineError, match="was closed; load it again"):
        closed.recognize([Image.new("RGB", (40, 20))])
