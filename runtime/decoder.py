"""The decoder graph with its cache: one `step` runs a prompt chunk, a token or a tree; `commit` keeps a path of it.

Committed rows lie at the front of the cache. A step writes its rows behind them; `commit` keeps a path of these, and
where the path is not already in place (most are) a second, weightless graph moves its rows together.

Engines that were built for fixed numbers of rows get the next larger one: of the new rows, further ones see only
themselves, and nobody looks at them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.bundle import CHUNK, INNER
from seqrt.runtime.engines import Engine

_GROWTH: Final = 1.25  # attention is paid over all cache rows, used or not: small steps cost copies, large ones time
_GRAIN: Final = 64  # cache rows are a multiple of it
_WARM_UPS: Final = 3  # the first run sets up, the second records, the third is one as all that follow
_FEWEST_KEPT: Final = 4
MAX_ROWS: Final = CHUNK - 1  # of a tree; the cache has room for a chunk beyond the capacity

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed; the arrays are overwritten by the next one.

    Attributes:
        topk_ids, topk_logits: `[R, K]`, raw logits in descending order.
        logsumexp: `[R]`, of each row's full logits.
        hidden: `[T, H]`, final hidden states of all rows.
        inner: `[T, H]` each, what so many layers before the last put out, where draft heads read that.
    """

    topk_ids: Ints
    topk_logits: Floats
    logsumexp: Floats
    hidden: Floats
    inner: Mapping[int, Floats] = field(default_factory=dict)

    def at_layer(self, offset: int) -> Floats:
        """Hidden states `[T, H]` as `offset` layers before the last put them out; 0 for the final ones."""
        return self.inner[offset] if offset else self.hidden

    @classmethod
    def of_prompt(cls, chunks: Sequence["StepOutput"]) -> "StepOutput":
        """The outputs of a prompt's chunks as one: hidden states of all rows, logits of the last."""
        last = chunks[-1]
        if len(chunks) == 1:
            return last
        inner = {offset: np.concatenate([chunk.inner[offset] for chunk in chunks]) for offset in last.inner}
        hidden = np.concatenate([chunk.hidden for chunk in chunks])
        return cls(last.topk_ids, last.topk_logits, last.logsumexp, hidden, inner)


class Decoder:
    """Runs the decoder graph and keeps its cache.

    Args:
        engine: of a decoder graph (docs/architecture.md).
        compaction: makes the engine of the compaction graph, when it is first needed.
        capacity: most rows that may be committed.

    Attributes:
        past_len: committed rows.
        max_rows: most rows of a tree.

    Raises:
        EngineError: the engine's caches are of one size, which is too small.
    """

    def __init__(self, engine: Engine, compaction: Callable[[], Engine], capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self._make_compaction = compaction
        self._compaction: Engine | None = None
        self._buckets = engine.buckets
        self._chunk = max(self._buckets, default=CHUNK)
        self.max_rows = max((rows for rows, wanted in self._buckets.items() if wanted == rows), default=MAX_ROWS)
        self._limit = capacity + self._chunk
        self._caches = [
            name.removeprefix("past_") for name in engine.inputs if name.startswith("past_") and "." in name
        ]
        fixed = engine.inputs[f"past_{self._caches[0]}"].shape[2] if self._caches else None
        self._fixed = fixed if isinstance(fixed, int) else None
        if self._fixed is not None and self._fixed < self._limit:
            raise EngineError(
                f"the engine's caches have {fixed} rows, {capacity} tokens need {self._limit}; build and export again"
            )
        self._candidates = int(engine.outputs["topk_ids"].shape[1])
        self._hidden_size = int(engine.outputs["hidden"].shape[1])
        self._inner = {int(name.removeprefix(INNER)): name for name in engine.outputs if name.startswith(INNER)}
        self._rows = 0
        self._is_shared = False  # whether the compaction graph has the caches as they are now
        self._chunk_masks: dict[int, npt.NDArray[np.bool_]] = {}
        self.past_len = 0

    @property
    def cache_bytes(self) -> int:
        """Of all caches, rows that are not in use included."""
        infos = [self.engine.inputs[f"past_{name}"] for name in self._caches]
        return sum(int(info.shape[1]) * self._rows * int(info.shape[3]) * info.dtype.itemsize for info in infos)

    def reset(self, length: int = 0) -> None:
        """Forgets all rows but the first `length` committed ones.

        Raises:
            RequestError: so many are not committed.
        """
        if not 0 <= length <= self.past_len:
            raise RequestError(f"cannot go back to {length} rows; {self.past_len} are in the cache, give no more")
        self.past_len = length

    def step(self, tokens: Ints, ancestors: npt.NDArray[np.bool_], depth: Ints, logit_rows: Ints) -> StepOutput:
        """Computes `T` rows behind the committed ones; they stay uncommitted.

        Args:
            tokens: `[T]`, parents before children.
            ancestors: `[T, T]`, row i sees row j; the diagonal included.
            depth: `[T]`, distance from the first row: position = committed rows + depth.
            logit_rows: `[R]`, rows whose logits are wanted.

        Raises:
            RequestError: more rows than fit behind the committed ones.
        """
        engine, rows, wanted, k = self.engine, len(tokens), len(logit_rows), self._candidates
        size, places = self._bucket(rows, wanted)
        self._reserve(self.past_len + size)
        _fill(engine.input("token_ids", (1, size))[0], tokens)
        seen = engine.input("ancestors", (size, size))
        seen[:rows, :rows] = ancestors
        if size > rows:
            seen[:, rows:], seen[rows:, :] = False, False
            np.fill_diagonal(seen[rows:, rows:], val=True)
        _fill(engine.input("depth", (size,)), depth)
        engine.input("past_len", (1,))[0] = self.past_len
        _fill(engine.input("logit_rows", (places,)), logit_rows)
        output = StepOutput(
            engine.output("topk_ids", (places, k))[:wanted],
            engine.output("topk_logits", (places, k))[:wanted],
            engine.output("logsumexp", (places,))[:wanted],
            engine.output("hidden", (size, self._hidden_size))[:rows],
            {
                offset: engine.output(name, (1, size, self._hidden_size))[0, :rows]
                for offset, name in self._inner.items()
            },
        )
        engine.run()
        return output

    def warm_up(self) -> None:
        """Runs every bucket and a compaction until they are as fast as they get; the cache must be empty."""
        for _ in range(_WARM_UPS):
            for rows, wanted in self._buckets.items():
                row = np.arange(rows)
                self.step(np.zeros(rows, np.int64), np.eye(rows, dtype=np.bool_), row, row[:wanted])
            if self._buckets:
                self._compact(np.array([1], np.int64), 0)
        self.reset()

    def _bucket(self, rows: int, wanted: int) -> tuple[int, int]:
        """Rows that the engine is to compute, and how many of them get logits."""
        if not self._buckets:
            return rows, wanted
        for size, places in self._buckets.items():
            if size >= rows and places >= wanted:
                return size, places
        raise RequestError(
            f"{rows} rows, {wanted} of them with logits, do not fit the engine, which takes trees of up to"
            f" {self.max_rows}; verify smaller trees or build with larger --buckets"
        )

    def commit(self, path: Sequence[int] | Ints) -> None:
        """Keeps the rows `path` (root first, ascending) of the last step, in this order."""
        in_place = 0
        while in_place < len(path) and path[in_place] == in_place:
            in_place += 1
        if in_place < len(path):
            self._compact(np.asarray(path[in_place:], np.int64) + self.past_len, self.past_len + in_place)
        self.past_len += len(path)

    def _compact(self, keep: Ints, write: int) -> None:
        """Copies the rows `keep` of every cache to the rows from `write` on."""
        if self._compaction is None:
            self._compaction = self._make_compaction()
        if not self._is_shared:
            self._compaction.share_state(self.engine)
            self._is_shared = True
        if self._buckets:  # few shapes: each is a recording; further rows are copied to where they are
            size = max(_FEWEST_KEPT, 1 << (len(keep) - 1).bit_length())
            keep = np.concatenate([keep, np.arange(write + len(keep), write + min(size, self.max_rows))])
        self._compaction.input("keep", (len(keep),))[:] = keep
        self._compaction.input("write", (1,))[0] = write
        self._compaction.run()

    def prefill(self, tokens: Sequence[int]) -> list[StepOutput]:
        """Commits a prompt in chunks; the last output holds the logits that follow it.

        Chunks end at multiples of their size, and the last row of a prompt is in none that is whole: so a prompt gets
        the same bits when a part of it is in the cache already, be it all but the last row. An engine for fixed numbers
        of rows has other bits for each, and gets chunks as large as can be.

        Returns:
            One output a chunk, with copied hidden states: drafters may want every row.
        """
        outputs, end = [], self.past_len + len(tokens)
        if self._rows > 2 * self._size(end):  # what an earlier, longer text left would slow down every step of this one
            self._resize(self._size(end))
        while self.past_len < end:
            size = min(self._chunk - (0 if self._buckets else self.past_len % self._chunk), end - self.past_len)
            if size == CHUNK and self.past_len + size == end and not self._buckets:
                size -= 1
            start = len(tokens) - (end - self.past_len)
            chunk, rows = np.asarray(tokens[start : start + size], np.int64), np.arange(size)
            output = self.step(chunk, self._chunk_mask(size), rows, rows[-1:])
            inner = {offset: states.copy() for offset, states in output.inner.items()}
            outputs.append(replace(output, hidden=output.hidden.copy(), inner=inner))
            self.commit(rows)
        return outputs

    def _chunk_mask(self, rows: int) -> npt.NDArray[np.bool_]:
        if rows not in self._chunk_masks:
            self._chunk_masks[rows] = np.tri(rows, dtype=np.bool_)
        return self._chunk_masks[rows]

    def _reserve(self, rows: int) -> None:
        """Makes the cache hold `rows`, and some more."""
        if rows <= self._rows:
            return
        if rows > self._limit:
            raise RequestError(f"{rows} rows do not fit into a cache of {self._limit}; verify smaller trees")
        self._resize(self._size(rows))

    def _size(self, rows: int) -> int:
        """Rows of a cache that is to hold so many, and some more."""
        return self._fixed or min(-(-int(rows * _GROWTH) // _GRAIN) * _GRAIN, self._limit)

    def _resize(self, size: int) -> None:
        """Binds caches of so many rows, which keep what is committed."""
        self._is_shared = False
        for name in self._caches:
            _, heads, _, head_dim = self.engine.inputs[f"past_{name}"].shape
            self.engine.state(f"past_{name}", f"present_{name}", (1, int(heads), size, int(head_dim)))
        self._rows = size  # last: an interrupt above leaves caches that the next step binds again


def _fill(target: Ints, values: Ints) -> None:
    """Writes the values, and zeros behind them."""
    target[: len(values)], target[len(values) :] = values, 0
