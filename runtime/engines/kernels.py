"""TensorRT-RTX compiles kernels on the GPU that runs them: how it is to do so, and what it compiled before."""

import logging
from typing import Any, Final

from seqrt.errors import first_line
from seqrt.runtime.bundle import cache_folder
from seqrt.runtime.files import write_whole

_log: Final = logging.getLogger(__name__)


class Kernels:
    """Of one engine, kept in the user's cache folder from one process to the next.

    Args:
        api: the module tensorrt_rtx, or what stands in for it.
        engine: whose execution contexts are to be made.
        name: of the engine among all others, its hash.

    Attributes:
        config: what contexts are made with.
    """

    def __init__(self, api: Any, engine: Any, name: str) -> None:
        self._file = cache_folder() / "kernels" / f"{name}.cache"
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.config.cuda_graph_strategy = api.CudaGraphStrategy.DISABLED  # they are recorded with their copies
        # Kernels that it compiles in the background would not find their way into a recording.
        self.config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
        self.cache = self.config.create_runtime_cache()
        if self._file.is_file():
            self.cache.deserialize(self._file.read_bytes())  # false if they are another machine's: compiled anew then
        self.config.set_runtime_cache(self.cache)

    def keep(self) -> None:
        """Writes them for the next process, if there are new ones; where that fails the log says so."""
        made = self.cache.serialize()
        data = b"" if made is None else bytes(made)
        try:
            if not data or (self._file.is_file() and self._file.read_bytes() == data):
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, lambda new: new.write_bytes(data))
        except OSError as error:
            _log.warning("compiled kernels are not kept in %s: %s", self._file, first_line(error))
