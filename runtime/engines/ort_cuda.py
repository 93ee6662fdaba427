"""ONNX Runtime on a GPU: buffers on the device, caches updated in place, CUDA graphs where it can record them."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from seqrt.errors import EngineError, first_line
from seqrt.runtime.engines import Array, Engine, Operator, TensorInfo, resized
from seqrt.runtime.engines.ort import FATAL_ONLY, OperatorTimes, import_onnxruntime, tensor_infos

PROVIDER: Final = "CUDAExecutionProvider"
_GRAPH_ID: Final = "gpu_graph_id"  # of the recording that a run makes or replays; -1 for neither
_NO_RECORDING: Final = "-1"

_log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tensor:
    """An array of the host and its twin on the device."""

    host: Array
    device: Any


class OrtCudaEngine:
    """A graph on ONNX Runtime's CUDA provider.

    Args:
        path: ONNX file; its external data lies beside it.
        record: use CUDA graphs. ONNX Runtime runs what it records several times over, so the graph must do the same
            when it is run again on what it wrote; moving rows of a cache does not.
        operators: keep the time of every operator; nothing is recorded then.
        ort: the onnxruntime module, or what stands in for it.
        device: where buffers lie.

    Raises:
        EngineError: onnxruntime has no CUDA provider, cannot load it, or refuses the graph.
    """

    def __init__(
        self, path: Path, *, record: bool = True, operators: bool = False, ort: Any = None, device: str = "cuda"
    ) -> None:
        self._ort, self._device, self._name = ort or import_onnxruntime(), device, path.name
        check_provider(self._ort)
        self._times: OperatorTimes | None = None
        self._session, self._records = self._open(path, record and not operators, operators)
        self._binding = self._session.io_binding()
        self._tensors: dict[str, _Tensor] = {}  # bound now
        self._kept: dict[tuple[str, tuple[int, ...]], _Tensor] = {}  # of every shape: recordings hold their addresses
        self._states: dict[tuple[str, str], Any] = {}
        self._recordings: dict[tuple[object, ...], int] = {}
        self._key: tuple[object, ...] | None = None  # of the shapes and buffers that are bound now
        self.inputs: Mapping[str, TensorInfo] = tensor_infos(self._session.get_inputs())
        self.outputs: Mapping[str, TensorInfo] = tensor_infos(self._session.get_outputs())
        self.buckets: Mapping[int, int] = {}

    def input(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run reads."""
        return self._tensor(name, self.inputs[name], shape, self._binding.bind_ortvalue_input).host

    def output(self, name: str, shape: Sequence[int]) -> Array:
        """Host array of `shape` that the next run fills."""
        return self._tensor(name, self.outputs[name], shape, self._binding.bind_ortvalue_output).host

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        """One buffer on the device for both names; a larger one keeps what the old one held."""
        old = self._states.get((past, present))
        if old is not None and tuple(old.shape()) == tuple(shape):
            return
        values = resized(None if old is None else old.numpy(), shape, self.inputs[past].dtype)
        self._bind_state(past, present, self._on_device(values))

    def share_state(self, owner: Engine) -> None:
        """Binds the caches of `owner`.

        Raises:
            EngineError: it is another kind of engine, whose buffers are out of reach.
        """
        if not isinstance(owner, OrtCudaEngine):
            raise EngineError(f"ONNX Runtime cannot share the buffers of {type(owner).__name__}; use one backend")
        for (past, present), value in owner._states.items():
            self._bind_state(past, present, value)

    def run(self) -> None:
        """Runs the graph on what is bound, and waits for its outputs."""
        for name in self.inputs.keys() & self._tensors.keys():
            tensor = self._tensors[name]
            tensor.device.update_inplace(tensor.host)
        try:
            self._session.run_with_iobinding(self._binding, self._run_options())
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed to run {self._name} on the GPU: {first_line(error)};"
                " close other programs if memory is short, else report it"
            ) from error
        for name in self.outputs.keys() & self._tensors.keys():
            tensor = self._tensors[name]
            tensor.host[...] = tensor.device.numpy()

    def operators(self) -> list[Operator]:
        """Of all runs, if it was made to keep them: on the host, which starts kernels and does not wait for them."""
        return [] if self._times is None else self._times.read(self._session)

    def close(self) -> None:
        """Lets go of the session and of what it holds on the device."""
        self._tensors.clear()
        self._kept.clear()
        self._states.clear()
        if self._times is not None:
            self._times.close(self._session)
        self._binding = self._session = None

    def _open(self, path: Path, record: bool, operators: bool) -> tuple[Any, bool]:
        """A session, and whether it records CUDA graphs: the provider refuses where nodes must run on the CPU."""
        options = self._ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        self._times = OperatorTimes(options) if operators else None
        why = ""
        for records in (True, False) if record else (False,):
            settings = {"device_id": "0", "enable_cuda_graph": str(int(records))}
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said):  # it prints why, and falls back to the CPU
                    session = self._ort.InferenceSession(str(path), options, providers=[(PROVIDER, settings)])
            except Exception as error:
                why = first_line(error)
                continue
            if PROVIDER in session.get_providers():
                if why:
                    _log.info("%s runs without CUDA graphs: %s", path.name, why)
                return session, records
            why = " ".join(said.getvalue().split()) or _missing(self._ort)
        if self._times is not None:
            self._times.close(None)
        raise EngineError(
            f"ONNX Runtime {self._ort.__version__} cannot run {path.name} on the GPU: {why};"
            " see what `seqrt doctor` says of the CUDA provider"
        )

    def _run_options(self) -> Any:
        """Which recording to make or replay: none for shapes and caches that are new, and may never come again."""
        options = self._ort.RunOptions()
        if self._records:
            shapes = ((name, tensor.host.shape) for name, tensor in sorted(self._tensors.items()))
            states = self._states.values()
            self._key = self._key or (*shapes, *((value.data_ptr(), tuple(value.shape())) for value in states))
            recording = self._recordings.get(self._key)
            self._recordings.setdefault(self._key, len(self._recordings) + 1)
            options.add_run_config_entry(_GRAPH_ID, _NO_RECORDING if recording is None else str(recording))
        return options

    def _tensor(self, name: str, info: TensorInfo, shape: Sequence[int], bind: Any) -> _Tensor:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.host.shape != tuple(shape):
            key = (name, tuple(shape))
            if key not in self._kept:
                host = np.zeros(tuple(shape), info.dtype)
                self._kept[key] = _Tensor(host, self._on_device(host))
            tensor = self._tensors[name] = self._kept[key]
            bind(name, tensor.device)
            self._key = None
        return tensor

    def _bind_state(self, past: str, present: str, value: Any) -> None:
        self._key = None
        self._states[past, present] = value
        self._binding.bind_ortvalue_input(past, value)
        self._binding.bind_ortvalue_output(present, value)

    def _on_device(self, values: Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(values, self._device, 0)


def check_provider(ort: Any) -> None:
    """Checks that this onnxruntime was built with CUDA, and loads the libraries that it needs from pip's packages.

    Raises:
        EngineError: it was not.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        ort.preload_dlls()  # CUDA's libraries as pip installs them lie where no loader looks; what fails shows later
    if PROVIDER not in ort.get_available_providers():
        raise EngineError(
            f"onnxruntime {ort.__version__} has no CUDA provider, only"
            f" {', '.join(ort.get_available_providers())}; run: pip uninstall onnxruntime, pip install 'seqrt[gpu]'"
        )


def _missing(ort: Any) -> str:
    """Which library the provider lacks, as the loader of dynamic libraries says."""
    import ctypes

    for library in sorted((Path(ort.__file__).parent / "capi").glob("*onnxruntime_providers_cuda*")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return "it does not say why"
