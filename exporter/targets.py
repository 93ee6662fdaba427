"""Who imports which operator since when: what `--target` takes, and how a graph is lowered to it.

A target is an engine in a version. What it lacks is lowered by a pass of exporter/passes.py where there is one; else
the export refuses, with the operator, the target and what to do: the machine that is to run it would find out too late.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from seqrt.errors import ExportError
from seqrt.exporter.passes import LOWERINGS, ConstantShapes, FoldRows, GatherHalves, GatherRows
from seqrt.runtime.bundle import weights_path

Dtype = Literal["fp32", "fp16", "bf16"]
Engine = Literal["ort", "rtx", "trt"]

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine to export for.

    Attributes:
        name: what --target takes.
        engine: whose version it is: ONNX Runtime, TensorRT-RTX or TensorRT.
        version: the first that its graphs run on.
        opset: the highest that its parser documents; graphs are stamped with it.
        source: what says so.
        proven: whether such graphs were parsed and built with it; else that is left to who has the engine.
        dtypes: of the floats; the first is the default.
    """

    name: str
    engine: Engine
    version: tuple[int, int]
    opset: int
    source: str
    proven: bool
    dtypes: tuple[Dtype, ...]

    @property
    def is_native(self) -> bool:
        """Whether the engine is ONNX Runtime, which takes caches of any size, unsigned codes and weights `[K, N]`."""
        return self.engine == "ort"


_HALF_FIRST: Final[tuple[Dtype, ...]] = ("fp16", "bf16", "fp32")

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        Target(
            name="ort",
            engine="ort",
            version=(1, 25),
            opset=24,
            source="every export runs its graphs on it",
            proven=True,
            dtypes=("fp32", "fp16"),  # the CPU provider has no bf16 kernels of these operators
        ),
        Target(
            name="rtx",
            engine="rtx",
            version=(1, 7),
            opset=24,
            source="tests/exporter/test_rtx_builds.py, TensorRT-RTX 1.7.1",
            proven=True,
            dtypes=_HALF_FIRST,
        ),
        Target(
            name="trt11",
            engine="trt",
            version=(11, 0),
            opset=25,
            source="TensorRT 11.x, ONNX opset guide",
            proven=False,
            dtypes=_HALF_FIRST,
        ),
        Target(
            name="trt10.16",
            engine="trt",
            version=(10, 16),
            opset=24,
            source="onnx-tensorrt 10.15, docs/operators.md: opset 9 to 24",
            proven=False,
            dtypes=_HALF_FIRST,
        ),
        Target(
            name="trt10.3",
            engine="trt",
            version=(10, 3),
            opset=20,
            source="onnx-tensorrt 10.1, docs/operators.md: opset 9 to 20",
            proven=False,
            dtypes=_HALF_FIRST,
        ),
    )
}

# Operators that an engine imports since some version. Those of _ALWAYS came earlier than any target.
_SINCE: Final[Mapping[str, Mapping[Engine, tuple[int, int]]]] = {
    "Attention": {"ort": (1, 25), "rtx": (1, 7), "trt": (10, 14)},
    "RMSNormalization": {"ort": (1, 25), "rtx": (1, 7), "trt": (10, 15)},
    "RotaryEmbedding": {"ort": (1, 25), "rtx": (1, 7), "trt": (10, 15)},
    "TensorScatter": {"ort": (1, 25), "rtx": (1, 7), "trt": (10, 15)},
    "Swish": {"ort": (1, 25), "rtx": (1, 7), "trt": (11, 0)},
    # Blocks came with opset 21; the parser of 10.3 documents 20, whatever its builder can do.
    "DequantizeLinear": {"ort": (1, 25), "rtx": (1, 7), "trt": (10, 15)},
}
_BASICS: Final = """
Add And Cast Clip Concat ConstantOfShape Conv Cos Div Equal Erf Exp Expand Gather GatherElements GatherND Gelu Gemm
GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log LogSoftmax MatMul Max Mul Neg Or Pad Pow Range
ReduceMean ReduceSum Relu Reshape ScatterElements Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh TopK
Transpose Unsqueeze Where
"""
_ALWAYS: Final = frozenset(_BASICS.split())
_ENGINES: Final[Mapping[Engine, str]] = {"ort": "ONNX Runtime", "rtx": "TensorRT-RTX", "trt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A target and the type of its floats: one form of every graph of a bundle."""

    target: Target
    dtype: Dtype

    @property
    def name(self) -> str:
        """For messages and file names."""
        return f"{self.target.name}-{self.dtype}"

    @property
    def weights(self) -> str:
        """Name of the file with its weights, which variants with the same name share."""
        return PurePosixPath(weights_path(self.target.name, self.dtype)).name

    def file(self, role: str) -> str:
        """Name of the graph's file."""
        return f"{role}.onnx" if (self.target.name, self.dtype) == ("ort", "fp32") else f"{role}.{self.name}.onnx"

    def lower(self, model: ir.Model) -> None:
        """Rewrites a graph of native operators for the target and stamps its opset.

        Raises:
            ExportError: the target lacks an operator that nothing stands in for.
        """
        if self.target.is_native and self.dtype == "fp32":  # for CPUs; half precision is for GPUs
            FoldRows()(model)
            GatherRows()(model)
        if not self.target.is_native:
            GatherHalves()(model)
        ConstantShapes()(model)
        RemoveUnusedNodesPass()(model)  # engines run what nobody reads
        for op_type in sorted({node.op_type for node in model.graph}):
            if not imports(self.target, op_type) and op_type in LOWERINGS:
                LOWERINGS[op_type]()(model)
        for node in model.graph:
            require(self.target, node.op_type, str(model.graph.name))
        model.graph.opset_imports[""] = self.target.opset


def variants(targets: tuple[str, ...], dtypes: tuple[str, ...]) -> list[Variant]:
    """Each target in each type; in its own first one without types, in that of `NAME:TYPE` alone where it has one.

    Raises:
        ExportError: unknown target or type, or a target that has no such type.
    """
    found = []
    for text in dict.fromkeys(targets):
        name, colon, own = text.partition(":")
        if name not in TARGETS:
            raise ExportError(f"--target {name} is unknown; choose from {', '.join(TARGETS)}")
        target = TARGETS[name]
        for dtype in [own] if colon else dict.fromkeys(dtypes or target.dtypes[:1]):
            if dtype not in TORCH_DTYPES:
                given = f"--target {text}: {dtype!r}" if colon else f"--dtype {dtype}"
                raise ExportError(f"{given} is unknown; choose from {', '.join(TORCH_DTYPES)}")
            if dtype not in target.dtypes:
                raise ExportError(f"--dtype {dtype} is not for --target {name}; use {_listed(target.dtypes)}")
            found.append(Variant(target, dtype))
    return found


def imports(target: Target, op_type: str) -> bool:
    """Whether the target's engine imports an operator."""
    if op_type in _ALWAYS:
        return True
    since = _SINCE.get(op_type, {}).get(target.engine)
    return since is not None and target.version >= since


def require(target: Target, op_type: str, user: str) -> None:
    """Checks that the target's engine imports an operator that `user`, a graph or an option, needs.

    Raises:
        ExportError: it does not.
    """
    if imports(target, op_type):
        return
    able = [name for name, other in TARGETS.items() if imports(other, op_type)]
    remedy = f"use --target {_listed(able)}" if able else "report this model"
    version = f"{_ENGINES[target.engine]} {target.version[0]}.{target.version[1]}"
    raise ExportError(f"--target {target.name}: {user} needs the operator {op_type}, which {version} lacks; {remedy}")


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
