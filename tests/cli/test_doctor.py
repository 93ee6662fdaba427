import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import seqrt.cli

Seqrt = Callable[..., Any]
PROBE = Path(seqrt.cli.__file__).with_name("opset24.onnx")


def make_probe() -> bytes:
    """The model that `doctor` tries: past [1, 1, 2, 1] with one row of it overwritten."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("TensorScatter", ["past", "update", "write"], ["present"], axis=2)
    shapes = {"past": [1, 1, 2, 1], "update": [1, 1, 1, 1]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("write", TensorProto.INT64, [1]))
    output = helper.make_tensor_value_info("present", TensorProto.FLOAT, [1, 1, 2, 1])
    graph = helper.make_graph([node], "probe", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11, producer_name="seqrt")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def test_the_probe_is_what_make_probe_makes() -> None:
    assert PROBE.read_bytes() == make_probe()


def test_this_machine_works(seqrt: Seqrt) -> None:
    result = seqrt("doctor", "--json")
    document = json.loads(result.out)
    states = {condition["name"]: condition["state"] for condition in document["conditions"]}
    assert result.code == 0
    assert document["cpu_inference"] is True
    assert states["opset 24"] == states["onnxruntime"] == states["numpy"] == states["export"] == "ok"
    lines = seqrt("doctor").out.splitlines()
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in lines] == list(states)


def test_without_onnxruntime(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = seqrt("doctor")
    assert result.code == 1
    assert "failed  onnxruntime: " in result.out
    assert "run: pip install 'seqrt[cpu]'" in result.out
    assert "inference on the CPU does not work here" in result.error


def test_a_missing_extra_is_no_failure(seqrt: Seqrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = seqrt("doctor")
    assert result.code == 0
    assert "absent  export: no torch, onnx, onnx_ir" in result.out
    assert "pip install 'seqrt[export]'" in result.out
