"""The stand-ins for CUDA and TensorRT notice what they are there to notice."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tools.gpu.standin_cuda import Code, CopyKind, StandInCuda
from tools.gpu.standin_tensorrt import (
    Context,
    Engine,
    ExecutionContextAllocationStrategy,
    StandInTensorRT,
)

CACHE = """<ir_version: 11, opset_import: ["" : 24]>
g (float[1, 1, 8, 2] past_key, float[1, 1, T, 2] update, int64[1] write) => (float[1, 1, 8, 2] present_key, float[T] y)
{
    present_key = TensorScatter<axis = 2>(past_key, update, write)
    axes = Constant<value_ints = [0, 1, 3]>()
    y = ReduceSum<keepdims = 0>(update, axes)
}"""
PROFILES = [{"T": (1, 1, 1)}, {"T": (2, 3, 4)}]


@pytest.fixture
def cuda() -> StandInCuda:
    return StandInCuda(memory=1 << 16)


def must(answer: tuple[Any, ...]) -> Any:
    code, *values = answer
    assert code == Code.cudaSuccess, code.name
    return values[0] if values else None


def host(cuda: StandInCuda, values: Any) -> int:
    array = np.asarray(values)
    address: int = must(cuda.cudaMallocHost(array.nbytes))
    cuda._host[address][:] = np.frombuffer(array.tobytes(), np.uint8)
    return address


def test_a_copy_is_done_when_it_is_waited_for_and_reads_what_is_there_then(cuda: StandInCuda) -> None:
    stream, device = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4))
    source = host(cuda, np.array([1, 2, 3, 4], np.uint8))
    must(cuda.cudaMemcpyAsync(device, source, 4, CopyKind.cudaMemcpyHostToDevice, stream))
    assert cuda.at(device, 4).tolist() != [1, 2, 3, 4]
    cuda._host[source][0] = 9
    must(cuda.cudaStreamSynchronize(stream))
    assert cuda.at(device, 4).tolist() == [9, 2, 3, 4]


@pytest.mark.parametrize("size", [5, 4097])
def test_a_copy_beyond_the_end(cuda: StandInCuda, size: int) -> None:
    stream, device, source = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4)), host(cuda, [0] * 4096)
    answer = cuda.cudaMemcpyAsync(device, source, size, CopyKind.cudaMemcpyHostToDevice, stream)
    assert answer == (Code.cudaErrorInvalidValue,)


def test_memory_of_the_wrong_side(cuda: StandInCuda) -> None:
    stream, device, source = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4)), host(cuda, [0])
    answer = cuda.cudaMemcpyAsync(source, device, 4, CopyKind.cudaMemcpyHostToDevice, stream)
    assert answer == (Code.cudaErrorInvalidValue,)


def test_memory_that_was_given_back(cuda: StandInCuda) -> None:
    stream, device, source = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4)), host(cuda, [0])
    must(cuda.cudaFree(device))
    answer = cuda.cudaMemcpyAsync(device, source, 4, CopyKind.cudaMemcpyHostToDevice, stream)
    assert answer == (Code.cudaErrorInvalidValue,)
    assert cuda.cudaFree(device) == (Code.cudaErrorInvalidValue,)


def test_memory_that_a_graph_still_needs(cuda: StandInCuda) -> None:
    """What CUDA would answer with a crash, or with nothing at all."""
    stream, device, source = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4)), host(cuda, [0])
    must(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    must(cuda.cudaMemcpyAsync(device, source, 4, CopyKind.cudaMemcpyHostToDevice, stream))
    graph = must(cuda.cudaGraphInstantiate(must(cuda.cudaStreamEndCapture(stream)), 0))
    must(cuda.cudaFree(device))
    must(cuda.cudaGraphLaunch(graph, stream))
    assert cuda.cudaStreamSynchronize(stream) == (Code.cudaErrorIllegalAddress,)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize", "cudaMallocHost"])
def test_calls_that_a_recording_forbids_spoil_it(cuda: StandInCuda, call: str) -> None:
    stream = must(cuda.cudaStreamCreateWithFlags(1))
    must(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    assert getattr(cuda, call)(stream if "Stream" in call else 4)[0] == Code.cudaErrorStreamCaptureUnsupported
    assert cuda.cudaStreamEndCapture(stream) == (Code.cudaErrorStreamCaptureInvalidated, None)


def test_what_is_recorded_is_not_done(cuda: StandInCuda) -> None:
    stream, device = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(4))
    must(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    must(cuda.cudaMemsetAsync(device, 7, 4, stream))
    recorded = must(cuda.cudaStreamEndCapture(stream))
    must(cuda.cudaStreamSynchronize(stream))
    assert cuda.at(device, 4).tolist() != [7] * 4
    graph = must(cuda.cudaGraphInstantiate(recorded, 0))
    must(cuda.cudaGraphLaunch(graph, stream))
    must(cuda.cudaStreamSynchronize(stream))
    assert cuda.at(device, 4).tolist() == [7] * 4
    must(cuda.cudaGraphExecDestroy(graph))
    assert cuda.cudaGraphLaunch(graph, stream) == (Code.cudaErrorInvalidResourceHandle,)


def test_leaks_are_listed(cuda: StandInCuda) -> None:
    assert cuda.leaks() == []
    stream, device, memory = must(cuda.cudaStreamCreateWithFlags(1)), must(cuda.cudaMalloc(1)), host(cuda, [1])
    assert cuda.leaks() == [f"device memory {device:#x}", f"host memory {memory:#x}", f"stream {stream:#x}"]


def test_no_more_memory_than_there_is(cuda: StandInCuda) -> None:
    must(cuda.cudaMalloc(1 << 15))
    assert cuda.cudaMalloc((1 << 15) + 1) == (Code.cudaErrorMemoryAllocation, None)


class Rig:
    """A context with a cache at one address, as it should be: each test spoils one thing."""

    def __init__(self, path: Path, cuda: StandInCuda, *, aliases: bool = True) -> None:
        onnx.save(onnx.parser.parse_model(CACHE), path)
        self.cuda, self.said = cuda, list[str]()
        api = StandInTensorRT(cuda, aliases=aliases)
        logger = type("Logger", (), {"log": lambda _, severity, message: self.said.append(message)})()
        engine = Engine(api, logger, path, PROFILES)
        self.context = Context(engine, ExecutionContextAllocationStrategy.USER_MANAGED)
        self.stream = must(cuda.cudaStreamCreateWithFlags(1))
        self.memory = {name: must(cuda.cudaMalloc(256)) for name in ("cache", "update", "write", "y", "other")}
        self.context.set_device_memory(must(cuda.cudaMalloc(1 << 12)), 1 << 12)
        assert self.context.set_optimization_profile_async(1, self.stream)
        for name, shape in (("past_key", (1, 1, 8, 2)), ("update", (1, 1, 2, 2)), ("write", (1,))):
            assert self.context.set_input_shape(name, shape)
        places = {"past_key": "cache", "present_key": "cache" if aliases else "other"}
        for name in ("past_key", "present_key", "update", "write", "y"):
            assert self.context.set_tensor_address(name, self.memory[places.get(name, name)])
        for name in ("cache", "update"):
            cuda.at(self.memory[name], 256)[:] = 0
        cuda.at(self.memory["write"], 8).view(np.int64)[0] = 3

    def run(self) -> bool:
        done = self.context.execute_async_v3(self.stream)
        must(self.cuda.cudaStreamSynchronize(self.stream))
        return done


@pytest.fixture
def rig(cuda: StandInCuda, tmp_path: Path) -> Rig:
    return Rig(tmp_path / "g.onnx", cuda)


def test_a_run_that_is_as_it_should_be(rig: Rig) -> None:
    rig.cuda.at(rig.memory["update"], 16).view(np.float32)[:] = [1, 2, 3, 4]
    assert rig.run()
    cache = rig.cuda.at(rig.memory["cache"], 64).view(np.float32).reshape(8, 2)
    assert cache[3:5].tolist() == [[1, 2], [3, 4]]
    assert not cache[:3].any()
    assert rig.cuda.at(rig.memory["y"], 8).view(np.float32).tolist() == [3, 7]


def test_a_cache_that_is_apart(rig: Rig) -> None:
    assert rig.context.set_tensor_address("present_key", rig.memory["other"])
    assert not rig.run()
    assert rig.said == ["present_key must lie where past_key lies"]


def test_a_cache_that_is_not(cuda: StandInCuda, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "g.onnx", cuda, aliases=False)
    assert rig.run()
    assert rig.context.set_tensor_address("present_key", rig.memory["cache"])
    assert not rig.run()
    assert rig.said == ["present_key must not lie where past_key lies"]


def test_a_shape_outside_the_profile(rig: Rig) -> None:
    assert not rig.context.set_input_shape("update", (1, 1, 5, 2))
    assert rig.said == ["update of (1, 1, 5, 2) is outside profile 1"]


def test_a_tensor_without_memory(rig: Rig) -> None:
    del rig.context.addresses["y"]
    assert not rig.run()
    assert rig.said == ["no memory for ['y']"]


def test_scratch_memory_that_is_too_small_or_gone(rig: Rig) -> None:
    address, size = rig.context.scratch or (0, 0)
    rig.context.set_device_memory(address, size - 1)
    assert not rig.run()
    rig.context.set_device_memory(address, size)
    assert rig.run()
    must(rig.cuda.cudaFree(address))
    assert not rig.run()
    assert "4096 bytes are needed" in rig.said[0]
    assert "are not the device's" in rig.said[1]


def test_recording_what_never_ran(rig: Rig) -> None:
    mode = rig.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    must(rig.cuda.cudaStreamBeginCapture(rig.stream, mode))
    assert not rig.context.execute_async_v3(rig.stream)
    must(rig.cuda.cudaStreamEndCapture(rig.stream))
    assert rig.said == ["it was not run with these shapes before it is recorded"]
    assert rig.run()
    must(rig.cuda.cudaStreamBeginCapture(rig.stream, mode))
    assert rig.context.execute_async_v3(rig.stream)
    assert not rig.context.set_optimization_profile_async(0, rig.stream)
