"""An engine that tells a probe when it runs."""

from collections.abc import Mapping
from typing import Protocol

from seqrt.runtime.engines import Engine, TensorInfo
from seqrt.runtime.probe import Probe


class Probed(Protocol):
    """Whoever holds the probe that listens at the moment."""

    probe: Probe


class ProbedEngine:
    """Another engine, whose runs `holder.probe` hears of.

    Attributes:
        engine: the other one.
    """

    def __init__(self, engine: Engine, role: str, holder: Probed) -> None:
        self.engine, self._role, self._holder = engine, role, holder
        self.inputs: Mapping[str, TensorInfo] = engine.inputs
        self.outputs: Mapping[str, TensorInfo] = engine.outputs
        self.buckets: Mapping[int, int] = engine.buckets
        self.input, self.output, self.state = engine.input, engine.output, engine.state
        self.operators, self.close = engine.operators, engine.close

    def share_state(self, owner: Engine) -> None:
        """Binds the state buffers of `owner`."""
        self.engine.share_state(owner.engine if isinstance(owner, ProbedEngine) else owner)

    def run(self) -> None:
        """Runs the graph once."""
        probe = self._holder.probe
        probe.enter(self._role)
        try:
            self.engine.run()
        finally:
            probe.leave()
