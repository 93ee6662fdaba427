"""The two figures of llama-bench, under its names: `pp512` for a prompt of 512 tokens, `tg128` for 128 generated ones.

As there, tokens are random, the cache is empty, one run is not counted, and mean and standard deviation are of
tokens per second.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from seqrt.runtime.model import Model
from seqrt.runtime.stream import Generation

REPEATS: Final = 5


def throughput(model: Model, pp: int, tg: int) -> list[dict[str, Any]]:
    """Rows `{"test", "tokens_per_second", "stddev", "repeats"}`; a number of 0 leaves its row out.

    Args:
        model: what computes.
        pp: tokens of the prompt; what the bundle's capacity does not hold is cut off.
        tg: tokens to be generated; likewise.
    """
    capacity, vocabulary = model.bundle.manifest.capacity, model.bundle.manifest.model.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocabulary, max(min(pp, capacity - 1), 1)).tolist()
    first, count = prompt[:1], min(tg, capacity - 1)
    tests: dict[str, Callable[[], float]] = {}
    if pp:
        tests[f"pp{len(prompt)}"] = lambda: len(prompt) / _answer(model, prompt, 1).seconds["prefill"]
    if tg:
        tests[f"tg{count}"] = lambda: _rate(_answer(model, first, count))
    found = []
    for name, run in tests.items():
        run()
        rates = [run() for _ in range(REPEATS)]
        found.append(
            {
                "test": name,
                "tokens_per_second": round(float(np.mean(rates)), 3),
                "stddev": round(float(np.std(rates, ddof=1)), 3),
                "repeats": REPEATS,
            }
        )
    return found


def _answer(model: Model, prompt: list[int], new_tokens: int) -> Generation:
    model.forget()
    return model.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)


def _rate(answer: Generation) -> float:
    """All tokens by all time: llama-bench's generation starts from one token, as this one does."""
    return answer.new_tokens / (answer.seconds["prefill"] + answer.seconds["decode"])
