"""Pacing on simulated steps: known costs and acceptances, and a clock that is a sum."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from seqrt.runtime.pacing import Pacer, StepCosts

MAX_ROWS = 16
NOISE = 0.05  # of the measured times, relative

Rate = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Machine:
    """A step of T rows takes 1 + per_row (T - 1), a draft takes `draft`; a plain token takes 1.

    Other processes add to each time a share of it, exponentially distributed with mean `busy`.
    """

    per_row: float
    draft: float = 0.0
    busy: float = 0.0

    def cost(self, rows: int) -> float:
        return 1 + self.per_row * (rows - 1)

    def best_fixed(self, acceptance: float) -> float:
        """Tokens per unit of time with the best fixed length of drafted chains, or without drafting."""
        rates = [1.0]
        for rows in range(2, MAX_ROWS + 1):
            emitted = sum(acceptance**depth for depth in range(rows))
            rates.append(emitted / (self.cost(rows) + self.draft))
        return max(rates)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Steps of a run: rows of each, and place in the text and clock at its end."""

    rows: list[int]
    places: list[int]
    clock: list[float]

    def rate(self, start: int = 0, end: int | None = None) -> float:
        """Tokens per unit of time between two places in the text."""
        first = next(i for i, place in enumerate(self.places) if place > start)
        last = len(self.places) - 1 if end is None else next(i for i, p in enumerate(self.places) if p >= end)
        return (self.places[last] - self.places[first]) / (self.clock[last] - self.clock[first])


def simulate(
    machine: Machine,
    acceptance: Rate,
    estimate: Rate,
    *,
    tokens: int = 2000,
    seed: int = 0,
    pacer: Pacer | None = None,
) -> Outcome:
    """Chains whose tokens are accepted with probability `acceptance(place in the text)` each."""
    rng, pacer = np.random.default_rng(seed), pacer or Pacer(MAX_ROWS)
    outcome, place, clock = Outcome([], [], []), 0, 0.0
    while place < tokens:
        rows, total, drafted = 1, 0.0, pacer.drafts()
        if drafted:
            probability = np.power(estimate(place), np.arange(MAX_ROWS), dtype=np.float64)
            rows, total = pacer.choose(probability), machine.draft
        noise = NOISE * float(rng.standard_normal()) + machine.busy * float(rng.standard_exponential())
        seconds = machine.cost(rows) * (1 + noise)
        total += seconds
        accepted = 0
        while accepted < rows - 1 and rng.random() < acceptance(place):
            accepted += 1
        pacer.record(rows, accepted + 1, seconds, total, drafted=drafted)
        place, clock = place + accepted + 1, clock + total
        outcome.rows.append(rows)
        outcome.places.append(place)
        outcome.clock.append(clock)
    return outcome


def always(value: float) -> Rate:
    return lambda place: value


MACHINES = [Machine(per_row, draft) for per_row in (0.01, 0.12, 0.3, 0.6) for draft in (0.0, 0.05)]


@pytest.mark.parametrize("machine", MACHINES, ids=repr)
@pytest.mark.parametrize("acceptance", [0.0, 0.1, 0.3, 0.6, 0.9, 0.98])
def test_honest_estimates_never_lose_and_come_near_the_best_fixed_length(machine: Machine, acceptance: float) -> None:
    rates = [simulate(machine, always(acceptance), always(acceptance), seed=seed).rate() for seed in range(3)]
    assert min(rates) > 0.98
    assert min(rates) > 0.86 * machine.best_fixed(acceptance)


@pytest.mark.parametrize("machine", MACHINES, ids=repr)
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6])
def test_a_drafter_that_boasts_costs_little(machine: Machine, acceptance: float) -> None:
    """It claims 0.8 and never learns: only the pauses protect."""
    assert simulate(machine, always(acceptance), always(0.8), tokens=4000).rate() > 0.93


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("machine", MACHINES, ids=repr)
def test_a_slow_first_step_is_forgotten(machine: Machine, acceptance: float) -> None:
    """The first plain step of a process is slower than all others; drafting must not be judged by it for long."""
    pacer = Pacer(MAX_ROWS, seconds=StepCosts({1: 3.0}))
    outcome = simulate(machine, always(acceptance), always(acceptance), pacer=pacer)
    assert outcome.rate(1000) > 0.98
    assert outcome.rate(1000) > 0.86 * machine.best_fixed(acceptance)


@pytest.mark.parametrize("per_row", [0.05, 0.12])
def test_a_busy_machine_does_not_stop_drafts_that_pay(per_row: float) -> None:
    """What adds to all times alike must not count against the steps that are drafted."""
    machine = Machine(per_row, 0.02, busy=0.3)
    rates = [simulate(machine, always(0.3), always(0.3), seed=seed).rate() for seed in range(4)]
    assert np.mean(rates) * (1 + machine.busy) > 0.935 * machine.best_fixed(0.3)


def test_plain_steps_are_measured_even_if_every_step_is_drafted() -> None:
    """A drafter that always has something to say, on a fresh pacer."""
    outcome = simulate(Machine(0.01), always(0.9), always(0.9), tokens=500)
    assert outcome.rows[0] == 1
    assert max(outcome.rows[:6]) > 2


@pytest.mark.parametrize(("estimate", "least"), [(None, 0.98), (0.9, 0.8)])
def test_drafting_pauses_and_recovers_when_the_text_turns(estimate: float | None, least: float) -> None:
    """Prose, then a copied passage, then prose again; the drafter knows (None), or promises 0.9 throughout."""

    def acceptance(place: int) -> float:
        return 0.9 if 1000 <= place < 3000 else 0.02

    machine = Machine(0.3)
    outcome = simulate(machine, acceptance, acceptance if estimate is None else always(estimate), tokens=4000)
    prose = [rows for rows, place in zip(outcome.rows, outcome.places, strict=True) if place < 1000]
    assert np.mean(np.array(prose) > 1) < 0.2
    assert outcome.rate(0, 1000) > least
    assert outcome.rate(1500, 3000) > 0.8 * machine.best_fixed(0.9)
    assert outcome.rate(3100, 4000) > least


def test_pauses_grow_and_end() -> None:
    pacer, asked = Pacer(MAX_ROWS, seconds=StepCosts({1: 1.0})), []
    for _ in range(1000):
        drafts = pacer.drafts()
        asked.append(drafts)
        pacer.record(2 if drafts else 1, 1, 1.5 if drafts else 1.0, 1.5 if drafts else 1.0, drafted=drafts)
    switches = np.flatnonzero(np.diff(np.array(asked, int)))
    assert np.diff([-1, *switches]).tolist() == [12, 24, 12, 48, 12, 96, 12, 192, 12, 384, 12]


def test_what_is_not_adaptive_verifies_everything() -> None:
    pacer = Pacer(8, adaptive=False)
    for _ in range(50):
        assert pacer.drafts()
        assert pacer.choose(np.full(20, 1e-3)) == 8
        assert pacer.choose(np.ones(3)) == 3
        pacer.record(8, 1, 9.0, 9.0, drafted=True)


def test_costs_of_steps_that_are_measured_more_often_are_no_lower() -> None:
    """Plain steps while drafting pauses, against drafted steps while it does not: both vary alike."""
    rng, costs = np.random.default_rng(0), StepCosts()
    often, seldom = [], []
    for step in range(20_000):
        costs.add(1, 1 + 0.2 * float(rng.standard_exponential()))
        often.append(costs[1])
        if step % 40 == 0:
            costs.add(2, 1 + 0.2 * float(rng.standard_exponential()))
            seldom.append(costs[2])
    assert np.mean(often) == pytest.approx(np.mean(seldom), rel=0.03)


def test_a_size_that_was_measured_in_a_bad_moment_is_tried_again() -> None:
    pacer = Pacer(4, seconds=StepCosts({1: 1.0, 2: 1.9, 4: 3.0}))
    assert pacer.choose(np.array([1.0, 0.5])) == 1
    for _ in range(40):
        pacer.begin()
        pacer.record(1, 1, 1.0, 1.0, drafted=False)
    assert pacer.choose(np.array([1.0, 0.5])) == 2
    assert pacer.cost(4) == 3.0  # to try many rows in vain would cost too much
    for _ in range(9):
        pacer.record(2, 1, 1.2, 1.2, drafted=False)
    pacer.begin()  # measured in the last text: it stays
    assert pacer.cost(2) == pytest.approx(1.2, abs=0.1)


def test_a_new_request_gets_its_chance_soon() -> None:
    """Drafts of one text never came true; those of the next always do."""
    pacer = Pacer(MAX_ROWS, seconds=StepCosts({1: 1.0}))
    simulate(Machine(0.1, 0.05), always(0.0), always(0.5), pacer=pacer)
    pacer.begin()
    outcome = simulate(Machine(0.1, 0.05), always(0.9), always(0.9), pacer=pacer, tokens=200)
    assert next(place for rows, place in zip(outcome.rows, outcome.places, strict=True) if rows > 1) < 50
    for _ in range(30):  # and what never comes true costs every short request little
        pacer.begin()
        outcome = simulate(Machine(0.1, 0.05), always(0.0), always(0.5), pacer=pacer, tokens=64)
    assert np.mean(np.array(outcome.rows) > 1) < 0.3


def test_prices_are_what_further_rows_cost() -> None:
    pacer = Pacer(4, seconds=StepCosts({1: 2.0, 2: 2.5, 3: 3.5, 4: 3.0}))
    assert pacer.prices == pytest.approx([0.25, 0.5, 0.0])  # at a token in two seconds
    assert Pacer(4).prices == ()
    assert Pacer(4, adaptive=False, seconds=StepCosts({1: 2.0})).prices == ()
    pacer.record(2, 1, 2.1, 2.1, drafted=False)
    assert pacer.prices[0] == pytest.approx(0.05)


def test_at_most_max_rows() -> None:
    pacer = Pacer(5, seconds=StepCosts({1: 1.0}))
    assert pacer.choose(np.ones(64)) == 5
    assert pacer.choose(np.ones(1)) == 1


def test_costs_between_and_beyond_what_was_measured() -> None:
    pacer = Pacer(64, seconds=StepCosts({1: 1.0, 3: 1.6, 7: 2.0}))
    assert pacer.cost(3) == 1.6
    assert pacer.cost(2) == pytest.approx(1.3)
    assert pacer.cost(5) == pytest.approx(1.8)
    assert pacer.cost(13) == pytest.approx(2.0 + 6 * (2.0 - 1.0) / 6)
    assert Pacer(64, seconds=StepCosts({4: 2.0})).cost(2) == 2.0


def test_an_outlier_counts_little() -> None:
    pacer = Pacer(64, seconds=StepCosts({1: 1.0}))
    pacer.record(1, 1, 100.0, 100.0, drafted=False)
    assert pacer.seconds[1] <= 1.1
    for _ in range(20):
        pacer.record(1, 1, 1.0, 1.0, drafted=False)
    assert pacer.seconds[1] == pytest.approx(1.0, abs=1e-3)
