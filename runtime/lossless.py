"""Whether a drafted answer is the plain one; seqrt's central promise, under greedy decoding."""

from dataclasses import dataclass
from typing import Final

from seqrt.runtime.stream import Generation

TIE: Final = 1e-3  # nats: kernels that sum in another order may swap two tokens that lie closer


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where a drafted answer leaves the plain one.

    Attributes:
        position: index of the token.
        expected: the plain run's token, None where that run had ended.
        got: the drafted run's token, None where that run had ended.
        margin: log-probability between the plain run's best two tokens there, None where it had ended.
    """

    position: int
    expected: int | None
    got: int | None
    margin: float | None

    @property
    def is_tie(self) -> bool:
        """The plain run itself could hardly tell the two tokens apart."""
        return self.margin is not None and self.margin <= TIE


def divergence(plain: Generation, drafted: Generation) -> Divergence | None:
    """The first difference of two greedy answers to the same prompt, None when they are the same.

    Args:
        plain: without drafting, and with `log_probabilities`: margins are recorded only then.
        drafted: with a drafter.
    """
    left, right = plain.token_ids, drafted.token_ids
    if left == right:
        return None
    shorter = min(len(left), len(right))
    position = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    return Divergence(
        position=position,
        expected=left[position] if position < len(left) else None,
        got=right[position] if position < len(right) else None,
        margin=plain.trace.margins[position] if position < len(left) else None,
    )
