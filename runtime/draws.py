"""Random numbers that depend on nothing but the seed and what they decide.

A token's draw is keyed by its position, not by how many draws were made before, so a seed gives the same text
whether tokens are verified one by one or in trees of any shape. The generator is SplitMix64 used as a counter
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): 2 us a draw, where a new
numpy Philox takes 20.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15

# Streams that must be independent of each other: drawing drafts and accepting them by the same numbers
# biases the output, although either alone looks right.
TOKEN = 0  # which token is emitted at a position
ACCEPT = 1  # whether draft `index` at a position is accepted
RESIDUAL = 2  # the token drawn after every draft at a position was rejected
DRAFT = 3  # for drafters that sample what they propose


def _mix(value: int) -> int:
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, stream: int, position: int, index: int = 0) -> float:
    """A number in [0, 1) that depends on all four arguments and on nothing else.

    Args:
        seed: from 0 to 2**64 - 1.
        stream: TOKEN, ACCEPT, RESIDUAL or DRAFT.
        position: position in the sequence of the token that is decided.
        index: tells several draws at one position apart.
    """
    state = _mix(seed + _GAMMA * (stream + 1))
    state = _mix(state + _GAMMA * (position + 1))
    state = _mix(state + _GAMMA * (index + 1))
    return (state >> 11) * 2.0**-53
