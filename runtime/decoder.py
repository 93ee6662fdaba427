"""The decoder graph with its cache: one `step` runs a prompt chunk, a token or a tree; `commit` keeps a path of it.

Committed rows lie at the front of the cache. A step writes its rows behind them; `commit` names the rows to keep,
and the next step moves these into place before it writes its own (fused compaction, one scatter a cache).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import RequestError
from seqrt.runtime.engines import Engine

_GROWTH: Final = 1.25  # attention is paid over all cache rows, used or not: small steps cost copies, large ones time
_GRAIN: Final = 64  # cache rows are a multiple of it
_PREFILL_CHUNK: Final = 512

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed; the arrays are overwritten by the next one.

    Attributes:
        topk_ids, topk_logits: `[R, K]`, raw logits in descending order.
        logsumexp: `[R]`, of each row's full logits.
        hidden: `[T, H]`, final hidden states of all rows.
    """

    topk_ids: Ints
    topk_logits: Floats
    logsumexp: Floats
    hidden: Floats


class Decoder:
    """Runs the decoder graph and keeps its cache.

    Args:
        engine: of a decoder graph (docs/architecture.md).
        capacity: most rows that may be committed.
        max_rows: most rows of a tree; the buffers have room for so many beyond the capacity.
    """

    def __init__(self, engine: Engine, capacity: int, max_rows: int = 64) -> None:
        self.engine, self.capacity = engine, capacity
        self._limit = capacity + max(max_rows, _PREFILL_CHUNK)
        self._caches = [name.removeprefix("past_") for name in engine.inputs if name.startswith("past_") and "." in name]
        self._candidates = int(engine.outputs["topk_ids"].shape[1])
        self._hidden_size = int(engine.outputs["hidden"].shape[1])
        self._rows = 0
        self._pending: Ints = np.zeros(0, np.int64)
        self._chunk_masks: dict[int, npt.NDArray[np.bool_]] = {}
        self.past_len = 0

    def reset(self, length: int = 0) -> None:
        """Forgets all rows but the first `length` committed ones.

        Raises:
            RequestError: so many are not committed, or some of them still await compaction.
        """
        settled = self.past_len - len(self._pending)
        if length > settled:
            raise RequestError(f"cannot go back to {length} rows; {settled} are settled in the cache")
        self.past_len, self._pending = length, self._pending[:0]

    @property
    def settled(self) -> int:
        """Committed rows that lie in their final place."""
        return self.past_len - len(self._pending)

    def step(
        self, tokens: Ints, ancestors: npt.NDArray[np.bool_], depth: Ints, logit_rows: Ints
    ) -> StepOutput:
        """Computes `T` rows behind the committed ones; they stay uncommitted.

        Args:
            tokens: `[T]`, parents before children.
            ancestors: `[T, T]`, row i sees row j; the diagonal included.
            depth: `[T]`, distance from the first row: position = committed rows + depth.
            logit_rows: `[R]`, rows whose logits are wanted.
        """
        engine, rows = self.engine, len(tokens)
        self._reserve(self.past_len + rows)
        engine.input("token_ids", (1, rows))[0] = tokens
        engine.input("ancestors", (rows, rows))[:] = ancestors
        engine.input("depth", (rows,))[:] = depth
        engine.input("past_len", (1,))[0] = self.past_len
        engine.input("logit_rows", (len(logit_rows),))[:] = logit_rows
        engine.input("keep", (len(self._pending),))[:] = self._pending
        wanted, k = len(logit_rows), self._candidates
        output = StepOutput(
            engine.output("topk_ids", (wanted, k)),  # type: ignore[arg-type]
            engine.output("topk_logits", (wanted, k)),  # type: ignore[arg-type]
            engine.output("logsumexp", (wanted,)),  # type: ignore[arg-type]
            engine.output("hidden", (rows, self._hidden_size)),  # type: ignore[arg-type]
        )
        engine.run()
        self._pending = self._pending[:0]
        return output

    def commit(self, path: Sequence[int]) -> None:
        """Keeps the rows `path` (root first, ascending) of the last step, in this order."""
        rows = np.asarray(path, np.int64)
        in_place = 0
        while in_place < len(rows) and rows[in_place] == in_place:
            in_place += 1
        self._pending = rows[in_place:] + self.past_len
        self.past_len += len(rows)

    def prefill(self, tokens: Sequence[int]) -> list[StepOutput]:
        """Commits a prompt in chunks; the last output holds the logits that follow it.

        Returns:
            One output a chunk, with copied hidden states: drafters may want every row.
        """
        outputs = []
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            chunk = np.asarray(tokens[start : start + _PREFILL_CHUNK], np.int64)
            rows = np.arange(len(chunk))
            output = self.step(chunk, self._chunk_mask(len(chunk)), rows, rows[-1:])
            outputs.append(StepOutput(output.topk_ids, output.topk_logits, output.logsumexp, output.hidden.copy()))
            self.commit(rows)  # type: ignore[arg-type]
        return outputs

    def _chunk_mask(self, rows: int) -> npt.NDArray[np.bool_]:
        if rows not in self._chunk_masks:
            self._chunk_masks[rows] = np.tri(rows, dtype=np.bool_)
        return self._chunk_masks[rows]

    def _reserve(self, rows: int) -> None:
        """Makes the cache hold `rows`, and some more."""
        if rows <= self._rows:
            return
        self._rows = min(-(-int(rows * _GROWTH) // _GRAIN) * _GRAIN, self._limit)
        for name in self._caches:
            _, heads, _, head_dim = self.engine.inputs[f"past_{name}"].shape
            self.engine.state(f"past_{name}", f"present_{name}", (1, int(heads), self._rows, int(head_dim)))
