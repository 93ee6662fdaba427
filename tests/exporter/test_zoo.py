"""What comes with seqrt: an adapter of lexical units, recognisers, pointer models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elkai
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial import ConvexHull, Delaunay

from seqrt.exporter.check import run_exact
from seqrt.exporter.checkpoints.reading import Safetensors
from seqrt.exporter.checkpoints.recognizer import open_recognizer
from seqrt.exporter.checkpoints.solver import open_solver
from seqrt.exporter.recognizer import export_recognizer
from seqrt.exporter.solver import export_solver
from seqrt.graphs.cppd import Cppd
from seqrt.graphs.svtr import heads_of
from seqrt.runtime.bundle import open_bundle
from seqrt.runtime.images import prepare, read_image
from seqrt.runtime.recognizer import load
from seqrt.runtime.solver import load as load_solver

ADAPTER = Path(__file__).resolve().parents[2] / "tools/zoo/smollm2-135m-lud"
HIDDEN, LAYERS, PROJECTIONS = 576, 30, 7


def test_the_adapter_is_whole_and_small() -> None:
    assert sum(file.stat().st_size for file in ADAPTER.iterdir()) < 20e6
    settings = json.loads((ADAPTER / "lud.json").read_text())
    rank = json.loads((ADAPTER / "adapter_config.json").read_text())["r"]
    assert settings["lookahead"] >= 2
    assert 0 < settings["beta"] <= 1
    learnt = Safetensors([ADAPTER / "lud.safetensors"]).entries
    assert {name: entry.shape for name, entry in learnt.items()} == {
        "pad_embedding": (HIDDEN,),
        "base_norm": (HIDDEN,),
    }
    lora = Safetensors([ADAPTER / "adapter_model.safetensors"]).entries
    assert len(lora) == LAYERS * PROJECTIONS * 2
    assert all(rank in entry.shape for entry in lora.values())


ZOO = ADAPTER.parent
WORDS = Path(__file__).resolve().parents[2] / "src/seqrt/cli/words"
MOST_DIFFERENCE, LARGEST_HALF = 0.02, 65504


def test_the_recogniser_is_whole_and_small() -> None:
    assert sum(file.stat().st_size for file in (ZOO / "cppd-tiny").iterdir()) < 25e6
    read = open_recognizer(ZOO / "cppd-tiny")
    assert (read.kind, read.config.num_classes) == ("cppd", 37)
    assert read.settings is not None
    assert read.settings.recipe == "tv_rgb_bicubic"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recogniser of the zoo for CPUs, and in half precision for RTX cards."""
    bundle = tmp_path_factory.mktemp("zoo") / "cppd-tiny"
    return export_recognizer(ZOO / "cppd-tiny", bundle, targets=("ort", "rtx")).bundle


@pytest.mark.slow
def test_the_recogniser_reads(tiny: Path) -> None:
    """Words in fonts that it never saw, none of which it was trained on."""
    files = sorted(WORDS.glob("*.jpg"))
    with load(tiny) as reader:
        found = reader.recognize(files)
    right = [word for word, file in zip(found, files, strict=True) if word.text == file.stem]
    assert len(right) >= 10, [word.text for word in found]
    assert min(word.confidence for word in right) > 0.5


@pytest.mark.slow
def test_half_precision_reads_the_same(tiny: Path) -> None:
    """On pictures of words: norms, and products that are not scaled, stay within what fp16 holds (A.11)."""
    files = sorted(WORDS.glob("*.jpg"))
    reader = open_bundle(tiny).manifest.reader
    images = np.empty((len(files), 3, *reader.sizes[0]), np.float32)
    for out, file in zip(images, files, strict=True):
        prepare(read_image(file), reader.recipe, reader.sizes[0], out)
    exact, half = (
        np.asarray(run_exact(tiny / f"graphs/{name}.onnx", {"image": images})["probabilities"], np.float32)
        for name in ("recognizer", "recognizer.rtx-fp16")
    )
    assert np.abs(exact - half).max() < MOST_DIFFERENCE
    assert (exact.argmax(2) == half.argmax(2)).mean() > 0.99
    model, seen = open_recognizer(ZOO / "cppd-tiny").model, []
    assert isinstance(model, Cppd)
    for block in [*model.decoder.char_layers, *model.decoder.place_layers, model.decoder.edge]:
        mixer = block.mixer
        mixer.register_forward_hook(lambda mixer, given, _: seen.append(largest_product(mixer, *given)))
    with torch.no_grad():
        model(torch.from_numpy(images))
    assert len(seen) == 5  # two layers of each stream, and the edges
    assert 1 < max(seen) < LARGEST_HALF / 10


def largest_product(mixer: Any, x: torch.Tensor, read: torch.Tensor) -> float:
    """Of queries and keys, before the softmax."""
    key = heads_of(mixer.kv(read).chunk(2, 2)[0])
    return float((heads_of(mixer.q(x)) * mixer.scale @ key.transpose(2, 3)).abs().max())


POINTERS = {"hull": "attention", "tour": "attention", "triangulation": "ptrnet", "permutation": "set"}
Points = npt.NDArray[np.float64]


def test_the_pointer_models_are_whole_and_small() -> None:
    folders = {task: ZOO / f"pointer-{task}" for task in POINTERS}
    assert sum(file.stat().st_size for folder in folders.values() for file in folder.iterdir()) < 10e6
    for task, folder in folders.items():
        found = open_solver(folder)
        assert (found.kind, found.task, found.needs_start) == (POINTERS[task], task, task == "tour")


def shortest(points: Points) -> float:
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(2))
    order = elkai.DistanceMatrix((distances * 1e6).round().astype(int).tolist()).solve_tsp()
    return float(distances[order[:-1], order[1:]].sum())


def triangles(points: Points) -> set[tuple[int, ...]]:
    return {tuple(sorted(three)) for three in Delaunay(points).simplices.tolist()}


RIGHT: dict[str, Callable[[Any, Points], bool]] = {
    "hull": lambda found, points: found.valid and set(found.order) == set(ConvexHull(points).vertices),
    "tour": lambda found, points: found.cost < 1.05 * shortest(points),
    "triangulation": lambda found, points: {tuple(three) for three in found.order} == triangles(points),
    "permutation": lambda found, points: found.order == points[:, 0].argsort().tolist(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "count", "least"),
    [("hull", 20, 0.8), ("tour", 20, 0.8), ("triangulation", 5, 0.4), ("permutation", 5, 0.95)],
)
def test_pointer_models_are_right(task: str, count: int, least: float, tmp_path: Path) -> None:
    """About as often as their cards say, on instances that they never saw."""
    bundle = export_solver(ZOO / f"pointer-{task}", tmp_path / task, sizes=(count,), check=False).bundle
    points = np.random.default_rng(12345).random((60, count, 1 if task == "permutation" else 2))
    with load_solver(bundle, threads=1) as solver:
        found = solver.solve(points)
    assert np.mean([RIGHT[task](answer, where) for answer, where in zip(found, points, strict=True)]) >= least
