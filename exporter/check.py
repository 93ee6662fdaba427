"""Every exported graph against the torch module that it was traced from, on random inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from seqrt.errors import ExportError
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import Compaction, Decoder
from seqrt.runtime.bundle import CHUNK

Arrays = Mapping[str, npt.NDArray[np.generic]]

_TOLERANCE: Final = 1e-3  # relative to the largest value of an output, or absolute below one
_HALF_TOLERANCE: Final = 2e-2  # of the norm: rounding at each of many layers adds up to more in single values
_MOST_INTEGERS, _MOST_HALF_INTEGERS = 0.1, 0.5
_FAULT: Final = "this is a fault of the exporter, please report it with the model's config (--no-check exports anyway)"
_ROWS: Final = 8, CHUNK  # attention is computed in two ways
_CAPACITY, _PAST = 192, 20


def check_decoder(path: Path, decoder: Decoder, *, half: bool = False) -> dict[str, float]:
    """Largest difference per output between the decoder graph and torch, on random trees behind a random text.

    Args:
        path: ONNX file.
        decoder: in float32.
        half: whether the graph computes in half precision, and may differ by as much.

    Raises:
        ExportError: a difference is above the tolerance.
    """
    few, many = (_check_rows(path, decoder, rows, half) for rows in _ROWS)
    return {name: max(few[name], many[name]) for name in few}


def _check_rows(path: Path, decoder: Decoder, rows: int, half: bool) -> dict[str, float]:
    config = decoder.config
    inputs = _decoder_inputs(config, rows)
    past = _past(decoder)
    for i, (key, value) in enumerate(past):
        inputs |= {f"past_key.{i}": key.numpy(), f"past_value.{i}": value.numpy()}
    names = ("token_ids", "ancestors", "depth", "past_len", "logit_rows")
    with torch.no_grad():
        _, logits, logsumexp, hidden, present = decoder(*(torch.from_numpy(inputs[name]) for name in names), past)
        every = decoder.readout.head(hidden[torch.from_numpy(inputs["logit_rows"])])
    found = run_exact(path, inputs)
    expected = {"topk_logits": logits, "logsumexp": logsumexp, "hidden": hidden}
    # Ties may come out in another order: what counts is that the chosen tokens have the logits they should.
    expected["topk_ids"] = torch.gather(every, 1, torch.from_numpy(found["topk_ids"].astype(np.int64)))
    found = {**found, "topk_ids": found["topk_logits"]}
    for i, (key, value) in enumerate(present):
        expected |= {f"present_key.{i}": key, f"present_value.{i}": value}
    return _compare(path, {name: value.numpy() for name, value in expected.items()}, found, half)


def check_compaction(path: Path, config: DecoderConfig, *, half: bool = False) -> dict[str, float]:
    """Largest difference between the compaction graph and torch, moving rows of random caches."""
    rng, shape = np.random.default_rng(0), (1, config.num_kv_heads, _CAPACITY, config.head_dim)
    caches = [f"{part}.{i}" for i in range(config.num_layers) for part in ("key", "value")]
    past = {name: rng.standard_normal(shape).astype(np.float32) for name in caches}
    rows = {"keep": np.array([_PAST + 1, _PAST + 3, _PAST + 4]), "write": np.array([_PAST])}
    found = run_exact(path, {**rows, **{f"past_{name}": array for name, array in past.items()}})
    keep, write = (torch.from_numpy(array) for array in rows.values())
    expected = {
        f"present_{name}": Compaction()(torch.from_numpy(array), keep, write).numpy() for name, array in past.items()
    }
    return _compare(path, expected, found, half)


def check_graph(
    path: Path, module: nn.Module, inputs: Arrays, outputs: list[str], *, half: bool = False
) -> dict[str, float]:
    """The same for a graph with plain inputs; of an integer output, the share of values that differ.

    Raises:
        ExportError: a difference is above the tolerance, or more integers differ than near ties account for.
    """
    with torch.no_grad():
        made = module(*(torch.from_numpy(value) for value in inputs.values()))
    made = made if isinstance(made, tuple) else (made,)
    expected = {name: value.numpy() for name, value in zip(outputs, made, strict=True)}
    found = run_exact(path, inputs)
    floats = {name: value for name, value in expected.items() if value.dtype == np.float32}
    differences = _compare(path, floats, found, half)
    for name in expected.keys() - floats.keys():
        differences[name] = share = float((found[name] != expected[name]).mean())
        if share > (_MOST_HALF_INTEGERS if half else _MOST_INTEGERS):
            raise ExportError(f"{path.name}: {share:.0%} of {name} differ from torch; {_FAULT}")
    return differences


def run_exact(path: Path, inputs: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """Runs a graph on ONNX Runtime in its own arithmetic, quantised weights in that too."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32, not int8, activations
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    halves = {node.name for node in session.get_inputs() if node.type == "tensor(float16)"}
    feeds = {name: value.astype(np.float16) if name in halves else value for name, value in inputs.items()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _compare(path: Path, expected: Arrays, found: Arrays, half: bool) -> dict[str, float]:
    worst: dict[str, float] = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ExportError(f"{path.name}: {name} has shape {found[name].shape}, torch gives {value.shape}")
        # What both hold impossible, -inf, does not differ.
        exact, given = value.astype(np.float64), found[name].astype(np.float64)
        both = np.isneginf(exact) & np.isneginf(given)
        exact[both] = given[both] = 0.0
        off = given - exact
        difference = float(np.abs(off).max())
        if half:
            is_close = np.linalg.norm(off) <= _HALF_TOLERANCE * np.linalg.norm(exact)
        else:
            is_close = difference <= _TOLERANCE * max(1.0, float(np.abs(exact).max()))
        if not is_close:
            raise ExportError(f"{path.name}: {name} differs from torch by {difference:.2g}; {_FAULT}")
        group = name.split(".")[0]
        worst[group] = max(worst.get(group, 0.0), difference)
    return worst


def _decoder_inputs(config: DecoderConfig, rows: int) -> dict[str, npt.NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(0, i)) for i in range(1, rows))]
    ancestors = np.eye(rows, dtype=np.bool_)
    for i, parent in enumerate(parents[1:], start=1):
        ancestors[i] |= ancestors[parent]
    tokens = rng.integers(0, config.vocab_size, (1, rows))
    if config.reads_pad:
        tokens[:, 1::2] = config.vocab_size
    inputs: dict[str, npt.NDArray[np.generic]] = {
        "token_ids": tokens,
        "ancestors": ancestors,
        "depth": ancestors.sum(1) - 1,
        "past_len": np.array([_PAST]),
        "logit_rows": np.array([0, rows - 1]),
    }
    return inputs


def _past(decoder: Decoder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Caches that hold a text, and behind it random numbers, which nobody may see.

    Keys and values of no text would do in float32; half precision makes large errors of such.
    """
    config, random = decoder.config, torch.Generator().manual_seed(0)
    shape = (1, config.num_kv_heads, _CAPACITY, config.head_dim)
    noise = [tuple(torch.randn(shape, generator=random) for _ in ("key", "value")) for _ in config.layer_kinds]
    rows = torch.arange(_PAST)
    tokens = torch.randint(config.vocab_size, (1, _PAST), generator=random)
    chain = torch.ones(_PAST, _PAST, dtype=torch.bool).tril()
    with torch.no_grad():
        *_, past = decoder(tokens, chain, rows, torch.tensor([0]), rows[-1:], noise)
    return past  # type: ignore[no-any-return]
