"""ONNX Runtime on a CPU: IO binding over numpy buffers, caches updated in place."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from seqrt.errors import EngineError, first_line
from seqrt.runtime.engines import Array, Engine, Operator, TensorInfo, resized

_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_KERNEL: Final = "_kernel_time"
FATAL_ONLY: Final = 4  # errors come as exceptions; ONNX Runtime would print them too


class OrtEngine:
    """A graph on ONNX Runtime's CPU provider.

    Args:
        path: ONNX file; its external data lies beside it.
        threads: intra-op threads; 0 lets ONNX Runtime choose one per core.
        spin: keep idle threads awake for the next call. One engine of a process should: spinning threads of two would
            take the cores from each other.
        exact: multiply quantised weights in float32 instead of with int8 activations; for checks.
        operators: keep the time of every operator, which makes runs slower.

    Raises:
        EngineError: onnxruntime is not installed, or refuses the graph.
    """

    def __init__(
        self, path: Path, *, threads: int = 0, spin: bool = True, exact: bool = False, operators: bool = False
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        # Level 4 multiplies in int8, as llama.cpp does too, several times faster; level 1 in float32.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
        self._times = OperatorTimes(options) if operators else None
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if self._times is not None:
                self._times.close(None)
            raise EngineError(
                f"ONNX Runtime {ort.__version__} refuses {path.name}: {first_line(error)};"
                " upgrade onnxruntime or export again"
            ) from error
        self._binding = self._session.io_binding()
        self._buffers: dict[str, Array] = {}  # flat, at least as large as any shape asked for
        self._views: dict[str, Array] = {}  # what is bound now
        self._states: dict[tuple[str, str], Array] = {}
        self.inputs: Mapping[str, TensorInfo] = tensor_infos(self._session.get_inputs())
        self.outputs: Mapping[str, TensorInfo] = tensor_infos(self._session.get_outputs())
        self.buckets: Mapping[int, int] = {}  # any number of rows

    def input(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run reads."""
        view = self._views.get(name)
        if view is None or view.shape != tuple(shape):
            view = self._view(name, self.inputs[name].dtype, shape)
            self._bind(self._binding.bind_input, name, view)
        return view

    def output(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run fills."""
        view = self._views.get(name)
        if view is None or view.shape != tuple(shape):
            view = self._view(name, self.outputs[name].dtype, shape)
            self._bind(self._binding.bind_output, name, view)
        return view

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        """One buffer for both names: TensorScatter then writes in place."""
        old = self._views.get(past)
        if old is not None and old.shape == tuple(shape):
            return
        self._bind_state(past, present, resized(old, shape, self.inputs[past].dtype))

    def share_state(self, owner: Engine) -> None:
        """Binds the caches of `owner`.

        Raises:
            EngineError: it is another kind of engine, whose buffers are out of reach.
        """
        if not isinstance(owner, OrtEngine):
            kind = type(owner).__name__
            raise EngineError(f"ONNX Runtime cannot share the buffers of {kind}; use one kind of engine")
        for (past, present), view in owner._states.items():
            self._bind_state(past, present, view)

    def run(self) -> None:
        """Runs the graph on what is bound."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed: {first_line(error)}; close other programs if memory is short, else report it"
            ) from error

    def operators(self) -> list[Operator]:
        """Of all runs, if it was made to keep them."""
        return [] if self._times is None else self._times.read(self._session)

    def close(self) -> None:
        """Lets go of the session and its buffers."""
        if self._times is not None:
            self._times.close(self._session)
        self._binding = self._session = None
        self._buffers.clear()
        self._views.clear()
        self._states.clear()

    def _bind_state(self, past: str, present: str, view: Array) -> None:
        self._views[past] = self._states[past, present] = view
        self._bind(self._binding.bind_input, past, view)
        self._bind(self._binding.bind_output, present, view)

    def _view(self, name: str, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.zeros(max(size, 1), dtype)
        view = self._views[name] = buffer[:size].reshape(tuple(shape))
        return view

    def _bind(self, bind: Any, name: str, view: Array) -> None:
        bind(name, "cpu", 0, view.dtype, view.shape, view.__array_interface__["data"][0])


class OperatorTimes:
    """What ONNX Runtime's own profiler writes down of a session.

    Args:
        options: of the session that is to be made.
    """

    def __init__(self, options: Any) -> None:
        from tempfile import TemporaryDirectory  # 5 ms, which every start would pay

        self._folder = TemporaryDirectory(prefix="seqrt-")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name, "ort"))

    def read(self, session: Any) -> list[Operator]:
        """All operators of all runs; the profiler ends with that."""
        events = json.loads(Path(session.end_profiling()).read_bytes())
        begins = sorted(event["ts"] for event in events if event.get("name") == "model_run")
        found = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                run = bisect_right(begins, event["ts"]) - 1
                name, op_type = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
                if run >= 0:  # earlier ones belong to the session's start: constants that it folds
                    found.append(Operator(run, name, op_type, (event["ts"] - begins[run]) / 1e6, event["dur"] / 1e6))
        return found

    def close(self, session: Any) -> None:
        """Ends the profiler, which writes its file again, and removes what it wrote."""
        if session is not None:
            session.end_profiling()
        self._folder.cleanup()


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("onnxruntime is not installed; run: pip install 'seqrt[cpu]'") from error
    return onnxruntime


def tensor_infos(nodes: Sequence[Any]) -> dict[str, TensorInfo]:
    """Inputs or outputs of a session by name."""
    return {node.name: TensorInfo(np.dtype(_DTYPES[node.type]), tuple(node.shape)) for node in nodes}
