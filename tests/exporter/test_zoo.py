"""The adapter of lexical units that comes with seqrt."""

import json
from pathlib import Path

from seqrt.exporter.checkpoints.reading import Safetensors

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
