"""Text recognisers as OpenOCR, PaddleOCR and seqrt save them.

    OpenOCR     .pth, a dictionary with `state_dict`
    PaddleOCR   .pdparams
    seqrt       a directory with config.json and model.safetensors, in the names of the graphs themselves

Sizes are read off the tensors. What tensors do not say is in config.json beside them, or asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.paddle import read_paddle
from seqrt.exporter.checkpoints.reading import Safetensors, read_json, read_settings, read_torch, told_of
from seqrt.exporter.checkpoints.recognizer_names import UNUSED, State, is_turned, our_state, own_names
from seqrt.graphs.cppd import Cppd, CppdConfig
from seqrt.graphs.nrtr import Nrtr, NrtrConfig
from seqrt.graphs.svtr import PATCH, Mixer, SvtrConfig
from seqrt.runtime.bundle import RECIPES, Size

Kind = Literal["cppd", "nrtr"]

# Heights and widths that published models have, by how many tokens have a position; others are 32 pixels high.
_SIZES: Final[Mapping[int, tuple[int, int]]] = {480: (48, 160), 1024: (64, 256)}
_HEIGHT: Final = 32
_SUFFIXES: Final = (".pth", ".pt", ".pdparams", ".safetensors")
_CONFIG: Final = "config.json"
_KEY: Final = "recognizer"  # of config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What config.json says beside a recogniser of seqrt.

    Attributes:
        height, width: of its images in pixels.
        row_strides: what divides the rows of tokens between stages.
        recipe: how images are made ready, of `bundle.RECIPES`.
        characters: of its classes, but for the end of a word.
    """

    height: int
    width: int
    recipe: str
    characters: str
    row_strides: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"the recipe {self.recipe!r:.40} is unknown; choose from {', '.join(RECIPES)}")
        if not self.characters or any(character.isspace() for character in self.characters):
            raise ValueError(f"the characters {self.characters!r:.40} hold a space or a new line, or are none")


@dataclass(frozen=True, slots=True)
class RecognizerCheckpoint:
    """A recogniser that was read.

    Attributes:
        name: for people.
        kind: how it reads.
        model: in eval mode, with its weights.
        settings: what config.json says, where there is one.
    """

    name: str
    kind: Kind
    model: Cppd | Nrtr
    settings: Settings | None = None

    @property
    def config(self) -> CppdConfig | NrtrConfig:
        """Its shape."""
        return self.model.config


def is_recognizer(path: Path) -> bool:
    """Whether `path` looks like a recogniser rather than a language model: by its file name or its config.json."""
    if path.is_dir():
        return (path / _CONFIG).is_file() and _KEY in read_json(path / _CONFIG)
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
    settings = read_settings(Settings, path, _KEY, "tools.ocr.model") if path.is_dir() else None
    file = path / "model.safetensors" if settings is not None else path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a file of torch, .pdparams, .safetensors, or a directory")
    stored = _read(file)
    with told_of(file, "CPPD or NRTR recogniser"):
        own = own_names(stored)
        state = our_state(stored, own)
        model = _model(state, size, settings)
        _load(model, state, stored, {mine: theirs for theirs, mine in own.items()})
    return RecognizerCheckpoint(path.stem, "nrtr" if isinstance(model, Nrtr) else "cppd", model.eval(), settings)


def _read(file: Path) -> State:
    if file.suffix == ".pdparams":
        return read_paddle(file)
    if file.suffix == ".safetensors":
        store = Safetensors([file])
        return {name: store.read(name) for name in store.entries}
    return read_torch(file, "state_dict", "model")


def _model(state: State, size: Size | None, settings: Settings | None) -> Cppd | Nrtr:
    """A module of the shape that the tensors tell."""
    if settings is not None:
        size = size or (settings.height, settings.width)
    encoder = _encoder(state, size, None if settings is None else settings.row_strides)
    num_classes = state["decoder.classes.weight"].shape[1]
    if "decoder.embedding.weight" in state:
        layers = _count(state, "decoder.layers")
        return Nrtr(NrtrConfig(encoder=encoder, num_classes=num_classes, num_layers=layers))
    layers = _count(state, "decoder.char_layers")
    length = state["decoder.places.embedding.weight"].shape[0] - 1
    return Cppd(CppdConfig(encoder=encoder, num_classes=num_classes, num_layers=layers, max_length=length))


def _encoder(state: State, size: Size | None, row_strides: tuple[int, ...] | None) -> SvtrConfig:
    prefixes = [f"encoder.stages.{stage}" for stage in range(_count(state, "encoder.stages"))]
    mixers: list[tuple[Mixer, ...]] = []
    for prefix in prefixes:
        blocks = range(_count(state, prefix))
        mixers.append(tuple("global" if f"{prefix}.{i}.mixer.qkv.weight" in state else "conv" for i in blocks))
    positions, visual = state.get("encoder.positions"), state.get("decoder.positions")
    strides, (height, width) = (1, 2), size or (_HEIGHT, 4 * _HEIGHT)  # of SVTRv2: images of any size
    if positions is not None:
        before = positions.shape[1]
        height, width = size or _SIZES.get(before, (_HEIGHT, before * PATCH * PATCH // _HEIGHT))
        strides = (2, 2) if visual is None or before == 4 * visual.shape[1] else (1, 2)
    return SvtrConfig(
        height=height,
        width=width,
        dims=tuple(state[f"{prefix}.0.norm1.weight"].shape[0] for prefix in prefixes),
        mixers=tuple(mixers),
        row_strides=row_strides or strides,
        kernel=state["encoder.stages.0.0.mixer.convs.0.weight"].shape[-1],
        num_convs=_count(state, "encoder.stages.0.0.mixer.convs"),
        has_positions=positions is not None,
    )


def _count(state: State, prefix: str) -> int:
    """How many parts a list has."""
    return len({name[len(prefix) + 1 :].partition(".")[0] for name in state if name.startswith(f"{prefix}.")})


def _load(model: Cppd | Nrtr, state: State, stored: State, theirs: Mapping[str, str]) -> None:
    """Gives the module its weights; the first that does not fit is named, with its shape, as the file has it."""
    wanted = {name: value for name, value in model.state_dict().items() if not UNUSED.search(name)}
    for name, value in wanted.items():
        needed = list(reversed(value.shape)) if is_turned(name, stored) else list(value.shape)
        if name not in state:
            raise CheckpointError(f"{name} {needed} is missing: it is of another configuration, or not whole")
        if state[name].shape != value.shape:
            key = theirs.get(name, name)
            has = list((stored[key] if key in stored else state[name]).shape)
            is_size = name.endswith("positions")
            advice = "give the --image-size that it was trained with" if is_size else "take another checkpoint"
            raise CheckpointError(f"{key} is {has}, this configuration needs {needed}; {advice}")
    if surplus := sorted(state.keys() - wanted.keys()):
        name = theirs.get(surplus[0], surplus[0])
        raise CheckpointError(f"{name} has no place in a {type(model).__name__}; it cannot be exported")
    model.load_state_dict(state, strict=False)
