"""A torch module to an ONNX graph of standard operators."""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from seqrt.errors import ExportError, first_line
from seqrt.exporter.lowering import TRANSLATIONS
from seqrt.exporter.origins import read_origins

OPSET = 24

_LARGEST = 1 << 20  # bound of every symbolic dimension; torch.export wants one


def trace(
    name: str,
    module: nn.Module,
    arguments: Mapping[str, Tensor],
    outputs: Sequence[str],
    symbols: Mapping[str, Mapping[int, str]],
) -> ir.Graph:
    """Traces `module(*arguments)`.

    Args:
        name: of the graph, and of the module in its nodes' origins.
        module: its parameters become initialisers under their names.
        arguments: example inputs by name, in the order of `forward`; symbolic dimensions at least 2.
        outputs: names for the outputs.
        symbols: of each input, which dimensions are symbolic and what they are called.

    Raises:
        ExportError: torch could not express the module as standard operators.
    """
    used = {symbol for axes in symbols.values() for symbol in axes.values()}
    dims = {symbol: torch.export.Dim(symbol, min=0 if symbol == "A" else 1, max=_LARGEST) for symbol in used}
    axes_of = [{axis: dims[symbol] for axis, symbol in symbols.get(key, {}).items()} for key in arguments]
    dynamic = _nested(module, axes_of)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(value.clone() for value in arguments.values()),  # one tensor given twice would be one input
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
                dynamic_shapes=dynamic,
                input_names=list(arguments),
                output_names=list(outputs),
                verbose=False,
                optimize=False,
            )
            if program is not None:
                _optimize(program, {parameter for parameter, _ in module.named_parameters()})
        except Exception as error:
            raise ExportError(f"torch could not trace {type(module).__name__}: {first_line(error)}") from error
    if program is None:
        raise ExportError(f"torch returned no graph for {type(module).__name__}")
    graph = program.model.graph
    graph.name = name
    read_origins(graph, dict(module.named_modules()))
    return graph


def _nested(module: nn.Module, shapes: Sequence[object]) -> tuple[object, ...]:
    """One for each parameter of `forward`: `*tensors` is one of them, and takes a tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    single = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:single], tuple(shapes[single:]))


def _optimize(program: torch.onnx.ONNXProgram, parameters: set[str]) -> None:
    """Runs torch's optimiser, from which the parameters' values, placeholders all of them, are hidden.

    It would fold what is computed from parameters alone into constants, and merge parameters that are equal.
    """
    graph = program.model.graph
    hidden = {name: graph.initializers[name].const_value for name in parameters & graph.initializers.keys()}
    for name in hidden:
        graph.initializers[name].const_value = None
    program.optimize()
    for name, value in hidden.items():
        if name in graph.initializers:
            graph.initializers[name].const_value = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the warnings and logs of torch.onnx from the user; its errors still come as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
