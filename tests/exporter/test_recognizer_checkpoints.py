"""Recognisers of OpenOCR and PaddleOCR, read and compared with OpenOCR's own modules."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exporter import openocr
from tests.exporter.openocr import without_cuda  # noqa: F401  a fixture

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.recognizer import open_recognizer
from seqrt.graphs.nrtr import Nrtr

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
            (lambda s: s.pop("encoder.blocks2.1.norm2.weight"), "lacks encoder.stages.1.1.norm2.weight, [96]"),
            (
                lambda s: s.update({"decoder.char_node_decoder.0.mlp.fc1.weight": torch.zeros(7, 128)}),
                "has decoder.char_node_decoder.0.mlp.fc1.weight of [128, 7], this configuration needs [128, 512]",
            ),
            (
                lambda s: s.update({"transform.stn.weight": torch.zeros(2)}),
                "has transform.stn.weight, which",
            ),
            (lambda s: s.pop("decoder.edge_fc.weight"), "lacks 'decoder.classes.weight'"),
        ],
    )
    def test_the_first_tensor_that_differs_is_named(
        self, state: dict[str, torch.Tensor], change: object, message: str, tmp_path: Path
    ) -> None:
        changed = dict(state)
        change(changed)  # type: ignore[operator]
        torch.save(changed, tmp_path / "best.pth")
        with pytest.raises(CheckpointError, match=re.escape(message)):
            open_recognizer(tmp_path / "best.pth")

    def test_another_size_is_told_by_the_positions(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(state, tmp_path / "best.pth")
        with pytest.raises(CheckpointError, match=r"encoder.pos_embed of \[1, 200, 64\].*needs \[1, 256, 64\]"):
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

        for suffix in (".pth", ".pdparams"):
            (tmp_path / f"best{suffix}").write_bytes(pickle.dumps({"a": Attack()}))
            with pytest.raises(CheckpointError, match="holds more than"):
                open_recognizer(tmp_path / f"best{suffix}")
        assert not (tmp_path / "run").exists()
