"""seqrt itself.

Options: bundle (folder), draft, threads.
"""

import time
from typing import Any

import numpy as np
from tools.bench.peers.worker import Generation

import seqrt


class Seqrt:
    """One loaded bundle with one drafter."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.draft = options["draft"]
        self.version = f"seqrt {seqrt.__version__}"
        self.model = seqrt.load(options["bundle"], threads=options["threads"])

    def generate(self, token_ids: list[int], max_new_tokens: int) -> Generation:
        """Decode greedily; whatever is not prefill counts as decoding."""
        self.model.forget()  # the other peers start from an empty cache too
        start_s = time.perf_counter()
        result = self.model.generate(token_ids, draft=self.draft, max_new_tokens=max_new_tokens, raw=True)
        total_s = time.perf_counter() - start_s
        return Generation([int(token) for token in result.token_ids], result.seconds["prefill"], total_s)

    def score(self, token_ids: list[int]) -> float:
        """Score with the bundle's own scoring."""
        return -float(np.mean(self.model.score(token_ids).log_probabilities))


def load(options: dict[str, Any]) -> Seqrt:
    """Load the peer."""
    return Seqrt(options)
