"""For all tests: numerical accidents are errors, hypothesis has one profile, and there are two tiny recognisers."""

import json
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Underflow is how probabilities of impossible tokens become zero.
np.seterr(divide="raise", invalid="raise", over="raise")

# No deadline: a busy machine is no fault of the code. In CI the same examples come every time.
hypothesis.settings.register_profile("seqrt", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("seqrt")

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_recognizer(folder: Path, kind: str, seed: int = 0) -> Path:
    """A tiny recogniser with random weights, in seqrt's own layout, that says something else of each image."""
    import torch
    from safetensors.torch import save_file

    from seqrt.graphs.cppd import Cppd, CppdConfig
    from seqrt.graphs.nrtr import Nrtr, NrtrConfig
    from seqrt.graphs.svtr import SvtrConfig

    torch.manual_seed(seed)
    encoder = SvtrConfig(
        height=32, width=64, dims=(32, 64, 96), mixers=(("conv",), ("conv", "global"), ("global",)), row_strides=(2, 2)
    )
    model = (
        Cppd(CppdConfig(encoder=encoder, num_classes=37, num_layers=2))
        if kind == "cppd"
        else Nrtr(NrtrConfig(encoder=encoder, num_classes=37, num_layers=2))
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "embedding" not in name and "positions" not in name:
                value.mul_(4)  # at rest, a recogniser says the same of every image
        model.decoder.classes.weight[:, 0] += 0.6  # words end
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    settings = {"height": 32, "width": 64, "recipe": "tv_rgb_bicubic", "characters": LETTERS}
    (folder / "config.json").write_text(json.dumps({"recognizer": settings}))
    return folder


@pytest.fixture(scope="session")
def recognizer_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPPD in seqrt's own layout."""
    return write_recognizer(tmp_path_factory.mktemp("recognizers") / "reader", "cppd")


@pytest.fixture(scope="session")
def recognizer_bundle(recognizer_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    from seqrt.exporter.recognizer import export_recognizer

    return export_recognizer(recognizer_source, tmp_path_factory.mktemp("bundles") / "reader").bundle


@pytest.fixture(scope="session")
def speller_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoregressive recogniser in seqrt's own layout."""
    return write_recognizer(tmp_path_factory.mktemp("recognizers") / "speller", "nrtr")


@pytest.fixture(scope="session")
def speller_bundle(speller_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    from seqrt.exporter.recognizer import export_recognizer

    return export_recognizer(speller_source, tmp_path_factory.mktemp("bundles") / "speller").bundle


@pytest.fixture(scope="session")
def word_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine pictures of different sizes."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("words"), np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(9)]
    for i, file in enumerate(files):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 8, 3), np.uint8))
        coarse.resize((40 + 20 * i, 20 + 5 * i), Image.Resampling.BICUBIC).save(file)
    return files


def write_solver(folder: Path, kind: str, task: str, seed: int = 0) -> Path:
    """A tiny pointer model with random weights, in seqrt's own layout."""
    import torch
    from safetensors.torch import save_file

    from seqrt.graphs.attention_model import AttentionModel, AttentionModelConfig
    from seqrt.graphs.ptrnet import PtrNet, PtrNetConfig
    from seqrt.graphs.read_process_write import ReadProcessWrite, SetConfig

    torch.manual_seed(seed)
    settings: dict[str, object] = {"kind": kind, "task": task}
    if kind == "attention":
        config = AttentionModelConfig(dim=32, num_heads=4, ffn_dim=48, num_layers=2, norm="instance")
        model: torch.nn.Module = AttentionModel(config)
        settings |= {"num_heads": 4, "norm": "instance", "clip": 10.0}
    elif kind == "set":
        model = ReadProcessWrite(SetConfig(dim=16, num_process=3))
        settings |= {"num_process": 3}
    else:
        model = PtrNet(PtrNetConfig(dim=16))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"solver": settings}))
    return folder


@pytest.fixture(scope="session")
def solver_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of tiny pointer models by task, for up to 10 points; of tours for up to 6 too."""
    from seqrt.exporter.solver import export_solver

    folder = tmp_path_factory.mktemp("solvers")
    kinds = {"tour": "attention", "hull": "ptrnet", "triangulation": "ptrnet", "permutation": "set"}
    return {
        task: export_solver(
            write_solver(folder / task, kind, task),
            folder / f"{task}-bundle",
            sizes=(6, 10) if task == "tour" else (10,),
            check=False,
        ).bundle
        for task, kind in kinds.items()
    }
