"""Merge an adapter of lexical units into its base: a checkpoint that plain transformers can load.

    python -m tools.lud.merge --base MODEL.gguf --adapter ADAPTER --out CHECKPOINT

PAD becomes the token `<|lud_pad|>`, the next that the tokenizer has no word for. PEFT does the merging, not the code of
`seqrt export --lud`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tools.lud.model import UnitModel, load

from seqrt.exporter.checkpoints.lud import SAME_NORM

PAD: Final = "<|lud_pad|>"


def merged(model: UnitModel, adapter: Path, pad: int) -> Any:
    """The decoder of `model`, which has no LoRA of its own, with the adapter's, and PAD as its token `pad`.

    Raises:
        ValueError: The adapter holds no LoRA, or no embedding of PAD.
    """
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} has no adapter_config.json; give what tools.lud.train wrote with a rank above 0")
    learnt = load_file(adapter / "lud.safetensors")
    if "pad_embedding" not in learnt or "base_norm" not in learnt:
        raise ValueError(f"{adapter / 'lud.safetensors'} has no pad_embedding or base_norm; train the adapter again")
    norm, own = learnt["base_norm"], model.final_norm()
    if norm.shape != own.shape or (norm - own).abs().max() > SAME_NORM * norm.abs().max():
        raise ValueError(
            f"{adapter} is for another base: its final norm is another; give the base that it was trained on"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by names that are about to change
        decoder = PeftModel.from_pretrained(model.decoder, adapter).merge_and_unload()
    if pad >= model.pad:
        decoder.resize_token_embeddings(pad + 1, mean_resizing=False)
    table, output = decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight
    with torch.no_grad():
        table[pad] = learnt["pad_embedding"]
        if output is not table:  # as improbable as the token that begins a text, and behind it among equals
            output[pad] = output[decoder.config.bos_token_id or 0]
    return decoder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file or Hugging Face directory")
    parser.add_argument("--adapter", type=Path, required=True, help="what tools.lud.train wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not (options.adapter / "lud.json").is_file():
        raise ValueError(f"{options.adapter} has no lud.json; give what tools.lud.train wrote")
    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} exists and is not empty; give a new folder")
    model, tokenizer = load(options.base, None, torch.float32)
    tokenizer.add_special_tokens({"additional_special_tokens": [PAD]})
    pad = tokenizer.convert_tokens_to_ids(PAD)
    merged(model, options.adapter, pad).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    settings = json.loads((options.adapter / "lud.json").read_text(encoding="utf-8"))
    (options.out / "lud.json").write_text(
        json.dumps({**settings, "pad_token_id": pad}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"{options.out}: PAD is token {pad}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"merge: {error}") from error
