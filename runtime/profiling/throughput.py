"""The two figures of llama-bench, under its names: `pp512` for a prompt of 512 tokens, `tg128` for 128 generated ones.

As there, tokens are random, the cache is empty, one run is not counted, and mean and standard deviation are of
tokens per second. Unlike there, runs are spread over the whole profile, so that they see the machine as it changes.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from seqrt.runtime.model import Model
from seqrt.runtime.stream import Generation

REPEATS: Final = 5


class Throughput:
    """Runs of both; a number of tokens of 0 leaves one out.

    Args:
        model: what computes.
        pp: tokens of the prompt, fewer than the bundle's capacity.
        tg: tokens to be generated, likewise.
    """

    def __init__(self, model: Model, pp: int, tg: int) -> None:
        vocabulary = model.bundle.manifest.decoder.vocab_size
        prompt = np.random.default_rng(0).integers(0, vocabulary, max(pp, 1)).tolist()
        self._model = model
        self._tests: dict[str, Callable[[], float]] = {}
        if pp:
            self._tests[f"pp{pp}"] = lambda: pp / self._answer(prompt, 1).seconds["prefill"]
        if tg:
            self._tests[f"tg{tg}"] = lambda: _rate(self._answer(prompt[:1], tg))
        self._rates: dict[str, list[float]] = {name: [] for name in self._tests}

    def warm_up(self) -> None:
        """Runs both without counting."""
        for run in self._tests.values():
            run()

    def once(self) -> None:
        """Runs both."""
        for name, run in self._tests.items():
            self._rates[name].append(run())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`{"test", "tokens_per_second", "stddev", "repeats"}` of tests that ran twice or more."""
        return [
            {
                "test": name,
                "tokens_per_second": round(float(np.mean(rates)), 3),
                "stddev": round(float(np.std(rates, ddof=1)), 3),
                "repeats": len(rates),
            }
            for name, rates in self._rates.items()
            if len(rates) > 1
        ]

    def _answer(self, prompt: list[int], new_tokens: int) -> Generation:
        self._model.forget()
        return self._model.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)


def _rate(answer: Generation) -> float:
    """All tokens by all time: llama-bench's generation starts from one token, as this one does."""
    return answer.new_tokens / (answer.seconds["prefill"] + answer.seconds["decode"])
