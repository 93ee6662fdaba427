"""Names of a pointer model's tensors in the files of others, and ours: graphs/attention_model.py and graphs/ptrnet.py.

    attention-learn-to-route   attention model; the pointer network with a glimpse
    RL4CO                      the same two, under other names
    POMO                       attention model that must be told where to begin
    gchaperon                  the pointer network of the paper

Their Linear weights are `[out, in]`, ours `[in, out]`; their LSTM gates are input, forget, new, output.
"""

import re
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from seqrt.errors import CheckpointError
from seqrt.graphs.attention_model import TABLES

State = dict[str, Tensor]

_EMBEDDINGS: Final = ("init_embed.weight", "encoder.embedding.weight")
_EPSILON: Final = 1e-5  # of batch normalisation
_IGNORED: Final = re.compile(r"\.num_batches_tracked$|^projection_head\.|^encoder\.init_[hc]x$")
_ATTENTION: Final[tuple[tuple[str, str], ...]] = (
    # attention-learn-to-route; behind the alternatives, RL4CO
    (r"^(?:init_embed|encoder\.init_embedding\.init_embed)\.", "embedding."),
    (r"^(?:embedder|encoder\.net)\.layers\.", "layers."),
    (r"^(?:decoder\.)?project_node_embeddings\.", "nodes."),
    (r"^(?:decoder\.)?project_fixed_context\.", "graph."),
    (r"^(?:project_step_context|decoder\.context(?:_embedding)?\.project_context)\.", "context."),
    (r"^(?:decoder\.(?:pointer|logit_attention)\.)?project_out\.", "out."),
    (r"^(?:decoder\.context(?:_embedding)?\.)?W_placeholder$", "start"),
    (r"^(layers\.\d+)\.0\.module\.Wqkv\.", r"\1.qkv."),
    (r"^(layers\.\d+)\.0\.module\.out_proj\.", r"\1.out."),
    (r"^(layers\.\d+)\.0\.module\.", r"\1."),
    (r"^(layers\.\d+)\.1\.normalizer\.", r"\1.norm1."),
    (r"^(layers\.\d+)\.3\.normalizer\.", r"\1.norm2."),
    (r"^(layers\.\d+)\.2\.module\.(?:lins\.)?0\.", r"\1.fc1."),
    (r"^(layers\.\d+)\.2\.module\.(?:lins\.1|2)\.", r"\1.fc2."),
    # POMO
    (r"^encoder\.embedding\.", "embedding."),
    (r"^encoder\.layers\.", "layers."),
    (r"^(layers\.\d+)\.multi_head_combine\.", r"\1.out."),
    (r"^(layers\.\d+)\.addAndNormalization([12])\.norm(?:_by_EMB)?\.", r"\1.norm\2."),
    (r"^(layers\.\d+)\.feedForward\.W([12])\.", r"\1.fc\2."),
    (r"^decoder\.(?:node_prob_calculator\.)?Wq_(first|last|graph)\.", r"\1."),
    (r"^decoder\.(?:node_prob_calculator\.)?Wk\.", "key."),
    (r"^decoder\.(?:node_prob_calculator\.)?Wv\.", "value."),
    (r"^decoder\.(?:node_prob_calculator\.)?multi_head_combine\.", "out."),
)
_BIASED: Final = ("embedding", "qkv", "out", "fc1", "fc2", "graph")  # not in all layouts
_QUERY_KEY_VALUE: Final = (("W_query", "W_key", "W_val"), ("Wq.weight", "Wk.weight", "Wv.weight"))


def unwrapped(stored: State) -> State:
    """Without the prefixes that training frameworks put before a policy's names, and without what is not its own."""
    policy = {name.removeprefix("policy."): value for name, value in stored.items() if name.startswith("policy.")}
    state = policy or stored
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not _IGNORED.search(name)}


def is_known(state: State) -> bool:
    """Whether it is a pointer model of a layout that is known, be it one that is refused."""
    return _of_problems(state) is not None or _find(state) is not None


def layout_of(state: State) -> Callable[[State], tuple[State, dict[str, str]]]:
    """What turns such a state into ours, and the file's name of each tensor as far as it has one.

    Raises:
        CheckpointError: it is of no layout that is known, or for another problem.
    """
    if (why := _of_problems(state)) is not None:
        raise CheckpointError(why)
    if (found := _find(state)) is not None:
        return found
    raise CheckpointError(
        f"{min(state, default='nothing')!r} is in no layout that is known; pass a checkpoint of"
        " attention-learn-to-route, RL4CO, POMO or gchaperon/pointer-networks, or a directory of seqrt"
    )


def _find(state: State) -> Callable[[State], tuple[State, dict[str, str]]] | None:
    if {"start_symbol", "end_symbol", "encoder_c_0"} <= state.keys():
        return _ptrnet
    if "decoder_in_0" in state:
        return _glimpsing
    is_attention = any(re.match(r"(embedder|encoder\.net|encoder)\.layers\.0\.", name) for name in state)
    return _attention if is_attention and any(name.endswith(_EMBEDDINGS) for name in state) else None


def _of_problems(state: State) -> str | None:
    """Why a model of another problem or another kind is refused."""
    if any("init_embed_depot." in name for name in state):
        return (
            "init_embed_depot says that it is for a problem with a depot (vehicle routing, orienteering or prize"
            " collecting); take a model of the travelling salesman problem"
        )
    odd = next((name for name in state if re.search(r"\.experts\.|w_gate|poly_layer|dense_or_moe", name)), None)
    return None if odd is None else f"{odd} is of a mixture of experts or of PolyNet, which cannot be exported"


def _attention(stored: State) -> tuple[State, dict[str, str]]:
    """The attention model's tensors in our names, and the file's name of each as far as it has one."""
    own, names = {}, {}
    for theirs, value in stored.items():
        mine = theirs
        for pattern, replacement in _ATTENTION:
            mine = re.sub(pattern, replacement, mine)
        own[mine], names[mine] = value, theirs
    dim = own["embedding.weight"].shape[0]
    for prefix in {".".join(name.split(".")[:2]) for name in own if name.startswith("layers.")}:
        _join_projections(own, prefix)
        for norm in (f"{prefix}.norm1", f"{prefix}.norm2"):
            _fold_norm(own, norm, dim)
    state = {
        name: value.T.contiguous() if name.endswith(".weight") and value.ndim == 2 else value
        for name, value in own.items()
    }
    _divide(state, "nodes.weight", ("key.weight", "value.weight", "pointer.weight"), 1)
    _divide(state, "nodes.bias", ("key.bias", "value.bias", "pointer.bias"), 0)
    _divide(state, "context.weight", ("first.weight", "last.weight"), 0)
    if "start" in state:
        state["start"] = state["start"].reshape(2, dim)
    state.setdefault("start", torch.zeros(2, dim))  # POMO begins where it is told to
    state.setdefault("pointer.weight", torch.eye(dim))  # POMO points at the embeddings themselves
    state.setdefault("graph.weight", torch.zeros(dim, dim))
    _join_tables(state, dim)
    for module in [name.removesuffix(".weight") for name in state if name.endswith(".weight")]:
        if module.rpartition(".")[2] in _BIASED:
            state.setdefault(f"{module}.bias", torch.zeros(state[f"{module}.weight"].shape[1]))
    return state, names


def _join_projections(own: State, prefix: str) -> None:
    """Query, key and value become one matrix `[out, in]`; those of attention-learn-to-route are `[heads, in, out]`."""
    for parts in _QUERY_KEY_VALUE:
        if all(f"{prefix}.{part}" in own for part in parts):
            found = [own.pop(f"{prefix}.{part}") for part in parts]
            own[f"{prefix}.qkv.weight"] = torch.cat(
                [part.transpose(1, 2).flatten(0, 1) if part.ndim == 3 else part for part in found]
            )
    if f"{prefix}.W_out" in own:  # [heads, in, out]
        own[f"{prefix}.out.weight"] = own.pop(f"{prefix}.W_out").flatten(0, 1).T


def _fold_norm(own: State, norm: str, dim: int) -> None:
    """Scale and shift; of batch normalisation with its statistics in them, of RL4CO's layer norm nothing."""
    weight, bias = own.pop(f"{norm}.weight", torch.ones(dim)), own.pop(f"{norm}.bias", torch.zeros(dim))
    if f"{norm}.running_var" in own:
        weight = weight / torch.sqrt(own.pop(f"{norm}.running_var") + _EPSILON)
        bias = bias - own.pop(f"{norm}.running_mean") * weight
    own[f"{norm}.scale"], own[f"{norm}.shift"] = weight, bias


def _join_tables(state: State, dim: int) -> None:
    """Whatever is made of the embeddings becomes one matrix, with the glimpse's output projection in it."""
    if missing := [name for name in (*TABLES, "out") if f"{name}.weight" not in state]:
        raise CheckpointError(f"the matrix of {missing[0]} is missing: it is not whole")
    weights = {name: state.pop(f"{name}.weight") for name in (*TABLES, "out")}
    biases = {name: state.pop(f"{name}.bias", torch.zeros(dim)) for name in weights}
    for name, weight in weights.items():
        if weight.shape != (dim, dim):
            shape = list(weight.shape)[::-1]  # as the file has it
            raise CheckpointError(f"the matrix of {name} is {shape}, expected {[dim, dim]}; take another checkpoint")
    # (g O + o) . (h P + p) / sqrt D  =  g . (h P O' + p O') / sqrt D  +  (h P o + p o) / sqrt D
    out, pointer = weights.pop("out"), weights["pointer"]
    bias = biases.pop("out") * dim**-0.5
    weights["bias"], biases["bias"] = (pointer @ bias)[:, None], (biases["pointer"] @ bias)[None]
    weights["pointer"], biases["pointer"] = pointer @ out.T, biases["pointer"] @ out.T
    state["tables.weight"], state["tables.bias"] = torch.cat([*weights.values()], 1), torch.cat([*biases.values()])
    queries = (weights["first"], weights["last"])
    state["start"] = torch.stack([row @ weight for row, weight in zip(state["start"], queries, strict=True)])


def _divide(state: State, name: str, parts: tuple[str, ...], axis: int) -> None:
    if name in state:
        state |= zip(parts, (part.contiguous() for part in state.pop(name).chunk(len(parts), axis)), strict=True)


def _ptrnet(stored: State) -> tuple[State, dict[str, str]]:
    """gchaperon's: the end symbol is the state that the encoder begins with, too."""
    left = dict(stored)
    end, first = left.pop("end_symbol"), left.pop("attention.W1")
    state = {
        **_lstm(left, "encoder.{}_l0", ""),
        **_lstm(left, "decoder.{}_l0", "decoder."),
        "first_hidden": end,
        "first_cell": left.pop("encoder_c_0"),
        "decoder.start": left.pop("start_symbol"),
        "decoder.end": end,
        "decoder.pointer.ref.weight": first,  # multiplied from the right, as ours
        "decoder.pointer.query.weight": left.pop("attention.W2"),
        "decoder.pointer.v": left.pop("attention.v"),
    }
    zeros = torch.zeros(first.shape[1])
    state |= {"decoder.pointer.ref.bias": zeros, "decoder.pointer.query.bias": zeros}
    return state | left, {}


def _glimpsing(stored: State) -> tuple[State, dict[str, str]]:
    """The pointer network of attention-learn-to-route and RL4CO, whose encoder begins with zeros."""
    left = dict(stored)
    start = left.pop("decoder_in_0")
    state = {
        "embedding.weight": left.pop("embedding"),
        **_lstm(left, "encoder.lstm.{}_l0", ""),
        **_lstm(left, "decoder.lstm.{}", "decoder."),
        "first_hidden": torch.zeros(start.shape[0]),
        "first_cell": torch.zeros(start.shape[0]),
        "decoder.start": start,
    }
    for part in ("pointer", "glimpse"):
        state[f"decoder.{part}.v"] = left.pop(f"decoder.{part}.v")
        for mine, theirs in (("query", "project_query"), ("ref", "project_ref")):
            weight = left.pop(f"decoder.{part}.{theirs}.weight")
            state[f"decoder.{part}.{mine}.weight"] = weight.flatten(1).T.contiguous()
            state[f"decoder.{part}.{mine}.bias"] = left.pop(f"decoder.{part}.{theirs}.bias")
    return state | left, {}


def _lstm(left: State, name: str, prefix: str) -> State:
    """Input and recurrent weights, with gates in our order, and the sum of both biases; taken out of `left`."""
    both = left.pop(name.format("bias_ih")) + left.pop(name.format("bias_hh"))
    return {
        f"{prefix}input.weight": _gates(left.pop(name.format("weight_ih"))).T.contiguous(),
        f"{prefix}input.bias": _gates(both),
        f"{prefix}cell.hidden.weight": _gates(left.pop(name.format("weight_hh"))).T.contiguous(),
    }


def _gates(rows: Tensor) -> Tensor:
    into, keep, new, out = rows.chunk(4)
    return torch.cat([into, keep, out, new])
