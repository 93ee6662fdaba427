"""A Python function as an engine: the host work of decoding loops is measured without any graph."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from seqrt.errors import EngineError
from seqrt.runtime.engines import Array, Engine, Operator, TensorInfo, resized


class FunctionEngine:
    """Calls `function(inputs, outputs)` for each run: it reads the arrays of the one and fills those of the other.

    Args:
        function: the model. State is found under its `past` name in `inputs` and is changed in place.
        inputs, outputs: as an engine over a graph would report them.
    """

    def __init__(
        self,
        function: Callable[[Mapping[str, Array], Mapping[str, Array]], None],
        inputs: Mapping[str, TensorInfo],
        outputs: Mapping[str, TensorInfo],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._function = function
        self._in: dict[str, Array] = {}
        self._out: dict[str, Array] = {}
        self._states: dict[str, Array] = {}

    def input(self, name: str, shape: Sequence[int]) -> Array:
        """Host array that the next run reads."""
        return _sized(self._in, name, shape, self.inputs[name])

    def output(self, name: str, shape: Sequence[int]) -> Array:
        """Host array that the next run fills."""
        return _sized(self._out, name, shape, self.outputs[name])

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        """A buffer that keeps what fits into the new shape."""
        old = self._states.get(past)
        if old is None or old.shape != tuple(shape):
            self._states[past] = resized(old, shape, self.inputs[past].dtype)

    def share_state(self, owner: Engine) -> None:
        """Uses the state of `owner`."""
        if not isinstance(owner, FunctionEngine):
            raise EngineError(f"a function cannot share the buffers of {type(owner).__name__}; use one kind of engine")
        self._states |= owner._states

    @property
    def buckets(self) -> Mapping[int, int]:
        """Any number of rows."""
        return {}

    def operators(self) -> list[Operator]:
        """None."""
        return []

    def close(self) -> None:
        """Holds nothing that must be given back."""

    def run(self) -> None:
        """Calls the function."""
        self._function({**self._in, **self._states}, self._out)


def _sized(arrays: dict[str, Array], name: str, shape: Sequence[int], info: TensorInfo) -> Array:
    array = arrays.get(name)
    if array is None or array.shape != tuple(shape):
        array = arrays[name] = np.zeros(tuple(shape), info.dtype)
    return array
