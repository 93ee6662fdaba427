"""OpenOCR's own modules, of the package openocr-python: what our recognisers are compared with."""

import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from seqrt.exporter.checkpoints.recognizer import open_recognizer

_SPEC = importlib.util.find_spec("openocr")
INSTALLED = _SPEC is not None and _SPEC.submodule_search_locations is not None
ROOT = Path(next(iter(_SPEC.submodule_search_locations))) if INSTALLED else Path()  # type: ignore[union-attr,arg-type]
CONFIGS = ("svtr_base_cppd", "svtr_base_cppd_ch", "svtr_base_cppd_h8", "svtr_base_cppd_syn", "svtrv2_cppd")
CLASSES = {"svtr_base_cppd": 37, "svtr_base_cppd_ch": 6624, "svtr_base_cppd_syn": 37}  # others 95
_ENCODERS = {"SVTRNet": "encoders.svtrnet", "SVTRv2LNConvTwo33": "encoders.svtrv2_lnconv_two33"}


class Upstream(nn.Module):
    """Encoder and decoder under the names of a checkpoint."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, image: Tensor) -> Tensor:
        visual = self.encoder(image)
        out: Tensor = self.decoder(visual[0] if isinstance(visual, tuple) else visual)
        return out


def part(module: str, name: str) -> Any:
    """A class of OpenOCR, whose modules import one another by names that are no package's."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return getattr(importlib.import_module(f"openrec.modeling.{module}"), name)


def cppd(config: str, **changes: Any) -> Upstream:
    """The recogniser of a shipped configuration."""
    text = (ROOT / "configs/rec/cppd" / f"{config}.yml").read_text(encoding="utf-8")
    shape = yaml.safe_load(text)["Architecture"]
    name = shape["Encoder"].pop("name")
    encoder = part(_ENCODERS[name], name)(**{**shape["Encoder"], **changes})
    dim = changes.get("embed_dim", changes.get("dims", (0, 0, 384)))[-1]
    decoder = part("decoders.cppd_decoder", "CPPDDecoder")
    shape["Decoder"].pop("name")
    if "img_size" in changes:
        shape["Decoder"]["vis_seq"] = changes["img_size"][0] // 16 * changes["img_size"][1] // 4
    return Upstream(encoder, decoder(in_channels=dim, out_channels=CLASSES.get(config, 95), **shape["Decoder"]))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random values everywhere, so that nothing is left at what it starts from."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith(".pe"):  # sines are sines
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
            elif value.ndim < 2:
                value.add_(0.1 * noise)
            else:
                value.add_(0.02 * noise)
    return model.eval()


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's decoder asks for a GPU; on a CPU its tensors stay where they are."""
    monkeypatch.setattr(Tensor, "cuda", lambda self, *_, **__: self)
    monkeypatch.setattr(Tensor, "get_device", lambda self: self.device)


def nrtr() -> Upstream:
    """A small autoregressive recogniser: SVTR's encoder and NRTR's decoder of two layers."""
    encoder = part("encoders.svtrnet", "SVTRNet")(
        img_size=[32, 100],
        embed_dim=[64, 96, 128],
        depth=[1, 2, 1],
        num_heads=[2, 3, 4],
        mixer=["Conv", "Conv", "Global", "Global"],
        local_mixer=[[5, 5]] * 3,
        last_stage=False,
        prenorm=True,
    )
    decoder = part("decoders.nrtr_decoder", "NRTRDecoder")
    return Upstream(encoder, decoder(128, 39, num_encoder_layers=-1, num_decoder_layers=2))


def part_of(module: str, name: str) -> Any:
    """A class of any module of OpenOCR."""
    part("common", "Mlp")
    return getattr(importlib.import_module(module), name)


def ours(upstream: nn.Module) -> Any:
    """The same weights in our module, through our reader."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "best.pth")
        torch.save(upstream.state_dict(), file)
        return open_recognizer(file).model
