"""Probes: at each moment one stage, whatever is told; and what listening costs."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime import probe as module
from seqrt.runtime.model import Model
from seqrt.runtime.probe import OFF, Probe, Recorder, Timeline, nvtx_ranges

STEPS = 20_000
MICROSECONDS = 10.0  # 1 % of a step of a millisecond, which few models reach


def told(clock: list[float], monkeypatch: pytest.MonkeyPatch, *events: tuple[float, str, str]) -> Timeline:
    """What a recorder makes of (time, method, argument) events."""
    recorder = Recorder()
    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    for time, method, *arguments in events:
        clock[0] = time
        getattr(recorder, method)(*filter(None, arguments))
    return recorder.take()


def test_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = told(
        [0.0],
        monkeypatch,
        (1.0, "stage", "prefill"),
        (1.1, "enter", "decoder"),
        (1.9, "leave", ""),
        (2.0, "stage", "sample"),
        (2.5, "step", "draft"),
        (3.0, "stage", "verify"),
        (3.1, "enter", "decoder"),
        (3.9, "leave", ""),
        (4.0, "step", "draft"),
        (4.25, "stage", "verify"),
        (5.0, "end", ""),
    )
    assert [(stage.name, stage.seconds, stage.step) for stage in timeline.stages] == [
        ("prefill", 1.0, 0),
        ("sample", 0.5, 0),
        ("draft", 0.5, 1),
        ("verify", 1.0, 1),
        ("draft", 0.25, 2),
        ("verify", 0.75, 2),
    ]
    assert [(run.name, run.step) for run in timeline.runs] == [("decoder", 0), ("decoder", 1)]
    assert (timeline.start, timeline.seconds) == (1.0, 4.0)
    assert timeline.totals == {"prefill": 1.0, "sample": 0.5, "draft": 0.75, "verify": 1.75}
    assert timeline.engine_seconds == pytest.approx(1.6)
    assert timeline.until("verify") == 2.0
    assert timeline.until("commit") is None
    np.testing.assert_allclose(timeline.of_steps(), [1.5, 1.0])
    np.testing.assert_allclose(timeline.of_steps("draft"), [0.5, 0.25])
    np.testing.assert_allclose(timeline.of_steps("prefill"), [0, 0])
    np.testing.assert_allclose(timeline.engines_of_steps(), [0.8, 0])


@given(st.lists(st.sampled_from(["stage a", "stage b", "step a", "enter e", "leave", "end"]), min_size=1))
def test_stages_fill_the_request(events: list[str]) -> None:
    """Whatever is told, in whatever order: no gap while a request is under way, no overlap, steps that only rise."""
    ranges = Ranges()
    recorder = Recorder(ranges)
    recorder.stage("first")
    for event in events:
        method, _, argument = event.partition(" ")
        getattr(recorder, method)(*([argument] if argument else []))
    timeline = recorder.take()
    stages = timeline.stages
    assert math.fsum(timeline.totals.values()) == pytest.approx(math.fsum(stage.seconds for stage in stages))
    assert all(before.end <= after.start for before, after in pairwise(stages))
    if "end" not in events:
        assert all(before.end == after.start for before, after in pairwise(stages))
        assert math.fsum(timeline.totals.values()) == pytest.approx(timeline.seconds)
    steps = [stage.step for stage in stages]
    assert steps == sorted(steps)
    assert steps[-1] == sum(event.startswith("step") for event in events)
    assert len(timeline.of_steps()) == steps[-1]
    assert all(run.seconds >= 0 for run in timeline.runs)
    with pytest.raises(ValueError, match="no request was recorded"):
        recorder.take()


class Ranges:
    """Stands in for nvtx: ranges must be closed in the order in which they were opened."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.said: list[str] = []

    def push_range(self, name: str, domain: str) -> None:
        assert domain == "seqrt"
        self.open.append(name)
        self.said.append(name)

    def pop_range(self, domain: str) -> None:
        assert domain == "seqrt"
        self.open.pop()


def test_ranges_of_nvtx() -> None:
    ranges = Ranges()
    recorder = Recorder(ranges)
    for name in ("prefill", "sample"):
        recorder.stage(name)
        recorder.enter("decoder")
        assert ranges.open == [name, "decoder"]
        recorder.leave()
    recorder.step("draft")
    assert ranges.open == ["draft"]
    recorder.end()
    recorder.end()
    assert ranges.open == []
    assert ranges.said == ["prefill", "decoder", "sample", "decoder", "draft"]


def test_the_real_nvtx_takes_our_ranges() -> None:
    recorder = Recorder(nvtx_ranges())
    recorder.stage("prefill")
    recorder.enter("decoder")
    recorder.leave()
    recorder.end()
    assert len(recorder.take().runs) == 1


def test_nvtx_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvtx", None)
    assert nvtx_ranges() is None


def step(probe: Probe) -> None:
    """What the loop tells in a step."""
    probe.step("draft")
    probe.stage("verify")
    probe.enter("decoder")
    probe.leave()
    probe.stage("accept")
    probe.stage("commit")
    probe.stage("detokenise")


@pytest.mark.parametrize(
    ("make", "most"),
    [(lambda: OFF, MICROSECONDS / 10), (Recorder, MICROSECONDS), (lambda: Recorder(nvtx_ranges()), MICROSECONDS)],
)
def test_what_listening_costs(make: Callable[[], Probe], most: float) -> None:
    """Per step; the best of some, because what else the machine does only adds."""

    def seconds() -> Iterator[float]:
        for _ in range(10):
            probe = make()
            start = perf_counter()
            for _ in range(STEPS // 10):
                step(probe)
            yield (perf_counter() - start) / (STEPS // 10)

    assert 1e6 * min(seconds()) < most


def test_a_model_tells_everything(model: Model, prompt: list[int]) -> None:
    recorder, shares = Recorder(), []
    for _ in range(5):  # the best of some: between two clocks the machine may do something else
        start = perf_counter()
        with model.attached(recorder):
            made = model.generate(prompt, draft="medusa", max_new_tokens=20, ignore_eos=True, adaptive=False)
        wall = perf_counter() - start
        timeline = recorder.take()
        assert timeline.seconds <= wall
        shares.append(timeline.seconds / wall)
        model.forget()
    assert max(shares) >= 0.98
    names = [stage.name for stage in timeline.stages]
    assert names[:5] == ["tokenise", "prefill", "sample", "draft", "detokenise"]
    assert names[5:10] == ["draft", "verify", "accept", "commit", "detokenise"]
    assert timeline.stages[-1].step == made.steps
    assert {run.name for run in timeline.runs} >= {"decoder", "medusa"}
    decoder = [run for run in timeline.runs if run.name == "decoder" and run.step]
    assert len(decoder) == made.steps
    assert [run.step for run in decoder] == list(range(1, made.steps + 1))
    for run in decoder:
        (verify,) = [stage for stage in timeline.stages if stage.name == "verify" and stage.step == run.step]
        assert verify.start <= run.start <= run.end <= verify.end


def test_nobody_listens_afterwards(model: Model, prompt: list[int]) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), model.attached(recorder):
        stop(model.generate(prompt, max_new_tokens=2))
    assert model.probe is OFF
    recorder.clear()
    model.generate(prompt, max_new_tokens=2)
    with pytest.raises(ValueError, match="no request was recorded"):
        recorder.take()


def test_whoever_listened_before_listens_again(model: Model, prompt: list[int]) -> None:
    outer, inner = Recorder(), Recorder()
    with model.attached(outer):
        with model.attached(inner):
            model.generate(prompt, max_new_tokens=2)
        assert model.probe is outer
    assert inner.take().stages
