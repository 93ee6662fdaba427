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
_MOST_INTEGERS: Final = 0.1
_FAULT: Final = "this is a fault of the exporter, please report it with the model's config (--no-check exports anyway)"
_ROWS: Final = 8, CHUNK  # attention is computed in two ways
_CAPACITY, _PAST = 192, 20


def check_decoder(path: Path, decoder: Decoder) -> dict[str, float]:
    """Largest difference per output between the decoder graph and torch, on random trees over a random cache.

    Raises:
        ExportError: a difference is above the tolerance.
    """
    few, many = (_check_rows(path, decoder, rows) for rows in _ROWS)
    return {name: max(few[name], many[name]) for name in few}


def _check_rows(path: Path, decoder: Decoder, rows: int) -> dict[str, float]:
    config = decoder.config
    inputs = _decoder_inputs(config, rows)
    past = [
        (torch.from_numpy(inputs[f"past_key.{i}"]), torch.from_numpy(inputs[f"past_value.{i}"]))
        for i in range(config.num_layers)
    ]
    names = ("token_ids", "ancestors", "depth", "past_len", "logit_rows")
    with torch.no_grad():
        _, logits, logsumexp, hidden, present = decoder(*(torch.from_numpy(inputs[name]) for name in names), past)
        every = decoder.readout.head(hidden[torch.from_numpy(inputs["logit_rows"])])
    found = run_exact(path, inputs)
    expected = {"topk_logits": logits, "logsumexp": logsumexp, "hidden": hidden}
    # Ties may come out in another order: what counts is that the chosen tokens have the logits they should.
    expected["topk_ids"] = torch.gather(every, 1, torch.from_numpy(found["topk_ids"]))
    found = {**found, "topk_ids": found["topk_logits"]}
    for i, (key, value) in enumerate(present):
        expected |= {f"present_key.{i}": key, f"present_value.{i}": value}
    return _compare(path, {name: value.numpy() for name, value in expected.items()}, found)


def check_compaction(path: Path, config: DecoderConfig) -> dict[str, float]:
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
    return _compare(path, expected, found)


def check_graph(path: Path, module: nn.Module, inputs: Arrays, outputs: list[str]) -> dict[str, float]:
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
    differences = _compare(path, floats, found)
    for name in expected.keys() - floats.keys():
        differences[name] = share = float((found[name] != expected[name]).mean())
        if share > _MOST_INTEGERS:
            raise ExportError(f"{path.name}: {share:.0%} of {name} differ from torch; {_FAULT}")
    return differences


def run_exact(path: Path, inputs: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """Runs a graph on ONNX Runtime in float32 arithmetic, quantised weights included."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32, not int8, activations
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _compare(path: Path, expected: Arrays, found: Arrays) -> dict[str, float]:
    worst: dict[str, float] = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ExportError(f"{path.name}: {name} has shape {found[name].shape}, torch gives {value.shape}")
        difference = float(np.abs(found[name].astype(np.float64) - value.astype(np.float64)).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(value).max())):
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
    inputs: dict[str, npt.NDArray[np.generic]] = {
        "token_ids": rng.integers(0, config.vocab_size, (1, rows)),
        "ancestors": ancestors,
        "depth": ancestors.sum(1) - 1,
        "past_len": np.array([_PAST]),
        "logit_rows": np.array([0, rows - 1]),
    }
    for i in range(config.num_layers):
        for part in ("key", "value"):
            shape = (1, config.num_kv_heads, _CAPACITY, config.head_dim)
            inputs[f"past_{part}.{i}"] = rng.standard_normal(shape).astype(np.float32)
    return inputs
