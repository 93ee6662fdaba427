"""Stands in for onnxruntime-gpu: the CUDA provider's API over ONNX Runtime on the CPU, with what is asked for noted."""

from collections.abc import Sequence
from typing import Any, Final

import onnxruntime

_CUDA: Final = "CUDAExecutionProvider"


class StandInOrt:
    """The module.

    Args:
        has_cuda: whether it was built with the provider.
        loads: whether the provider's libraries are there; else sessions fall back to the CPU without a word.
        records: whether sessions take CUDA graphs; else they refuse, as with nodes that must run on the CPU.

    Attributes:
        recordings: what each run said of the recording to make or replay, None where it said nothing.
    """

    RunOptions = onnxruntime.RunOptions
    SessionOptions = onnxruntime.SessionOptions
    __version__ = onnxruntime.__version__
    __file__ = onnxruntime.__file__

    def __init__(self, *, has_cuda: bool = True, loads: bool = True, records: bool = True) -> None:
        self.has_cuda, self.loads, self.records = has_cuda, loads, records
        self.recordings: list[str | None] = []
        self.OrtValue = _OrtValues()

    def get_available_providers(self) -> list[str]:
        """Those it was built with."""
        return [_CUDA, "CPUExecutionProvider"] if self.has_cuda else ["CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: Sequence[Any]) -> "_Session":
        """A session on the CPU that takes itself for one on the GPU."""
        ((name, settings),) = providers
        assert name == _CUDA
        if settings["enable_cuda_graph"] == "1" and not self.records:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        return _Session(self, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


class _OrtValues:
    """Where a device is asked for, memory of the host stands in for it."""

    @staticmethod
    def ortvalue_from_numpy(values: Any, device: str, index: int) -> Any:
        assert (device, index) == ("cuda", 0), f"{device} {index} is not the GPU"
        return onnxruntime.OrtValue.ortvalue_from_numpy(values.copy(), "cpu", 0)


class _Session:
    """A session of ONNX Runtime that notes what runs ask for."""

    def __init__(self, module: StandInOrt, session: Any) -> None:
        self._module, self._session = module, session
        self._recorded: set[str | None] = set()

    def get_providers(self) -> list[str]:
        """Those that it uses."""
        return [_CUDA] if self._module.loads else ["CPUExecutionProvider"]

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        """Runs."""
        try:
            recording = options.get_run_config_entry("gpu_graph_id")
        except RuntimeError:
            recording = None
        self._module.recordings.append(recording)
        is_new = recording not in (None, "-1") and recording not in self._recorded
        self._recorded.add(recording)
        for _ in range(3 if is_new else 1):  # to record, ONNX Runtime warms up, records and replays in one run
            self._session.run_with_iobinding(binding, onnxruntime.RunOptions())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
