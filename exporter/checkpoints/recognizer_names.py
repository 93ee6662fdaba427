"""Names of a recogniser's tensors in OpenOCR's and PaddleOCR's files, and ours: graphs/cppd.py and graphs/nrtr.py.

The two differ in their first words and their edge decoders. OpenOCR stores Linear weights `[out, in]`, PaddleOCR and we
`[in, out]`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from seqrt.errors import CheckpointError

State = dict[str, Tensor]

_BLOCK: Final = re.compile(r"(encoder\.stages\.\d+)\.(\d+)\.")
_OPENOCR: Final = ("encoder.patch_embed.", "encoder.pope.")
UNUSED: Final = re.compile(r"\.num_batches_tracked$|\.normkv\.|\.pe$")

# Names of OpenOCR and, but for its first two words and its edge decoder, of PaddleOCR.
_NAMES: Final[tuple[tuple[str, str], ...]] = (
    (r"^backbone\.", "encoder."),
    (r"^head\.", "decoder."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
    (r"^encoder\.pos_embed$", "encoder.positions"),
    (r"^encoder\.patch_embed\.proj\.", "encoder.patch."),
    (r"^encoder\.pope\.patch_embed\.", "encoder.patch."),
    (r"^encoder\.sub_sample1\.", "encoder.reduce.0."),
    (r"^encoder\.sub_sample2\.", "encoder.reduce.1."),
    (r"^encoder\.blocks1\.", "encoder.stages.0."),
    (r"^encoder\.blocks2\.", "encoder.stages.1."),
    (r"^encoder\.blocks3\.", "encoder.stages.2."),
    (r"^encoder\.stages\.(\d+)\.downsample\.", r"encoder.reduce.\1."),
    (r"^encoder\.stages\.(\d+)\.blocks\.", r"encoder.stages.\1."),
    (r"\.mixer\.local_mixer\.", ".mixer.convs.0."),
    (r"^(encoder\.stages\.\d+\.\d+)\.mixer\.(\d+)\.", r"\1.mixer.convs.\2."),
    (r"^decoder\.vis_pos_embed$", "decoder.positions"),
    (r"^decoder\.char_pos_embed$", "decoder.places.positions"),
    (r"^decoder\.char_node_embed\.", "decoder.counted."),
    (r"^decoder\.pos_node_embed\.", "decoder.places."),
    (r"^decoder\.char_node_decoder\.", "decoder.char_layers."),
    (r"^decoder\.pos_node_decoder\.", "decoder.place_layers."),
    (r"^decoder\.edge_decoder\.0\.", "decoder.edge."),
    (r"^decoder\.edge_decoder\.(?=[a-z])", "decoder.edge."),
    (r"^decoder\.char_node_fc1\.", "decoder.count."),
    (r"^decoder\.pos_node_fc1\.", "decoder.reach."),
    (r"^decoder\.edge_fc\.", "decoder.classes."),
    (r"^decoder\.embedding\.embedding\.", "decoder.embedding."),
    (r"^decoder\.decoder\.(\d+)\.self_attn\.out_proj\.", r"decoder.layers.\1.own.proj."),
    (r"^decoder\.decoder\.(\d+)\.self_attn\.", r"decoder.layers.\1.own."),
    (r"^decoder\.decoder\.(\d+)\.cross_attn\.out_proj\.", r"decoder.layers.\1.cross.proj."),
    (r"^decoder\.decoder\.(\d+)\.cross_attn\.", r"decoder.layers.\1.cross."),
    (r"^decoder\.decoder\.(\d+)\.mlp\.", r"decoder.layers.\1."),
    (r"^decoder\.decoder\.(\d+)\.", r"decoder.layers.\1."),
    (r"^decoder\.tgt_word_prj\.", "decoder.classes."),
)
_LINEAR: Final = re.compile(
    r"\.(qkv|proj|q|kv|fc1|fc2|count|reach|classes)\.weight$|^decoder\.edge\.(p|pv|cv|p_proj)\.weight$"
)


def own_names(stored: Iterable[str]) -> dict[str, str]:
    """Our name of each stored tensor that is used.

    Blocks of a stage are numbered anew, without what has no weights: SVTRv2 counts a reshape as a block.
    """
    own = {}
    for name in stored:
        if not UNUSED.search(name):
            own[name] = name
            for pattern, replacement in _NAMES:
                own[name] = re.sub(pattern, replacement, own[name])
    blocks: dict[str, set[int]] = {}
    for name in own.values():
        if match := _BLOCK.match(name):
            blocks.setdefault(match[1], set()).add(int(match[2]))

    def renumbered(match: re.Match[str]) -> str:
        return f"{match[1]}.{sorted(blocks[match[1]]).index(int(match[2]))}."

    return {theirs: _BLOCK.sub(renumbered, mine) for theirs, mine in own.items()}


def is_turned(name: str, stored: Iterable[str]) -> bool:
    """Whether the tensor that we call so is stored the other way round in a file with such names."""
    return bool(_LINEAR.search(name)) and any(key.startswith(_OPENOCR) for key in stored)


def our_state(stored: State, own: Mapping[str, str]) -> State:
    """Float32 under our names and in our layout.

    Raises:
        CheckpointError: a tensor holds no floats, or values that are none; it is named as the file names it.
    """
    state = {}
    for theirs, mine in own.items():
        value = stored[theirs]
        if not value.is_floating_point():
            raise CheckpointError(f"{theirs} holds {value.dtype}, expected floats; save the model in float32")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{theirs} holds values that are no numbers; take an earlier checkpoint")
        state[mine] = value.float().T.contiguous() if is_turned(mine, stored) else value.float()
    if (places := state.get("decoder.places.positions")) is not None:
        state["decoder.places.positions"] = places.reshape(-1, places.shape[-1])
    return _with_edges(state)


def _with_edges(state: State) -> State:
    """PaddleOCR's edge decoder as ours: key and value both read the character stream, and are one matrix."""
    edge = "decoder.edge."
    if f"{edge}p.weight" not in state:
        return state
    for kind in ("weight", "bias"):
        query, key, value, out = (state.pop(f"{edge}{part}.{kind}") for part in ("p", "pv", "cv", "p_proj"))
        state[f"{edge}mixer.q.{kind}"] = query
        state[f"{edge}mixer.kv.{kind}"] = torch.cat([key, value], -1)
        state[f"{edge}mixer.proj.{kind}"] = out
    return state
