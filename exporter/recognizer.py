"""A text recogniser's checkpoint to a bundle: one static graph for CPPD, an encoder and a step for NRTR."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from seqrt.errors import ExportError
from seqrt.exporter.checkpoints.recognizer import RecognizerCheckpoint, open_recognizer
from seqrt.exporter.export import DEFAULT_TARGETS, Report
from seqrt.exporter.parts import Part, Progress, random_input, write_bundle
from seqrt.exporter.staging import check_replaceable
from seqrt.exporter.targets import Variant, variants
from seqrt.graphs.cppd import Cppd
from seqrt.graphs.nrtr import Nrtr, NrtrEncoder, NrtrStep
from seqrt.graphs.svtr import HEAD_DIM
from seqrt.runtime.bundle import CHARACTERS, RECIPES, Manifest, RecognizerInfo, Size

_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_SIGNS: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
DICTIONARIES: Final[Mapping[int, str]] = {  # by number of classes: the characters and the end of a word
    37: _LETTERS,
    95: _LETTERS + _LETTERS[10:].upper() + _SIGNS,
}
_BUCKETS: Final[tuple[Size, ...]] = ((64, 64), (48, 96), (40, 112), (32, 128))  # of SVTRv2, by ratio 1 to 4
_USUAL_RECIPES: Final[Mapping[Size, str]] = {  # of published models; others were trained with the last of RECIPES
    (32, 100): RECIPES[0],
    (48, 160): RECIPES[0],
    (32, 256): RECIPES[1],
    (64, 256): RECIPES[1],
}
_BATCH: Final = 2  # of example inputs; the graphs take any


def export_recognizer(
    source: Path,
    bundle: Path,
    *,
    dictionary: Path | None = None,
    size: Size | None = None,
    recipe: str | None = None,
    targets: Sequence[str] = DEFAULT_TARGETS,
    dtypes: Sequence[str] = (),
    check: bool = True,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Exports a recogniser as a bundle. Nothing appears at `bundle` before it is complete.

    Args:
        source: file of OpenOCR or PaddleOCR, or directory of seqrt.
        bundle: directory to make.
        dictionary: text file of the characters, one a line; the usual one of 36 or 94 characters if None.
        size: height and width of its images; what the checkpoint says if None.
        recipe: how images are made ready, one of RECIPES; what models of this size were trained with if None.
        targets: engines to export for.
        dtypes: types of floats, each for every target.
        check: compare every graph with torch.
        force: replace what is at `bundle`.
        progress: told what is being done.

    Raises:
        CheckpointError: the source cannot be read.
        ExportError: bad arguments, a dictionary of another length, a target that lacks an operator, a failed check.
    """
    wanted = variants(tuple(targets), tuple(dtypes))
    if recipe is not None and recipe not in RECIPES:
        raise ExportError(f"--recipe {recipe} is unknown; choose from {', '.join(RECIPES)}")
    check_replaceable(bundle, force)
    checkpoint = open_recognizer(source, size)
    info = _info(checkpoint, size, recipe)
    characters = _characters(checkpoint, dictionary)
    parts = _parts(checkpoint, info)
    _check_targets(checkpoint, wanted)
    manifest = Manifest(
        name=checkpoint.name,
        family=checkpoint.kind,
        task="ocr",
        capacity=checkpoint.config.max_length,
        quantization="none",
        recognizer=info,
        graphs=(),
        files={},
    )
    texts = {CHARACTERS: "".join(f"{character}\n" for character in characters)}
    differences = write_bundle(bundle, parts, wanted, manifest, texts, check=check, progress=progress)
    return Report(bundle, checkpoint.name, {}, {}, differences)


def _info(checkpoint: RecognizerCheckpoint, size: Size | None, recipe: str | None) -> RecognizerInfo:
    encoder = checkpoint.config.encoder
    own = (encoder.height, encoder.width)
    is_any = not encoder.has_positions and size is None and checkpoint.kind == "cppd"
    sizes = _BUCKETS if is_any else (own,)
    settings = checkpoint.settings
    recipe = recipe or (settings.recipe if settings is not None else _USUAL_RECIPES.get(own, RECIPES[2]))
    return RecognizerInfo(kind=checkpoint.kind, recipe=recipe, sizes=sizes, num_classes=checkpoint.config.num_classes)


def _characters(checkpoint: RecognizerCheckpoint, dictionary: Path | None) -> Sequence[str]:
    """One for each class but the first, which ends a word."""
    wanted = checkpoint.config.num_classes - 1
    if dictionary is None:
        own = None if checkpoint.settings is None else checkpoint.settings.characters
        found: Sequence[str] | None = own or DICTIONARIES.get(wanted + 1)
        if found is None:
            raise ExportError(
                f"{checkpoint.name} knows {wanted} characters and does not say which; give --dictionary FILE"
            )
    else:
        found = read_dictionary(dictionary)
    if len(found) != wanted or len(set(found)) != wanted or not all(found):
        where = f"--dictionary {dictionary}" if dictionary else checkpoint.name
        raise ExportError(
            f"{where} has {len(set(filter(None, found)))} different characters, the checkpoint knows {wanted};"
            " give the dictionary that it was trained with"
        )
    return found


def read_dictionary(file: Path) -> list[str]:
    """The characters of a text file, one a line.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeError) as error:
        raise ExportError(f"--dictionary {file} cannot be read: {error}; give a text file in UTF-8") from error


def _parts(checkpoint: RecognizerCheckpoint, info: RecognizerInfo) -> list[Part]:
    model = checkpoint.model.fold()
    if isinstance(model, Cppd):
        return [
            Part(role, model, {"image": _image(size)}, ("probabilities",), {"image": {0: "B"}}, _shared(model))
            for role, size in zip(info.roles, info.sizes, strict=True)
        ]
    return _autoregressive(model, info.sizes[0])


def _autoregressive(model: Nrtr, size: Size) -> list[Part]:
    """What runs once an image, and what runs once a character."""
    config, layers = model.config, range(model.config.num_layers)
    kept = [f"{part}.{i}" for i in layers for part in ("key", "value")]
    inputs = {"token_ids": torch.tensor([config.begin, 1]), "position": torch.tensor([3, 3])}
    # All different: else the check could not tell one from another.
    for rows, begin in ((config.num_steps, "past_"), (config.encoder.num_tokens, "cross_")):
        for seed, name in enumerate(kept):
            inputs[begin + name] = random_input(_BATCH, config.num_heads, rows, HEAD_DIM, seed=seed)
    encoder = [f"cross_{name}" for name in kept]
    step = ["probabilities", *(f"present_{name}" for name in kept)]
    return [
        Part("encoder", NrtrEncoder(model).eval(), {"image": _image(size)}, encoder, {"image": {0: "B"}}),
        Part("step", NrtrStep(model).eval(), inputs, step, {name: {0: "B"} for name in inputs}),
    ]


def _image(size: Size) -> torch.Tensor:
    """Smooth random pictures: what a recogniser is made for is not noise."""
    height, width = size
    coarse = random_input(_BATCH, 3, math.ceil(height / 8), math.ceil(width / 8))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return smooth.clamp(-1, 1)


def _shared(model: Cppd) -> dict[str, str]:
    """The graphs of several sizes have the same weights."""
    return {name: name for name in model.state_dict()}


def _check_targets(checkpoint: RecognizerCheckpoint, wanted: Sequence[Variant]) -> None:
    """The autoregressive recogniser is there to be compared with, where batches of any size share one cache."""
    for variant in wanted:
        if checkpoint.kind == "nrtr" and not variant.target.is_native:
            raise ExportError(
                f"--target {variant.target.name} takes no autoregressive recogniser, whose caches have any batch;"
                " use --target ort, or a CPPD"
            )
