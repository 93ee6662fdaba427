"""Recognisers of OpenOCR and PaddleOCR, read and compared with OpenOCR's own modules."""

import json
import pickle
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.exporter import openocr
from tests.exporter.openocr import without_cuda  # noqa: F401  a fixture

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.recognizer import Settings, open_recognizer
from seqrt.graphs.nrtr import Nrtr, NrtrConfig
from seqrt.graphs.svtr import SvtrConfig

pytestmark = pytest.mark.skipif(not openocr.INSTALLED, reason="openocr-python is not installed")

SIZES = {"svtr_base_cppd_ch": (32, 256), "svtr_base_cppd_syn": (32, 100)}
SMALL = {"embed_dim": [64, 96, 128], "depth": [1, 2, 1], "num_heads": [2, 3, 4], "mixer": ["Conv"] * 2 + ["Global"] * 2}


def paddle_names(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same weights as PaddleOCR saves them."""
    saved = {}
    for name, value in state.items():
        array, last = value.numpy(), name.rsplit(".", 2)
        if name.endswith("num_batches_tracked"):
            continue
        if last[-1] == "weight" and array.ndim == 2 and "embed" not in name:
            array = array.T
        name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        name = re.sub("^encoder", "backbone", re.sub("^decoder", "head", name)).replace(
            "edge_decoder.0.", "edge_decoder."
        )
        if name.startswith("head.edge_decoder.mixer.kv."):
            key, own = np.split(array, 2, -1)
            saved[name.replace("mixer.kv", "pv")], saved[name.replace("mixer.kv", "cv")] = key, own
        else:
            name = name.replace("edge_decoder.mixer.proj", "edge_decoder.p_proj")
            saved[name.replace("edge_decoder.mixer.q", "edge_decoder.p")] = array
    saved["head.char_node_decoder.0.normkv.weight"] = np.ones(3, np.float32)  # unused upstream
    return saved


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("config", openocr.CONFIGS)
def test_probabilities_are_those_of_the_authors(config: str, tmp_path: Path) -> None:
    upstream = openocr.shaken(openocr.cppd(config))
    torch.save({"state_dict": upstream.state_dict(), "epoch": 3}, tmp_path / "best.pth")
    read = open_recognizer(tmp_path / "best.pth")
    shape = read.config.encoder
    assert (shape.height, shape.width) == SIZES.get(config, (32, 128))
    for height, width in {(shape.height, shape.width), *([(64, 64), (48, 96)] if config == "svtrv2_cppd" else [])}:
        image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
        with torch.no_grad():
            expected, found, folded = upstream(image), read.model(image), read.model.fold()(image)
        assert expected.amax() > 2 * expected.mean()  # the weights say something
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(folded, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("without_cuda")
def test_images_of_48_rows_are_known_by_their_positions(tmp_path: Path) -> None:
    upstream = openocr.shaken(openocr.cppd("svtr_base_cppd_syn", **SMALL, img_size=[48, 160]))
    torch.save({"state_dict": upstream.state_dict()}, tmp_path / "best.pth")
    read = open_recognizer(tmp_path / "best.pth")
    assert (read.config.encoder.height, read.config.encoder.width) == (48, 160)
    image = torch.rand(2, 3, 48, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(read.model(image), upstream(image), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("without_cuda")
def test_paddle_checkpoints_are_the_same_model(tmp_path: Path) -> None:
    upstream = openocr.shaken(openocr.cppd("svtr_base_cppd_syn", **SMALL))
    with (tmp_path / "best_accuracy.pdparams").open("wb") as file:
        pickle.dump(paddle_names(upstream.state_dict()), file, protocol=2)
    read = open_recognizer(tmp_path / "best_accuracy.pdparams")
    image = torch.rand(2, 3, 32, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(read.model(image), upstream(image), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("without_cuda")
def test_autoregressive_checkpoints_say_what_the_authors_say(tmp_path: Path) -> None:
    upstream = openocr.shaken(openocr.nrtr())
    torch.save(upstream.state_dict(), tmp_path / "best.pth")
    read = open_recognizer(tmp_path / "best.pth")
    assert (read.kind, read.config.num_classes, read.config.num_layers) == ("nrtr", 37, 2)
    image = torch.rand(2, 3, 32, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        expected = upstream(image)
        said = expected.argmax(2)
        before = torch.cat([torch.full((2, 1), 37), said[:, :-1]], 1)
        assert isinstance(read.model, Nrtr)
        logits = read.model.decoder.logits(read.model.encoder(image), before)
    torch.testing.assert_close(logits.softmax(2), expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("without_cuda")
def test_losses_are_those_of_the_authors() -> None:
    upstream: Any = openocr.shaken(openocr.cppd("svtr_base_cppd_syn", **SMALL))
    for part in upstream.modules():
        part.training = isinstance(part, type(upstream.decoder))  # no dropout, no batch statistics
    labels = [[3, 5, 5, 36], [1]]
    padded = torch.full((2, 26), -100)
    node = torch.zeros(2, 37 + 26, dtype=torch.int64)
    for i, label in enumerate(labels):
        padded[i, : len(label) + 1] = torch.tensor([*label, 0])
        node[i, 0] = 1
        for character in label:
            node[i, character] += 1
        node[i, 37 : 37 + len(label) + 1] = 1
    image = torch.rand(2, 3, 32, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs = openocr.part_of("openrec.losses.cppd_loss", "CPPDLoss")(smoothing=True, ignore_index=100)
    target = torch.where(padded < 0, 100, padded)
    with torch.no_grad():
        visual = upstream.encoder(image)
        expected = theirs(upstream.decoder(visual, [None]), [None, target, node])
        model = openocr.ours(upstream)
        found = model.loss(visual, padded)
    assert float(found["edge"]) == pytest.approx(float(expected["loss_edge"]), abs=1e-5)
    assert float(found["count"] + found["reach"]) == pytest.approx(float(expected["loss_node"]), abs=1e-5)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(openocr.cppd("svtr_base_cppd_syn", **SMALL).state_dict())


class TestBadFiles:
    """What is said of files that cannot be read."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("encoder.blocks2.1.norm2.weight"), "encoder.stages.1.1.norm2.weight [96] is missing"),
            (
                lambda s: s.update({"decoder.char_node_decoder.0.mlp.fc1.weight": torch.zeros(7, 128)}),
                "decoder.char_node_decoder.0.mlp.fc1.weight is [7, 128], this configuration needs [512, 128]",
            ),
            (
                lambda s: s.update({"transform.stn.weight": torch.zeros(2)}),
                "transform.stn.weight has no place in a Cppd",
            ),
            (lambda s: s.update({"encoder.pos_embed": torch.zeros(7)}), "no CPPD or NRTR recogniser, or not whole"),
            (lambda s: s["decoder.edge_fc.bias"].fill_(torch.nan), "decoder.edge_fc.bias holds values that are no"),
            (
                lambda s: s.update({"decoder.edge_fc.bias": torch.zeros(37, dtype=torch.int64)}),
                "decoder.edge_fc.bias holds torch.int64, expected floats",
            ),
            (
                lambda s: s.pop("decoder.edge_fc.weight"),
                "or not whole (KeyError: 'decoder.classes.weight')",
            ),
        ],
    )
    def test_the_first_tensor_that_differs_is_named(
        self, state: dict[str, torch.Tensor], change: object, message: str, tmp_path: Path
    ) -> None:
        changed = {name: value.clone() for name, value in state.items()}
        change(changed)  # type: ignore[operator]
        torch.save(changed, tmp_path / "best.pth")
        with pytest.raises(CheckpointError, match=re.escape(message)):
            open_recognizer(tmp_path / "best.pth")

    def test_another_size_is_told_by_the_positions(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(state, tmp_path / "best.pth")
        with pytest.raises(CheckpointError, match=r"encoder.pos_embed is \[1, 200, 64\].*needs \[1, 256, 64\]"):
            open_recognizer(tmp_path / "best.pth", (32, 128))

    @pytest.mark.parametrize("suffix", [".pth", ".pdparams", ".safetensors"])
    def test_damaged_files(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / f"best{suffix}").write_bytes(b"\x80\x02}q\x00.half")
        with pytest.raises(CheckpointError, match=f"best{suffix}"):
            open_recognizer(tmp_path / f"best{suffix}")

    def test_no_code_of_a_pickle_is_run(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "run",))

        (tmp_path / "best.pdparams").write_bytes(pickle.dumps({"a": Attack()}))
        torch.save({"a": Attack()}, tmp_path / "best.pth")
        for suffix in (".pth", ".pdparams"):
            with pytest.raises(CheckpointError, match="holds more than"):
                open_recognizer(tmp_path / f"best{suffix}")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("held", [{0: np.zeros(2)}, {"a": np.array(["b"])}, {"a": np.array([None])}, [1], {}])
    def test_what_paddle_does_not_save(self, held: object, tmp_path: Path) -> None:
        (tmp_path / "best.pdparams").write_bytes(pickle.dumps(held))
        with pytest.raises(CheckpointError, match=r"best\.pdparams holds"):
            open_recognizer(tmp_path / "best.pdparams")

    def test_half_an_edge_decoder(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        saved = paddle_names(state)
        del saved["head.edge_decoder.pv.weight"]
        (tmp_path / "best.pdparams").write_bytes(pickle.dumps(saved))
        with pytest.raises(CheckpointError, match=r"not whole \(KeyError: 'decoder\.edge\.pv\.weight'\)"):
            open_recognizer(tmp_path / "best.pdparams")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "lacks ['characters', 'height', 'recipe', 'width']"),
        ([], "is [], expected an object"),
        (None, "is None, expected an object"),
        ({"height": "32", "width": 64, "recipe": "svtr_bgr_pad", "characters": "ab"}, "height is '32', expected int"),
        (
            {"height": 32, "width": 64, "recipe": "crop", "characters": "ab"},
            "the recipe 'crop' is unknown",
        ),
        ({"height": 32, "width": 64, "recipe": "svtr_bgr_pad", "characters": 5}, "characters is 5, expected str"),
        ({"height": 32, "width": 64, "recipe": "svtr_bgr_pad", "characters": "a\n"}, "hold a space or a new line"),
        ({"height": 30, "width": 64, "recipe": "svtr_bgr_pad", "characters": "ab"}, "images of 30 x 64 are not cut"),
    ],
)
def test_settings_that_are_none(recognizer_source: Path, settings: object, message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(recognizer_source, tmp_path / "reader")
    (folder / "config.json").write_text(json.dumps({"recognizer": settings}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_recognizer(folder)


def test_strides_of_an_autoregressive_recogniser_are_kept(tmp_path: Path) -> None:
    """No tensor of it tells them."""
    encoder = SvtrConfig(
        height=32, width=64, dims=(32, 64, 96), mixers=(("conv",), ("conv",), ("global",)), row_strides=(1, 2)
    )
    made = Nrtr(NrtrConfig(encoder=encoder, num_classes=37, num_layers=1))
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    settings = Settings(height=32, width=64, row_strides=(1, 2), recipe="tv_rgb_bicubic", characters="a" * 36)
    (tmp_path / "config.json").write_text(json.dumps({"recognizer": asdict(settings)}))
    assert open_recognizer(tmp_path).config.encoder == encoder
