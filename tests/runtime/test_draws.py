"""Keyed uniforms: reproducible, uniform, and unrelated across streams and positions."""

from __future__ import annotations

import numpy as np

from seqrt.runtime.draws import ACCEPT, DRAFT, RESIDUAL, TOKEN, uniform


def test_draws_never_change() -> None:
    # SplitMix64 of seed 0 begins 0xE220A8397B1DCDAF; a second writing of it, in numpy's wrapping arithmetic
    def mix(value: int) -> int:
        z = np.array([value % 2**64], np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int((z ^ (z >> np.uint64(31)))[0])

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    for seed, stream, position, index in ((0, 0, 0, 0), (2**64 - 1, 3, 10**6, 7), (42, 1, 5, 0)):
        state = seed
        for key in (stream, position, index):
            state = mix(state + 0x9E3779B97F4A7C15 * (key + 1))
        assert uniform(seed, stream, position, index) == (state >> 11) / 2**53


def test_draws_are_uniform_and_uncorrelated() -> None:
    n = 20_000
    sets = [np.array([uniform(5, stream, i) for i in range(n)]) for stream in (TOKEN, ACCEPT, RESIDUAL, DRAFT)]
    sets += [
        np.array([uniform(seed, TOKEN, 3) for seed in range(n)]),
        np.array([uniform(5, ACCEPT, 3, i) for i in range(n)]),
    ]
    for values in sets:
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.histogram(values, 50, (0, 1))[0]
        assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 95  # chi-squared, 49 degrees: p is about 1e-4
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.03
    correlations = np.corrcoef(sets) - np.eye(len(sets))
    assert np.abs(correlations).max() < 0.03
