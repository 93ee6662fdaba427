"""What heads learn from: the base's hidden states over its own answers, and the tokens that followed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tools.train import states
from tools.train.answers import Answer
from tools.train.base import Llama
from tools.train.states import Array
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

CHUNK = 128
"""Answers in a file."""

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Positions at which a head may be asked, one for each answer token.

    Attributes:
        hidden: Post-norm states ``[N, H]`` float16 at the position before each answer token.
        tokens: The answer token that follows each position ``[N]``.
        future: Tokens after that: ``[N, K]``, what head k should say, -1 beyond the answer's end.
    """

    hidden: Tensor
    tokens: Tensor
    future: Tensor

    def path(self, part: Tensor, head: int, embedding: Tensor) -> Tensor:
        """Embeddings ``[N, head + 1, H]`` of the tokens between positions ``part`` and what ``head`` should say."""
        tokens = torch.cat((self.tokens[part, None], self.future[part, :head]), dim=1)
        return embedding[tokens.clamp(min=0)].float()

    def teacher(self, part: Tensor, head: int) -> Tensor:
        """States ``[N, H]`` in which the base said what ``head`` should say after positions ``part``."""
        return self.hidden[part + 1 + head].float()


def is_held_out(answer: Answer, fraction: float) -> bool:
    """Whether an answer's prompt is kept out of training; the turns of one conversation stay together."""
    return zlib.crc32(answer.id.encode()) % 1000 < fraction * 1000


def build(model: Llama, answers: Sequence[Answer], folder: Path) -> None:
    """Compute the states that ``folder`` does not hold yet (see :mod:`tools.train.states`)."""
    known = states.keys(folder)
    missing = [answer for answer in answers if answer.key not in known]
    starts = range(0, len(missing), CHUNK)
    for start in tqdm(starts, desc="hidden states", unit="file", disable=not missing):
        group = missing[start : start + CHUNK]
        states.save(folder, [answer.key for answer in group], hidden_states(model, group))


def hidden_states(model: Llama, answers: Sequence[Answer]) -> list[Array]:
    """For each answer, the states ``[prompt + answer - 1, H]`` (float16) of all rows that it was computed from."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].prompt) + len(answers[i].answer))
    found: dict[int, Array] = {}
    while order:
        longest = len(answers[order[-1]].prompt) + len(answers[order[-1]].answer)
        batch = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // longest)))]
        texts = [[*answers[i].prompt, *answers[i].answer[:-1]] for i in batch]
        width = max(map(len, texts))
        padding = torch.tensor([width - len(text) for text in texts])
        ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
        hidden = model.hidden(ids, padding, model.cache(len(batch), width), 0).to(torch.float16).numpy()
        for row, i in enumerate(batch):
            found[i] = hidden[row, width - len(texts[row]) :].copy()
    return [found[i] for i in range(len(answers))]


def load(
    answers: Sequence[Answer],
    folder: Path,
    num_heads: int,
    prefix: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
) -> Rows:
    """The rows of ``answers``, whose states are all in ``folder``; ``prefix`` maps those of whole texts to others."""
    hidden = texts(answers, folder)
    if prefix is not None:
        hidden = list(prefix(hidden))
    tokens = [torch.tensor(answer.answer) for answer in answers]
    return Rows(
        torch.cat([rows[-len(each) :] for rows, each in zip(hidden, tokens, strict=True)]),
        torch.cat(tokens),
        torch.cat([later_tokens(each, num_heads) for each in tokens]),
    )


def texts(answers: Sequence[Answer], folder: Path) -> list[Tensor]:
    """The states ``[prompt + answer - 1, H]`` of each answer's text, all of which are in ``folder``.

    Raises:
        ValueError: Some are of another length: the answers were made again, or by an older version.
    """
    wanted = {answer.key for answer in answers}
    found = {key: torch.from_numpy(each) for key, each in states.read(folder) if key in wanted}
    for answer in answers:
        if len(found[answer.key]) != len(answer.prompt) + len(answer.answer) - 1:
            raise ValueError(f"{folder} holds states of another text for {answer.key}; delete the folder")
    return [found[answer.key] for answer in answers]


def later_tokens(answer: Tensor, num_heads: int) -> Tensor:
    """``[A]`` -> ``[A, K]``: head k, before token r, should say token r + 1 + k; -1 past the end."""
    padded = torch.cat((answer, torch.full((num_heads,), -1)))
    return torch.stack([padded[1 + k : 1 + k + len(answer)] for k in range(num_heads)], dim=1)
