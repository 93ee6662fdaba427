"""What the source model itself says of a text, by torch in float32: the measure of a quantised bundle."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.exporter.checkpoints import Checkpoint
from seqrt.exporter.weights import DecoderWeights, load_decoder
from seqrt.graphs.decoder import Decoder

_ROWS: Final = 256


def reference_scores(
    source: Checkpoint, token_ids: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores a text of N tokens under the source model, as `Model.score` does under a bundle.

    Args:
        source: the opened model.
        token_ids: at least two, no more than the model has positions.

    Returns:
        Log-probability of each token after the first given those before, and the most probable token at each
        of these places; `[N - 1]` both.
    """
    decoder = load_decoder(DecoderWeights(source))
    following = torch.tensor(token_ids[1:])
    log_probabilities, top1 = [], []
    with torch.inference_mode():
        for start, hidden in _hidden_states(decoder, token_ids[:-1]):
            logits = torch.log_softmax(decoder.readout.head(hidden).double(), -1)
            expected = following[start : start + len(hidden), None]
            log_probabilities.append(torch.gather(logits, 1, expected)[:, 0].numpy())
            top1.append(logits.argmax(-1).numpy())
    return np.concatenate(log_probabilities), np.concatenate(top1)


def _hidden_states(decoder: Decoder, token_ids: Sequence[int]) -> list[tuple[int, torch.Tensor]]:
    """Final hidden states of a text, in chunks: index of the first row, and `[rows, H]`."""
    config, tokens = decoder.config, torch.tensor(token_ids)
    shape = (1, config.num_kv_heads, len(tokens), config.head_dim)
    past = [(torch.zeros(shape), torch.zeros(shape)) for _ in config.layer_kinds]
    chunks: list[tuple[int, torch.Tensor]] = []
    for start in range(0, len(tokens), _ROWS):
        chunk = tokens[None, start : start + _ROWS]
        rows = torch.arange(chunk.shape[1])
        mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        *_, hidden, past = decoder(chunk, mask, rows, torch.tensor([start]), rows[-1:], past)
        chunks.append((start, hidden))
    return chunks
