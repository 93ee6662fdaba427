"""A decoder of the 1B class with random weights, for timings that need no sense: a bundle in fp16.

    python -m tools.gpu.synthetic DIR [--target ort --target rtx] [--layers 16] [--hidden 2048] [--vocab 128256]

Sizes are those of Llama 3.2 1B unless said otherwise. It takes about 12 GB of memory and 5 GB of disk.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from seqrt.exporter.export import export

_HEAD = 64


def make(bundle: Path, targets: Sequence[str], layers: int, hidden: int, vocab: int, capacity: int) -> Path:
    """Exports a random Llama with heads of 64 and four query heads a key head."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // _HEAD,
        num_key_value_heads=max(hidden // _HEAD // 4, 1),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype=torch.float16,
    )
    with tempfile.TemporaryDirectory(dir=bundle.parent) as source:
        transformers.LlamaForCausalLM(config).half().save_pretrained(source)
        export(Path(source), bundle, targets=targets, dtypes=("fp16",), capacity=capacity, check=False, force=True)
    return bundle


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", action="append")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--capacity", type=int, default=2048)
    chosen = parser.parse_args(arguments)
    targets = chosen.target or ["ort", "rtx"]
    print(make(chosen.bundle, targets, chosen.layers, chosen.hidden, chosen.vocab, chosen.capacity))


if __name__ == "__main__":
    main()
