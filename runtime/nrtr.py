"""The autoregressive loop that CPPD is measured against: a run of the engine for every character of a word.

An encoder runs once an image; a step reads the character before and says the next one, with the keys and values of
those before in caches that are updated in place. A batch ends when each of its words has.
"""

from typing import Final

import numpy as np

from seqrt.runtime.cppd import END, Read
from seqrt.runtime.engines import Engine
from seqrt.runtime.images import Floats
from seqrt.runtime.probe import Probe

_CROSS: Final = "cross_"
_PAST: Final = "past_"


class Autoregressive:
    """Reads with two graphs.

    Args:
        encoder: image `[B, 3, H, W]` to keys and values of every layer, `cross_*`.
        step: these, a character, its position and the caches to the next character's probabilities `[B, C]`.
        steps: characters and the end.
        num_classes: C; the character that begins a word is numbered so.
    """

    def __init__(self, encoder: Engine, step: Engine, steps: int, num_classes: int) -> None:
        self._encoder, self._step = encoder, step
        self._steps, self._begin = steps, num_classes
        self._cross = [name for name in encoder.outputs if name.startswith(_CROSS)]
        self._caches = [name.removeprefix(_PAST) for name in step.inputs if name.startswith(_PAST)]

    def images(self, count: int, height: int, width: int) -> Floats:
        """Where the images of the next batch are to be written."""
        return self._encoder.input("image", (count, 3, height, width))

    def read(self, count: int, probe: Probe) -> Read:
        """Reads the batch that was written."""
        probe.stage("engine")
        step = self._step
        for name in self._caches:
            _, *shape = step.inputs[f"{_PAST}{name}"].shape
            step.state(f"{_PAST}{name}", f"present_{name}", (count, *map(int, shape)))
        made = [self._encoder.output(name, self._shape(name, count)) for name in self._cross]
        self._encoder.run()
        for name, value in zip(self._cross, made, strict=True):
            step.input(name, value.shape)[:] = value
        token, position = step.input("token_ids", (count,)), step.input("position", (count,))
        probabilities = step.output("probabilities", (count, self._begin))
        classes = np.zeros((count, self._steps), np.int64)
        confidence = np.zeros((count, self._steps), np.float32)
        token[:] = self._begin
        ended = np.zeros(count, np.bool_)
        for place in range(self._steps):
            position[:] = place
            probe.step("engine")
            step.run()
            best = probabilities.argmax(1)
            classes[:, place] = token[:] = best
            confidence[:, place] = probabilities.max(1)
            ended |= best == END
            if ended.all():
                break
        probe.stage("decode")
        return Read(classes, confidence)

    def _shape(self, name: str, count: int) -> tuple[int, ...]:
        _, *shape = self._step.inputs[name].shape
        return (count, *map(int, shape))
