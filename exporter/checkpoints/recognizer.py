"""Text recognisers as OpenOCR, PaddleOCR and seqrt save them, under the names of graphs/cppd.py and graphs/nrtr.py.

    OpenOCR     .pth, a dictionary with `state_dict`; names encoder.* and decoder.*; Linear weights [out, in]
    PaddleOCR   .pdparams; names backbone.* and head.*; Linear weights [in, out]; an edge decoder with other names
    seqrt       a directory with config.json and model.safetensors, in the names of the graphs themselves

Sizes are read off the tensors. What tensors do not say is in config.json beside them, or asked for.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.paddle import read_paddle
from seqrt.exporter.checkpoints.reading import Safetensors, read_json, read_torch
from seqrt.graphs.cppd import Cppd, CppdConfig
from seqrt.graphs.nrtr import Nrtr, NrtrConfig
from seqrt.graphs.svtr import PATCH, Mixer, SvtrConfig
from seqrt.runtime.bundle import Size

State = dict[str, Tensor]
Kind = Literal["cppd", "nrtr"]

# Heights and widths that published models have, by how many tokens have a position; others are 32 pixels high.
_SIZES: Final[Mapping[int, tuple[int, int]]] = {480: (48, 160), 1024: (64, 256)}
_HEIGHT: Final = 32
_SUFFIXES: Final = (".pth", ".pt", ".pdparams", ".safetensors")
_BLOCK: Final = re.compile(r"(encoder\.stages\.\d+)\.(\d+)\.")
_UNUSED: Final = re.compile(r"\.num_batches_tracked$|\.normkv\.|\.pe$")

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


@dataclass(frozen=True, slots=True)
class RecognizerCheckpoint:
    """A recogniser that was read.

    Attributes:
        name: for people.
        kind: how it reads.
        model: in eval mode, with its weights.
        settings: what config.json says, empty without one.
    """

    name: str
    kind: Kind
    model: Cppd | Nrtr
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> CppdConfig | NrtrConfig:
        """Its shape."""
        return self.model.config


def is_recognizer(path: Path) -> bool:
    """Whether `path` looks like a recogniser rather than a language model: by its file name or its config.json."""
    if path.is_dir():
        return (path / "config.json").is_file() and "recognizer" in read_json(path / "config.json")
    return path.suffix in _SUFFIXES


def open_recognizer(path: Path, size: Size | None = None) -> RecognizerCheckpoint:
    """Reads a recogniser.

    Args:
        path: a file of OpenOCR or PaddleOCR, or a directory of seqrt.
        size: height and width of its images in pixels; what config.json or the number of positions says if None.

    Raises:
        CheckpointError: missing, damaged, no recogniser, or of a configuration that the size or its own tensors
            contradict; the message names the first tensor that differs.
    """
    file, settings = path, {}
    if path.is_dir():
        settings = read_json(path / "config.json").get("recognizer", {})
        file = path / "model.safetensors"
        size = size or (settings["height"], settings["width"])
    elif not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a .pth, .pdparams or .safetensors file or a directory")
    stored = _read(file)
    own = _own_names(stored)
    state = _with_edges(_turned(stored, own))
    kind: Kind = "nrtr" if "decoder.embedding.weight" in state else "cppd"
    model = _model(kind, file, state, size)
    _load(model, state, file, {mine: theirs for theirs, mine in own.items()})
    return RecognizerCheckpoint(path.stem, kind, model.eval(), settings)


def _read(file: Path) -> State:
    if file.suffix == ".pdparams":
        return read_paddle(file)
    if file.suffix == ".safetensors":
        store = Safetensors([file])
        return {name: store.read(name) for name in store.entries}
    return read_torch(file, "state_dict", "model")


def _own_names(stored: Iterable[str]) -> dict[str, str]:
    """Our name of each stored tensor that is used.

    Blocks of a stage are numbered anew, without what has no weights: SVTRv2 counts a reshape as a block.
    """
    own = {}
    for name in stored:
        if not _UNUSED.search(name):
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


def _turned(stored: State, own: Mapping[str, str]) -> State:
    """Float32 under our names; matrices `[in, out]`, as PaddleOCR and we have them and OpenOCR does not."""
    is_turned = any(name.startswith(("encoder.patch_embed.", "encoder.pope.")) for name in stored)
    state = {}
    for theirs, mine in own.items():
        value = stored[theirs].float()
        state[mine] = value.T.contiguous() if is_turned and _LINEAR.search(mine) else value
    if (places := state.get("decoder.places.positions")) is not None:
        state["decoder.places.positions"] = places.reshape(-1, places.shape[-1])
    return state


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


def _model(kind: Kind, file: Path, state: State, size: Size | None) -> Cppd | Nrtr:
    """A module of the shape that the tensors tell."""
    try:
        encoder = _encoder(state, size)
        num_classes = state["decoder.classes.weight"].shape[1]
        if kind == "nrtr":
            layers = _count(state, "decoder.layers")
            return Nrtr(NrtrConfig(encoder=encoder, num_classes=num_classes, num_layers=layers))
        layers = _count(state, "decoder.char_layers")
        length = state["decoder.places.embedding.weight"].shape[0] - 1
        return Cppd(CppdConfig(encoder=encoder, num_classes=num_classes, num_layers=layers, max_length=length))
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}: it is no CPPD or NRTR recogniser, or not whole") from error
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _encoder(state: State, size: Size | None) -> SvtrConfig:
    prefixes = [f"encoder.stages.{stage}" for stage in range(_count(state, "encoder.stages"))]
    mixers: list[tuple[Mixer, ...]] = []
    for prefix in prefixes:
        blocks = range(_count(state, prefix))
        mixers.append(tuple("global" if f"{prefix}.{i}.mixer.qkv.weight" in state else "conv" for i in blocks))
    positions, visual = state.get("encoder.positions"), state.get("decoder.positions")
    row_strides, (height, width) = (1, 2), size or (_HEIGHT, 4 * _HEIGHT)  # of SVTRv2: images of any size
    if positions is not None:
        before = positions.shape[1]
        height, width = size or _SIZES.get(before, (_HEIGHT, before * PATCH * PATCH // _HEIGHT))
        row_strides = (2, 2) if visual is None or before == 4 * visual.shape[1] else (1, 2)
    return SvtrConfig(
        height=height,
        width=width,
        dims=tuple(state[f"{prefix}.0.norm1.weight"].shape[0] for prefix in prefixes),
        mixers=tuple(mixers),
        row_strides=row_strides,
        kernel=state["encoder.stages.0.0.mixer.convs.0.weight"].shape[-1],
        num_convs=_count(state, "encoder.stages.0.0.mixer.convs"),
        has_positions=positions is not None,
    )


def _count(state: State, prefix: str) -> int:
    """How many parts a list has."""
    return len({name[len(prefix) + 1 :].partition(".")[0] for name in state if name.startswith(f"{prefix}.")})


def _load(model: Cppd | Nrtr, state: State, file: Path, theirs: Mapping[str, str]) -> None:
    """Gives the module its weights; the first tensor that does not fit is named as the file names it."""
    wanted = {name: value for name, value in model.state_dict().items() if not _UNUSED.search(name)}
    for name, value in wanted.items():
        shape = list(value.shape)
        if name not in state:
            raise CheckpointError(f"{file} lacks {name}, {shape}: it is of another configuration, or not whole")
        if list(state[name].shape) != shape:
            raise CheckpointError(
                f"{file} has {theirs.get(name, name)} of {list(state[name].shape)}, this configuration needs {shape};"
                " give the --image-size that it was trained with, or another checkpoint"
            )
    if surplus := sorted(state.keys() - wanted.keys()):
        name = theirs.get(surplus[0], surplus[0])
        raise CheckpointError(
            f"{file} has {name}, which a {type(model).__name__} has no place for; it cannot be exported"
        )
    model.load_state_dict(state, strict=False)
